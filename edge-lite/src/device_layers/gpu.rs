//! Layers on an NVIDIA GPU.
//!
//! Generations take turns on it, step by step; their keys and values share its memory, which is taken once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use headway_cuda::{CudaError, Gpu, Input, Segment, Tail, TailSizes, TailWeights};
use headway_model::config::ModelConfig;
use headway_model::layer_range::LayerRange;
use headway_model::weights::Weights;
use headway_model::{BlockId, KvTable};

use super::Holding;
use crate::error::DeviceError;

/// Rows of a step; longer prompts take several.
const STEP_ROWS: usize = 512;

/// The longest generations for which there is memory at a time, where the GPU has as much.
const GENERATIONS: usize = 4;

/// What the memory for keys and values leaves free at least: the buffers of a step, and other programs' changes.
const RESERVE_BYTES: usize = 512 << 20;

/// Held while a step runs, whichever layers it is of: two models of this process must not have steps on a GPU at the same
/// time, see `headway_cuda`.
static TURN: Mutex<()> = Mutex::new(());

/// Waits for this process's turn on the GPUs.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Layers on a GPU. Clones share them.
#[derive(Clone)]
pub(crate) struct GpuLayers {
    shared: Arc<Shared>,
}

struct Shared {
    config: ModelConfig,
    num_layers: usize,
    weight_bytes: usize,
    running: Mutex<Running>,
}

/// What one generation uses at a time.
struct Running {
    tail: Tail,
    /// Blocks of no generation.
    free: Vec<BlockId>,
}

impl GpuLayers {
    /// Loads the first `num_layers` layers, and takes all memory that generations need.
    pub(super) fn load(
        ordinal: usize,
        weights: &Weights,
        num_layers: usize,
        holding: Holding,
    ) -> Result<Self, CudaError> {
        let gpu = Gpu::open(ordinal)?;
        tracing::info!(ordinal, name = gpu.name()?, "the layers run on a GPU");
        let layers = LayerRange::new(0, num_layers);
        let weights = TailWeights::load(&gpu, weights, layers, holding.dtype)?;
        let config = weights.config().clone();
        let weight_bytes = weights.bytes();
        let (free_bytes, _) = gpu.memory_bytes()?;
        let usable_bytes = free_bytes.saturating_sub(RESERVE_BYTES.max(free_bytes / 10));
        let positions = holding.max_positions.min(config.max_positions);
        let wanted = GENERATIONS * KvTable::columns_for(positions) * num_layers;
        let kv_blocks = wanted.min(usable_bytes / Tail::block_bytes(&config, weights.dtype()));
        let tail = Tail::new(weights, TailSizes::new(STEP_ROWS, kv_blocks))?;
        let running = Running {
            tail,
            free: (0..).map(BlockId).take(kv_blocks).collect(),
        };
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                num_layers,
                weight_bytes,
                running: Mutex::new(running),
            }),
        })
    }

    pub(super) fn config(&self) -> &ModelConfig {
        &self.shared.config
    }

    pub(super) fn num_layers(&self) -> usize {
        self.shared.num_layers
    }

    pub(super) fn weight_bytes(&self) -> usize {
        self.shared.weight_bytes
    }

    /// An empty sequence. Blocks are taken as it grows.
    pub(super) fn sequence(&self) -> GpuSequence {
        GpuSequence {
            shared: Arc::clone(&self.shared),
            table: KvTable::new(LayerRange::new(0, self.shared.num_layers)),
        }
    }
}

impl Shared {
    /// Where a thread has panicked, the tail knows itself whether it can still be used.
    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// Room for `rows` more positions.
    fn grow(&mut self, table: &mut KvTable, rows: usize) -> Result<(), DeviceError> {
        let layers = table.layers().len();
        while table.capacity() < table.len() + rows {
            let Some(rest) = self.free.len().checked_sub(layers) else {
                return Err(DeviceError::GpuMemory {
                    positions: table.len() + rows,
                });
            };
            table.push_column(&self.free.split_off(rest));
        }
        Ok(())
    }
}

/// One generation's positions on the GPU. Its blocks are free again when it is dropped.
pub(crate) struct GpuSequence {
    shared: Arc<Shared>,
    table: KvTable,
}

impl GpuSequence {
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.table.truncate(len);
    }

    pub(super) fn hidden_states(&mut self, token_ids: &[u32]) -> Result<Vec<f32>, DeviceError> {
        let hidden_size = self.shared.config.hidden_size;
        let mut hidden_states = Vec::with_capacity(token_ids.len() * hidden_size);
        for token_ids in token_ids.chunks(STEP_ROWS) {
            self.step(token_ids, &[], |tail| {
                hidden_states.extend_from_slice(tail.hidden_states(0..token_ids.len())?);
                Ok(())
            })?;
        }
        Ok(hidden_states)
    }

    pub(super) fn extend(&mut self, token_ids: &[u32]) -> Result<(), DeviceError> {
        for token_ids in token_ids.chunks(STEP_ROWS) {
            self.step(token_ids, &[], |_| Ok(()))?;
        }
        Ok(())
    }

    pub(super) fn logits(&mut self, token_ids: &[u32]) -> Result<Vec<f32>, DeviceError> {
        let last_step = token_ids.len().saturating_sub(1) / STEP_ROWS * STEP_ROWS;
        let (before, last) = token_ids.split_at(last_step);
        self.extend(before)?;
        let wanted: Vec<u32> = (0..).take(last.len()).skip(last.len() - 1).collect();
        self.step(last, &wanted, |tail| Ok(tail.logits(0..1)?.to_vec()))
    }

    /// One step of at most [`STEP_ROWS`] rows; `take` fetches what is wanted of it.
    fn step<T>(
        &mut self,
        token_ids: &[u32],
        wanted: &[u32],
        take: impl FnOnce(&mut Tail) -> Result<T, CudaError>,
    ) -> Result<T, DeviceError> {
        let mut running = self.shared.lock();
        running.grow(&mut self.table, token_ids.len())?;
        let segment = Segment {
            entry_layer: 0,
            rows: token_ids.len(),
            input: Input::TokenIds(token_ids),
            table: &self.table,
        };
        let _turn = turn();
        let tail = &mut running.tail;
        tail.start(&[segment], wanted)?;
        let taken = take(tail)?;
        tail.finish()?;
        self.table.advance(token_ids.len());
        Ok(taken)
    }
}

impl Drop for GpuSequence {
    fn drop(&mut self) {
        self.shared.lock().free.extend(self.table.blocks());
    }
}
