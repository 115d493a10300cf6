//! Attention over scattered blocks: decoding rows, drafts and prompts that enter at several layers, with and without a
//! window, cut or not.

use std::num::NonZero;
use std::sync::Arc;

use cudarc::driver::CudaSlice;
use headway_model::{BLOCK_POSITIONS, BlockId, KvTable, ModelConfig};

use super::host::{down, rounded, up};
use super::kernels::{bounds, config, element_at, table, tolerance};
use super::{Check, Random, difference};

use crate::attention::{Attend, Cut, partial_values};
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::kernels::Kernels;
use crate::step::{Batch, Bounds, Input, Segment, Step};
use crate::weights::heads_of;

/// Entry layer, positions held and rows of each session.
const SESSIONS: [[usize; 3]; 11] = [
    [0, 0, 1],
    [0, 31, 1],
    [0, 517, 1],
    [0, 63, 40],
    [0, 1250, 9],
    [2, 32, 5],
    [2, 0, 70],
    [2, 129, 150],
    [2, 95, 2],
    [3, 777, 16],
    [3, 1, 3],
];
const BLOCKS: usize = 400;
/// One that only the first sessions have reached, and one that all have.
const LAYERS: [usize; 2] = [1, 3];

pub(super) fn all(gpu: &Arc<Gpu>, report: &mut impl FnMut(&Check)) -> Result<(), CudaError> {
    for (head_dim, heads, kv_heads) in [
        (128, 32, 8),
        (64, 14, 2),
        (8, 1, 1),
        (16, 4, 2),
        (40, 14, 2),
        (64, 4, 4),
        (64, 9, 3),
        (64, 18, 1),
        (80, 5, 5),
        (128, 4, 4),
        (128, 12, 1),
        (128, 16, 2),
        (128, 16, 1),
        (256, 8, 2),
    ] {
        for dtype in Dtype::ALL {
            for (window, item_positions) in [
                (None, 64),
                (Some(50), 32),
                (Some(200), 128),
                (None, 1 << 20),
            ] {
                let mut config = config(heads, kv_heads, head_dim);
                config.sliding_window = window;
                let bench = Bench::new(gpu, dtype, &config, item_positions)?;
                for layer in LAYERS {
                    report(&bench.attend(layer)?);
                }
                if item_positions <= 64 {
                    report(&bench.one_order()?);
                }
            }
        }
    }
    Ok(())
}

/// Keys and values of the sessions, and their queries. Positions that no session has written are not numbers.
struct Bench<'a> {
    gpu: &'a Arc<Gpu>,
    dtype: Dtype,
    config: &'a ModelConfig,
    kernels: Kernels,
    cut: Cut,
    tables: Vec<KvTable>,
    /// `[row, heads, head_dim]`.
    q: Vec<f32>,
    /// `[block, keys or values, kv_head, position, head_dim]`.
    kv: Vec<f32>,
    device_kv: CudaSlice<u8>,
    /// Not numbers at first.
    partial: CudaSlice<u8>,
}

impl<'a> Bench<'a> {
    fn new(
        gpu: &'a Arc<Gpu>,
        dtype: Dtype,
        config: &'a ModelConfig,
        item_positions: usize,
    ) -> Result<Self, CudaError> {
        let (dim, heads) = (config.head_dim, config.num_attention_heads);
        let mut random = Random((dim * heads + item_positions) as u64);
        let kernels = Kernels::new(gpu, dtype, heads_of(config)?)?;
        let mut free = random.permutation(BLOCKS).into_iter();
        let tables: Vec<KvTable> = SESSIONS
            .iter()
            .map(|&[entry_layer, held, rows]| table(config, entry_layer, [held, rows], &mut free))
            .collect();
        let mut kv = vec![f32::NAN; BLOCKS * 2 * config.kv_size() * BLOCK_POSITIONS];
        for (table, [_, held, rows]) in tables.iter().zip(SESSIONS) {
            for (index, block) in table.blocks().iter().enumerate() {
                let first = index / table.layers().len() * BLOCK_POSITIONS;
                let there = (held + rows).saturating_sub(first).min(BLOCK_POSITIONS);
                let of_block = 2 * config.kv_size() * BLOCK_POSITIONS;
                let heads = kv[block.0 as usize * of_block..][..of_block]
                    .chunks_exact_mut(BLOCK_POSITIONS * dim);
                for head in heads {
                    head[..there * dim].fill_with(|| random.value());
                }
            }
        }
        // Larger than a model's, so that the weights differ from one another.
        let rows: usize = SESSIONS.iter().map(|[_, _, rows]| rows).sum();
        let q: Vec<f32> = random
            .values(rows * heads * dim)
            .iter()
            .map(|value| 3.0 * value)
            .collect();
        let cut = kernels.attention.cut(item_positions);
        let slots = partial_values(heads_of(config)?, cut, rows);
        Ok(Self {
            gpu,
            dtype,
            config,
            cut,
            partial: up(gpu, &vec![f32::NAN; slots], Dtype::F32)?,
            kernels,
            tables,
            q: rounded(&q, dtype),
            device_kv: up(gpu, &as_on_device(&kv, dim), dtype)?,
            kv: rounded(&kv, dtype),
        })
    }

    fn bounds(&self, one_order: bool) -> Bounds {
        Bounds {
            first_block: 0,
            one_order,
            ..bounds(self.config, BLOCKS, self.cut)
        }
    }

    /// Runs the kernels on `layer`; `q` is that of all rows of `segments`. Rows that are not written stay 9.
    fn run(
        &self,
        segments: &[Segment<'_>],
        q: &[f32],
        layer: usize,
        one_order: bool,
    ) -> Result<Vec<f32>, CudaError> {
        let gpu = self.gpu;
        let mut step = Step::new(gpu, 1 << 14, self.config.hidden_size)?;
        let batch = Batch::new(segments, &[]);
        step.upload(gpu, &self.bounds(one_order), &batch)?;
        let device_q = up(gpu, q, self.dtype)?;
        let out = up(gpu, &vec![9.0; q.len()], self.dtype)?;
        let what = Attend {
            q: gpu.address(&device_q),
            kv: gpu.address(&self.device_kv),
            out: gpu.address(&out),
            partial: gpu.address(&self.partial),
            window: self
                .config
                .sliding_window
                .map_or(0, |window| u32::try_from(window).unwrap_or(0)),
            has_items: step.has_items(),
            has_prompts: step.has_prompts(),
            has_merges: step.has_merges(),
        };
        let layer = u32::try_from(layer).expect("sizes of the checks are small");
        self.kernels
            .attention
            .attend(gpu, what, step.address(gpu), [layer, layer])?;
        down(gpu, &out, self.dtype)
    }

    /// All sessions, as far as they have reached `layer`.
    fn attend(&self, layer: usize) -> Result<Check, CudaError> {
        let states = vec![0.0; 256 * self.config.hidden_size];
        let segments: Vec<Segment<'_>> = self
            .tables
            .iter()
            .zip(SESSIONS)
            .map(|(table, [entry_layer, _, rows])| segment(table, entry_layer, rows, &states))
            .collect();
        let got = self.run(&segments, &self.q, layer, false)?;
        let mut expected = self.expected(layer);
        expected.resize(got.len(), 9.0);
        let Self { dtype, config, .. } = self;
        Ok(Check {
            name: format!(
                "attention {} head_dim {} heads {}/{} window {:?} layer {layer}",
                dtype.name(),
                config.head_dim,
                config.num_attention_heads,
                config.num_kv_heads,
                config.sliding_window,
            ),
            difference: difference(&got, &expected),
            tolerance: tolerance(self.dtype),
            note: format!("items of {}", self.cut.item_positions),
        })
    }

    /// A prompt gives the bits that its rows give one by one.
    fn one_order(&self) -> Result<Check, CudaError> {
        let layer = LAYERS[1];
        let Some((index, [entry_layer, held, rows])) = SESSIONS
            .into_iter()
            .enumerate()
            .max_by_key(|(_, [_, _, rows])| *rows)
        else {
            unreachable!("there are sessions");
        };
        let width = self.config.q_size();
        let before: usize = SESSIONS[..index].iter().map(|[_, _, rows]| rows).sum();
        let q = &self.q[before * width..][..rows * width];
        let states = vec![0.0; rows * self.config.hidden_size];
        let table = &self.tables[index];
        let whole = [segment(table, entry_layer, rows, &states)];
        let together = self.run(&whole, q, layer, true)?;
        // Every row in a session of its own, which holds what stands before it.
        let tables: Vec<KvTable> = (0..rows)
            .map(|row| {
                let mut alone = KvTable::new(table.layers());
                for column in table.blocks().chunks(table.layers().len()) {
                    let column: &[BlockId] = column;
                    alone.push_column(column);
                }
                alone.advance(held + row);
                alone
            })
            .collect();
        let rows: Vec<Segment<'_>> = tables
            .iter()
            .map(|table| segment(table, entry_layer, 1, &states))
            .collect();
        let alone = self.run(&rows, q, layer, false)?;
        let is_same = together
            .iter()
            .zip(&alone)
            .all(|(a, b)| a.to_bits() == b.to_bits());
        Ok(Check {
            name: format!(
                "attention {} head_dim {} heads {}/{} in one order",
                self.dtype.name(),
                self.config.head_dim,
                self.config.num_attention_heads,
                self.config.num_kv_heads
            ),
            difference: if is_same { 0.0 } else { f64::INFINITY },
            tolerance: 0.0,
            note: format!("window {:?}", self.config.sliding_window),
        })
    }

    /// The rows of all sessions that have reached `layer`.
    fn expected(&self, layer: usize) -> Vec<f32> {
        let heads = self.config.num_attention_heads;
        let entered = self.tables.iter().zip(SESSIONS);
        let places: Vec<(&KvTable, usize, usize)> = entered
            .filter(|(_, [entry_layer, ..])| *entry_layer <= layer)
            .flat_map(|(table, [_, held, rows])| {
                (held..held + rows)
                    .flat_map(move |position| (0..heads).map(move |head| (table, position, head)))
            })
            .collect();
        let dim = self.config.head_dim;
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let chunk = places.len().div_ceil(threads).max(1);
        std::thread::scope(|scope| {
            let parts: Vec<_> = places
                .chunks(chunk)
                .zip(self.q.chunks(chunk * dim))
                .map(|(places, q)| {
                    scope.spawn(move || {
                        let rows = places.iter().zip(q.chunks_exact(dim));
                        rows.flat_map(|(place, q)| host_attention(self, layer, *place, q))
                            .collect::<Vec<f32>>()
                    })
                })
                .collect();
            parts
                .into_iter()
                .flat_map(|part| part.join().unwrap_or_default())
                .collect()
        })
    }
}

/// Keys and values where the kernels look for them.
fn as_on_device(kv: &[f32], dim: usize) -> Vec<f32> {
    let mut placed = vec![0.0; kv.len()];
    let heads = placed.chunks_exact_mut(BLOCK_POSITIONS * dim);
    for (to, from) in heads.zip(kv.chunks_exact(BLOCK_POSITIONS * dim)) {
        for (index, value) in from.iter().enumerate() {
            to[element_at(index / dim, index % dim, dim)] = *value;
        }
    }
    placed
}

fn segment<'a>(
    table: &'a KvTable,
    entry_layer: usize,
    rows: usize,
    states: &'a [f32],
) -> Segment<'a> {
    Segment {
        entry_layer,
        rows,
        // Of the checks' width.
        input: Input::HiddenStates(&states[..rows * 8]),
        table,
    }
}

/// Softmax attention of one query in f64.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "the reference is f64"
)]
fn host_attention(
    bench: &Bench<'_>,
    layer: usize,
    (table, position, head): (&KvTable, usize, usize),
    q: &[f32],
) -> Vec<f32> {
    let config = bench.config;
    let (dim, kv_heads) = (config.head_dim, config.num_kv_heads);
    let kv_head = head / (config.num_attention_heads / kv_heads);
    let at = |part: usize, position: usize| {
        let block = table.block(layer, position / BLOCK_POSITIONS).0 as usize;
        let head = (block * 2 + part) * kv_heads + kv_head;
        &bench.kv[(head * BLOCK_POSITIONS + position % BLOCK_POSITIONS) * dim..][..dim]
    };
    let start = config
        .sliding_window
        .map_or(0, |window| (position + 1).saturating_sub(window));
    let score = |position| {
        let products = q
            .iter()
            .zip(at(0, position))
            .map(|(q, k)| f64::from(*q) * f64::from(*k));
        products.sum::<f64>() / (dim as f64).sqrt()
    };
    let scores: Vec<f64> = (start..=position).map(score).collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut sums = vec![0.0; dim];
    for (position, weight) in (start..=position).zip(weights) {
        let values = sums.iter_mut().zip(at(1, position));
        values.for_each(|(sum, value)| *sum += weight / total * f64::from(*value));
    }
    sums.into_iter().map(|sum: f64| sum as f32).collect()
}
