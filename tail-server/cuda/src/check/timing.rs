//! How long a step takes: the last 16 layers and the lm_head of a Llama-3.1-8B shape, with random weights.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use cudarc::driver::sys::CUevent_flags;
use headway_model::config::{Architecture, RopeLayout, RopeScaling};
use headway_model::{BlockId, KvTable, LayerRange, ModelConfig};

use super::Random;
use crate::buffers::LOGITS_ROWS;
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::step::{Input, Segment};
use crate::tail::{Tail, TailSizes};
use crate::weights::TailWeights;

/// Positions that each decoding session holds.
const CONTEXT: usize = 512;
const LAYERS: LayerRange = LayerRange::new(16, 32);
const COPY_BYTES: usize = 1 << 30;
const WARM_UP_STEPS: usize = 5;
const MEASURED_STEPS: usize = 40;

/// Medians of one kind of step.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// The step.
    pub name: String,
    /// From the call to the logits on the host, in milliseconds.
    pub wall_ms: f64,
    /// Of that, layers on the device.
    pub layers_ms: f64,
    /// Of that, final norm and lm_head on the device.
    pub logits_ms: f64,
    /// What must be read and written, over the measured bandwidth.
    pub floor_ms: f64,
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device_ms = self.layers_ms + self.logits_ms;
        write!(
            f,
            "{:<34} wall {:8.3} ms ({:5.2} floors)   device {device_ms:8.3} ms ({:5.2}) = layers {:8.3} + lm_head {:7.3}   floor {:6.3}",
            self.name,
            self.wall_ms,
            self.wall_ms / self.floor_ms,
            device_ms / self.floor_ms,
            self.layers_ms,
            self.logits_ms,
            self.floor_ms
        )
    }
}

/// Measures decode steps of 1, 8 and 64 sessions and a prompt of 512 rows, each with items of several lengths, and
/// shows each to `report`.
///
/// # Errors
/// [`CudaError`] where the device fails or has too little memory: about 12 GB.
pub fn all(gpu: &Arc<Gpu>, report: &mut impl FnMut(&Timing)) -> Result<(), CudaError> {
    let bytes_per_ms = copy_bytes_per_ms(gpu)?;
    for item_positions in [64, 128, 256] {
        let weights = TailWeights::random(gpu, config(), LAYERS, Dtype::Bf16)?;
        let columns = KvTable::columns_for(CONTEXT + 1);
        let sizes = TailSizes {
            item_positions,
            ..TailSizes::new(512, 64 * columns * LAYERS.len())
        };
        let mut tail = Tail::new(weights, sizes)?;
        tail.fill_kv(1.0)?;
        for batch in [1, 8, 64] {
            let name = format!("decode batch {batch}, items of {item_positions}");
            report(&measure(
                &mut tail,
                name,
                [batch, 1, CONTEXT],
                bytes_per_ms,
            )?);
        }
        let name = format!("prefill 512, items of {item_positions}");
        report(&measure(&mut tail, name, [1, 512, 0], bytes_per_ms)?);
    }
    Ok(())
}

fn config() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        num_layers: LAYERS.end,
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

/// Bytes read and written by a copy within the device, in a millisecond; the median of some.
fn copy_bytes_per_ms(gpu: &Gpu) -> Result<f64, CudaError> {
    let from = gpu.zeros::<u8>(COPY_BYTES)?;
    let mut to = gpu.zeros::<u8>(COPY_BYTES)?;
    let event = || {
        gpu.context()
            .new_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
    };
    let (start, end) = (event()?, event()?);
    let mut times_ms = Vec::new();
    for _ in 0..10 {
        start.record(gpu.stream())?;
        gpu.stream().memcpy_dtod(&from, &mut to)?;
        end.record(gpu.stream())?;
        times_ms.push(f64::from(start.elapsed_ms(&end)?));
    }
    Ok(float(2 * COPY_BYTES) / median(times_ms))
}

/// `sessions` sessions of `rows` rows each, which hold `context` positions; each wants one row's logits.
fn measure(
    tail: &mut Tail,
    name: String,
    [sessions, rows, context]: [usize; 3],
    bytes_per_ms: f64,
) -> Result<Timing, CudaError> {
    let mut random = Random(7);
    let mut blocks = random
        .permutation(64 * KvTable::columns_for(CONTEXT + 1) * LAYERS.len())
        .into_iter();
    let tables: Vec<KvTable> = (0..sessions)
        .map(|_| {
            let mut table = KvTable::new(LAYERS);
            for _ in 0..KvTable::columns_for(context + rows) {
                let column: Vec<BlockId> =
                    blocks.by_ref().take(LAYERS.len()).map(BlockId).collect();
                table.push_column(&column);
            }
            table.advance(context);
            table
        })
        .collect();
    let states = random.values(rows * tail.weights().config().hidden_size);
    let segments: Vec<Segment<'_>> = tables
        .iter()
        .map(|table| Segment {
            entry_layer: LAYERS.start,
            rows,
            input: Input::HiddenStates(&states),
            table,
        })
        .collect();
    let wanted: Vec<u32> = (1..)
        .take(sessions)
        .map(|count| count * u32::try_from(rows).unwrap_or(1) - 1)
        .collect();
    assert!(sessions <= LOGITS_ROWS, "all logits fit at once");

    let mut measured = [Vec::new(), Vec::new(), Vec::new()];
    for step in 0..WARM_UP_STEPS + MEASURED_STEPS {
        let started = Instant::now();
        tail.start(&segments, &wanted)?;
        tail.logits(0..sessions)?;
        let times = tail.finish()?;
        if step >= WARM_UP_STEPS {
            let [wall, layers, logits] = &mut measured;
            wall.push(started.elapsed().as_secs_f64() * 1e3);
            layers.push(times.layers_ns.iter().map(|&ns| ns_to_ms(ns)).sum());
            logits.push(ns_to_ms(times.logits_ns));
        }
    }
    let [wall_ms, layers_ms, logits_ms] = measured.map(median);
    let kv_row_bytes = 2 * config().kv_size() * Dtype::Bf16.bytes() * LAYERS.len();
    let kv_bytes = sessions * (context + rows) * kv_row_bytes;
    Ok(Timing {
        name,
        wall_ms,
        layers_ms,
        logits_ms,
        floor_ms: float(tail.weights().bytes() + kv_bytes) / bytes_per_ms,
    })
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
