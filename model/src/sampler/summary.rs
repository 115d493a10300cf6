//! Sampling from what a device found out about a row of logits, in place of the row.
//!
//! A row of a large vocabulary is half a megabyte, and what decides about the next token is nearly always among a few
//! hundred candidates and a sum. Where it is not, [`Sampler::sample_summary`] says so, and
//! [`Sampler::sample_row`] goes on from there with the row.

use std::borrow::Cow;

use self::ordered::Ordered;
use super::{Sampled, Sampler, argmax, most_likely, uniform};

mod ordered;

/// The most by which a device's sums may be off, over the sums. Where a draw depends on less, the summary is not
/// enough.
const RELATIVE_ERROR: f64 = 2e-6;

/// The most by which a sum of weights that is taken here may be off, over the sum.
const ROUNDING: f64 = 1e-12;

/// Below this temperature the weights of a device's arithmetic are not relied on.
const LOWEST_TEMPERATURE: f32 = 1e-6;

/// What is to be found out about a row, beside its largest logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SummaryNeeds {
    /// With weights for this temperature; 0 for none.
    pub temperature: f32,
    /// What a token must weigh to be in the sum of weights.
    pub floor: f64,
    /// With the sum over all tokens at temperature 1.
    pub log_total: bool,
    /// With more candidates than the largest logit.
    pub candidates: bool,
}

/// What a device found out about a row of logits, after biases and penalties.
#[derive(Clone, Debug, PartialEq)]
pub struct LogitsSummary<'a> {
    /// How many logits the row has.
    pub vocab_size: usize,
    /// The most likely tokens: token id and the bits of the f32 logit, largest first, of equal ones the lowest id
    /// first. At least one; no token that is left out comes before one of them. -0.0 is given as 0.0.
    pub candidates: Cow<'a, [[u32; 2]]>,
    /// `Σ exp(logit − largest)`, where it was asked for.
    pub exp_sum: f64,
    /// The sum of the weights `exp((logit − largest) / temperature)` at or above the floor, where it was asked for.
    pub weight_sum: f64,
    /// The sum of those weights so near the floor that rounding decides whether `weight_sum` has them.
    pub doubtful_sum: f64,
    /// How many tokens `weight_sum` and `doubtful_sum` have at most.
    pub weight_count: usize,
    /// A logit is not a number: nothing else is to be relied on.
    pub has_nan: bool,
}

impl LogitsSummary<'_> {
    /// What a device should find, with at most `most` candidates. `logits`: `[vocab_size]`, at least one.
    #[must_use]
    pub fn of_logits(logits: &[f32], needs: &SummaryNeeds, most: usize) -> Self {
        let most = if needs.candidates { most } else { 1 };
        let candidates = most_likely(logits, most)
            .into_iter()
            .map(|(token_id, logit)| [token_id, (logit + 0.0).to_bits()]);
        let largest = f64::from(logits[argmax(logits) as usize]);
        let weights = |temperature: f32| {
            logits
                .iter()
                .map(move |logit| ((f64::from(*logit) - largest) / f64::from(temperature)).exp())
        };
        let mut summary = Self {
            vocab_size: logits.len(),
            candidates: candidates.collect(),
            exp_sum: 0.0,
            weight_sum: 0.0,
            doubtful_sum: 0.0,
            weight_count: 0,
            has_nan: logits.iter().any(|logit| logit.is_nan()),
        };
        if needs.log_total {
            summary.exp_sum = weights(1.0).sum();
        }
        if needs.temperature > 0.0 {
            let above = || weights(needs.temperature).filter(|weight| *weight >= needs.floor);
            (summary.weight_sum, summary.weight_count) = (above().sum(), above().count());
        }
        summary
    }

    /// The same, apart from the device's memory.
    #[must_use]
    pub fn into_owned(self) -> LogitsSummary<'static> {
        LogitsSummary {
            candidates: Cow::Owned(self.candidates.into_owned()),
            ..self
        }
    }

    fn candidate(&self, index: usize) -> (u32, f32) {
        let [token_id, bits] = self.candidates[index];
        (token_id, f32::from_bits(bits))
    }

    fn lists_all(&self) -> bool {
        self.candidates.len() >= self.vocab_size
    }

    /// `ln Σ exp(logit)`.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a logarithm of a sum of exponentials is near the largest logit"
    )]
    fn log_total(&self) -> f32 {
        let (_, largest) = self.candidate(0);
        (f64::from(largest) + self.exp_sum.ln()) as f32
    }
}

/// Where a sum of weights, most likely first, passes a mark that is known to lie between two bounds.
enum Passed {
    /// With this token, counted from the most likely one.
    With(usize),
    /// After the last one that is known.
    Beyond { sum: f64, last_weight: f64 },
    /// One bound is passed with another token than the other one, or the order is not known.
    Unsure,
}

impl Sampler {
    /// What [`Sampler::sample_summary`] will need.
    #[must_use]
    pub fn summary_needs(&self) -> SummaryNeeds {
        let params = &self.params;
        SummaryNeeds {
            temperature: params.temperature,
            floor: self.floor(),
            log_total: self.reports(),
            candidates: params.temperature > 0.0 || params.top_logprobs > 0,
        }
    }

    /// Chooses the token that will stand at `position` as [`Sampler::sample`] does from the logits: the same token, and
    /// log-probabilities that differ by the rounding of the device's sum. `None` where the summary is not
    /// enough to tell; then [`Sampler::sample_row`] does.
    #[must_use]
    pub fn sample_summary(&self, summary: &LogitsSummary<'_>, position: usize) -> Option<Sampled> {
        self.sample_from(summary, None, position)
    }

    /// As [`Sampler::sample_summary`], with the logits too, which have their biases and penalties: what the summary
    /// tells need not be computed again. `logits`: `[vocab_size]`.
    #[must_use]
    pub fn sample_row(
        &self,
        summary: &LogitsSummary<'_>,
        logits: &[f32],
        position: usize,
    ) -> Sampled {
        self.sample_from(summary, Some(logits), position)
            .unwrap_or_else(|| self.sample_adjusted(logits, position))
    }

    fn sample_from(
        &self,
        summary: &LogitsSummary<'_>,
        logits: Option<&[f32]>,
        position: usize,
    ) -> Option<Sampled> {
        let (best, largest) = summary.candidate(0);
        let is_greedy = self.params.temperature == 0.0;
        let report = self.reports();
        let top_logprobs = self.params.top_logprobs.min(summary.vocab_size);
        if summary.has_nan
            || top_logprobs > summary.candidates.len()
            || (!largest.is_finite() && (report || !is_greedy))
        {
            return None;
        }
        let (token_id, logit) = if is_greedy {
            (best, largest)
        } else {
            self.draw_listed(summary, logits, position)?
        };
        let log_total = if report { summary.log_total() } else { 0.0 };
        let top_logprobs = (0..top_logprobs)
            .map(|index| summary.candidate(index))
            .map(|(token_id, logit)| (token_id, logit - log_total));
        Some(Sampled {
            token_id,
            logprob: report.then_some(logit - log_total),
            top_logprobs: top_logprobs.collect(),
        })
    }

    fn draw_listed(
        &self,
        summary: &LogitsSummary<'_>,
        logits: Option<&[f32]>,
        position: usize,
    ) -> Option<(u32, f32)> {
        let (_, largest) = summary.candidate(0);
        let listed = summary.candidates.len();
        let (_, last) = summary.candidate(listed - 1);
        let last_weight = self.weight(last, largest);
        let mut ordered = Ordered::new(self, summary, logits);
        if !summary.lists_all() && last_weight >= self.floor() {
            // A token that is not listed would come before the last one, if only the weights were equal.
            if self.weight(last.next_down(), largest) >= last_weight {
                return None;
            }
            if !(1..=listed).contains(&self.params.top_k) {
                return self.draw_beyond(summary, &mut ordered, position);
            }
        }
        // Everything that could be drawn is listed.
        let mut kept = Vec::new();
        for index in 0..listed {
            let (token_id, logit) = summary.candidate(index);
            let weight = self.weight(logit, largest);
            if weight < self.floor() {
                break;
            }
            kept.push((token_id, weight));
        }
        self.cut(&mut kept);
        ordered.find(self.pick(&kept, position))
    }

    /// The draw where more tokens than the listed ones could be drawn.
    fn draw_beyond(
        &self,
        summary: &LogitsSummary<'_>,
        ordered: &mut Ordered<'_>,
        position: usize,
    ) -> Option<(u32, f32)> {
        let is_exact = summary.weight_sum.is_finite() && summary.doubtful_sum.is_finite();
        if self.params.temperature < LOWEST_TEMPERATURE || !is_exact {
            return None;
        }
        let doubt = RELATIVE_ERROR * summary.weight_sum + summary.doubtful_sum;
        let mut total = [summary.weight_sum - doubt, summary.weight_sum + doubt];
        if self.params.top_k > 0 && self.params.top_k < summary.weight_count {
            total = self.total_of_first(ordered, total[1]);
        }
        if self.params.top_p < 1.0 {
            let left = total.map(|total| f64::from(self.params.top_p) * total);
            match ordered.pass(left) {
                Passed::With(index) => {
                    let kept = ordered.first(index + 1);
                    return ordered.find(self.pick(&kept, position));
                }
                // The last token kept weighs no more than the last one listed.
                Passed::Beyond { sum, last_weight } if ordered.is_listed_alone() => {
                    total = [left[0].max(sum), left[1] + last_weight];
                }
                Passed::Beyond { .. } | Passed::Unsure => return None,
            }
        }
        let target = total.map(|total| uniform(self.params.seed, position) * total);
        match ordered.pass(target) {
            Passed::With(index) => ordered.at(index),
            Passed::Beyond { .. } | Passed::Unsure => None,
        }
    }

    /// Between what the tokens that top-k keeps weigh. `most`: what all of them do, at most.
    #[expect(clippy::cast_precision_loss, reason = "counts of tokens are exact")]
    fn total_of_first(&self, ordered: &mut Ordered<'_>, most: f64) -> [f64; 2] {
        let (mut sum, mut last_weight, mut count) = (0.0, 0.0, 0);
        while count < self.params.top_k
            && let Some((_, logit)) = ordered.at(count)
        {
            last_weight = ordered.weight(logit);
            sum += last_weight;
            count += 1;
        }
        let more = if ordered.is_listed_alone() {
            (self.params.top_k - count) as f64 * last_weight
        } else {
            0.0
        };
        [
            sum * (1.0 - ROUNDING),
            most.min((sum + more) * (1.0 + ROUNDING)),
        ]
    }
}

#[cfg(test)]
mod tests;
