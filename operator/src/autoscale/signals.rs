//! How busy a tail is, from its `/metrics`. Pure.

use std::collections::BTreeMap;

/// The quantile that a target for the queue delay speaks of.
const QUANTILE: f64 = 0.95;
/// Fewer steps than this say nothing about the slowest twentieth of them.
const MIN_STEPS: f64 = 20.0;
/// The most buckets of a histogram that are read; a tail's has fewer.
const MAX_BUCKETS: usize = 64;

const QUEUE_DELAY: &str = "headway_tail_queue_delay_seconds_bucket{le=\"";

/// How busy a tail is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Signals {
    /// Sessions that hold a KV cache.
    pub sessions: f64,
    /// KV cache reserved by sessions.
    pub kv_bytes: f64,
    /// The most KV cache.
    pub kv_limit_bytes: f64,
    /// Sessions that were turned away for want of room, since the tail's start.
    pub refused: f64,
    /// Sessions that were opened, since the tail's start.
    pub opened: f64,
    /// Engine steps, since the tail's start.
    pub steps: f64,
    /// How long steps waited, since the tail's start.
    pub queue_delay: Delays,
}

/// A cumulative histogram.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delays {
    /// Upper bound in seconds, and how many were at most as long; in rising order. The last bound may be infinite.
    buckets: Vec<(f64, f64)>,
}

/// Reads a tail's `/metrics`. Series that it does not have are 0.
#[must_use]
pub fn read_signals(text: &str) -> Signals {
    let mut values = BTreeMap::new();
    let mut buckets = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else {
            continue;
        };
        let Some(value) = value.parse().ok().filter(|value| is_amount(*value)) else {
            continue;
        };
        if let Some(bound) = series.strip_prefix(QUEUE_DELAY) {
            let bound = bound.trim_end_matches("\"}").parse().ok();
            if let Some(bound) = bound.filter(|bound: &f64| *bound >= 0.0)
                && buckets.len() < MAX_BUCKETS
            {
                buckets.push((bound, value));
            }
        } else {
            values.insert(series, value);
        }
    }
    buckets.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let value = |series: &str| values.get(series).copied().unwrap_or(0.0);
    Signals {
        sessions: value("headway_tail_sessions"),
        kv_bytes: value("headway_tail_kv_bytes"),
        kv_limit_bytes: value("headway_tail_kv_limit_bytes"),
        refused: value("headway_tail_refusals_total{code=\"no_capacity\"}"),
        opened: value("headway_tail_sessions_opened_total"),
        steps: value("headway_tail_steps_total"),
        queue_delay: Delays { buckets },
    }
}

fn is_amount(value: f64) -> bool {
    value.is_finite() && value >= 0.0
}

impl Signals {
    /// Share of the KV cache in use, 0 to 1.
    #[must_use]
    pub fn kv(&self) -> f64 {
        if self.kv_limit_bytes > 0.0 {
            (self.kv_bytes / self.kv_limit_bytes).min(1.0)
        } else {
            0.0
        }
    }
}

impl Delays {
    /// What was added since `before`; all of it where another process has begun to count.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let is_later = self.buckets.len() == before.buckets.len()
            && self
                .buckets
                .iter()
                .zip(&before.buckets)
                .all(|(now, then)| now.0 == then.0 && now.1 >= then.1);
        if !is_later {
            return self.clone();
        }
        let added = self.buckets.iter().zip(&before.buckets);
        Self {
            buckets: added.map(|(now, then)| (now.0, now.1 - then.1)).collect(),
        }
    }

    /// Both together. Tails of other versions may have other buckets, and are then left out.
    #[must_use]
    pub fn plus(self, other: &Self) -> Self {
        let bounds = |delays: &Self| -> Vec<u64> {
            delays.buckets.iter().map(|(le, _)| le.to_bits()).collect()
        };
        if self.buckets.is_empty() {
            return other.clone();
        }
        if bounds(&self) != bounds(other) {
            return self;
        }
        let both = self.buckets.iter().zip(&other.buckets);
        Self {
            buckets: both.map(|(a, b)| (a.0, a.1 + b.1)).collect(),
        }
    }

    /// In milliseconds, what 95 % of the steps waited at most; `None` where there were too few to say so. Between two
    /// bounds, delays are taken to be spread evenly, as Prometheus' `histogram_quantile` does.
    #[must_use]
    pub fn p95_ms(&self) -> Option<f64> {
        let (_, count) = *self.buckets.last()?;
        if count < MIN_STEPS {
            return None;
        }
        let rank = QUANTILE * count;
        let mut below = (0.0, 0.0);
        for &(bound, at_most) in &self.buckets {
            if at_most >= rank {
                // Longer than the longest bound: at least that.
                let bound = if bound.is_finite() { bound } else { below.0 };
                let within = (at_most - below.1).max(f64::MIN_POSITIVE);
                let part = (rank - below.1) / within;
                return Some(1e3 * (below.0 + (bound - below.0) * part));
            }
            below = (bound, at_most);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# TYPE headway_tail_sessions gauge\n\
        headway_tail_sessions 3\n\
        headway_tail_kv_bytes 50\n\
        headway_tail_kv_limit_bytes 200\n\
        headway_tail_refusals_total{code=\"no_capacity\"} 7\n\
        headway_tail_refusals_total{code=\"malformed\"} 9\n\
        headway_tail_sessions_opened_total 12\n\
        headway_tail_steps_total 100\n\
        headway_tail_queue_delay_seconds_bucket{le=\"0.01\"} 60\n\
        headway_tail_queue_delay_seconds_bucket{le=\"0.1\"} 90\n\
        headway_tail_queue_delay_seconds_bucket{le=\"1\"} 100\n\
        headway_tail_queue_delay_seconds_bucket{le=\"+Inf\"} 100\n\
        headway_tail_queue_delay_seconds_sum 3\n";

    fn p95(text: &str) -> Option<f64> {
        let p95 = read_signals(text).queue_delay.p95_ms();
        p95.map(|delay| (delay * 10.0).round() / 10.0)
    }

    #[test]
    fn a_tails_page_is_read() {
        let signals = read_signals(PAGE);
        assert_eq!((signals.sessions, signals.refused), (3.0, 7.0));
        assert_eq!(signals.kv(), 0.25);
        // Half of the way from 0.1 s to 1 s.
        assert_eq!(p95(PAGE), Some(550.0));
    }

    #[test]
    fn what_is_no_amount_is_left_out() {
        let signals = read_signals("headway_tail_sessions NaN\nheadway_tail_kv_bytes -1\nx\n");
        assert_eq!(signals, Signals::default());
        assert_eq!(signals.kv(), 0.0);
    }

    #[test]
    fn few_steps_say_nothing_and_endless_ones_the_longest_bound() {
        let page = |count: u32| format!("{QUEUE_DELAY}0.5\"}} 0\n{QUEUE_DELAY}+Inf\"}} {count}\n");
        assert_eq!(p95(&page(19)), None);
        assert_eq!(p95(&page(20)), Some(500.0));
    }

    #[test]
    fn only_what_was_added_counts_unless_the_tail_has_started_again() {
        let bucket = |short: u32, all: u32| {
            let page = format!("{QUEUE_DELAY}0.5\"}} {short}\n{QUEUE_DELAY}1\"}} {all}\n");
            read_signals(&page).queue_delay
        };
        let added = bucket(100, 130).since(&bucket(100, 100));
        assert_eq!(added, bucket(0, 30));
        assert_eq!(bucket(5, 30).since(&bucket(100, 130)), bucket(5, 30));
        assert_eq!(bucket(1, 2).plus(&bucket(3, 4)), bucket(4, 6));
    }
}
