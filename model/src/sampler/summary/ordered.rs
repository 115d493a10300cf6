//! Tokens in the order in which they are drawn from, as far as that is asked for.

use super::{LogitsSummary, Passed};
use crate::sampler::Sampler;

/// How far below the last token known the first ones are searched for in a row, in temperatures.
const FIRST_STRIP: f32 = 0.5;

/// The tokens at or above the floor, most likely first: the listed ones, and behind them, where there is a row of
/// logits, its other ones. Those are searched for in strips of ever less likely tokens, each time as many again.
pub(super) struct Ordered<'a> {
    sampler: &'a Sampler,
    summary: &'a LogitsSummary<'a>,
    largest: f32,
    /// With what is still to be searched.
    logits: Option<&'a [f32]>,
    /// Behind the listed ones.
    more: Vec<(u32, f32)>,
    /// The last token searched for.
    searched: (u32, f32),
    strip: f32,
    is_at_floor: bool,
}

impl<'a> Ordered<'a> {
    pub(super) fn new(
        sampler: &'a Sampler,
        summary: &'a LogitsSummary<'a>,
        logits: Option<&'a [f32]>,
    ) -> Self {
        let (_, largest) = summary.candidate(0);
        Self {
            sampler,
            summary,
            largest,
            logits,
            more: Vec::new(),
            searched: summary.candidate(summary.candidates.len() - 1),
            strip: FIRST_STRIP * sampler.params.temperature,
            is_at_floor: summary.lists_all(),
        }
    }

    /// There is no row behind the listed tokens.
    pub(super) const fn is_listed_alone(&self) -> bool {
        self.logits.is_none()
    }

    pub(super) fn weight(&self, logit: f32) -> f64 {
        self.sampler.weight(logit, self.largest)
    }

    /// Token and logit, counted from the most likely one.
    pub(super) fn at(&mut self, index: usize) -> Option<(u32, f32)> {
        let listed = self.summary.candidates.len();
        if index < listed {
            return Some(self.summary.candidate(index));
        }
        while self.more.len() <= index - listed {
            let logits = self.logits.filter(|_| !self.is_at_floor)?;
            self.search(logits);
        }
        self.more.get(index - listed).copied()
    }

    /// The next strip of the row.
    fn search(&mut self, logits: &[f32]) {
        let (after, high) = self.searched;
        let low = high - self.strip;
        let start = self.more.len();
        let found = (0_u32..).zip(logits).filter(|(token_id, logit)| {
            **logit >= low && (**logit < high || (**logit == high && *token_id > after))
        });
        self.more
            .extend(found.map(|(token_id, logit)| (token_id, *logit + 0.0)));
        self.more[start..].sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        self.searched = (u32::MAX, low);
        self.strip *= 2.0;
        let floor = self.sampler.floor();
        if self.weight(low) < floor {
            self.is_at_floor = true;
            let above = |(_, logit): &(u32, f32)| self.weight(*logit) >= floor;
            self.more.truncate(self.more.partition_point(above));
        }
    }

    /// The first `count` with their weights.
    pub(super) fn first(&mut self, count: usize) -> Vec<(u32, f64)> {
        let mut first = Vec::with_capacity(count);
        while first.len() < count
            && let Some((token_id, logit)) = self.at(first.len())
        {
            first.push((token_id, self.weight(logit)));
        }
        first
    }

    /// A token that has been seen, with its logit.
    pub(super) fn find(&self, token_id: u32) -> Option<(u32, f32)> {
        let listed = (0..self.summary.candidates.len()).map(|index| self.summary.candidate(index));
        let mut seen = listed.chain(self.more.iter().copied());
        seen.find(|(seen, _)| *seen == token_id)
    }

    /// The token with which the sum of weights passes a mark between `low` and `high`. Weighs no more tokens than it
    /// must.
    pub(super) fn pass(&mut self, [low, high]: [f64; 2]) -> Passed {
        let (mut sum, mut last_weight, mut last_logit) = (0.0, f64::INFINITY, f32::INFINITY);
        let mut index = 0;
        while let Some((_, logit)) = self.at(index) {
            let weight = self.weight(logit);
            // Of equal weights the lowest token comes first, also where the logits differ.
            if weight >= last_weight && logit < last_logit {
                return Passed::Unsure;
            }
            (last_weight, last_logit) = (weight, logit);
            let before = sum;
            sum += weight;
            if sum > high {
                return if index == 0 || before < low {
                    Passed::With(index)
                } else {
                    Passed::Unsure
                };
            }
            index += 1;
        }
        if sum < low {
            Passed::Beyond { sum, last_weight }
        } else {
            Passed::Unsure
        }
    }
}
