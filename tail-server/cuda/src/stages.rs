//! A tail on several GPUs: each has a range of the layers, and rows go from one to the next.
//!
//! The stages of a step run one after the other. A stage's rows are those that the stage before hands over, which are
//! the first ones of the batch, and those that enter at its own layers. They go from the residual stream of one GPU to
//! that of the next, by a copy that the next stage's stream waits for; the host only starts it all.
//!
//! With one stage there is nothing else to do than the tail does.

use std::ops::Range;

use cudarc::driver::CudaEvent;
use headway_model::LayerRange;

use crate::calls_peer::{allow_access, copy_across};
use crate::error::CudaError;
use crate::incoming::TakenIn;
use crate::sampling::{Summaries, SummaryPlan};
use crate::step::{Batch, Segment};
use crate::tail::{Tail, TailSizes, Times};
use crate::weights::TailWeights;

mod share;

pub use self::share::{StageBytes, load_stages, share_layers};

/// Stages that follow each other, up to the model's last layer; used as a [`Tail`] is.
pub struct Stages {
    /// At least one; several may lie on the same GPU.
    stages: Vec<Tail>,
    /// Of each stage but the last: its rows have gone on to the next.
    handed_over: Vec<CudaEvent>,
    /// Of the step that runs: the first stage that has rows.
    first_stage: usize,
    /// Why nothing is started any more, on none of the GPUs.
    fault: Option<String>,
}

impl Stages {
    /// Takes all memory that steps need. `weights`: ranges that follow each other, the last one with the model's last
    /// layer. `sizes` are each stage's, but for the blocks: stage `i` has `kv_blocks[i]` of them, whose numbers follow
    /// those of the stage before.
    ///
    /// # Errors
    /// As [`Tail::new`], for any stage.
    ///
    /// # Panics
    /// Where the ranges do not follow each other, or there are not as many numbers of blocks.
    pub fn new(
        weights: Vec<TailWeights>,
        sizes: TailSizes,
        kv_blocks: &[usize],
    ) -> Result<Self, CudaError> {
        assert_eq!(weights.len(), kv_blocks.len(), "a number for each stage");
        assert!(
            weights.last().is_some_and(|last| last.end.is_some()),
            "the last stage ends with the model"
        );
        assert!(
            weights
                .windows(2)
                .all(|pair| pair[0].layers().end == pair[1].layers().start),
            "stages follow each other"
        );
        let mut first_block = 0;
        let mut stages = Vec::with_capacity(weights.len());
        for (weights, &kv_blocks) in weights.into_iter().zip(kv_blocks) {
            let sizes = TailSizes {
                kv_blocks,
                first_block,
                ..sizes
            };
            stages.push(Tail::new(weights, sizes)?);
            first_block += kv_blocks;
        }
        let handed_over = stages.windows(2).map(|pair| {
            let [from, to] = [&pair[0], &pair[1]].map(|stage| stage.weights().gpu().context());
            allow_access(from, to)?;
            Ok(from.new_event(None)?)
        });
        Ok(Self {
            handed_over: handed_over.collect::<Result<_, CudaError>>()?,
            stages,
            first_stage: 0,
            fault: None,
        })
    }

    /// The stages, in order.
    #[must_use]
    pub fn stages(&self) -> &[Tail] {
        &self.stages
    }

    /// As [`Tail::take_in`], for rows that enter at `entry_layer`.
    pub fn take_in(&mut self, entry_layer: usize, hidden_states: &[f32]) -> Option<TakenIn> {
        let last = self.stages.len() - 1;
        let mut stages = self.stages.iter();
        let entered = stages.position(|stage| entry_layer < stage.weights().layers().end);
        self.stages[entered.unwrap_or(last)].take_in(hidden_states)
    }

    /// Whether the GPUs have done all that was started.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.stages.last().is_none_or(Tail::is_idle)
    }

    /// As [`Tail::start`]; every stage is started, and each waits for the one before on its own.
    ///
    /// # Errors
    /// As [`Tail::start`]; what is refused is refused before any stage is started.
    pub fn start(&mut self, segments: &[Segment<'_>], wanted: &[u32]) -> Result<(), CudaError> {
        if let [only] = &mut *self.stages {
            return only.start(segments, wanted);
        }
        self.guarded(|all| all.start_stages(segments, wanted))
    }

    /// As [`Tail::start_summaries`].
    ///
    /// # Errors
    /// As [`Tail::start_summaries`].
    pub fn start_summaries(
        &mut self,
        range: Range<usize>,
        plan: &SummaryPlan,
    ) -> Result<(), CudaError> {
        self.guarded(|all| last_of(&mut all.stages).start_summaries(range, plan))
    }

    /// As [`Tail::summaries`].
    ///
    /// # Errors
    /// As [`Tail::summaries`].
    pub fn summaries(&mut self) -> Result<Summaries<'_>, CudaError> {
        self.refuse_after_fault()?;
        let Self { stages, fault, .. } = self;
        let summaries = last_of(stages).summaries();
        summaries.inspect_err(|error| note_fault(fault, error))
    }

    /// As [`Tail::logits_row`].
    ///
    /// # Errors
    /// As [`Tail::logits_row`].
    pub fn logits_row(&mut self, index: usize) -> Result<&mut [f32], CudaError> {
        self.refuse_after_fault()?;
        let Self { stages, fault, .. } = self;
        let logits = last_of(stages).logits_row(index);
        logits.inspect_err(|error| note_fault(fault, error))
    }

    /// As [`Tail::logits`].
    ///
    /// # Errors
    /// As [`Tail::logits`].
    pub fn logits(&mut self, range: Range<usize>) -> Result<&mut [f32], CudaError> {
        self.refuse_after_fault()?;
        let Self { stages, fault, .. } = self;
        let logits = last_of(stages).logits(range);
        logits.inspect_err(|error| note_fault(fault, error))
    }

    /// Waits until all GPUs have done the step. The layers' times follow each other as the layers do; what it takes
    /// to hand rows over counts for the last layer before.
    ///
    /// # Errors
    /// The fault of any of them.
    pub fn finish(&mut self) -> Result<Times, CudaError> {
        self.guarded(|all| {
            let mut times: Option<Times> = None;
            for stage in &mut all.stages[all.first_stage..] {
                let next = stage.finish()?;
                match &mut times {
                    None => times = Some(next),
                    Some(times) => {
                        times.layers_ns.extend(next.layers_ns);
                        times.logits_ns = next.logits_ns;
                    }
                }
            }
            Ok(times.expect("the first stage with rows is one of them"))
        })
    }

    fn start_stages(&mut self, segments: &[Segment<'_>], wanted: &[u32]) -> Result<(), CudaError> {
        assert!(
            segments.is_sorted_by_key(|segment| segment.entry_layer),
            "segments are ordered by entry layer"
        );
        let last = self.stages.len() - 1;
        let stages = self.stages.iter().enumerate();
        let rows: Vec<StageRows<'_>> = stages
            .map(|(index, stage)| StageRows::new(segments, stage.weights().layers(), index == last))
            .collect();
        let first = rows.iter().position(|rows| !rows.segments.is_empty());
        let first = first.unwrap_or(last);
        self.first_stage = first;
        let batch = |index: usize| Batch {
            segments: &rows[index].segments,
            wanted: if index == last { wanted } else { &[] },
            handed_rows: rows[index].handed_rows,
        };
        for index in first..=last {
            self.stages[index].check(&batch(index))?;
        }
        // While the first stages compute, the others' copies are done.
        for index in first..=last {
            self.stages[index].upload(&batch(index))?;
        }
        for index in first..=last {
            if index > first {
                let stream = self.stages[index].weights().gpu().stream();
                stream.wait(&self.handed_over[index - 1])?;
            }
            self.stages[index].start_uploaded()?;
            if index < last {
                self.hand_over(index, rows[index + 1].handed_rows)?;
            }
        }
        Ok(())
    }

    /// Starts the way of the first `rows` rows from stage `index` to the next.
    fn hand_over(&mut self, index: usize, rows: usize) -> Result<(), CudaError> {
        let [from, to] = [&self.stages[index], &self.stages[index + 1]];
        let [from_gpu, to_gpu] = [from, to].map(|stage| stage.weights().gpu());
        let values = rows * from.weights().config().hidden_size;
        copy_across(
            (from_gpu, from.residual_stream()),
            (to_gpu, to.residual_stream()),
            values,
        )?;
        self.handed_over[index].record(from_gpu.stream())?;
        self.stages[index].note_handed_over()
    }

    fn refuse_after_fault(&self) -> Result<(), CudaError> {
        match &self.fault {
            Some(fault) => Err(CudaError::Broken {
                fault: fault.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Runs nothing after a fault, and remembers the first one.
    fn guarded<T>(
        &mut self,
        run: impl FnOnce(&mut Self) -> Result<T, CudaError>,
    ) -> Result<T, CudaError> {
        self.refuse_after_fault()?;
        run(self).inspect_err(|error| note_fault(&mut self.fault, error))
    }
}

fn note_fault(fault: &mut Option<String>, error: &CudaError) {
    if error.is_fault() {
        *fault = Some(error.to_string());
    }
}

fn last_of(stages: &mut [Tail]) -> &mut Tail {
    stages.last_mut().expect("there is a stage")
}

/// A step's rows in one stage.
struct StageRows<'a> {
    segments: Vec<Segment<'a>>,
    handed_rows: usize,
}

impl<'a> StageRows<'a> {
    /// Of `segments`, in order of their entry layers, those that have entered when `layers` end; all where these are
    /// the model's last ones.
    fn new(segments: &[Segment<'a>], layers: LayerRange, is_last: bool) -> Self {
        let has_entered = |segment: &&Segment<'_>| is_last || segment.entry_layer < layers.end;
        let entered = segments.iter().take_while(has_entered);
        let segments: Vec<Segment<'a>> = entered.copied().collect();
        let before = segments
            .iter()
            .filter(|segment| segment.entry_layer < layers.start);
        let handed_rows = before.map(|segment| segment.rows).sum();
        let enter = |segment: Segment<'a>| Segment {
            entry_layer: segment.entry_layer.max(layers.start),
            ..segment
        };
        Self {
            segments: segments.into_iter().map(enter).collect(),
            handed_rows,
        }
    }
}

#[cfg(test)]
mod tests {
    use headway_model::KvTable;

    use super::*;
    use crate::step::Input;

    /// Entry layers, and the rows handed over, of sessions of one to four rows.
    fn rows(entry_layers: [usize; 4], layers: [usize; 2], is_last: bool) -> (Vec<usize>, usize) {
        let table = KvTable::new(LayerRange::new(0, 9));
        let segments: Vec<Segment<'_>> = (1..)
            .zip(entry_layers)
            .map(|(rows, entry_layer)| Segment {
                entry_layer,
                rows,
                input: Input::TokenIds(&[]),
                table: &table,
            })
            .collect();
        let layers = LayerRange::new(layers[0], layers[1]);
        let rows = StageRows::new(&segments, layers, is_last);
        let entry_layers = rows.segments.iter().map(|segment| segment.entry_layer);
        (entry_layers.collect(), rows.handed_rows)
    }

    #[test]
    fn a_stage_has_what_was_handed_over_and_what_enters_in_it() {
        let entered = [0, 2, 3, 6];
        assert_eq!(rows(entered, [0, 3], false), (vec![0, 2], 0));
        assert_eq!(rows(entered, [3, 6], false), (vec![3, 3, 3], 3));
        assert_eq!(rows(entered, [6, 9], true), (vec![6, 6, 6, 6], 6));
    }

    #[test]
    fn a_stage_before_all_entry_layers_has_no_rows() {
        assert_eq!(rows([3, 3, 4, 9], [0, 3], false), (vec![], 0));
        assert_eq!(rows([3, 3, 4, 9], [3, 9], true), (vec![3, 3, 4, 9], 0));
    }
}
