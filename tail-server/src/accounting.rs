//! Who used the device in a step, and what the devices saved. Pure: measured times come in, shares go out.
//!
//! # Used
//! A step is a row of laps, each measured from the end of the lap before it, so the laps add up to the time
//! the device was busy with the step: assembling the batch, one lap for each layer, and the end (final norm,
//! lm_head, sampler). A lap is shared among the sessions that had rows in it, in proportion to those rows:
//!
//! - assembling: all rows of the step;
//! - layer `l`: the rows whose entry layer is `l` or lower;
//! - the end: the rows that were sampled (of a draft all), or all rows where none was.
//!
//! [`split`] hands out every nanosecond exactly once, so the shares of a step add up to its busy time.
//!
//! # Saved
//! Four terms are kept apart: [`Term`]. What each claims is a different set of rows and layers, so no row of
//! a layer is claimed twice. The head layers are derived here, from the very step; the others have no step of
//! their own to be measured in, and are valued by the [`Ledger`].
//!
//! # Head layers
//! The counterfactual is the same step with every row entering at layer 0. In it each of the `L` layers runs
//! the whole batch, and all layers of a model have one shape, so each would cost what a layer that did run
//! the whole batch was measured to cost in this very step. Call the mean of those `full`. They always exist:
//! they are the layers from the highest entry layer of the batch to the last one, and a tail admits no split
//! layer beyond `L - 1`. Then
//!
//! ```text
//! counterfactual = L · full
//! used           = Σ over the layers that ran: time[l]
//! saved          = Σ over the layers that ran part of the batch, or did not run: max(0, full − time[l])
//! ```
//!
//! with `time[l] = 0` for a layer that nobody ran or that this tail does not hold. For layers that ran the
//! whole batch both sides are the same measured time, so they drop out. A partly run layer is *not* scaled up
//! by its rows: where a step is bound by reading the weights, one row costs nearly as much as ten, and
//! scaling would claim savings that are none. `full` was measured at the full number of rows, so it needs no
//! such assumption. The clamp at 0 keeps a noisy measurement from turning into a negative saving.
//!
//! What is saved at layer `l` is shared among the rows that did not run there, whose entry layer is above
//! `l`. A session with split layer 0 saves nothing. Embedding is left out: a table look-up has no cost worth
//! claiming; and so is the end, which the tail always runs.
//!
//! Without drafts, nobody would have run the rows of the guesses that were rejected, on whichever side. So of
//! what a draft of `k` guesses saved in the head layers, only the part of the `a + 1` rows that gave tokens
//! is claimed, `(a + 1) / (k + 1)` of it: [`Share::without_rejected`]. That is exact where a row costs the
//! same in any batch, and too little where a step is bound by reading the weights.

mod costs;
mod ledger;
#[cfg(test)]
mod tests;

pub(crate) use self::ledger::Ledger;
use crate::batcher::Phase;

/// What saved device time. The terms are never mixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Term {
    /// Rows entered above layer 0, because a device had run the layers below.
    HeadLayers,
    /// A device answered without the tail.
    OnDeviceAnswers,
    /// Several tokens came from one step, because a device had guessed them.
    AcceptedDrafts,
    /// Positions were not computed, because their KV was held already.
    ReusedPrefixes,
}

impl Term {
    pub(crate) const ALL: [Self; 4] = [
        Self::HeadLayers,
        Self::OnDeviceAnswers,
        Self::AcceptedDrafts,
        Self::ReusedPrefixes,
    ];

    /// The value of the metrics' `term` label.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::HeadLayers => "head_layers",
            Self::OnDeviceAnswers => "on_device_answers",
            Self::AcceptedDrafts => "accepted_drafts",
            Self::ReusedPrefixes => "reused_prefixes",
        }
    }
}

/// The rows of one session in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rows {
    /// Index of the first layer that the rows passed.
    pub(crate) entry_layer: usize,
    pub(crate) rows: usize,
    /// How many of them were sampled.
    pub(crate) sampled: usize,
    /// What they were for: a row of a draft tells nothing of what a decode row costs.
    pub(crate) phase: Phase,
}

/// The laps of one step, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StepTimes {
    /// Putting the batch together, embedding included.
    pub(crate) assemble_ns: u64,
    /// The first layer that ran: the lowest entry layer of the batch.
    pub(crate) first_layer: usize,
    /// Each layer from `first_layer` to the last one of the model.
    pub(crate) layers_ns: Vec<u64>,
    /// Final norm, lm_head and sampler.
    pub(crate) finish_ns: u64,
    /// Of `finish_ns`, what the device computed: all of it on a CPU; on a GPU the rest is the host's.
    pub(crate) logits_ns: u64,
}

impl StepTimes {
    /// How long the device was busy.
    pub(crate) fn busy_ns(&self) -> u64 {
        self.assemble_ns + self.layers_ns.iter().sum::<u64>() + self.finish_ns
    }
}

/// What a step cost and saved for one session, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) compute_ns: u64,
    /// In the head layers.
    pub(crate) saved_ns: u64,
}

impl Share {
    /// The share of a draft of `rows` rows, of whose guesses the first `accepted` were right: rows of rejected
    /// guesses cost what they cost, and saved nothing. See the module's "Head layers".
    pub(crate) fn without_rejected(self, rows: usize, accepted: usize) -> Self {
        debug_assert!(accepted < rows, "the first row of a draft is not a guess");
        let kept = accepted.saturating_add(1).min(rows) as u128;
        let saved_ns = (u128::from(self.saved_ns) * kept)
            .checked_div(rows as u128)
            .unwrap_or(0);
        Self {
            compute_ns: self.compute_ns,
            // At most what it was, because at most all rows are kept.
            saved_ns: u64::try_from(saved_ns).unwrap_or(self.saved_ns),
        }
    }
}

/// The shares of the sessions of a step, in the order of `batch`.
///
/// `batch` is ordered by entry layer, every entry has a row, and no entry layer lies beyond the last layer.
pub(crate) fn attribute(times: &StepTimes, batch: &[Rows]) -> Vec<Share> {
    let mut shares = vec![Share::default(); batch.len()];
    let mut add_compute = |lap_ns: u64, weights: &[usize]| {
        for (share, ns) in shares.iter_mut().zip(split(lap_ns, weights)) {
            share.compute_ns += ns;
        }
    };

    let all_rows: Vec<usize> = batch.iter().map(|rows| rows.rows).collect();
    add_compute(times.assemble_ns, &all_rows);
    for (index, &layer_ns) in times.layers_ns.iter().enumerate() {
        let layer = times.first_layer + index;
        let active: Vec<usize> = batch
            .iter()
            .map(|rows| {
                if rows.entry_layer <= layer {
                    rows.rows
                } else {
                    0
                }
            })
            .collect();
        add_compute(layer_ns, &active);
    }
    let sampled: Vec<usize> = batch.iter().map(|rows| rows.sampled).collect();
    let nobody_sampled = sampled.iter().all(|&rows| rows == 0);
    add_compute(
        times.finish_ns,
        if nobody_sampled { &all_rows } else { &sampled },
    );

    add_savings(times, batch, &mut shares);
    shares
}

fn add_savings(times: &StepTimes, batch: &[Rows], shares: &mut [Share]) {
    let highest_entry = batch.iter().map(|rows| rows.entry_layer).max().unwrap_or(0);
    let full_layers = times
        .layers_ns
        .get(highest_entry.saturating_sub(times.first_layer)..)
        .unwrap_or(&[]);
    let Some(full_ns) = full_layers
        .iter()
        .sum::<u64>()
        .checked_div(full_layers.len() as u64)
    else {
        return;
    };
    for layer in 0..highest_entry {
        let ran_ns = layer
            .checked_sub(times.first_layer)
            .and_then(|index| times.layers_ns.get(index))
            .copied();
        let saved_ns = full_ns.saturating_sub(ran_ns.unwrap_or(0));
        let absent: Vec<usize> = batch
            .iter()
            .map(|rows| {
                if rows.entry_layer > layer {
                    rows.rows
                } else {
                    0
                }
            })
            .collect();
        for (share, ns) in shares.iter_mut().zip(split(saved_ns, &absent)) {
            share.saved_ns += ns;
        }
    }
}

/// Splits `total` in proportion to `weights`, so that the parts add up to `total` exactly. Rounding down the
/// running sum, not each part, leaves nothing over. Weights that are all 0 get nothing.
fn split(total: u64, weights: &[usize]) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|&weight| weight as u128).sum();
    if sum == 0 {
        return vec![0; weights.len()];
    }
    let mut weight_so_far = 0_u128;
    let mut given = 0_u64;
    weights
        .iter()
        .map(|&weight| {
            weight_so_far += weight as u128;
            // At most `total`, because the running weight is at most the sum.
            let due = u64::try_from(u128::from(total) * weight_so_far / sum).unwrap_or(total);
            let part = due - given;
            given = due;
            part
        })
        .collect()
}
