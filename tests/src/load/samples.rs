//! Numbers that were measured, and what is said about many of them.

use std::time::Duration;

/// The median, the 90th and the 99th percentile, and the largest, of durations in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// 50th percentile.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of durations in any order; all zero where there are none.
    #[must_use]
    pub fn of(durations: &[Duration]) -> Self {
        let mut milliseconds: Vec<f64> = durations
            .iter()
            .map(|duration| duration.as_secs_f64() * 1e3)
            .collect();
        milliseconds.sort_by(f64::total_cmp);
        Self {
            p50: quantile(&milliseconds, 0.5),
            p90: quantile(&milliseconds, 0.9),
            p99: quantile(&milliseconds, 0.99),
            max: milliseconds.last().copied().unwrap_or_default(),
        }
    }
}

/// The middle of some values; the upper one of two. 0 where there are none.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// How much `y` grows for each `x`: the slope of the straight line with the least squares. 0 where fewer than
/// two different `x` are known.
#[must_use]
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let count = as_f64(points.len());
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count.max(1.0);
    let (mean_x, mean_y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    if spread == 0.0 {
        return 0.0;
    }
    let together: f64 = points
        .iter()
        .map(|(x, y)| (x - mean_x) * (y - mean_y))
        .sum();
    together / spread
}

/// A count as a number to divide by.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub fn as_f64(count: usize) -> f64 {
    count as f64
}

/// The value at `share` of sorted ones, the upper one between two.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank among thousands"
    )]
    let rank = (as_f64(sorted.len().saturating_sub(1)) * share).ceil() as usize;
    sorted.get(rank).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_sorted_values() {
        let durations: Vec<_> = (1..=100).rev().map(Duration::from_millis).collect();
        let spread = Spread::of(&durations);
        assert_eq!((spread.p50, spread.max), (51.0, 100.0));
        assert!(spread.p90 >= 90.0 && spread.p99 >= 99.0);
        assert_eq!(Spread::of(&[]), Spread::default());
    }

    #[test]
    fn a_straight_line_has_its_slope() {
        let points: Vec<_> = (0..9)
            .map(|x| (f64::from(x), 3.0 + 2.0 * f64::from(x)))
            .collect();
        assert!((slope(&points) - 2.0).abs() < 1e-9);
        assert_eq!(slope(&points[..1]), 0.0);
    }
}
