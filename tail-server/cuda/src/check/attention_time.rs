//! How long attention takes, and what stands before it: one layer after the other as in a step, each with blocks of its
//! own, so that none is found in a cache.

use std::sync::Arc;

use cudarc::driver::sys::CUevent_flags;
use headway_model::{BLOCK_POSITIONS, BlockId, KvTable, LayerRange, ModelConfig};

use super::Random;
use super::kernels::{bounds, config};
use super::timing::{float, median};
use crate::attention::{Attend, Cut, RopeKv, partial_values};
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::kernels::{Kernels, Planes};
use crate::step::{Batch, Input, Segment, Step};
use crate::weights::heads_of;

/// Of a Llama-3.1-8B.
const HEADS: [usize; 3] = [32, 8, 128];
/// Bytes of keys and values that take turns, at least, unless one layer has more.
const KV_BYTES: usize = 512 << 20;
const MEASURED: usize = 7;
/// Launches of each measurement.
const LAUNCHES: usize = 32;

/// What the device fills before, so that it never waits for the host.
const BUSY_VALUES: usize = 1 << 28;

/// Sessions, positions that each holds, rows of each.
const DECODE: [[usize; 3]; 12] = [
    [1, 511, 1],
    [8, 511, 1],
    [64, 511, 1],
    [1, 2047, 1],
    [8, 2047, 1],
    [64, 2047, 1],
    [1, 8191, 1],
    [8, 8191, 1],
    [64, 8191, 1],
    [1, 508, 4],
    [64, 508, 4],
    [8, 496, 16],
];
const PROMPTS: [[usize; 3]; 8] = [
    [1, 0, 128],
    [1, 0, 512],
    [4, 0, 512],
    [1, 0, 2048],
    [1, 2048, 2048],
    [1, 4096, 2048],
    [1, 6144, 2048],
    [1, 8000, 48],
];
const ROPE_ROWS: [usize; 5] = [1, 8, 64, 512, 2048];

/// Shows a line for each shape to `report`.
///
/// # Errors
/// [`CudaError`] where the device fails or has too little memory: about 10 GB.
pub fn all(gpu: &Arc<Gpu>, report: &mut impl FnMut(&str)) -> Result<(), CudaError> {
    for item_positions in [128, 256, 512] {
        for shape in DECODE {
            report(&Bench::new(gpu, shape, item_positions)?.attend()?);
        }
    }
    for shape in PROMPTS {
        report(&Bench::new(gpu, shape, 512)?.attend()?);
    }
    for rows in ROPE_ROWS {
        for planes in [1, 4] {
            report(&Bench::new(gpu, [rows, 300, 1], 512)?.rope(planes)?);
        }
    }
    Ok(())
}

struct Bench<'a> {
    gpu: &'a Arc<Gpu>,
    config: ModelConfig,
    kernels: Kernels,
    cut: Cut,
    shape: [usize; 3],
    blocks: usize,
    tables: Vec<KvTable>,
}

impl<'a> Bench<'a> {
    fn new(gpu: &'a Arc<Gpu>, shape: [usize; 3], item_positions: usize) -> Result<Self, CudaError> {
        let [heads, kv_heads, dim] = HEADS;
        let mut config = config(heads, kv_heads, dim);
        let [sessions, held, rows] = shape;
        let columns = KvTable::columns_for(held + rows);
        let layer_bytes = sessions * columns * block_values(&config) * 2;
        config.num_layers = KV_BYTES.div_ceil(layer_bytes).clamp(2, LAUNCHES);
        let blocks = sessions * columns * config.num_layers;
        let mut free = Random(3).permutation(blocks).into_iter();
        let layers = LayerRange::new(0, config.num_layers);
        let tables = (0..sessions)
            .map(|_| {
                let mut table = KvTable::new(layers);
                for _ in 0..columns {
                    let column = free.by_ref().take(layers.len()).map(BlockId);
                    table.push_column(&column.collect::<Vec<_>>());
                }
                table.advance(held);
                table
            })
            .collect();
        let kernels = Kernels::new(gpu, Dtype::Bf16, heads_of(&config)?)?;
        Ok(Self {
            gpu,
            cut: kernels.attention.cut(item_positions),
            kernels,
            config,
            shape,
            blocks,
            tables,
        })
    }

    fn step(&self) -> Result<Step, CudaError> {
        let [_, _, rows] = self.shape;
        let states = vec![0.0; rows * self.config.hidden_size];
        let segments: Vec<Segment<'_>> = self
            .tables
            .iter()
            .map(|table| Segment {
                entry_layer: 0,
                rows,
                input: Input::HiddenStates(&states),
                table,
            })
            .collect();
        let bounds = bounds(&self.config, self.blocks, self.cut);
        let mut step = Step::new(self.gpu, segments.len() * rows, self.config.hidden_size)?;
        step.upload(self.gpu, &bounds, &Batch::new(&segments, &[]))?;
        self.gpu.stream().synchronize()?;
        Ok(step)
    }

    fn attend(&self) -> Result<String, CudaError> {
        let (gpu, config) = (self.gpu, &self.config);
        let [sessions, held, rows] = self.shape;
        let step = self.step()?;
        let kv_values = self.blocks * block_values(config);
        let kv = gpu.zeros::<u16>(kv_values)?;
        self.fill(gpu.address(&kv), kv_values)?;
        let q_values = sessions * rows * config.q_size();
        let (q, out) = (gpu.zeros::<u16>(q_values)?, gpu.zeros::<u16>(q_values)?);
        self.fill(gpu.address(&q), q_values)?;
        let slots = partial_values(heads_of(config)?, self.cut, sessions * rows);
        let partial = gpu.zeros::<f32>(slots)?;
        let what = Attend {
            q: gpu.address(&q),
            kv: gpu.address(&kv),
            out: gpu.address(&out),
            partial: gpu.address(&partial),
            window: 0,
            has_items: step.has_items(),
            has_prompts: step.has_prompts(),
            has_merges: step.has_merges(),
        };
        let time_us = self.time_us(|layer| {
            self.kernels
                .attention
                .attend(gpu, what, step.address(gpu), layer)
        })?;
        let bytes = sessions * (held + rows) * 2 * config.kv_size() * 2 + 2 * 2 * q_values;
        let seen: usize = (held + 1..=held + rows).sum::<usize>() * sessions;
        let operations = seen * config.q_size() * 4;
        Ok(format!(
            "attention {sessions:3} × {held:4} + {rows:4} items of {:3}   {time_us:8.2} us   {:7.1} GB/s   {:6.1} TFLOP/s",
            self.cut.item_positions,
            float(bytes) / time_us / 1e3,
            float(operations) / time_us / 1e6,
        ))
    }

    /// `planes`: of the q, k and v product.
    fn rope(&self, planes: usize) -> Result<String, CudaError> {
        let (gpu, config) = (self.gpu, &self.config);
        let [rows, ..] = self.shape;
        let step = self.step()?;
        let kv = gpu.zeros::<u16>(self.blocks * block_values(config))?;
        let q = gpu.zeros::<u16>(rows * config.q_size())?;
        let values = rows * (config.q_size() + 2 * config.kv_size());
        let qkv = gpu.zeros::<f32>(planes * values)?;
        let angles = gpu.zeros::<f32>(rows * config.head_dim)?;
        let what = RopeKv {
            qkv: Planes {
                address: gpu.address(&qkv),
                planes: u32::try_from(planes).unwrap_or(1),
                stride: values as u64,
            },
            q: gpu.address(&q),
            kv: gpu.address(&kv),
            angles: gpu.address(&angles),
            bias: 0,
            q_norm: 0,
            k_norm: 0,
        };
        let count = u32::try_from(rows).unwrap_or(u32::MAX);
        let time_us = self.time_us(|layer| {
            self.kernels
                .attention
                .rope_kv(gpu, what, step.address(gpu), layer, count)
        })?;
        let bytes = values * (4 * planes + 2);
        Ok(format!(
            "rope and KV write {rows:4} rows, {planes} planes   {time_us:8.2} us   {:7.1} GB/s",
            float(bytes) / time_us / 1e3
        ))
    }

    fn fill(&self, address: u64, count: usize) -> Result<(), CudaError> {
        self.kernels.fill_random(self.gpu, address, count, 1.0, 5)
    }

    /// The median time of one of [`LAUNCHES`] launches, in microseconds. `launch` gets the layer.
    fn time_us(
        &self,
        launch: impl Fn([u32; 2]) -> Result<(), CudaError>,
    ) -> Result<f64, CudaError> {
        let gpu = self.gpu;
        let event = || {
            gpu.context()
                .new_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
        };
        let (start, end) = (event()?, event()?);
        let mut times_us = Vec::new();
        let busy = gpu.zeros::<u16>(BUSY_VALUES)?;
        for _ in 0..MEASURED {
            // Meanwhile the host starts the launches.
            self.fill(gpu.address(&busy), BUSY_VALUES)?;
            start.record(gpu.stream())?;
            for turn in 0..LAUNCHES {
                let layer = u32::try_from(turn % self.config.num_layers).unwrap_or(0);
                launch([layer, layer])?;
            }
            end.record(gpu.stream())?;
            times_us.push(f64::from(start.elapsed_ms(&end)?) * 1e3 / float(LAUNCHES));
        }
        Ok(median(times_us))
    }
}

/// Values of one block.
const fn block_values(config: &ModelConfig) -> usize {
    2 * config.kv_size() * BLOCK_POSITIONS
}
