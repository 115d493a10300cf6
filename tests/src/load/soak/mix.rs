//! What a player can do, and how often it does which.

use std::time::Duration;

use fastrand::Rng;

use super::steady::Manner;
use super::{World, crowd, hostile, steady};
use crate::load::credentials::{ROTATING_TENANT, STEADY_TENANTS};
use crate::load::replay::Offer;

/// One thing that a player does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// A whole answer.
    Answer,
    /// A connection that is dropped anywhere in prompt or answer.
    Cancel,
    /// A pause in the middle, in which the session may be evicted.
    Idle,
    /// Drafts, right and wrong.
    Drafts,
    /// A session that leaves its prefix, and one that offers it.
    Prefix,
    /// Digests of which no tail has heard.
    UnknownPrefix,
    /// Two tails, one of which is killed.
    TwoTails,
    /// A token that is withdrawn.
    Rotation,
    /// More sessions of one tenant than it may have.
    Crowd,
    /// Results that nobody reads for a while.
    SlowReader,
    /// A device that is gone without a word.
    HalfOpen,
    /// Connections that open nothing.
    Flood,
    /// Frames that make no sense.
    Garbage,
    /// Frames larger than any may be.
    Oversized,
    /// No bearer token, or a wrong one.
    WrongToken,
}

/// How often each act is drawn, of the sum of all.
const WEIGHTS: [(Act, u32); 15] = [
    (Act::Answer, 300),
    (Act::Cancel, 150),
    (Act::Idle, 120),
    (Act::Drafts, 130),
    (Act::Prefix, 60),
    (Act::UnknownPrefix, 40),
    (Act::TwoTails, 90),
    (Act::Rotation, 40),
    (Act::Crowd, 6),
    (Act::SlowReader, 10),
    (Act::HalfOpen, 4),
    (Act::Flood, 8),
    (Act::Garbage, 70),
    (Act::Oversized, 30),
    (Act::WrongToken, 40),
];

impl Act {
    /// All of them.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        WEIGHTS.into_iter().map(|(act, _)| act)
    }

    /// The name in reports.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Answer => "answers",
            Self::Cancel => "sessions cancelled by a dropped connection",
            Self::Idle => "sessions with a pause",
            Self::Drafts => "sessions with drafts",
            Self::Prefix => "prefixes kept and offered",
            Self::UnknownPrefix => "unknown prefixes offered",
            Self::TwoTails => "sessions with two tails, one of which is killed",
            Self::Rotation => "sessions with a token that is withdrawn",
            Self::Crowd => "crowds of one tenant",
            Self::SlowReader => "slow readers",
            Self::HalfOpen => "half-open connections",
            Self::Flood => "floods of connections",
            Self::Garbage => "garbage",
            Self::Oversized => "oversized frames",
            Self::WrongToken => "wrong bearer tokens",
        }
    }
}

/// A player's first act: between them, players begin with all.
pub(super) fn first(player: usize) -> Act {
    WEIGHTS[player % WEIGHTS.len()].0
}

/// The next act. One that must be waited for longer than the phase lasts is not drawn.
pub(super) fn draw(random: &mut Rng, world: &World) -> Act {
    let act = weighted(random);
    if act == Act::HalfOpen && world.time_left() < world.settings.half_open {
        return Act::Answer;
    }
    act
}

fn weighted(random: &mut Rng) -> Act {
    let all: u32 = WEIGHTS.iter().map(|(_, weight)| weight).sum();
    let mut drawn = random.u32(..all);
    for (act, weight) in WEIGHTS {
        if drawn < weight {
            return act;
        }
        drawn -= weight;
    }
    Act::Answer
}

/// Does it. What goes wrong is in the tally.
pub(super) async fn play(act: Act, world: &World, random: &mut Rng) {
    let tenant = STEADY_TENANTS[random.usize(..STEADY_TENANTS.len())];
    let plain = Manner::of(tenant);
    match act {
        Act::Answer => steady::answer(world, random, &plain).await,
        Act::Cancel => {
            let after = Duration::from_millis(random.u64(2..2_500));
            let whole = steady::answer(world, random, &plain);
            if tokio::time::timeout(after, whole).await.is_err() {
                world.tally.count("connections dropped in a session");
            }
        }
        Act::Idle => {
            let pauses = true;
            steady::answer(world, random, &Manner { pauses, ..plain }).await;
        }
        Act::Drafts => {
            let guesses = true;
            steady::answer(world, random, &Manner { guesses, ..plain }).await;
        }
        Act::Prefix => steady::kept_and_offered(world, random, &plain).await,
        Act::UnknownPrefix => {
            let offer = Offer::Partly(0);
            steady::answer(world, random, &Manner { offer, ..plain }).await;
        }
        Act::TwoTails => {
            let two_tails = true;
            steady::answer(world, random, &Manner { two_tails, ..plain }).await;
        }
        Act::Rotation => steady::answer(world, random, &Manner::of(ROTATING_TENANT)).await,
        Act::Crowd => crowd::open_too_many(world, random).await,
        Act::SlowReader => crowd::read_slowly(world, random, tenant).await,
        Act::HalfOpen => crowd::fall_silent(world, random, tenant).await,
        Act::Flood => crowd::flood(world, random, tenant).await,
        Act::Garbage => hostile::garbage(world, random, tenant).await,
        Act::Oversized => hostile::oversized(world, random, tenant).await,
        Act::WrongToken => hostile::wrong_token(world, random).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_act_is_drawn() {
        let mut random = Rng::with_seed(1);
        let drawn: Vec<_> = (0..5_000).map(|_| weighted(&mut random)).collect();
        assert!(Act::all().all(|act| drawn.contains(&act)));
    }
}
