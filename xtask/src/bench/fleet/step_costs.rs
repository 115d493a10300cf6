//! How long an engine step takes, by the rows in it and the layers they enter at.
//!
//! A step starts at the lowest entry layer and sessions join it at theirs, so a layer costs what its own rows cost. What
//! the step would have cost with every session entering at layer 0 is valued as the tail's accounting does: at the cost
//! of the layers that ran the whole batch.

/// A straight line between measured points, and beyond the last two on in their direction.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Curve(Vec<(f64, f64)>);

impl Curve {
    /// By growing first values; at least one point.
    pub(super) fn new(points: &[(f64, f64)]) -> Self {
        assert!(!points.is_empty(), "a curve has a point");
        assert!(
            points.windows(2).all(|pair| pair[0].0 < pair[1].0),
            "the points of a curve are in order"
        );
        Self(points.to_vec())
    }

    /// The same everywhere.
    pub(super) fn flat(value: f64) -> Self {
        Self(vec![(1.0, value)])
    }

    pub(super) fn at(&self, x: f64) -> f64 {
        let points = &self.0;
        let (Some(first), true) = (points.first(), points.len() > 1) else {
            return points[0].1;
        };
        if x <= first.0 {
            return first.1;
        }
        let above = points.iter().position(|point| point.0 >= x);
        let to = above.unwrap_or(points.len() - 1);
        let ((x0, y0), (x1, y1)) = (points[to - 1], points[to]);
        (y1 - y0).mul_add((x - x0) / (x1 - x0), y0)
    }
}

/// How long a step takes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StepCosts {
    /// Of the whole model.
    pub(super) layers: u16,
    /// One layer by the rows in it, without attention, in microseconds.
    pub(super) layer_us: Curve,
    /// Attention in one layer for each row and each position that it looks at, in microseconds.
    pub(super) attention_us: f64,
    /// What attention of any row takes at least in one layer, in microseconds.
    pub(super) least_attention_us: f64,
    /// Final norm, `lm_head` and sampling by the rows that are sampled, in microseconds.
    pub(super) logits_us: Curve,
    /// The share of a step that is not the device's.
    pub(super) host_share: f64,
}

/// The rows of a step that enter at one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Entering {
    pub(super) layer: u16,
    pub(super) rows: u32,
    /// Positions that the answers among them look at, all rows together.
    pub(super) positions: u64,
}

/// What a step took, and what it would have taken without the devices' layers, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct StepTime {
    pub(super) used_us: f64,
    pub(super) counterfactual_us: f64,
}

impl StepCosts {
    /// `entering`: lowest layer first. `sampled`: rows that give a token.
    pub(super) fn step(&self, entering: &[Entering], sampled: u32) -> StepTime {
        let (mut rows, mut positions, mut layers_us, mut last_us) = (0, 0, 0.0, 0.0);
        for (index, entry) in entering.iter().enumerate() {
            rows += entry.rows;
            positions += entry.positions;
            let until = entering
                .get(index + 1)
                .map_or(self.layers, |next| next.layer);
            last_us = self.layer(rows, positions);
            layers_us += f64::from(until - entry.layer) * last_us;
        }
        let logits_us = if sampled > 0 {
            self.logits_us.at(f64::from(sampled))
        } else {
            0.0
        };
        let whole = |device_us: f64| device_us / (1.0 - self.host_share);
        StepTime {
            used_us: whole(layers_us + logits_us),
            counterfactual_us: whole(f64::from(self.layers).mul_add(last_us, logits_us)),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "positions of one step")]
    fn layer(&self, rows: u32, positions: u64) -> f64 {
        if rows == 0 {
            return 0.0;
        }
        let attention = (self.attention_us * positions as f64).max(self.least_attention_us);
        self.layer_us.at(f64::from(rows)) + attention
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_goes_through_its_points_and_on_behind_the_last() {
        let curve = Curve::new(&[(1.0, 10.0), (3.0, 20.0), (4.0, 40.0)]);
        let values = [0.5, 1.0, 2.0, 3.0, 4.0, 5.0].map(|x| curve.at(x));
        assert_eq!(values, [10.0, 10.0, 15.0, 20.0, 40.0, 60.0]);
        assert_eq!(Curve::flat(7.0).at(1e6), 7.0);
    }

    #[test]
    fn a_layer_costs_what_its_own_rows_cost() {
        let costs = StepCosts {
            layers: 10,
            layer_us: Curve::new(&[(1.0, 1.0), (101.0, 101.0)]),
            attention_us: 0.0,
            least_attention_us: 0.0,
            logits_us: Curve::flat(5.0),
            host_share: 0.0,
        };
        let entering = |layer, rows| Entering {
            layer,
            rows,
            positions: 0,
        };
        // Two layers of one row, six of four, and the logits.
        let time = costs.step(&[entering(2, 1), entering(4, 3)], 4);
        assert_eq!(time.used_us, 2.0 + 6.0 * 4.0 + 5.0);
        assert_eq!(time.counterfactual_us, 10.0 * 4.0 + 5.0);
        assert_eq!(costs.step(&[entering(2, 1)], 0).used_us, 8.0);
    }
}
