//! What came of a run.

use super::events::{Micros, SECOND};
use super::histogram::Histogram;
use super::random::float;

/// Of all requests, those that may fail where a fleet is said to hold its load.
const BEARABLE_FAILURES: f64 = 0.001;
/// Of all Opens, those that may be refused there.
const BEARABLE_REFUSALS: f64 = 0.01;

/// What came of a run; of the time between warm-up and horizon where nothing else is said.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Outcome {
    /// The time that was counted, in seconds.
    pub(super) seconds: f64,
    pub(super) requests: u64,
    pub(super) completed: u64,
    /// Requests that gave up before their first token.
    pub(super) refused: u64,
    /// Answers that gave up behind it.
    pub(super) broken: u64,
    /// Sessions that tails were asked for, those that were rebuilt and those that were refused included.
    pub(super) opens: u64,
    pub(super) refused_opens: u64,
    pub(super) tokens: u64,
    pub(super) prompt_rows: u64,
    /// Rows that were computed again, because a tail was lost.
    pub(super) replayed_rows: u64,
    pub(super) guessed_rows: u64,
    pub(super) steps: u64,
    pub(super) rows: u64,
    /// Of all tails, in microseconds.
    pub(super) used_us: f64,
    /// What the same steps would have cost with all layers on the tails.
    pub(super) counterfactual_us: f64,
    pub(super) first_token: Histogram,
    /// Time of each later token, as its device sees it.
    pub(super) token: Histogram,
    /// From a device's sending of rows behind a token to the answer: network and tail.
    pub(super) answered: Histogram,
    /// From the last token of an answer on a lost tail to its next one, as its device sees it.
    pub(super) recovery: Histogram,
    /// From the arrival of a prompt at its tail to the start of the step that ends it.
    pub(super) prompt_wait: Histogram,
    /// How long sessions stayed, of those that ended in time.
    pub(super) stay: Histogram,
    /// Integral of the number of sessions on tails, in microseconds.
    pub(super) session_us: f64,
    /// The most sessions that a tail had.
    pub(super) most_sessions: u32,
    /// By second from the start, warm-up included; empty without an outage.
    pub(super) windows: Vec<Window>,
    /// Events of the whole run.
    pub(super) events: u64,
}

/// One second.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Window {
    /// Between two results of an answer, as its device sees it.
    pub(super) pause: Histogram,
    pub(super) first_token: Histogram,
    pub(super) opens: u64,
    pub(super) refused_opens: u64,
    /// Answers that have no tail, at the end of the second.
    pub(super) without_tail: u64,
    /// The most sessions that one tail was asked for.
    pub(super) most_opens_of_a_tail: u32,
}

impl Outcome {
    /// Microseconds of tails for 1,000 tokens are milliseconds of a token; here in seconds.
    pub(super) fn gpu_seconds_1000(&self) -> f64 {
        self.used_us / 1e6 / float(self.tokens.max(1)) * 1e3
    }

    /// As a tail's accounting has it, head layers alone.
    pub(super) fn saved_share(&self) -> f64 {
        1.0 - self.used_us / self.counterfactual_us.max(f64::MIN_POSITIVE)
    }

    /// Of `tails`, how much of the time they were busy.
    pub(super) fn utilisation(&self, tails: u32) -> f64 {
        self.used_us / 1e6 / (self.seconds * f64::from(tails))
    }

    /// Of the requests that ended, those that got no answer or no whole one.
    pub(super) fn failed_share(&self) -> f64 {
        let failed = self.refused + self.broken;
        float(failed) / float((failed + self.completed).max(1))
    }

    /// Of the sessions that tails were asked for, those they refused.
    pub(super) fn refused_opens_share(&self) -> f64 {
        float(self.refused_opens) / float(self.opens.max(1))
    }

    /// Whether next to every request was answered, and next to none had to ask twice.
    pub(super) fn is_held(&self) -> bool {
        self.failed_share() <= BEARABLE_FAILURES && self.refused_opens_share() <= BEARABLE_REFUSALS
    }

    pub(super) fn rows_a_step(&self) -> f64 {
        float(self.rows) / float(self.steps.max(1))
    }

    /// On all tails, on average.
    pub(super) fn sessions(&self) -> f64 {
        self.session_us / 1e6 / self.seconds.max(f64::MIN_POSITIVE)
    }

    pub(super) fn tokens_a_second(&self) -> f64 {
        float(self.tokens) / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// From `at` until the p99 of what `of` gives is within a quarter of what it was before, and stays so, looked at every
    /// five seconds; `None` where it does not come back.
    pub(super) fn seconds_until_back(
        &self,
        at: Micros,
        of: fn(&Window) -> &Histogram,
    ) -> Option<usize> {
        let first = usize::try_from(at / SECOND).ok()?;
        let p99 = |windows: &[Window]| {
            let mut merged = Histogram::default();
            windows.iter().for_each(|window| merged.merge(of(window)));
            merged.quantile(0.99)
        };
        let bound = p99(self.windows.get(first.saturating_sub(20)..first)?) * 1.25;
        let after: Vec<f64> = self
            .windows
            .get(first..)?
            .chunks_exact(5)
            .map(p99)
            .collect();
        let last_bad = after.iter().rposition(|p99| *p99 > bound);
        let back = last_bad.map_or(0, |index| index + 1);
        (back < after.len()).then_some(back * 5)
    }
}
