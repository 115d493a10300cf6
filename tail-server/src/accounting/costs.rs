//! What a row costs, as measured in recent steps.
//!
//! A lap of a step is shared among its rows, in proportion to them, as in the attribution of used time. So
//! a row costs what it would be charged, and the value of rows that never ran is what they would have been
//! charged had they come like the others:
//!
//! ```text
//! cost of a row in a layer = Σ over steps and layers: time[l] · (rows of the phase at l) / (rows at l)
//!                          / Σ over steps and layers: (rows of the phase at l)
//! cost of the end          = Σ over steps: finish / Σ over steps: (sampled rows)
//! ```
//!
//! - Prefill and decode rows are kept apart: a step of decode rows has few rows, each of which pays a larger
//!   part of reading the weights.
//! - Rows of drafts enter neither: they cost less than a decode row, which is their whole point.
//! - The end has one cost for whoever is sampled. Drafts, sampled many rows at a time, pull it down, and then
//!   less is claimed.
//! - All layers of a model have one shape, so a row in any layer counts alike.
//! - The end of a step in which nothing was sampled, and assembling, enter no cost and are never claimed.
//! - These are means, as used time is, and not what one row more would add to a step. A mean over rows gives
//!   steps with many rows, where a row is cheap, more weight than steps with few.
//!
//! Beside its price a decode row has a duration, the whole lap, which devices are told with the prices
//! ([`Costs::row_costs`]): a session waits for the rows of others, too.

use std::time::Duration;

use headway_model::tail_load::RowCosts;

use super::{Rows, StepTimes};
use crate::batcher::Phase;

/// What is left of a step's weight in a mean when another step comes: a step counts `1/e` after 256 steps. At
/// 5 to 50 ms a step that is a second to a quarter of a minute: long enough that one slow step does not
/// matter, and no longer than it takes the operator to read the counters, so that the present load counts.
const KEPT_EACH_STEP: f64 = 1.0 - 1.0 / 256.0;

/// Means over recent steps, in nanoseconds.
#[derive(Debug, Default)]
pub(super) struct Costs {
    prefill_row_layer: Mean,
    decode_row_layer: Mean,
    decode_step_layer: Mean,
    sampled_row: Mean,
    queue: Mean,
}

impl Costs {
    /// Learns from a step. `batch` as in [`attribute`](super::attribute).
    pub(super) fn record(&mut self, times: &StepTimes, batch: &[Rows]) {
        debug_assert!(
            batch.is_sorted_by_key(|rows| rows.entry_layer),
            "a batch is ordered by entry layer"
        );
        let mut entering = batch.iter().peekable();
        let mut active_rows = 0.0;
        let mut prefill = RowLayers::default();
        let mut decode = RowLayers::default();
        let mut decode_laps_ns = 0.0;
        for (index, &layer_ns) in times.layers_ns.iter().enumerate() {
            let layer = times.first_layer + index;
            while let Some(rows) = entering.next_if(|rows| rows.entry_layer <= layer) {
                active_rows += rows.rows as f64;
                match rows.phase {
                    Phase::Prefill => prefill.active_rows += rows.rows as f64,
                    Phase::Decode => decode.active_rows += rows.rows as f64,
                    Phase::Verify => {}
                }
            }
            if active_rows > 0.0 {
                let row_ns = layer_ns as f64 / active_rows;
                prefill.pass_layer(row_ns);
                decode.pass_layer(row_ns);
                decode_laps_ns += layer_ns as f64 * decode.active_rows;
            }
        }
        self.prefill_row_layer.add(prefill.ns, prefill.row_layers);
        self.decode_row_layer.add(decode.ns, decode.row_layers);
        self.decode_step_layer
            .add(decode_laps_ns, decode.row_layers);
        let sampled_rows: f64 = batch.iter().map(|rows| rows.sampled as f64).sum();
        self.sampled_row.add(times.finish_ns as f64, sampled_rows);
    }

    /// A step waited for the engine.
    pub(super) fn record_queue(&mut self, waited: Duration) {
        self.queue.add(waited.as_nanos() as f64, 1.0);
    }

    /// For devices.
    pub(super) fn row_costs(&self) -> RowCosts {
        let us = |mean: &Mean| Some(mean.value()? / 1e3);
        RowCosts {
            prefill_row_layer_us: us(&self.prefill_row_layer),
            decode_row_layer_us: us(&self.decode_row_layer),
            decode_step_layer_us: us(&self.decode_step_layer),
            sampled_row_us: us(&self.sampled_row),
            queue_us: us(&self.queue),
        }
    }

    /// Of a prefill row in one layer; `None` before the first one was measured, as in the others.
    pub(super) fn prefill_row_layer_ns(&self) -> Option<f64> {
        self.prefill_row_layer.value()
    }

    /// Of a decode row in one layer.
    pub(super) fn decode_row_layer_ns(&self) -> Option<f64> {
        self.decode_row_layer.value()
    }

    /// Of the end (final norm, lm_head, sampler) for one sampled row.
    pub(super) fn sampled_row_ns(&self) -> Option<f64> {
        self.sampled_row.value()
    }
}

/// The rows of one phase on their way through the layers of a step.
#[derive(Default)]
struct RowLayers {
    active_rows: f64,
    /// A row counts once for each layer that it passed.
    row_layers: f64,
    ns: f64,
}

impl RowLayers {
    fn pass_layer(&mut self, row_ns: f64) {
        self.row_layers += self.active_rows;
        self.ns += self.active_rows * row_ns;
    }
}

/// Time and what took it, both decayed: their quotient is a mean in which recent steps count most. A step
/// without such rows decays nothing, so the last mean holds until there is a newer one.
#[derive(Debug, Default)]
struct Mean {
    ns: f64,
    count: f64,
}

impl Mean {
    fn add(&mut self, ns: f64, count: f64) {
        if count > 0.0 {
            self.ns = self.ns * KEPT_EACH_STEP + ns;
            self.count = self.count * KEPT_EACH_STEP + count;
        }
    }

    fn value(&self) -> Option<f64> {
        (self.count > 0.0).then(|| self.ns / self.count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows(phase: Phase, entry_layer: usize, rows: usize, sampled: usize) -> Rows {
        Rows {
            entry_layer,
            rows,
            sampled,
            phase,
        }
    }

    fn step(layers_ns: &[u64], finish_ns: u64) -> StepTimes {
        StepTimes {
            assemble_ns: 1_000_000,
            first_layer: 0,
            layers_ns: layers_ns.to_vec(),
            finish_ns,
            logits_ns: 0,
        }
    }

    #[test]
    fn nothing_is_known_before_the_first_step() {
        let mut costs = Costs::default();
        costs.record(&step(&[], 40), &[rows(Phase::Decode, 0, 1, 0)]);
        assert_eq!(costs.prefill_row_layer_ns(), None);
        assert_eq!(costs.decode_row_layer_ns(), None);
        assert_eq!(costs.sampled_row_ns(), None);
    }

    #[test]
    fn a_lap_is_shared_by_rows_and_each_phase_learns_its_part() {
        let mut costs = Costs::default();
        let batch = [
            rows(Phase::Prefill, 0, 6, 1),
            rows(Phase::Decode, 1, 1, 1),
            rows(Phase::Verify, 1, 3, 3),
        ];
        // Layer 0: 60 / 6 rows. Layer 1: 200 / 10 rows.
        costs.record(&step(&[60, 200], 50), &batch);
        assert_eq!(
            costs.prefill_row_layer_ns(),
            Some((6.0 * 10.0 + 6.0 * 20.0) / 12.0)
        );
        assert_eq!(costs.decode_row_layer_ns(), Some(20.0));
        assert_eq!(costs.sampled_row_ns(), Some(10.0));
    }

    #[test]
    fn a_session_pays_its_share_of_a_step_and_waits_for_all_of_it() {
        let mut costs = Costs::default();
        let batch = [rows(Phase::Decode, 0, 4, 4)];
        costs.record(&step(&[8000, 8000], 2000), &batch);
        costs.record_queue(Duration::from_micros(30));
        let expected = RowCosts {
            prefill_row_layer_us: None,
            decode_row_layer_us: Some(2.0),
            decode_step_layer_us: Some(8.0),
            sampled_row_us: Some(0.5),
            queue_us: Some(30.0),
        };
        assert_eq!(costs.row_costs(), expected);
    }

    #[test]
    fn drafts_do_not_tell_what_a_decode_row_costs() {
        let mut costs = Costs::default();
        costs.record(&step(&[100], 10), &[rows(Phase::Verify, 0, 5, 5)]);
        assert_eq!(costs.decode_row_layer_ns(), None);
        assert_eq!(costs.prefill_row_layer_ns(), None);
        assert_eq!(costs.sampled_row_ns(), Some(2.0));
    }

    #[test]
    fn a_mean_follows_the_load_and_holds_while_there_is_none() {
        let mut costs = Costs::default();
        let decode = [rows(Phase::Decode, 0, 1, 1)];
        costs.record(&step(&[1000], 0), &decode);
        for _ in 0..256 {
            costs.record(&step(&[2000], 0), &decode);
        }
        // Of the weight w = 1 + q + … + q^256 the first step has q^256, which is 1/e.
        let first = KEPT_EACH_STEP.powi(256);
        let weight = (1.0 - KEPT_EACH_STEP.powi(257)) * 256.0;
        let expected = 2000.0 - 1000.0 * first / weight;
        let mean = costs.decode_row_layer_ns().unwrap();
        assert!((mean - expected).abs() < 1e-6, "{mean} {expected}");
        assert!((first - (-1.0_f64).exp()).abs() < 1e-3);

        for _ in 0..1_000_000 {
            costs.record(&step(&[7], 0), &[rows(Phase::Prefill, 0, 1, 0)]);
        }
        assert_eq!(costs.decode_row_layer_ns(), Some(mean));
        assert!((costs.prefill_row_layer_ns().unwrap() - 7.0).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn a_mean_lies_between_the_cheapest_and_the_dearest_row(
            steps in prop::collection::vec((1_u64..1_000_000, 1_usize..500), 1..600),
        ) {
            let mut costs = Costs::default();
            let (mut least, mut most) = (f64::MAX, 0.0_f64);
            for (layer_ns, count) in steps {
                costs.record(&step(&[layer_ns; 3], layer_ns), &[rows(Phase::Decode, 0, count, count)]);
                least = least.min(layer_ns as f64 / count as f64);
                most = most.max(layer_ns as f64 / count as f64);
                for mean in [costs.decode_row_layer_ns().unwrap(), costs.sampled_row_ns().unwrap()] {
                    prop_assert!(mean >= least * 0.999_999 && mean <= most * 1.000_001);
                }
            }
        }
    }
}
