//! How the prompt goes up where layers run here: as hidden states or as token ids.
//!
//! Hidden states of an 8B model are 8 KiB a token in 16 bits, a token id is at most 4 bytes. Where the uplink is
//! what a prompt waits for, the tail runs all layers on the prompt's token ids instead, and the head layers run
//! here beside it, because the answer's hidden states need their keys and values. No token changes with an f32
//! codec and unquantised head weights; with others the prompt is as good as unsplit. The tail does more work, keeps
//! the keys and values of all layers, and saves nothing for the prompt's rows.

use std::str::FromStr;

/// How the prompt goes up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefill {
    /// As seems best. Hidden states, as long as nothing plans.
    #[default]
    Auto,
    /// As the answer does.
    HiddenStates,
    /// As token ids. Needs a tail that holds all layers and takes token ids.
    TokenIds,
}

impl FromStr for Prefill {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "auto" => Ok(Self::Auto),
            "hidden-states" => Ok(Self::HiddenStates),
            "token-ids" => Ok(Self::TokenIds),
            _ => Err(format!(
                "{name} is no way to send a prompt; expected auto, hidden-states or token-ids"
            )),
        }
    }
}
