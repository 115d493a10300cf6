//! What a generation tells its caller.

use crate::report::Report;

/// One item of a [`crate::Generation`].
#[derive(Clone, Debug)]
pub enum Event {
    /// A token was sampled.
    Token(TokenEvent),
    /// Text that had been held back as a possible stop string or an unfinished character; at the end only.
    Rest {
        /// The text.
        text: String,
    },
    /// The generation is over; nothing follows.
    Report(Box<Report>),
}

/// A sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEvent {
    /// The token.
    pub token_id: u32,
    /// The text that can be shown now. Empty while a character or a possible stop string is incomplete;
    /// it then comes with a later token.
    pub text: String,
    /// Natural logarithm of the token's probability, where it was asked for.
    pub logprob: Option<f32>,
    /// The most likely tokens at this position, where they were asked for.
    pub top_logprobs: Vec<(u32, f32)>,
}
