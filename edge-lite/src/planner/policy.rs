//! What is asked, what is wanted, and what is allowed.

use headway_model::quantization::Quantization;
use headway_model::weights::WeightDtype;
use headway_wire::Codec;
use serde::Serialize;

use crate::prefill::Prefill;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Workload {
    /// Tokens of the prompt, at least one.
    pub prompt_tokens: usize,
    /// Tokens of the answer that are expected, at least one.
    pub answer_tokens: usize,
    /// Of the prompt, the part that the tail holds from earlier sessions, 0 to 1.
    pub cached_share: f64,
    /// How likely a guess of the next token is right, 0 to 1; 0 where nothing is guessed.
    pub right_share: f64,
}

impl Default for Workload {
    /// A question and a short answer.
    fn default() -> Self {
        Self {
            prompt_tokens: 64,
            answer_tokens: 128,
            cached_share: 0.0,
            right_share: 0.0,
        }
    }
}

/// What is wanted and allowed.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// What is best.
    pub objective: Objective,
    /// Codecs that may be used; those other than f32 are lossy.
    pub codecs: Vec<Codec>,
    /// Head quantisations that may be used; those other than `none` are lossy.
    pub quantizations: Vec<Quantization>,
    /// The type in which head weights are held; `None`: as [`ClientConfig::dtype`](crate::ClientConfig::dtype) says.
    pub dtype: Option<WeightDtype>,
    /// How the prompt may go up where layers run here and on the tail: by whichever is best, or as named.
    pub prefill: Prefill,
}

impl Default for Policy {
    /// The fastest plan that loses nothing.
    fn default() -> Self {
        Self {
            objective: Objective::LATENCY,
            codecs: vec![Codec::F32],
            quantizations: vec![Quantization::None],
            dtype: None,
            prefill: Prefill::Auto,
        }
    }
}

/// What is best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// The least latency of the whole answer, with a price in milliseconds of latency for each millisecond of the tail's
    /// compute.
    Weighted {
        /// The price; 0 or more.
        cost_weight: f64,
    },
    /// The least compute of the tail among plans whose answer takes at most so long; the fastest plan where there is
    /// none.
    Bound {
        /// For the whole answer; more than 0.
        latency_ms: f64,
    },
}

impl Objective {
    /// Latency alone.
    pub const LATENCY: Self = Self::Weighted { cost_weight: 0.0 };
}

impl std::str::FromStr for Objective {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |digits: &str| digits.parse::<f64>().ok().filter(|value| value.is_finite());
        let objective = match text.split_once('=') {
            None if text == "latency" => Some(Self::LATENCY),
            Some(("cost", weight)) => number(weight)
                .filter(|weight| *weight >= 0.0)
                .map(|cost_weight| Self::Weighted { cost_weight }),
            Some(("bound", bound)) => number(bound)
                .filter(|bound| *bound > 0.0)
                .map(|latency_ms| Self::Bound { latency_ms }),
            _ => None,
        };
        objective.ok_or_else(|| {
            format!(
                "{text} is no objective; expected latency, cost=WEIGHT (0 or more) or bound=MILLISECONDS (more than 0)"
            )
        })
    }
}
