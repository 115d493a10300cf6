//! Averages and maxima over the last while.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::load::Demand;

/// The most samples of a window: beyond it, the oldest go. An hour and ten minutes have as many, at one every two seconds.
const MAX_SAMPLES: usize = 2200;

/// What was seen at a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) known: Demand,
    pub(crate) presumed: Demand,
    pub(crate) queue_delay_ms: Option<f64>,
}

/// Samples of the last while.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    seen: VecDeque<Seen>,
}

impl History {
    /// Adds a sample and forgets those older than `window`.
    pub(crate) fn push(&mut self, seen: Seen, window: Duration) {
        self.seen.push_back(seen);
        while self
            .seen
            .front()
            .is_some_and(|first| seen.at.saturating_duration_since(first.at) > window)
            || self.seen.len() > MAX_SAMPLES
        {
            self.seen.pop_front();
        }
    }

    /// The samples of the last `window`, the last one in any case.
    fn within(&self, window: Duration) -> impl Iterator<Item = &Seen> + Clone {
        let last = self.seen.back().map(|seen| seen.at);
        let is_within = move |seen: &&Seen| {
            last.is_some_and(|last| last.saturating_duration_since(seen.at) < window)
                || Some(seen.at) == last
        };
        self.seen.iter().rev().take_while(is_within)
    }

    /// Mean demand over the last `window`.
    pub(crate) fn mean(&self, window: Duration, of: impl Fn(&Seen) -> Demand) -> Demand {
        let mut count = 0.0;
        let mut sum = Demand::default();
        for seen in self.within(window) {
            count += 1.0;
            sum = sum.plus(of(seen));
        }
        if count > 0.0 { sum.over(count) } else { sum }
    }

    /// Mean queue delay over the last `window`, of samples that have one.
    pub(crate) fn mean_queue_delay_ms(&self, window: Duration) -> Option<f64> {
        let delays = self.within(window).filter_map(|seen| seen.queue_delay_ms);
        let (count, sum) =
            delays.fold((0.0, 0.0), |(count, sum), delay| (count + 1.0, sum + delay));
        (count > 0.0).then(|| sum / count)
    }
}

/// The largest number of the last while. Holds no more entries than there are different numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Maximum {
    /// Later ones are smaller.
    falling: VecDeque<(Instant, u32)>,
}

impl Maximum {
    /// Adds a number.
    pub(crate) fn push(&mut self, at: Instant, value: u32) {
        while self.falling.back().is_some_and(|(_, last)| *last <= value) {
            self.falling.pop_back();
        }
        self.falling.push_back((at, value));
    }

    /// The largest of those that are at most `window` old.
    pub(crate) fn over(&mut self, window: Duration, now: Instant) -> u32 {
        while self.falling.len() > 1
            && self
                .falling
                .front()
                .is_some_and(|(at, _)| now.saturating_duration_since(*at) > window)
        {
            self.falling.pop_front();
        }
        self.falling.front().map_or(0, |(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_maximum_of_a_window_forgets_what_is_older() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let mut maximum = Maximum::default();
        for (second, value) in [(0, 3), (10, 9), (20, 4), (30, 5), (40, 1)] {
            maximum.push(at(second), value);
        }
        assert_eq!(maximum.over(Duration::from_secs(30), at(40)), 9);
        assert_eq!(maximum.over(Duration::from_secs(29), at(40)), 5);
        assert_eq!(maximum.over(Duration::ZERO, at(40)), 1);
    }

    #[test]
    fn the_last_sample_counts_however_short_the_window() {
        let start = Instant::now();
        let mut history = History::default();
        for second in 0..5 {
            let pods = f64::from(u32::try_from(second).unwrap());
            let demand = Demand {
                sessions: pods,
                kv: 0.0,
            };
            let seen = Seen {
                at: start + Duration::from_secs(second),
                known: demand,
                presumed: demand,
                queue_delay_ms: None,
            };
            history.push(seen, Duration::from_secs(60));
        }
        let mean = |seconds| {
            history
                .mean(Duration::from_secs(seconds), |seen| seen.known)
                .sessions
        };
        assert_eq!(mean(0), 4.0);
        assert_eq!(mean(2), 3.5);
        assert_eq!(mean(60), 2.0);
    }
}
