//! From logits to a token.
//!
//! A draw depends on (seed, position) alone and not on a generator's history: a session that is
//! rebuilt elsewhere goes on with the tokens it would have had.

mod adjustment;
mod summary;

use std::collections::HashMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

pub use self::adjustment::Adjustment;
pub use self::summary::{LogitsSummary, SummaryNeeds};

/// Nothing lighter than this, beside the most likely token, can ever be drawn in practice, nor change a sum: leaving
/// it out spares sorting the whole vocabulary.
const LIGHTEST: f64 = 1e-12;

/// How to choose the next token.
///
/// Order: logit bias, penalties, log-probabilities taken, temperature, top-k, top-p, min-p, draw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Keep this many most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest most likely tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens of at least this fraction of the most likely one's probability; 0 keeps all.
    pub min_p: f32,
    /// Divides positive logits, and multiplies negative ones, of tokens in prompt and answer; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens in the answer; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens in the answer, times their count; 0 is off.
    pub frequency_penalty: f32,
    /// Selects the draws.
    pub seed: u64,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Report the sampled token's log-probability.
    pub logprobs: bool,
    /// Report this many most likely tokens with their log-probabilities.
    pub top_logprobs: usize,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            logit_bias: Vec::new(),
            logprobs: false,
            top_logprobs: 0,
        }
    }
}

/// A sampling parameter out of its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("sampling: {name} is {found}; expected {expected}")]
pub struct SamplingError {
    /// The parameter.
    pub name: &'static str,
    /// Its value.
    pub found: f32,
    /// What would be right.
    pub expected: &'static str,
}

impl SamplingParams {
    /// True where a penalty needs the token ids of prompt and answer.
    #[must_use]
    pub fn needs_history(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }

    fn check(&self) -> Result<(), SamplingError> {
        let error = |name, found, expected| {
            Err(SamplingError {
                name,
                found,
                expected,
            })
        };
        if !(0.0..=100.0).contains(&self.temperature) {
            return error("temperature", self.temperature, "0 to 100");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return error("top_p", self.top_p, "above 0, at most 1");
        }
        if !(0.0..1.0).contains(&self.min_p) {
            return error("min_p", self.min_p, "0 or more, below 1");
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty <= 100.0) {
            return error(
                "repetition_penalty",
                self.repetition_penalty,
                "above 0, at most 100",
            );
        }
        for (name, found) in [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ] {
            if !(-100.0..=100.0).contains(&found) {
                return error(name, found, "-100 to 100");
            }
        }
        match self.logit_bias.iter().find(|(_, bias)| !bias.is_finite()) {
            Some((_, bias)) => error("logit_bias", *bias, "finite numbers"),
            None => Ok(()),
        }
    }
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token_id: u32,
    /// Its natural-log probability after biases and penalties, before temperature and filters.
    pub logprob: Option<f32>,
    /// The most likely tokens and their log-probabilities, best first.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// The sampler of one session.
pub struct Sampler {
    params: SamplingParams,
    /// The logit biases by token; fewer than listed where a token is listed twice.
    biases: HashMap<u32, f32>,
    prompt_tokens: usize,
    /// Positions observed so far; observing one again changes nothing.
    observed: usize,
    /// For each token seen: how often in all, and how often in the answer.
    counts: HashMap<u32, (u32, u32)>,
}

impl Sampler {
    /// `prompt_tokens`: the position of the first sampled token.
    ///
    /// # Errors
    /// [`SamplingError`] for a parameter out of its range.
    pub fn new(params: SamplingParams, prompt_tokens: usize) -> Result<Self, SamplingError> {
        params.check()?;
        Ok(Self {
            biases: params.logit_bias.iter().copied().collect(),
            params,
            prompt_tokens,
            observed: 0,
            counts: HashMap::new(),
        })
    }

    /// Takes note of the token at `position`, for the penalties. Positions come in order; one that was
    /// seen before is passed over.
    pub fn observe(&mut self, position: usize, token_id: u32) {
        if position < self.observed || !self.params.needs_history() {
            return;
        }
        self.observed = position + 1;
        let (total, answer) = self.counts.entry(token_id).or_default();
        *total += 1;
        *answer += u32::from(position >= self.prompt_tokens);
    }

    /// Chooses the token that will stand at `position`. `logits`: `[vocab_size]`, changed in place.
    pub fn sample(&self, logits: &mut [f32], position: usize) -> Sampled {
        self.adjust(logits);
        self.sample_adjusted(logits, position)
    }

    /// As [`Sampler::sample`], of logits that have their biases and penalties already.
    #[must_use]
    pub fn sample_adjusted(&self, logits: &[f32], position: usize) -> Sampled {
        let report = self.reports();
        let log_total = if report { log_sum_exp(logits) } else { 0.0 };
        let top_logprobs = most_likely(logits, self.params.top_logprobs)
            .into_iter()
            .map(|(token_id, logit)| (token_id, logit - log_total))
            .collect();
        let token_id = if self.params.temperature == 0.0 {
            argmax(logits)
        } else {
            self.pick(&self.candidates(logits), position)
        };
        let logprob = report.then(|| logits[token_id as usize] - log_total);
        Sampled {
            token_id,
            logprob,
            top_logprobs,
        }
    }

    /// True where log-probabilities are wanted.
    const fn reports(&self) -> bool {
        self.params.logprobs || self.params.top_logprobs > 0
    }

    /// What a candidate must weigh beside the most likely token.
    fn floor(&self) -> f64 {
        f64::from(self.params.min_p).max(LIGHTEST)
    }

    /// What a token weighs beside the most likely one.
    fn weight(&self, logit: f32, largest: f32) -> f64 {
        ((f64::from(logit) - f64::from(largest)) / f64::from(self.params.temperature)).exp()
    }

    /// Biases and penalties.
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^24")]
    fn adjust(&self, logits: &mut [f32]) {
        for (token_id, bias) in &self.params.logit_bias {
            if let Some(logit) = logits.get_mut(*token_id as usize) {
                *logit += bias;
            }
        }
        for (token_id, (_, answer)) in &self.counts {
            let Some(logit) = logits.get_mut(*token_id as usize) else {
                continue;
            };
            let repetition = self.params.repetition_penalty;
            *logit = if *logit > 0.0 {
                *logit / repetition
            } else {
                *logit * repetition
            };
            if *answer > 0 {
                *logit -=
                    self.params.presence_penalty + self.params.frequency_penalty * *answer as f32;
            }
        }
    }

    /// Draws one of the candidates.
    fn pick(&self, candidates: &[(u32, f64)], position: usize) -> u32 {
        let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
        let mut target = uniform(self.params.seed, position) * total;
        for (token_id, weight) in candidates {
            target -= weight;
            if target < 0.0 {
                return *token_id;
            }
        }
        // Rounding can leave a remainder after the last candidate.
        candidates.last().map_or(0, |(token_id, _)| *token_id)
    }

    /// The tokens that pass the filters and their weights, most likely first.
    fn candidates(&self, logits: &[f32]) -> Vec<(u32, f64)> {
        let largest = logits[argmax(logits) as usize];
        let floor = self.floor();
        let mut kept: Vec<(u32, f64)> = (0_u32..)
            .zip(logits)
            .map(|(token_id, logit)| (token_id, self.weight(*logit, largest)))
            .filter(|(_, weight)| *weight >= floor)
            .collect();
        self.cut(&mut kept);
        kept
    }

    /// Sorts what is above the floor, and keeps what top-k and top-p let pass.
    fn cut(&self, kept: &mut Vec<(u32, f64)>) {
        kept.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if self.params.top_k > 0 {
            kept.truncate(self.params.top_k);
        }
        if self.params.top_p < 1.0 {
            let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
            let mut left = f64::from(self.params.top_p) * total;
            let needed = kept.iter().take_while(|(_, weight)| {
                let more = left > 0.0;
                left -= weight;
                more
            });
            let needed = needed.count().max(1);
            kept.truncate(needed);
        }
    }
}

/// A number in `[0, 1)` that depends on seed and position alone: block `position` of ChaCha8's key stream.
#[expect(clippy::cast_precision_loss, reason = "53 bits are what an f64 holds")]
fn uniform(seed: u64, position: usize) -> f64 {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(position as u64);
    (generator.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// The index of the largest logit; the lowest index of several.
#[must_use]
pub fn argmax(logits: &[f32]) -> u32 {
    let best = (0_u32..)
        .zip(logits)
        .fold((0, f32::NEG_INFINITY), |best, (token_id, logit)| {
            if *logit > best.1 {
                (token_id, *logit)
            } else {
                best
            }
        });
    best.0
}

/// `ln Σ exp(logit)`.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "a logarithm of a sum of exponentials is near the largest logit"
)]
pub fn log_sum_exp(logits: &[f32]) -> f32 {
    let largest = f64::from(logits[argmax(logits) as usize]);
    let sum: f64 = logits
        .iter()
        .map(|logit| (f64::from(*logit) - largest).exp())
        .sum();
    (largest + sum.ln()) as f32
}

/// The `count` largest, best first; of equal ones the lowest index first, as in [`argmax`].
fn most_likely(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    if count == 0 {
        return Vec::new();
    }
    let mut all: Vec<(u32, f32)> = (0_u32..).zip(logits.iter().copied()).collect();
    // A negative zero is equal to a positive one.
    let order = |a: f32, b: f32| (a + 0.0).total_cmp(&(b + 0.0));
    let best_first = |a: &(u32, f32), b: &(u32, f32)| order(b.1, a.1).then(a.0.cmp(&b.0));
    let count = count.min(all.len());
    all.select_nth_unstable_by(count - 1, best_first);
    all.truncate(count);
    all.sort_unstable_by(best_first);
    all
}

#[cfg(test)]
mod tests;
