//! Why a part of an answer ran where it did.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::report::Route;

/// Why a segment began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RouteReason {
    /// There was nothing else to answer with.
    Only,
    /// The caller asked for it.
    Asked,
    /// The request must not leave this device.
    LocalOnly,
    /// The same model is here, and costs the tail nothing.
    SameModel,
    /// The companion is not calibrated against the tail's model.
    Uncalibrated,
    /// The request fits no session of the local model.
    NoRoom {
        /// Positions of prompt and answer.
        positions: usize,
        /// The most that the local model takes.
        most: usize,
    },
    /// The local model is expected to agree with the full one often enough.
    LocalSuffices {
        /// Share of tokens on which both are expected to agree.
        expected: f64,
        /// The least that is accepted.
        needed: f64,
    },
    /// It is not, by what the request looks like.
    LocalTooWeak {
        /// Share of tokens on which both are expected to agree.
        expected: f64,
        /// The least that is accepted.
        needed: f64,
    },
    /// It is not, by its own first tokens, which were not shown.
    LocalUnsure {
        /// Share of tokens on which both are expected to agree.
        expected: f64,
        /// The least that is accepted.
        needed: f64,
        /// Tokens that were looked at.
        tokens: usize,
    },
    /// It became unsure within the answer.
    LocalLost {
        /// Mean entropy of the last tokens, in nats.
        entropy: f64,
        /// The most that is accepted.
        most: f64,
    },
    /// The tail was known to be away.
    TailAway,
    /// The tail was lost just now.
    TailLost {
        /// What went wrong.
        error: String,
    },
    /// The tail is there again.
    TailBack,
}

impl fmt::Display for RouteReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: &f64| share * 100.0;
        match self {
            Self::Only => write!(f, "there was nothing else to answer with"),
            Self::Asked => write!(f, "this route was asked for"),
            Self::LocalOnly => write!(f, "the request must not leave this device"),
            Self::SameModel => write!(f, "the same model is here"),
            Self::Uncalibrated => {
                write!(f, "there are no thresholds for the local model yet")
            }
            Self::NoRoom { positions, most } => write!(
                f,
                "the request takes {positions} positions, and the local model has {most}"
            ),
            Self::LocalSuffices { expected, needed } => write!(
                f,
                "the local model should agree on {:.0} % of the tokens, and {:.0} % are enough",
                percent(expected),
                percent(needed)
            ),
            Self::LocalTooWeak { expected, needed } => write!(
                f,
                "the local model should agree on {:.0} % of the tokens only, and {:.0} % are needed",
                percent(expected),
                percent(needed)
            ),
            Self::LocalUnsure {
                expected,
                needed,
                tokens,
            } => write!(
                f,
                "after {tokens} tokens the local model should agree on {:.0} % only, and {:.0} % are needed",
                percent(expected),
                percent(needed)
            ),
            Self::LocalLost { entropy, most } => write!(
                f,
                "the local model became unsure: {entropy:.2} nats a token, and {most:.2} are accepted"
            ),
            Self::TailAway => write!(f, "the tail is away"),
            Self::TailLost { error } => write!(f, "the tail was lost: {error}"),
            Self::TailBack => write!(f, "the tail is there again"),
        }
    }
}

/// Consecutive tokens of an answer that came from one place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// Where its layers ran.
    pub route: Route,
    /// Tokens, without the one that ended the turn.
    pub tokens: usize,
    /// Why it began.
    pub reason: RouteReason,
    /// The same as a sentence.
    pub why: String,
}

impl Segment {
    /// One without tokens yet.
    pub(crate) fn new(route: Route, reason: RouteReason) -> Self {
        Self {
            route,
            tokens: 0,
            why: reason.to_string(),
            reason,
        }
    }

    /// A whole answer of an engine that has no other beside it.
    pub(crate) fn only(route: Route, tokens: usize) -> Self {
        Self {
            tokens,
            ..Self::new(route, RouteReason::Only)
        }
    }
}
