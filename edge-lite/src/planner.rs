//! Which part of a model to run here, and how to send what goes up: the plan of least predicted latency under a price
//! for the tail's compute, or of least tail compute under a bound on latency.
//!
//! [`plan`] is pure: all that is measured comes in as [`PlannerInput`]. [`survey`](survey()) gathers it for a tail.
//! What is predicted, and from what, is in `docs/planner.md`.
//!
//! # Invariants
//! - Nothing lossy is chosen that the policy does not name.
//! - No alternative that is possible under the same policy is predicted to be better than the plan, but for splits that are
//!   so by less than predictions of splits err.

mod candidates;
mod explain;
mod measured;
mod policy;
mod predict;
mod survey;
#[cfg(test)]
mod tests;

use headway_model::manifest::Manifest;
use headway_model::quantization::Quantization;
use headway_model::tail_load::TailLoad;
use headway_wire::Codec;
use serde::{Serialize, Serializer};

pub use self::policy::{Objective, Policy, Workload};
pub use self::survey::{Survey, SurveyOptions, survey};

use self::candidates::candidates;
use self::measured::Measured;
use self::predict::predict;
use crate::config::ClientConfig;
use crate::link::Link;
use crate::prefill::Prefill;
use crate::profile::Profile;
use crate::report::Route;

/// All that a plan is made from.
#[derive(Clone, Debug)]
pub struct PlannerInput<'a> {
    /// What the tail serves.
    pub manifest: &'a Manifest,
    /// How busy it is, and what rows cost it.
    pub load: &'a TailLoad,
    /// This device.
    pub profile: &'a Profile,
    /// The way between them.
    pub link: Link,
    /// Round trips from nothing to an open session: TCP, the WebSocket's upgrade and Open; one more with TLS. For a link
    /// on which none was opened yet.
    pub open_round_trips: u32,
    /// What is asked.
    pub workload: Workload,
    /// What is wanted and allowed.
    pub policy: &'a Policy,
}

/// What the prompt goes up as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptForm {
    /// Nothing goes up.
    Nothing,
    /// Token ids: 4 bytes each, and all layers run on the tail.
    TokenIds,
    /// What the head layers made of them.
    HiddenStates,
}

/// What to run here, and how to send what goes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Layers that run here.
    pub split_layer: usize,
    /// What the prompt goes up as.
    pub prefill: PromptForm,
    /// How hidden states go up.
    #[serde(serialize_with = "as_text")]
    pub codec: Codec,
    /// How head weights are quantised.
    pub head_quantization: Quantization,
    /// Positions of the prompt that go up at a time.
    pub prompt_chunk_positions: usize,
    /// Tokens to guess at a time; 0: none.
    pub draft_tokens: usize,
}

impl Plan {
    /// `config` with what was planned. How many tokens are guessed is learned while they are, so that stays as it is.
    #[must_use]
    pub fn configure(&self, config: ClientConfig) -> ClientConfig {
        ClientConfig {
            split_layer: Some(self.split_layer),
            codec: Some(self.codec),
            head_quantization: Some(self.head_quantization),
            prompt_chunk_positions: self.prompt_chunk_positions,
            prefill: match self.prefill {
                PromptForm::Nothing => config.prefill,
                PromptForm::TokenIds => Prefill::TokenIds,
                PromptForm::HiddenStates => Prefill::HiddenStates,
            },
            ..config
        }
    }
}

/// What a plan is predicted to give and to take.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// From the request to the first token.
    pub first_token_ms: f64,
    /// Each further token.
    pub token_ms: f64,
    /// From the request to the end.
    pub total_ms: f64,
    /// The tail's compute.
    pub tail_ms: f64,
    /// Sent up.
    pub up_bytes: f64,
    /// Memory of this device: weights, keys and values.
    pub memory_bytes: u64,
}

/// A plan and what it is predicted to give.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Alternative {
    /// Where the layers run.
    pub route: Route,
    /// What to do.
    #[serde(flatten)]
    pub plan: Plan,
    /// What it gives.
    #[serde(flatten)]
    pub prediction: Prediction,
}

/// Alternatives that are not possible, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Impossible {
    /// The first split layer that it is true of.
    pub first_split_layer: usize,
    /// The last one.
    pub last_split_layer: usize,
    /// Why not.
    pub reason: String,
}

/// The plan, and what else there was.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Planned {
    /// The plan.
    pub best: Alternative,
    /// Whether it keeps the bound, where one was set.
    pub keeps_bound: Option<bool>,
    /// The best one of each split layer that is possible, ascending.
    pub by_split_layer: Vec<Alternative>,
    /// What is not possible.
    pub impossible: Vec<Impossible>,
    /// How many alternatives were compared.
    pub compared: usize,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// A number of the workload or the policy is outside what is allowed.
    #[error("{name} is {got}; expected {expected}")]
    Value {
        /// The field.
        name: &'static str,
        /// Its value.
        got: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// Something was not measured, or what was measured is no number.
    #[error("{what} is not known; `edge-lite profile --tail URL` measures it")]
    NotMeasured {
        /// What is missing.
        what: &'static str,
    },
    /// Every alternative is impossible.
    #[error("nothing is possible here: {}", list(reasons))]
    NothingPossible {
        /// Why not.
        reasons: Vec<Impossible>,
    },
}

fn list(reasons: &[Impossible]) -> String {
    let lines = reasons.iter().map(ToString::to_string);
    lines.collect::<Vec<_>>().join("; ")
}

/// The best plan for `input`.
///
/// # Errors
/// [`PlanError`] where a number is none, something needed was not measured, or nothing is possible.
pub fn plan(input: &PlannerInput<'_>) -> Result<Planned, PlanError> {
    check(input)?;
    let measured = Measured::of(input)?;
    let num_layers = input.manifest.identity.config.num_layers;
    let mut impossible: Vec<Impossible> = Vec::new();
    let mut by_split_layer = Vec::new();
    let mut compared = 0;
    for split_layer in 0..=num_layers {
        let mut best: Option<Alternative> = None;
        let candidates = candidates(input, split_layer);
        let mut why_not = candidates.as_ref().err().cloned();
        for plan in candidates.unwrap_or_default() {
            match predict(input, &measured, plan) {
                Ok((plan, prediction)) => {
                    compared += 1;
                    let alternative = Alternative {
                        route: Route::of(split_layer, num_layers),
                        plan,
                        prediction,
                    };
                    best = Some(better(input.policy.objective, best, alternative));
                }
                Err(reason) => why_not = Some(reason),
            }
        }
        match (best, why_not) {
            (Some(best), _) => by_split_layer.push(best),
            (None, Some(reason)) => note(&mut impossible, split_layer, reason),
            (None, None) => {}
        }
    }
    let objective = input.policy.objective;
    let best = by_split_layer.iter().fold(None, |best, alternative| {
        Some(better(objective, best, *alternative))
    });
    let Some(best) = best else {
        return Err(PlanError::NothingPossible {
            reasons: impossible,
        });
    };
    let keeps_bound = match objective {
        Objective::Bound { latency_ms } => Some(best.prediction.total_ms <= latency_ms),
        Objective::Weighted { .. } => None,
    };
    Ok(Planned {
        best,
        keeps_bound,
        by_split_layer,
        impossible,
        compared,
    })
}

/// Of consecutive split layers with the same reason, one line.
fn note(impossible: &mut Vec<Impossible>, split_layer: usize, reason: String) {
    match impossible.last_mut() {
        Some(last) if last.reason == reason && last.last_split_layer + 1 == split_layer => {
            last.last_split_layer = split_layer;
        }
        _ => impossible.push(Impossible {
            first_split_layer: split_layer,
            last_split_layer: split_layer,
            reason,
        }),
    }
}

/// As what a split's latency counts beside that of all layers here or all on the tail. It is made of more estimates, of
/// both sides, of the link and of what runs at the same time, and it is the best of many alternatives, which is where
/// errors that flatter are found: a split that is predicted to be a little faster is as likely to be slower. A tenth is
/// what answers are mispredicted by in the middle (`docs/benchmarks/plan.md`).
const SPLIT_CAUTION: f64 = 1.1;

/// The better one; of equals the one that costs the tail less, and then the earlier one.
fn better(objective: Objective, best: Option<Alternative>, other: Alternative) -> Alternative {
    let Some(best) = best else { return other };
    let rank = |of: &Alternative| {
        let Prediction {
            total_ms, tail_ms, ..
        } = of.prediction;
        match objective {
            Objective::Weighted { cost_weight } => [0.0, price(of, cost_weight), tail_ms],
            Objective::Bound { latency_ms } if total_ms <= latency_ms => [0.0, tail_ms, total_ms],
            Objective::Bound { .. } => [1.0, total_ms, tail_ms],
        }
    };
    let (ours, others) = (rank(&best), rank(&other));
    let order = ours.iter().zip(&others).map(|(a, b)| a.total_cmp(b));
    match order.reduce(std::cmp::Ordering::then) {
        Some(std::cmp::Ordering::Greater) => other,
        _ => best,
    }
}

/// Latency and the tail's compute, in milliseconds of latency.
fn price(of: &Alternative, cost_weight: f64) -> f64 {
    let caution = match of.route {
        Route::Split => SPLIT_CAUTION,
        Route::Device | Route::Cloud => 1.0,
    };
    caution * of.prediction.total_ms + cost_weight * of.prediction.tail_ms
}

fn check(input: &PlannerInput<'_>) -> Result<(), PlanError> {
    let Workload {
        prompt_tokens,
        answer_tokens,
        cached_share,
        right_share,
    } = input.workload;
    let value = |name, got: String, expected| {
        Err(PlanError::Value {
            name,
            got,
            expected,
        })
    };
    let most = input.manifest.max_positions;
    if prompt_tokens == 0 || prompt_tokens >= most {
        let expected = "at least 1, and fewer than the tail's positions";
        return value("prompt_tokens", prompt_tokens.to_string(), expected);
    }
    if answer_tokens == 0 {
        return value("answer_tokens", answer_tokens.to_string(), "at least 1");
    }
    for (name, share) in [("cached_share", cached_share), ("right_share", right_share)] {
        if !(0.0..=1.0).contains(&share) {
            return value(name, share.to_string(), "0 to 1");
        }
    }
    match input.policy.objective {
        Objective::Weighted { cost_weight } if !(cost_weight.is_finite() && cost_weight >= 0.0) => {
            value("cost_weight", cost_weight.to_string(), "0 or more")
        }
        Objective::Bound { latency_ms } if !(latency_ms.is_finite() && latency_ms > 0.0) => {
            value("latency_ms", latency_ms.to_string(), "more than 0")
        }
        _ => Ok(()),
    }
}

fn as_text<S: Serializer>(codec: &Codec, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(codec)
}
