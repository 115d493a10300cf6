//! What a step takes, by its rows: the latest measurements, and a straight line through them.

use super::as_f64;

/// Sizes are kept apart by powers of two: 1, 2–3, 4–7 …, up to the largest step that can be asked for.
const SIZES: usize = 17;

/// Steps of a size that are remembered.
const KEPT_STEPS: usize = 8;

/// Steps of a size below which it is not looked at: the first may have warmed something up.
const FEWEST_STEPS: usize = 3;

/// After so many steps of other sizes, a size counts half.
const HALF_LIFE_STEPS: f64 = 256.0;

/// `fixed_s + row_s · rows` seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Line {
    /// Of a step without rows; not negative.
    pub(super) fixed_s: f64,
    /// Of each row; not negative.
    pub(super) row_s: f64,
}

impl Line {
    /// Of a step of `rows` rows.
    pub(super) fn seconds(self, rows: usize) -> f64 {
        self.row_s.mul_add(as_f64(rows), self.fixed_s)
    }
}

/// The latest steps of each size.
#[derive(Debug, Default)]
pub(super) struct StepCosts {
    sizes: [Size; SIZES],
    /// All steps so far.
    steps: u64,
}

#[derive(Debug, Default)]
struct Size {
    /// Rows and seconds of the latest steps, in no order.
    kept: [(usize, f64); KEPT_STEPS],
    /// Steps of this size so far.
    steps: usize,
    /// Of all steps, the last one of this size.
    last: u64,
}

impl StepCosts {
    /// A step of `rows` rows, at least one.
    pub(super) fn record(&mut self, rows: usize, seconds: f64) {
        let index = rows.max(1).ilog2() as usize;
        let size = &mut self.sizes[index.min(SIZES - 1)];
        self.steps += 1;
        size.kept[size.steps % KEPT_STEPS] = (rows, seconds);
        size.steps += 1;
        size.last = self.steps;
    }

    /// The line with the least squares through one point of each size; `None` where there are fewer than two.
    pub(super) fn line(&self) -> Option<Line> {
        let points = self.sizes.iter().filter_map(|size| {
            let (rows, seconds) = size.point()?;
            #[expect(clippy::cast_precision_loss, reason = "a weight")]
            let age = (self.steps - size.last) as f64;
            Some((rows, seconds, 1.0 / (1.0 + age / HALF_LIFE_STEPS)))
        });
        let (mut count, mut weight) = (0, 0.0);
        let [mut x, mut y, mut xx, mut xy] = [0.0; 4];
        for (rows, seconds, of) in points {
            count += 1;
            weight += of;
            x += of * rows;
            y += of * seconds;
            xx += of * rows * rows;
            xy += of * rows * seconds;
        }
        if count < 2 {
            return None;
        }
        let spread = weight.mul_add(xx, -(x * x));
        let slope = (weight.mul_add(xy, -(x * y)) / spread).max(0.0);
        let fixed_s = (y - slope * x) / weight;
        if fixed_s < 0.0 {
            return Some(Line {
                fixed_s: 0.0,
                row_s: y / x,
            });
        }
        Some(Line {
            fixed_s,
            row_s: slope,
        })
    }
}

impl Size {
    /// The mean of the rows and the median of the seconds.
    fn point(&self) -> Option<(f64, f64)> {
        if self.steps < FEWEST_STEPS {
            return None;
        }
        let kept = &self.kept[..self.steps.min(KEPT_STEPS)];
        let rows: usize = kept.iter().map(|(rows, _)| rows).sum();
        let mut seconds: Vec<f64> = kept.iter().map(|(_, seconds)| *seconds).collect();
        seconds.sort_by(f64::total_cmp);
        Some((as_f64(rows) / as_f64(kept.len()), seconds[kept.len() / 2]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(steps: &[(usize, f64)]) -> StepCosts {
        let mut costs = StepCosts::default();
        for &(rows, seconds) in steps {
            for _ in 0..FEWEST_STEPS {
                costs.record(rows, seconds);
            }
        }
        costs
    }

    #[test]
    fn two_sizes_are_needed_and_each_more_than_once() {
        assert_eq!(measured(&[(64, 0.004)]).line(), None);
        let mut costs = measured(&[(64, 0.004)]);
        costs.record(1, 0.1);
        assert_eq!(costs.line(), None);
    }

    #[test]
    fn a_straight_line_is_found_whatever_the_first_step_took() {
        let mut costs = StepCosts::default();
        costs.record(1, 0.5);
        for rows in [1, 8, 64].repeat(4) {
            costs.record(rows, 0.003 + 0.0001 * as_f64(rows));
        }
        let line = costs.line().unwrap();
        assert!((line.fixed_s - 0.003).abs() < 1e-9, "{line:?}");
        assert!((line.seconds(64) - 0.0094).abs() < 1e-9, "{line:?}");
    }

    #[test]
    fn neither_part_is_ever_negative() {
        let shorter_with_rows = measured(&[(1, 0.004), (64, 0.003)]).line().unwrap();
        assert_eq!(shorter_with_rows.row_s, 0.0);
        let steeper_than_a_line = measured(&[(1, 0.0001), (64, 0.1)]).line().unwrap();
        assert_eq!(steeper_than_a_line.fixed_s, 0.0);
    }

    #[test]
    fn a_size_that_is_not_seen_any_more_loses_weight_and_is_not_forgotten() {
        let mut costs = measured(&[(1, 0.004), (8, 0.004), (64, 0.004)]);
        for _ in 0..4096 {
            costs.record(1, 0.002);
            costs.record(64, 0.002);
        }
        let line = costs.line().unwrap();
        assert!((line.seconds(8) - 0.002).abs() < 2e-4, "{line:?}");
        assert!(line.row_s >= 0.0);
    }
}
