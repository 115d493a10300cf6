//! Times, counted in buckets whose bounds are two percent apart: quantiles of any number of times in some kilobytes.

use super::events::Micros;
use super::random::float;

/// Buckets for each doubling.
const PER_DOUBLING: u32 = 32;
/// Doublings: up to 2^40 microseconds, twelve days.
const DOUBLINGS: u32 = 40;

/// How often which times came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Histogram {
    /// Empty until the first time comes.
    counts: Vec<u64>,
    count: u64,
    sum: u128,
}

impl Histogram {
    /// Counts `time` in, `weight` times.
    pub(super) fn add(&mut self, time: Micros, weight: u64) {
        if self.counts.is_empty() {
            self.counts = vec![0; (DOUBLINGS * PER_DOUBLING) as usize + 1];
        }
        self.counts[bucket(time)] += weight;
        self.count += weight;
        self.sum += u128::from(time) * u128::from(weight);
    }

    /// Counts everything of `other` in.
    pub(super) fn merge(&mut self, other: &Self) {
        if self.counts.is_empty() {
            self.clone_from(other);
            return;
        }
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.count += other.count;
        self.sum += other.sum;
    }

    #[cfg(test)]
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// In microseconds, exactly; 0 where there is nothing.
    #[cfg(test)]
    #[expect(clippy::cast_precision_loss, reason = "a mean is a float")]
    pub(super) fn mean(&self) -> f64 {
        self.sum as f64 / float(self.count.max(1))
    }

    /// The value at `share` of the sorted times, in microseconds, within two percent; 0 where there is nothing.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let wanted = share * float(self.count);
        let mut seen = 0;
        for (index, count) in (0_u32..).zip(&self.counts) {
            seen += count;
            if *count > 0 && float(seen) >= wanted {
                return ((f64::from(index) + 0.5) / f64::from(PER_DOUBLING)).exp2();
            }
        }
        0.0
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the logarithm of a positive number, and small"
)]
fn bucket(time: Micros) -> usize {
    let index = (float(time.max(1)).log2() * f64::from(PER_DOUBLING)) as usize;
    index.min((DOUBLINGS * PER_DOUBLING) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_two_percent() {
        let mut histogram = Histogram::default();
        (1..=10_000).for_each(|time| histogram.add(time, 1));
        for (share, expected) in [(0.5, 5_000.0), (0.99, 9_900.0), (1.0, 10_000.0)] {
            let got = histogram.quantile(share);
            assert!((got / expected - 1.0).abs() < 0.02, "{share}: {got}");
        }
        assert!((histogram.mean() - 5_000.5).abs() < 1e-9);
    }

    #[test]
    fn nothing_has_no_quantiles() {
        assert_eq!(Histogram::default().quantile(0.5), 0.0);
    }
}
