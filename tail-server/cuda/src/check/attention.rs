//! Attention over scattered blocks: decoding rows, drafts and prompts, with and without a window, cut or not.

use std::sync::Arc;

use headway_model::{BLOCK_POSITIONS, KvTable, ModelConfig};

use super::host::{down, rounded, up};
use super::kernels::{bounds, config, table, tolerance};
use super::{Check, Random, difference};

use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::kernels::{Attend, Kernels};
use crate::step::{Input, Segment, Step};
use crate::weights::heads_of;

/// Positions held and rows of each session.
const SESSIONS: [[usize; 2]; 7] = [
    [0, 1],
    [31, 1],
    [32, 5],
    [517, 1],
    [3000, 9],
    [63, 40],
    [0, 70],
];

const LAYER: usize = 3;

pub(super) fn all(gpu: &Arc<Gpu>, report: &mut impl FnMut(&Check)) -> Result<(), CudaError> {
    for dtype in Dtype::ALL {
        for (head_dim, heads, kv_heads) in [
            (8, 1, 1),
            (16, 4, 2),
            (40, 14, 2),
            (64, 9, 3),
            (80, 5, 5),
            (128, 32, 8),
            (128, 12, 1),
            (256, 8, 2),
        ] {
            for (window, item_positions) in [(None, 64), (Some(50), 32), (None, 1 << 20)] {
                let mut config = config(heads, kv_heads, head_dim);
                config.sliding_window = window;
                report(&attend(gpu, dtype, &config, item_positions)?);
            }
        }
    }
    Ok(())
}

fn attend(
    gpu: &Arc<Gpu>,
    dtype: Dtype,
    config: &ModelConfig,
    item_positions: usize,
) -> Result<Check, CudaError> {
    let (dim, heads, kv_heads) = (
        config.head_dim,
        config.num_attention_heads,
        config.num_kv_heads,
    );
    let mut random = Random((dim * heads + item_positions) as u64);
    let kernels = Kernels::new(gpu, dtype, heads_of(config)?)?;
    let blocks = 160;
    let mut free = random.permutation(blocks).into_iter();
    let rows: usize = SESSIONS.iter().map(|[_, rows]| rows).sum();
    let tables = SESSIONS.map(|session| table(config, LAYER, session, &mut free));
    let states = vec![0.0; rows * config.hidden_size];
    let segments: Vec<Segment<'_>> = tables
        .iter()
        .zip(SESSIONS)
        .map(|(table, [_, rows])| Segment {
            entry_layer: LAYER,
            rows,
            input: Input::HiddenStates(&states[..rows * config.hidden_size]),
            table,
        })
        .collect();
    let mut step = Step::new(gpu, 16)?;
    step.upload(
        gpu,
        config,
        &bounds(config, blocks, item_positions),
        &segments,
        &[],
    )?;

    // Larger than a model's, so that the weights differ from one another.
    let larger: Vec<f32> = random
        .values(rows * heads * dim)
        .iter()
        .map(|value| 3.0 * value)
        .collect();
    let q = rounded(&larger, dtype);
    let kv = rounded(
        &random.values(blocks * 2 * kv_heads * BLOCK_POSITIONS * dim),
        dtype,
    );
    let (device_q, device_kv) = (up(gpu, &q, dtype)?, up(gpu, &kv, dtype)?);
    let out = up(gpu, &vec![0.0; rows * heads * dim], dtype)?;
    let partial = up(gpu, &vec![f32::NAN; 4096 * heads * (dim + 2)], Dtype::F32)?;
    let joined = *step.joined().last().expect("there are sessions");
    let what = Attend {
        q: gpu.address(&device_q),
        kv: gpu.address(&device_kv),
        out: gpu.address(&out),
        partial: gpu.address(&partial),
        window: config
            .sliding_window
            .map_or(0, |window| u32::try_from(window).unwrap_or(0)),
        items: joined.items,
        merges: joined.merges,
    };
    kernels.attend(gpu, what, step.address(gpu), 3)?;

    let expected = host_sessions(config, &tables, &q, &kv);
    Ok(Check {
        name: format!(
            "attention {} head_dim {dim} heads {heads}/{kv_heads} window {:?}",
            dtype.name(),
            config.sliding_window
        ),
        difference: difference(&down(gpu, &out, dtype)?, &expected),
        tolerance: tolerance(dtype),
        note: format!("{} items, {} merges", joined.items, joined.merges),
    })
}

/// All rows of the sessions, `[row, head, head_dim]`.
fn host_sessions(config: &ModelConfig, tables: &[KvTable], q: &[f32], kv: &[f32]) -> Vec<f32> {
    let (dim, heads) = (config.head_dim, config.num_attention_heads);
    let per_kv_head = heads / config.num_kv_heads;
    let mut rows = q.chunks_exact(heads * dim);
    let mut out = Vec::new();
    for (table, [held, count]) in tables.iter().zip(SESSIONS) {
        for (position, row) in (held..held + count).zip(rows.by_ref().take(count)) {
            for (head, q) in row.chunks_exact(dim).enumerate() {
                let kv_head = head / per_kv_head;
                out.extend(host_attention(config, table, position, kv_head, q, kv));
            }
        }
    }
    out
}

/// Softmax attention of one query in f64.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "the reference is f64"
)]
fn host_attention(
    config: &ModelConfig,
    table: &KvTable,
    position: usize,
    kv_head: usize,
    q: &[f32],
    kv: &[f32],
) -> Vec<f32> {
    let (dim, kv_heads) = (config.head_dim, config.num_kv_heads);
    let at = |part: usize, position: usize| {
        let block = table.block(LAYER, position / BLOCK_POSITIONS).0 as usize;
        let head = (block * 2 + part) * kv_heads + kv_head;
        &kv[(head * BLOCK_POSITIONS + position % BLOCK_POSITIONS) * dim..][..dim]
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
