//! What rows saved that never ran: accepted drafts, reused prefixes, answers given on a device. Each is valued
//! at what such rows cost in recent steps ([`Costs`]):
//!
//! ```text
//! prefill, decode   a row of that phase in one layer
//! end               final norm, lm_head and sampler for one sampled row
//! L, e              the layers of the model, and the session's entry layer
//! ```
//!
//! # Accepted drafts
//! A draft of which `a` guesses were accepted gives `a + 1` tokens. Without it they take `a + 1` decode rows:
//!
//! ```text
//! row            = (L − e) · decode + end
//! counterfactual = (a + 1) · min(row, used)
//! net            = counterfactual − used
//! ```
//!
//! with `used` what [`attribute`](super::attribute) charged for the draft, assembling included. A decode row in
//! the place of a draft costs no more than all the draft's rows, so `row` is taken as at most `used`: a
//! draft of which nothing was accepted never saves anything, however cheap its step was, and a mean from
//! times of a lighter load cannot claim more than `a · used`.
//!
//! `net` is negative where rejected guesses cost more than the accepted ones saved. A counter cannot fall, so
//! the balance is carried: losses are made good before anything is returned. After any number of drafts the
//! sum of what was returned is the highest that the sum of `net` has been, or 0.
//!
//! Before a decode row was measured, `counterfactual` is 0: such a draft claims nothing, and what it used is
//! a loss like any other.
//!
//! # Reused prefixes
//! `positions · (L − e) · prefill`. The end is left out, because the last position of a prompt, the only one
//! that is sampled, is always computed.
//!
//! # On-device answers
//! For one answer of `n` output tokens to a prompt of `p`:
//!
//! ```text
//! p · L · prefill + (n − 1) · L · decode + n · end
//! ```
//!
//! The prompt's last row gives the first output token, and the last output token is fed to nobody.
//!
//! # What is not claimed
//! - The head layers `[0, e)` of drafts and reused prefixes. Those of the tokens of drafts are in
//!   [`Term::HeadLayers`]; nobody claims those of a reused prefix.
//! - Assembling, and everything outside the measured laps.
//! - Anything at a guessed price. Rows whose cost was not measured yet wait, as three sums for each term, and
//!   [`Ledger::due`] returns their value when it was. Sums at their limit stay there, so only less is
//!   claimed.
//!
//! # What the means assume
//! A mean takes the length of contexts as it comes: attention over a longer context costs more than over a
//! shorter one. Where contexts are not long this is little beside the weights of a layer.

use std::time::Duration;

use headway_model::tail_load::RowCosts;

use super::costs::Costs;
use super::{Rows, StepTimes, Term};

#[cfg(test)]
mod tests;

/// Values what was saved outside the steps that were measured. All times in nanoseconds of device time.
#[derive(Debug)]
pub(crate) struct Ledger {
    num_layers: usize,
    costs: Costs,
    /// The net saving of all drafts less what was returned of it: at most 0 between two calls, unless one
    /// call's was too much for its answer.
    drafts_balance_ns: i128,
    on_device_answers: Unvalued,
    reused_prefixes: Unvalued,
}

impl Ledger {
    /// `num_layers`: of the whole model, not of what this tail holds.
    pub(crate) fn new(num_layers: usize) -> Self {
        Self {
            num_layers,
            costs: Costs::default(),
            drafts_balance_ns: 0,
            on_device_answers: Unvalued::default(),
            reused_prefixes: Unvalued::default(),
        }
    }

    /// Learns from a step what rows cost. `batch` as in [`attribute`](super::attribute): ordered by entry
    /// layer. [`due`](Self::due) then tells what this has made valuable.
    pub(crate) fn record(&mut self, times: &StepTimes, batch: &[Rows]) {
        self.costs.record(times, batch);
    }

    /// Learns how long a step waited for the engine.
    pub(crate) fn record_queue(&mut self, waited: Duration) {
        self.costs.record_queue(waited);
    }

    /// What rows cost, for devices.
    pub(crate) fn row_costs(&self) -> RowCosts {
        self.costs.row_costs()
    }

    /// What has been waiting for a cost that is known now. 0 in nearly every call.
    pub(crate) fn due(&mut self) -> [(Term, u64); 2] {
        [
            (
                Term::OnDeviceAnswers,
                self.on_device_answers.take_value_ns(&self.costs),
            ),
            (
                Term::ReusedPrefixes,
                self.reused_prefixes.take_value_ns(&self.costs),
            ),
        ]
    }

    /// What a draft adds to the counter of accepted drafts, after losses were made good. Call it for every
    /// draft that ran, also where nothing was accepted.
    ///
    /// `accepted`: how many guesses were right, without the token that follows them. `compute_ns`: what was
    /// attributed to the draft in its step as a whole.
    pub(crate) fn accepted_draft(
        &mut self,
        entry_layer: usize,
        accepted: usize,
        compute_ns: u64,
    ) -> u64 {
        let row_ns = self.decode_row_ns(entry_layer).unwrap_or(0).min(compute_ns);
        let tokens = accepted as i128 + 1;
        let net_ns = tokens.saturating_mul(i128::from(row_ns)) - i128::from(compute_ns);
        self.drafts_balance_ns = self.drafts_balance_ns.saturating_add(net_ns);
        let due_ns = u64::try_from(self.drafts_balance_ns.max(0)).unwrap_or(u64::MAX);
        self.drafts_balance_ns -= i128::from(due_ns);
        due_ns
    }

    /// What it saved that `positions` of a prompt were not computed, because their KV was held already.
    pub(crate) fn reused_prefix(&mut self, entry_layer: usize, positions: usize) -> u64 {
        let layers = self.tail_layers(entry_layer);
        self.reused_prefixes.add(Unvalued {
            prefill_row_layers: (positions as u64).saturating_mul(layers),
            ..Unvalued::default()
        });
        self.reused_prefixes.take_value_ns(&self.costs)
    }

    /// What it saved that a device gave one answer without the tail. A device says these numbers, so the
    /// caller bounds them. A caller who has only the sums of several answers claims a decode row too much for
    /// each answer but one.
    pub(crate) fn on_device_answer(&mut self, prompt_tokens: u64, output_tokens: u64) -> u64 {
        let layers = self.tail_layers(0);
        self.on_device_answers.add(Unvalued {
            prefill_row_layers: prompt_tokens.saturating_mul(layers),
            decode_row_layers: output_tokens.saturating_sub(1).saturating_mul(layers),
            sampled_rows: output_tokens,
        });
        self.on_device_answers.take_value_ns(&self.costs)
    }

    /// Of one decode row through the layers from `entry_layer` on, and the end.
    fn decode_row_ns(&self, entry_layer: usize) -> Option<u64> {
        let layers_ns = self.costs.decode_row_layer_ns()? * self.tail_layers(entry_layer) as f64;
        Some(whole_ns(layers_ns + self.costs.sampled_row_ns()?))
    }

    fn tail_layers(&self, entry_layer: usize) -> u64 {
        self.num_layers.saturating_sub(entry_layer) as u64
    }
}

/// Rows that never ran and were not valued yet, by the costs that value them.
#[derive(Clone, Copy, Debug, Default)]
struct Unvalued {
    /// Rows, each once for every layer that it would have passed.
    prefill_row_layers: u64,
    decode_row_layers: u64,
    sampled_rows: u64,
}

impl Unvalued {
    fn add(&mut self, more: Self) {
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut self.prefill_row_layers, more.prefill_row_layers);
        add(&mut self.decode_row_layers, more.decode_row_layers);
        add(&mut self.sampled_rows, more.sampled_rows);
    }

    /// The value of those whose cost is known. They are gone after that; the others wait on.
    fn take_value_ns(&mut self, costs: &Costs) -> u64 {
        let by_cost = [
            (&mut self.prefill_row_layers, costs.prefill_row_layer_ns()),
            (&mut self.decode_row_layers, costs.decode_row_layer_ns()),
            (&mut self.sampled_rows, costs.sampled_row_ns()),
        ];
        let mut value_ns = 0.0;
        for (count, cost_ns) in by_cost {
            if let Some(cost_ns) = cost_ns {
                value_ns += std::mem::take(count) as f64 * cost_ns;
            }
        }
        whole_ns(value_ns)
    }
}

/// Rounded down; what does not fit is cut off.
#[expect(
    clippy::cast_possible_truncation,
    reason = "such a cast rounds towards 0 and saturates, which is what is wanted"
)]
fn whole_ns(ns: f64) -> u64 {
    ns as u64
}
