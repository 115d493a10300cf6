//! Who asks what, when, and over which network: the same for every way, and from one seed.

use edge_lite::calibrate::prompts::CalibrationPrompt;
use fastrand::Rng;

use crate::bench::relay::Network;

/// What is asked after an answer, so that a part of the requests goes on with a conversation.
pub const FOLLOW_UPS: [&str; 4] = [
    "Say that again in fewer words.",
    "Which part of that matters most?",
    "Thank you. Now explain it to a child.",
    "Is there anything that you would add?",
];

/// What a device can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Class {
    /// It runs no layers.
    Thin,
    /// It runs a third of them.
    Third,
    /// It runs two thirds of them, and guesses by an early exit behind them.
    TwoThirds,
    /// It holds the whole model and may answer alone.
    Whole,
}

impl Class {
    pub const ALL: [Self; 4] = [Self::Thin, Self::Third, Self::TwoThirds, Self::Whole];

    /// As the tables and the command line call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Thin => "thin",
            Self::Third => "third",
            Self::TwoThirds => "two-thirds",
            Self::Whole => "whole",
        }
    }

    /// Layers that it runs in a split of a model with `num_layers`. One that could run all of them splits as one that can
    /// run two thirds.
    pub const fn split_layer(self, num_layers: usize) -> usize {
        match self {
            Self::Thin => 0,
            Self::Third => num_layers / 3,
            Self::TwoThirds | Self::Whole => num_layers * 2 / 3,
        }
    }
}

/// One device and what its user does.
pub struct Device {
    pub class: Class,
    pub network: Network,
    pub conversations: Vec<Conversation>,
}

/// A prompt, and perhaps a question about the answer.
pub struct Conversation {
    /// Index into the prompts.
    pub prompt: usize,
    /// Index into [`FOLLOW_UPS`].
    pub follow_up: Option<usize>,
    /// Before each of its requests, in milliseconds.
    pub think_ms: [u64; 2],
}

/// How much there is of what.
pub struct Mix<'a> {
    /// One device of each class for each network.
    pub classes: &'a [Class],
    pub networks: &'a [Network],
    /// Of each device.
    pub conversations: usize,
    /// In the mean; times between are exponential.
    pub think_ms: u64,
    pub seed: u64,
}

/// The devices and what they ask. Devices of all classes ask the same over the same network, so that classes can be
/// compared.
pub fn devices(mix: &Mix<'_>, prompts: &[CalibrationPrompt]) -> Vec<Device> {
    let mut devices = Vec::new();
    for (index, network) in mix.networks.iter().enumerate() {
        for class in mix.classes {
            let mut draws = Rng::with_seed(mix.seed.wrapping_add((index as u64) << 32));
            let conversations = (0..mix.conversations)
                .map(|_| conversation(&mut draws, prompts.len(), mix.think_ms))
                .collect();
            devices.push(Device {
                class: *class,
                network: *network,
                conversations,
            });
        }
    }
    devices
}

fn conversation(draws: &mut Rng, prompts: usize, think_ms: u64) -> Conversation {
    Conversation {
        prompt: draws.usize(..prompts),
        follow_up: (draws.u8(..5) < 2).then(|| draws.usize(..FOLLOW_UPS.len())),
        think_ms: [exponential(draws, think_ms), exponential(draws, think_ms)],
    }
}

/// Exponential, with this mean.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times of seconds"
)]
fn exponential(draws: &mut Rng, mean: u64) -> u64 {
    (-(1.0 - draws.f64()).ln() * mean as f64) as u64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_same_seed_asks_the_same_of_every_class() {
        let network = Network {
            round_trip: Duration::from_millis(20),
            uplink_bits_per_second: None,
        };
        let prompt = CalibrationPrompt {
            id: "a".to_owned(),
            task: "a".to_owned(),
            prompt: "a".to_owned(),
            max_tokens: 1,
            earlier: Vec::new(),
        };
        let mix = Mix {
            classes: &Class::ALL,
            networks: &[network; 3],
            conversations: 50,
            think_ms: 1000,
            seed: 7,
        };
        let asked = |device: &Device| -> Vec<_> {
            let asked = device.conversations.iter();
            asked
                .map(|each| (each.prompt, each.follow_up, each.think_ms))
                .collect()
        };
        let prompts = vec![prompt; 300];
        let (first, second) = (devices(&mix, &prompts), devices(&mix, &prompts));
        assert_eq!(first.len(), 12);
        for (one, other) in first.iter().zip(&second) {
            assert_eq!(asked(one), asked(other));
        }
        assert_eq!(asked(&first[0]), asked(&first[3]));
        assert_ne!(asked(&first[0]), asked(&first[4]));
        let waits = asked(&first[0]);
        let mean = waits.iter().map(|wait| wait.2[0]).sum::<u64>() / 50;
        assert!((400..2500).contains(&mean), "{mean}");
    }
}
