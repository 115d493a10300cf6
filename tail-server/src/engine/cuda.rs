//! The engine's device on one or several NVIDIA GPUs.

use std::time::Instant;

use headway_cuda::{
    ADJUSTMENTS, CudaError, Input, LOGITS_ROWS, RowPlan, Segment, Stages, SummaryPlan, TailSizes,
    TailWeights, Times,
};
use headway_model::sampler::Sampled;

use super::device::{Device, DeviceError, Meanwhile, Member, MemberRows, StepRun, TakenIn};
use super::sampling::{WantedRow, advance, verify, wanted_rows};
use crate::accounting::StepTimes;

/// The tail layers, in stages where there are several GPUs.
pub(crate) struct CudaDevice {
    tail: Stages,
}

impl CudaDevice {
    /// Takes the memory of `kv_blocks` blocks, a number for each stage, and of steps of at most `step_tokens` rows.
    /// `deterministic`: no batch changes a session's bits.
    ///
    /// # Errors
    /// [`CudaError::Driver`] where a GPU has too little, [`CudaError::NotDeterministic`] where it cannot be so.
    pub(crate) fn new(
        stages: Vec<TailWeights>,
        kv_blocks: &[usize],
        step_tokens: usize,
        deterministic: bool,
    ) -> Result<Self, CudaError> {
        // The stages' own numbers of blocks replace that of the sizes.
        let sizes = TailSizes {
            deterministic,
            ..TailSizes::new(step_tokens, 0)
        };
        let tail = Stages::new(stages, sizes, kv_blocks)?;
        Ok(Self { tail })
    }

    /// Until the GPUs have done what was started; hidden states that come meanwhile are on their way then.
    fn wait(&mut self, meanwhile: &mut Meanwhile<'_>) {
        while !self.tail.is_idle() {
            if !meanwhile(&mut |entry_layer, values| self.take_in(entry_layer, values)) {
                std::hint::spin_loop();
            }
        }
    }

    /// Samples after the wanted rows `wanted`, the first of which is the step's wanted row `first`; at most
    /// [`LOGITS_ROWS`].
    ///
    /// The device finds out what decides about each token; only rows for which that is not enough come to the host.
    fn sample(
        &mut self,
        members: &mut [Member<'_>],
        samples: &mut [Vec<Sampled>],
        (first, wanted): (usize, &[WantedRow]),
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<(), CudaError> {
        let (plan, are_adjusted) = plan(members, wanted);
        let range = first..first + wanted.len();
        self.tail.start_summaries(range, &plan)?;
        self.wait(meanwhile);
        let summaries = self.tail.summaries()?;
        let sample = |(index, wanted): (usize, &WantedRow)| {
            let (sampler, position, _) = wanted.sampled_by(members)?;
            let summary = are_adjusted[index].then(|| summaries.row(index))?;
            let sampled = sampler.sample_summary(&summary, position);
            Some(sampled.ok_or_else(|| summary.into_owned()))
        };
        let sampled: Vec<_> = wanted.iter().enumerate().map(sample).collect();
        for (index, (wanted, sampled)) in wanted.iter().zip(sampled).enumerate() {
            verify(members, samples, wanted, |sampler, position| {
                let summary = match sampled {
                    Some(Ok(sampled)) => return Ok(sampled),
                    Some(Err(summary)) => Some(summary),
                    None => None,
                };
                let logits = self.tail.logits_row(index)?;
                Ok::<_, CudaError>(match summary {
                    Some(summary) => sampler.sample_row(&summary, logits, position),
                    None => sampler.sample(logits, position),
                })
            })?;
        }
        Ok(())
    }
}

impl Device for CudaDevice {
    fn run(
        &mut self,
        members: &mut [Member<'_>],
        started: Instant,
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<StepRun, DeviceError> {
        let wanted = wanted_rows(members);
        // Bounded by the rows of a step.
        let rows: Vec<u32> = wanted
            .iter()
            .map(|wanted| u32::try_from(wanted.row).unwrap_or(u32::MAX))
            .collect();
        let segments: Vec<Segment<'_>> = members.iter().map(segment).collect();
        self.tail.start(&segments, &rows)?;
        let begun_ns = nanoseconds(started);

        let mut samples: Vec<Vec<Sampled>> = members.iter().map(|_| Vec::new()).collect();
        for (chunk, wanted) in wanted.chunks(LOGITS_ROWS).enumerate() {
            self.sample(
                members,
                &mut samples,
                (chunk * LOGITS_ROWS, wanted),
                meanwhile,
            )?;
        }
        self.wait(meanwhile);
        let times = self.tail.finish()?;
        advance(members, &samples);
        Ok(StepRun {
            times: step_times(times, begun_ns, nanoseconds(started)),
            samples,
        })
    }

    fn take_in(&mut self, entry_layer: usize, hidden_states: &[f32]) -> Option<TakenIn> {
        let first = self.tail.take_in(entry_layer, hidden_states)?;
        Some(TakenIn { first })
    }
}

fn segment<'a>(member: &'a Member<'_>) -> Segment<'a> {
    Segment {
        entry_layer: member.entry_layer,
        rows: member.rows,
        input: match member.input {
            MemberRows::TokenIds(token_ids) => Input::TokenIds(token_ids),
            MemberRows::HiddenStates(values, None) => Input::HiddenStates(values),
            MemberRows::HiddenStates(values, Some((rows, before))) => {
                Input::TakenIn(values, rows.first.after(before))
            }
        },
        table: &*member.table,
    }
}

/// What the device is to find out about the rows, as if all draft tokens were right: of a row behind a wrong one
/// nothing is asked. And for which rows it adjusts the logits itself.
fn plan(members: &[Member<'_>], wanted: &[WantedRow]) -> (SummaryPlan, Vec<bool>) {
    let mut plan = SummaryPlan::greedy(wanted.len());
    let mut are_adjusted = vec![false; wanted.len()];
    let SummaryPlan { rows, adjustments } = &mut plan;
    for ((wanted, row), is_adjusted) in wanted.iter().zip(rows).zip(&mut are_adjusted) {
        let Some((sampler, position, guessed)) = wanted.sampled_by(members) else {
            continue;
        };
        let first = adjustments.len();
        *is_adjusted = sampler.adjustments(position, guessed, ADJUSTMENTS - first, adjustments);
        if *is_adjusted {
            *row = RowPlan {
                needs: sampler.summary_needs(),
                adjustments: first..adjustments.len(),
            };
        }
    }
    (plan, are_adjusted)
}

/// The layers' times are the device's own. What is left of the step's time is the host's, before the layers and
/// behind them, but for what the device computes there. The host goes on while the device computes, so what it took to
/// start the step is counted only as far as there is time left.
fn step_times(times: Times, begun_ns: u64, ended_ns: u64) -> StepTimes {
    let in_layers_ns: u64 = times.layers_ns.iter().sum();
    let left_ns = ended_ns.saturating_sub(in_layers_ns);
    let logits_ns = times.logits_ns.min(left_ns);
    let assemble_ns = begun_ns.min(left_ns - logits_ns);
    StepTimes {
        assemble_ns,
        first_layer: times.first_layer,
        layers_ns: times.layers_ns,
        finish_ns: left_ns - assemble_ns,
        logits_ns,
    }
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn laps_add_up_to_the_time_of_the_step() {
        let times = |layers_ns: &[u64]| Times {
            first_layer: 3,
            layers_ns: layers_ns.to_vec(),
            logits_ns: 7,
        };
        assert_eq!(step_times(times(&[20, 30]), 10, 100).busy_ns(), 100);
        // The host was still starting while the device computed.
        let overlapped = step_times(times(&[20, 30]), 90, 100);
        assert_eq!((overlapped.assemble_ns, overlapped.finish_ns), (43, 7));
        assert_eq!(overlapped.logits_ns, 7);
        assert_eq!(overlapped.busy_ns(), 100);
    }
}
