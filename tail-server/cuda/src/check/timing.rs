//! How long steps take: a Llama-3.1-8B shape with random weights, of which sessions run the layers from their split
//! layer on, and the lm_head.

use std::sync::Arc;
use std::time::Instant;

use headway_model::config::{Architecture, RopeLayout, RopeScaling};
use headway_model::{BlockId, KvTable, LayerRange, ModelConfig};

use self::floors::Floors;
use super::Random;
use super::report::{Kind, Line, StepTimes};
use crate::buffers::LOGITS_ROWS;
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::packed::Format;
use crate::sampling::SummaryPlan;
use crate::step::{Input, Segment};
use crate::tail::{DETERMINISTIC_ROWS, Tail, TailSizes};
use crate::weights::TailWeights;

mod floors;

/// All layers are there, so that every split layer can be measured.
const NUM_LAYERS: usize = 32;
/// Where sessions enter, but for the measurement by split layer.
const SPLIT_LAYER: usize = 16;

const BATCHES: [usize; 4] = [1, 8, 64, 256];
const CONTEXTS: [usize; 2] = [512, 8192];
const PROMPTS: [usize; 3] = [512, 2048, 8192];
const SPLITS: [usize; 4] = [0, 8, 16, 24];
const SPLIT_BATCHES: [usize; 3] = [1, 8, 64];

/// The most rows of a step: prompts come in chunks of so many.
const CHUNK_ROWS: usize = 2048;
/// What is left free beside weights and KV memory, for the buffers of a step and the libraries.
const RESERVE_BYTES: usize = 4 << 30;

const WARM_UP_RUNS: usize = 3;
const MEASURED_RUNS: usize = 20;

/// One measurement.
#[derive(Clone, Copy, Debug)]
struct Case {
    kind: Kind,
    split_layer: usize,
    batch: usize,
    /// Positions that each session holds.
    context: usize,
    /// Positions that each session adds.
    rows: usize,
}

impl Case {
    fn layers(&self) -> LayerRange {
        LayerRange::new(self.split_layer, NUM_LAYERS)
    }

    /// Blocks of KV memory.
    fn kv_blocks(&self) -> usize {
        self.batch * KvTable::columns_for(self.context + self.rows) * self.layers().len()
    }

    fn name(&self) -> String {
        let Self {
            batch,
            context,
            rows,
            ..
        } = self;
        match self.kind {
            Kind::Prefill => format!("a prompt of {rows} tokens"),
            Kind::Decode | Kind::Split => format!("decode of {batch} sessions at {context}"),
        }
    }
}

/// What the matrices of the measured model are held in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Two bytes a value.
    Bf16,
    /// e4m3, but for the lm_head.
    Fp8,
    /// 8 bits with a scale and a minimum for each 32 columns, as for q8_0.
    EightBits,
    /// 4 bits with a scale and a minimum for each 32 columns, as for `q4_K`.
    FourBits,
}

impl Held {
    const fn format(self) -> Option<Format> {
        match self {
            Self::Bf16 => None,
            Self::Fp8 => Some(Format::Float8),
            Self::EightBits => Some(Format::Eight32),
            Self::FourBits => Some(Format::Four32),
        }
    }
}

/// Measures every case that fits the device and shows each to `report`: decode steps by batch and context, prompts,
/// and decode steps by split layer. Matrices in fewer bits are there on Hopper only.
///
/// # Errors
/// [`CudaError`] where the device fails or has too little memory for the weights: about 17 GB.
pub fn all(gpu: &Arc<Gpu>, held: Held, report: &mut impl FnMut(&Line)) -> Result<(), CudaError> {
    let floors = Floors::measure(gpu)?;
    report(&Line::Machine {
        device: gpu.name()?,
        copy_bytes_per_s: floors.bytes_per_ms * 1e3,
        matrix_operations_per_s: floors.operations_per_ms * 1e3,
    });
    let layers = LayerRange::new(0, NUM_LAYERS);
    let weights = match held.format().filter(|_| gpu.is_hopper()) {
        Some(format) => TailWeights::random_packed(gpu, config(), layers, format)?,
        None => TailWeights::random(gpu, config(), layers, Dtype::Bf16)?,
    };
    let block_bytes = Tail::block_bytes(weights.config(), weights.dtype());
    let (free_bytes, _) = gpu.memory_bytes()?;
    let most_blocks = free_bytes.saturating_sub(RESERVE_BYTES) / block_bytes;
    let (fitting, too_large): (Vec<Case>, Vec<Case>) = cases()
        .into_iter()
        .partition(|case| case.kv_blocks() <= most_blocks);
    for case in too_large {
        report(&Line::LeftOut {
            case: case.name(),
            reason: format!(
                "it takes {:.0} GB of KV memory, and there are {:.0}",
                float(case.kv_blocks() * block_bytes) / 1e9,
                float(most_blocks * block_bytes) / 1e9
            ),
        });
    }
    let kv_blocks = fitting.iter().map(Case::kv_blocks).max().unwrap_or(0);
    let mut tail = Tail::new(weights, TailSizes::new(CHUNK_ROWS, kv_blocks))?;
    tail.fill_kv(1.0)?;
    for case in fitting {
        report(&Line::Step(measure(&mut tail, case, kv_blocks, &floors)?));
    }
    Ok(())
}

/// Measures steps of few cases with tails of other sizes, each with a name, and shows each to `report`. Rows and
/// blocks are as many as the cases need.
///
/// # Errors
/// As [`all`].
pub fn sizes(
    gpu: &Arc<Gpu>,
    named: &[(String, TailSizes)],
    report: &mut impl FnMut(&str, &Line),
) -> Result<(), CudaError> {
    let floors = Floors::measure(gpu)?;
    for (name, sizes) in named {
        let layers = LayerRange::new(SPLIT_LAYER, NUM_LAYERS);
        let weights = TailWeights::random(gpu, config(), layers, Dtype::Bf16)?;
        let most = if sizes.deterministic {
            DETERMINISTIC_ROWS
        } else {
            CHUNK_ROWS
        };
        let wanted = |case: &Case| match case.kind {
            Kind::Decode => case.context == CONTEXTS[0] && case.batch <= most,
            Kind::Prefill => case.rows == PROMPTS[0],
            Kind::Split => false,
        };
        let cases: Vec<Case> = cases().into_iter().filter(wanted).collect();
        let kv_blocks = cases.iter().map(Case::kv_blocks).max().unwrap_or(0);
        let sizes = TailSizes {
            max_rows: CHUNK_ROWS,
            kv_blocks,
            ..*sizes
        };
        let mut tail = Tail::new(weights, sizes)?;
        tail.fill_kv(1.0)?;
        for case in cases {
            let times = measure(&mut tail, case, kv_blocks, &floors)?;
            report(name, &Line::Step(times));
        }
    }
    Ok(())
}

fn cases() -> Vec<Case> {
    let decode = |kind, split_layer, batch, context| Case {
        kind,
        split_layer,
        batch,
        context,
        rows: 1,
    };
    let mut cases = Vec::new();
    for context in CONTEXTS {
        cases.extend(BATCHES.map(|batch| decode(Kind::Decode, SPLIT_LAYER, batch, context)));
    }
    cases.extend(PROMPTS.map(|rows| Case {
        kind: Kind::Prefill,
        split_layer: SPLIT_LAYER,
        batch: 1,
        context: 0,
        rows,
    }));
    for split_layer in SPLITS {
        let by_batch = SPLIT_BATCHES;
        cases.extend(by_batch.map(|batch| decode(Kind::Split, split_layer, batch, CONTEXTS[0])));
    }
    cases
}

fn config() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        num_layers: NUM_LAYERS,
        hidden_size: 4096,
        intermediate_size: 14_336,
        num_attention_heads: 32,
        num_kv_heads: 8,
        head_dim: 128,
        vocab_size: 128_256,
        rms_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        rope_layout: RopeLayout::Half,
        rope_scaling: RopeScaling::None,
        max_positions: 1 << 17,
        tied_embeddings: false,
        sliding_window: None,
        sliding_window_start_layer: 0,
    }
}

/// The case's medians. Every session wants a token after its last row; the first layer's rows are token ids, those
/// of the others hidden states.
fn measure(
    tail: &mut Tail,
    case: Case,
    kv_blocks: usize,
    floors: &Floors,
) -> Result<StepTimes, CudaError> {
    let mut random = Random(7);
    let sources = Sources {
        token_ids: vec![1; CHUNK_ROWS],
        hidden_states: random.values(case.rows.min(CHUNK_ROWS) * config().hidden_size),
    };
    let blocks = random.permutation(kv_blocks);
    let mut measured = [Vec::new(), Vec::new(), Vec::new()];
    for run in 0..WARM_UP_RUNS + MEASURED_RUNS {
        let times = run_case(tail, &case, &sources, tables(&case, &blocks))?;
        if run >= WARM_UP_RUNS {
            for (values, value) in measured.iter_mut().zip(times) {
                values.push(value);
            }
        }
    }
    let [wall_ms, layers_ms, logits_ms] = measured.map(median);
    Ok(StepTimes {
        kind: case.kind,
        split_layer: case.split_layer,
        layers: case.layers().len(),
        context: case.context,
        batch: case.batch,
        tokens: case.batch * case.rows,
        wall_ms,
        layers_ms,
        logits_ms,
        floor_ms: floors.of(&config(), &case, tail.weights().matrix_bytes()),
    })
}

/// What rows are made of; every session sends the same.
struct Sources {
    token_ids: Vec<u32>,
    hidden_states: Vec<f32>,
}

/// The sessions' tables, whose blocks lie anywhere.
fn tables(case: &Case, blocks: &[u32]) -> Vec<KvTable> {
    let layers = case.layers();
    let mut blocks = blocks.iter().copied().map(BlockId);
    let table = |_| {
        let mut table = KvTable::new(layers);
        for _ in 0..KvTable::columns_for(case.context + case.rows) {
            let column: Vec<BlockId> = blocks.by_ref().take(layers.len()).collect();
            table.push_column(&column);
        }
        table.advance(case.context);
        table
    };
    (0..case.batch).map(table).collect()
}

/// All rows of the sessions, in as many steps as it takes: wall, layers and logits, in milliseconds.
fn run_case(
    tail: &mut Tail,
    case: &Case,
    sources: &Sources,
    mut tables: Vec<KvTable>,
) -> Result<[f64; 3], CudaError> {
    let started = Instant::now();
    let [mut layers_ms, mut logits_ms] = [0.0; 2];
    let mut done = 0;
    while done < case.rows {
        let rows = (case.rows - done).min(CHUNK_ROWS).min(tail.max_rows());
        let is_last = done + rows == case.rows;
        let wanted = if is_last { case.batch } else { 0 };
        let times = step(tail, case, sources, &tables, [rows, wanted])?;
        layers_ms += times.layers_ns.iter().copied().map(ns_to_ms).sum::<f64>();
        logits_ms += ns_to_ms(times.logits_ns);
        done += rows;
        if !is_last {
            tables.iter_mut().for_each(|table| table.advance(rows));
        }
    }
    Ok([started.elapsed().as_secs_f64() * 1e3, layers_ms, logits_ms])
}

/// `rows` rows of each session; `wanted`: how many sessions want a token after their last one.
fn step(
    tail: &mut Tail,
    case: &Case,
    sources: &Sources,
    tables: &[KvTable],
    [rows, wanted]: [usize; 2],
) -> Result<crate::tail::Times, CudaError> {
    let hidden_size = tail.weights().config().hidden_size;
    let segments: Vec<Segment<'_>> = tables
        .iter()
        .map(|table| Segment {
            entry_layer: case.split_layer,
            rows,
            input: if case.split_layer == 0 {
                Input::TokenIds(&sources.token_ids[..rows])
            } else {
                Input::HiddenStates(&sources.hidden_states[..rows * hidden_size])
            },
            table,
        })
        .collect();
    let last_rows: Vec<u32> = (1..)
        .take(wanted)
        .map(|count| count * u32::try_from(rows).unwrap_or(1) - 1)
        .collect();
    tail.start(&segments, &last_rows)?;
    for first in (0..wanted).step_by(LOGITS_ROWS) {
        let range = first..wanted.min(first + LOGITS_ROWS);
        let plan = SummaryPlan::greedy(range.len());
        tail.start_summaries(range, &plan)?;
        tail.summaries()?;
    }
    tail.finish()
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
pub(super) const fn float(value: usize) -> f64 {
    value as f64
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
const fn ns_to_ms(value: u64) -> f64 {
    value as f64 / 1e6
}
