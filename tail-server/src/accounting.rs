//! Who used the device in a step, and what the head layers on the devices saved. Pure: measured times come
//! in, shares go out.
//!
//! # Used
//! A step is a row of laps, each measured from the end of the lap before it, so the laps add up to the time
//! the device was busy with the step: assembling the batch, one lap for each layer, and the end (final norm,
//! lm_head, sampler). A lap is shared among the sessions that had rows in it, in proportion to those rows:
//!
//! - assembling: all rows of the step;
//! - layer `l`: the rows whose entry layer is `l` or lower;
//! - the end: the rows that were sampled, or all rows where none was.
//!
//! [`split`] hands out every nanosecond exactly once, so the shares of a step add up to its busy time.
//!
//! # Saved
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

#[cfg(test)]
mod tests;

/// The rows of one session in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rows {
    /// Index of the first layer that the rows passed.
    pub(crate) entry_layer: usize,
    pub(crate) rows: usize,
    /// How many of them were sampled.
    pub(crate) sampled: usize,
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
    pub(crate) saved_ns: u64,
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
