//! What was measured of the link and the tail, checked to be numbers.

use super::{PlanError, PlannerInput};

/// Guesses that are worth a thought.
const MOST_GUESSES: usize = 32;

/// Numbers of the link and the tail, known to be numbers; all in milliseconds.
pub(super) struct Measured {
    pub(super) rtt: f64,
    /// From nothing to an open session.
    pub(super) open: f64,
    pub(super) up_byte: Option<f64>,
    pub(super) down_byte: f64,
    pub(super) queue: f64,
    /// One layer, of a step with decode rows: what is waited for.
    pub(super) decode_step_layer: f64,
    /// One layer, of a decode row: what the tail charges.
    pub(super) decode_row_layer: f64,
    pub(super) prefill_row_layer: f64,
    pub(super) sampled_row: f64,
    pub(super) most_guesses: usize,
}

impl Measured {
    pub(super) fn of(input: &PlannerInput<'_>) -> Result<Self, PlanError> {
        let number = |value: Option<f64>, what| {
            let is_time = |value: &f64| value.is_finite() && *value >= 0.0;
            value.filter(is_time).ok_or(PlanError::NotMeasured { what })
        };
        let costs = input.load.costs;
        let byte = |bits_per_second: Option<f64>| {
            let bits = bits_per_second.filter(|bits| bits.is_finite() && *bits > 0.0)?;
            Some(8e3 / bits)
        };
        let cost = |us, what| Ok(number(us, what)? / 1e3);
        let rtt = number(input.link.rtt_ms, "the round trip to the tail")?;
        let round_trips = rtt * f64::from(input.open_round_trips);
        Ok(Self {
            rtt,
            open: number(
                input.link.open_ms.or(Some(round_trips)),
                "the time to open a session",
            )?,
            up_byte: byte(input.link.up_bits_per_second),
            down_byte: byte(input.link.down_bits_per_second).unwrap_or(0.0),
            queue: cost(costs.queue_us.or(Some(0.0)), "the tail's queue delay")?,
            decode_step_layer: cost(
                costs.decode_step_layer_us,
                "the tail's time for a decode row",
            )?,
            decode_row_layer: cost(
                costs.decode_row_layer_us,
                "the tail's price of a decode row",
            )?,
            prefill_row_layer: cost(
                costs.prefill_row_layer_us,
                "the tail's time for a prompt's row",
            )?,
            sampled_row: cost(costs.sampled_row_us, "the tail's time for an lm_head row")?,
            most_guesses: input.load.max_draft_tokens.min(MOST_GUESSES),
        })
    }

    /// `rows` rows in one layer of the tail, as they are waited for.
    pub(super) fn tail_layer(&self, rows: f64) -> f64 {
        // Of a tail that reads its weights anew for each step, the first row is the dear one.
        let further = self.prefill_row_layer.min(self.decode_step_layer);
        self.decode_step_layer + (rows - 1.0) * further
    }
}
