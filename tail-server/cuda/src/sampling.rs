//! What is found out about rows of logits on the device, so that they stay there. `kernels/sampling.cuh` has the same
//! layouts and numbers; `headway_model::sampler` draws tokens from what comes back.

use std::borrow::Cow;
use std::ops::Range;

use cudarc::driver::{CudaFunction, CudaSlice, DriverError, PinnedHostSlice};
use headway_model::sampler::{Adjustment, LogitsSummary, SummaryNeeds};

use crate::buffers::LOGITS_ROWS;
use crate::calls::{Arg, Launch, copy_up, launch, pinned, start_copy_down};
use crate::error::CudaError;
use crate::gpu::Gpu;

/// The most adjustments of a plan: 1 MB. Rows that need more are for the host.
pub const ADJUSTMENTS: usize = 1 << 16;

/// Most likely tokens of a row that are given in order.
pub(crate) const CANDIDATES: usize = 256;
/// Tokens that can be gathered before they are sorted.
const GATHERED: usize = 1024;
/// Thread blocks of a row, at most.
const MOST_CHUNKS: usize = 64;
/// Groups of a row, at most, and about as many as it has.
const MOST_GROUPS: usize = 8192;
const USUAL_GROUPS: usize = 2048;
const THREADS: usize = 512;
const WARPS: usize = THREADS / 32;
/// Logits of a piece, and pieces of a warp that are read at once.
const PIECE: usize = 128;
const PIECES: usize = 4;

const HEADER_WORDS: usize = 4;
const ROW_WORDS: usize = 8;
const ADJUSTMENT_WORDS: usize = 4;
const RESULT_WORDS: usize = 16;
const CANDIDATE_WORDS: usize = 2;
/// Words of a result before its largest logit.
const LARGEST_AT: usize = 10;
/// Where the candidates begin.
const CANDIDATES_AT: usize = LOGITS_ROWS * RESULT_WORDS;

const WANTS_LOG_TOTAL: u32 = 1;
const WANTS_WEIGHTS: u32 = 2;
const WANTS_CANDIDATES: u32 = 4;

/// log2(e) / temperature, at most: what is not infinite.
const MOST_SCALE: f64 = 1e30;

/// What is to be found out about some rows.
#[derive(Clone, Debug, Default)]
pub struct SummaryPlan {
    /// One for each row.
    pub rows: Vec<RowPlan>,
    /// At most [`ADJUSTMENTS`].
    pub adjustments: Vec<Adjustment>,
}

/// What is to be found out about a row.
#[derive(Clone, Debug)]
pub struct RowPlan {
    /// What is wanted beside the largest logit.
    pub needs: SummaryNeeds,
    /// Which of the plan's adjustments happen to the row first; each token has at most one.
    pub adjustments: Range<usize>,
}

impl SummaryPlan {
    /// The largest logit of each row, and nothing else.
    #[must_use]
    pub fn greedy(rows: usize) -> Self {
        let row = RowPlan {
            needs: SummaryNeeds {
                temperature: 0.0,
                floor: 0.0,
                log_total: false,
                candidates: false,
            },
            adjustments: 0..0,
        };
        Self {
            rows: vec![row; rows],
            adjustments: Vec::new(),
        }
    }
}

/// What was found out, on the host.
#[derive(Clone, Copy, Debug)]
pub struct Summaries<'a> {
    words: &'a [u32],
    vocab_size: usize,
}

impl<'a> Summaries<'a> {
    /// Of one row, counted from the plan's first.
    #[must_use]
    pub fn row(&self, index: usize) -> LogitsSummary<'a> {
        let result = &self.words[index * RESULT_WORDS..][..RESULT_WORDS];
        let double =
            |at: usize| f64::from_bits(u64::from(result[at]) | u64::from(result[at + 1]) << 32);
        let candidates = match result[7] as usize {
            0 | 1 => &result[LARGEST_AT..][..CANDIDATE_WORDS],
            count => {
                let at = CANDIDATES_AT + index * CANDIDATES * CANDIDATE_WORDS;
                &self.words[at..][..count.min(CANDIDATES) * CANDIDATE_WORDS]
            }
        };
        LogitsSummary {
            vocab_size: self.vocab_size,
            candidates: Cow::Borrowed(candidates.as_chunks::<CANDIDATE_WORDS>().0),
            exp_sum: double(0),
            weight_sum: double(2),
            doubtful_sum: double(4),
            weight_count: result[6] as usize,
            has_nan: result[8] != 0,
        }
    }
}

/// The kernels and their memory, for [`LOGITS_ROWS`] rows.
pub(crate) struct Sampling {
    largest_logits: CudaFunction,
    sum_logits: CudaFunction,
    vocab_size: usize,
    cut: Cut,
    host_plan: PinnedHostSlice<u32>,
    plan: CudaSlice<u32>,
    scratch: CudaSlice<u8>,
    /// Results, then candidates.
    results: CudaSlice<u32>,
    host_results: PinnedHostSlice<u32>,
    /// Words of the results that the last plan asked for.
    wanted_words: usize,
}

impl Sampling {
    pub(crate) fn new(gpu: &Gpu, vocab_size: usize) -> Result<Self, CudaError> {
        let cut = Cut::of(vocab_size);
        let plan_words = HEADER_WORDS + LOGITS_ROWS * ROW_WORDS + ADJUSTMENTS * ADJUSTMENT_WORDS;
        let result_words = CANDIDATES_AT + LOGITS_ROWS * CANDIDATES * CANDIDATE_WORDS;
        Ok(Self {
            largest_logits: gpu.function("largest_logits")?,
            sum_logits: gpu.function("sum_logits")?,
            vocab_size,
            cut,
            host_plan: pinned(gpu.context(), plan_words)?,
            plan: gpu.zeros(plan_words)?,
            scratch: gpu.zeros(LOGITS_ROWS * cut.scratch_bytes())?,
            results: gpu.zeros(result_words)?,
            host_results: pinned(gpu.context(), result_words)?,
            wanted_words: 0,
        })
    }

    /// Writes the plan and starts its copy. What the last plan asked for must be done.
    pub(crate) fn upload(&mut self, gpu: &Gpu, plan: &SummaryPlan) -> Result<(), CudaError> {
        let SummaryPlan { rows, adjustments } = plan;
        assert!(
            rows.len() <= LOGITS_ROWS && adjustments.len() <= ADJUSTMENTS,
            "no more than there is memory for"
        );
        let adjustments_at = HEADER_WORDS + LOGITS_ROWS * ROW_WORDS;
        let len = adjustments_at + adjustments.len() * ADJUSTMENT_WORDS;
        let words = &mut self.host_plan.as_mut_slice()?[..len];
        words[0] = word(rows.len());
        let (rows_words, adjustment_words) =
            words[HEADER_WORDS..].split_at_mut(LOGITS_ROWS * ROW_WORDS);
        let mut wants_all = 0;
        for (words, row) in rows_words
            .as_chunks_mut::<ROW_WORDS>()
            .0
            .iter_mut()
            .zip(rows)
        {
            assert!(
                row.adjustments.start <= row.adjustments.end
                    && row.adjustments.end <= adjustments.len(),
                "adjustments of the plan"
            );
            *words = row_words(row);
            wants_all |= words[2];
        }
        let to = adjustment_words.as_chunks_mut::<ADJUSTMENT_WORDS>().0;
        for (to, adjustment) in to.iter_mut().zip(adjustments) {
            let Adjustment {
                token_id,
                bias,
                repetition,
                penalty,
            } = *adjustment;
            *to = [
                token_id,
                bias.to_bits(),
                repetition.to_bits(),
                penalty.to_bits(),
            ];
        }
        self.wanted_words = if wants_all & WANTS_CANDIDATES == 0 {
            rows.len() * RESULT_WORDS
        } else {
            CANDIDATES_AT + rows.len() * CANDIDATES * CANDIDATE_WORDS
        };
        copy_up(gpu.stream(), &self.host_plan, &mut self.plan, len)?;
        Ok(())
    }

    /// Starts the kernels on `logits`, `[rows, vocab_size]`, f32; as many rows as the plan has, or more, of which those
    /// behind are left alone.
    pub(crate) fn start(&self, gpu: &Gpu, logits: u64, rows: u32) -> Result<(), CudaError> {
        let (plan, scratch) = (gpu.address(&self.plan), gpu.address(&self.scratch));
        let results = gpu.address(&self.results);
        let sizes = [LOGITS_ROWS, self.vocab_size, self.cut.pieces].map(word);
        let [most_rows, vocab_size, pieces] = sizes.map(Arg::U32);
        let grid = Launch {
            grid: [word(self.cut.chunks), rows],
            threads: word(THREADS),
            shared_bytes: 0,
        };
        let args = [
            Arg::Address(logits),
            Arg::Address(plan),
            Arg::Address(scratch),
            Arg::Address(results),
            most_rows,
            vocab_size,
            pieces,
            Arg::U32(word(self.cut.groups)),
        ];
        launch(gpu, &self.largest_logits, grid, &args)?;
        let candidates = results + (CANDIDATES_AT * size_of::<u32>()) as u64;
        let args = [
            Arg::Address(logits),
            Arg::Address(plan),
            Arg::Address(scratch),
            Arg::Address(results),
            Arg::Address(candidates),
            most_rows,
            vocab_size,
            pieces,
        ];
        launch(gpu, &self.sum_logits, grid, &args)
    }

    /// Starts the copy of what the plan asked for to the host.
    pub(crate) fn start_download(&mut self, gpu: &Gpu) -> Result<(), CudaError> {
        let range = 0..self.wanted_words;
        start_copy_down(gpu.stream(), &self.results, range, &mut self.host_results)?;
        Ok(())
    }

    /// Writes what no plan gives over all results, for checks.
    pub(crate) fn poison(&mut self, gpu: &Gpu) -> Result<(), CudaError> {
        let poison = self.host_results.as_mut_slice()?;
        poison.fill(0xDEAD_BEEF);
        gpu.stream().memcpy_htod(poison, &mut self.results)?;
        Ok(())
    }

    /// What was copied last. The stream has been synchronized.
    pub(crate) fn summaries(&self) -> Result<Summaries<'_>, DriverError> {
        Ok(Summaries {
            words: self.host_results.as_slice()?,
            vocab_size: self.vocab_size,
        })
    }
}

/// How a row is dealt out.
#[derive(Clone, Copy, Debug)]
struct Cut {
    chunks: usize,
    /// Of each warp of a chunk.
    pieces: usize,
    /// Groups of a chunk.
    groups: usize,
}

impl Cut {
    fn of(vocab_size: usize) -> Self {
        let pieces = vocab_size
            .div_ceil(WARPS * PIECE * MOST_CHUNKS)
            .next_multiple_of(PIECES);
        let chunks = vocab_size.div_ceil(WARPS * PIECE * pieces).max(1);
        let groups = (USUAL_GROUPS / chunks).next_power_of_two();
        Self {
            chunks,
            pieces,
            groups: groups.clamp(MOST_GROUPS / MOST_CHUNKS, THREADS * 4),
        }
    }

    /// Of each row: its state, and for each chunk sums and the largest logit; gathered tokens; groups.
    const fn scratch_bytes(&self) -> usize {
        32 + self.chunks * (32 + 8) + GATHERED * 8 + self.chunks * self.groups * 4
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "scales are below the largest f32, and the rest is what the first f32 leaves"
)]
fn row_words(row: &RowPlan) -> [u32; ROW_WORDS] {
    let SummaryNeeds {
        temperature,
        floor,
        log_total,
        candidates,
    } = row.needs;
    let mut wants = 0;
    for (is_wanted, bit) in [
        (log_total, WANTS_LOG_TOTAL),
        (temperature > 0.0, WANTS_WEIGHTS),
        (candidates, WANTS_CANDIDATES),
    ] {
        wants |= if is_wanted { bit } else { 0 };
    }
    let exact = (std::f64::consts::LOG2_E / f64::from(temperature)).min(MOST_SCALE);
    let scale = exact as f32;
    let rest = (exact - f64::from(scale)) as f32;
    [
        word(row.adjustments.start),
        word(row.adjustments.len()),
        wants,
        (floor as f32).to_bits(),
        scale.to_bits(),
        rest.to_bits(),
        0,
        0,
    ]
}

fn word(value: usize) -> u32 {
    u32::try_from(value)
        .expect("sizes are bounded by ModelConfig, rows and adjustments by assertions")
}
