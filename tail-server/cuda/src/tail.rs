//! The tail, or a stage of it, at work: a step's rows through the layers, and their logits.

use std::sync::Arc;

use cudarc::driver::CudaSlice;
use headway_model::{BLOCK_POSITIONS, ModelConfig};

use crate::attention::partial_values;
use crate::buffers::Buffers;
use crate::calls::is_idle;
use crate::chain::Chains;
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::graphs::{GraphKey, Graphs, Next, Recording};
use crate::incoming::TakenIn;
use crate::kernels::{Kernels, Planes};
use crate::products::{Matrix, Products};
use crate::sampling::Sampling;
use crate::stamps::Stamps;
use crate::step::{self, Batch, Bounds, Segment, Step};
use crate::weights::{LayerWeights, TailWeights, heads_of};

mod chained;
mod layers;
mod logits;
mod residual;

/// How much memory a tail takes, beside its weights.
#[derive(Clone, Copy, Debug)]
pub struct TailSizes {
    /// The most rows of a step.
    pub max_rows: usize,
    /// Blocks of KV memory.
    pub kv_blocks: usize,
    /// The number by which tables name its first block: of several stages, none has another's numbers.
    pub first_block: usize,
    /// Positions that one thread block attends to; a row with more is computed by several at a time.
    pub item_positions: usize,
    /// A row's result does not depend on the rows beside it, nor on whether the keys and values it reads came from a
    /// prompt or from decoding: not by one bit. Steps then have at most [`DETERMINISTIC_ROWS`] rows, so that prompts
    /// take longer.
    pub deterministic: bool,
    /// Steps of few rows are replayed as graphs.
    pub graphs: bool,
    /// Copies of weights, of 64 columns of 128 rows, that a thread block waits for at a time in steps of few rows. Many
    /// keep memory busy, and make everything else wait behind them.
    pub in_flight: u32,
}

/// The most rows of a step of a deterministic tail.
pub const DETERMINISTIC_ROWS: usize = Chains::most_rows();

impl TailSizes {
    /// With the usual `item_positions`.
    #[must_use]
    pub const fn new(max_rows: usize, kv_blocks: usize) -> Self {
        Self {
            max_rows,
            kv_blocks,
            first_block: 0,
            item_positions: 512,
            deterministic: false,
            graphs: true,
            in_flight: 4,
        }
    }
}

/// How long the device took for a step, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// The first layer that ran: the lowest entry layer.
    pub first_layer: usize,
    /// Each layer from `first_layer` to the last one, what the device waited in it for the host included.
    pub layers_ns: Vec<u64>,
    /// Final norm, lm_head, and what is found out about the logits.
    pub logits_ns: u64,
}

/// Weights, KV memory and the buffers of a step.
///
/// Where its layers end before the model does it is a stage, which gives hidden states instead of logits.
pub struct Tail {
    weights: TailWeights,
    kernels: Kernels,
    products: Products,
    /// For steps of few rows, where there are kernels.
    chains: Option<Chains>,
    bounds: Bounds,
    step: Step,
    kv: CudaSlice<u8>,
    buffers: Buffers,
    sampling: Sampling,
    /// What the last layer that ran gives to the residual stream.
    last: Planes,
    /// The logits of all wanted rows are there.
    has_logits: bool,
    /// Of those that are summarised, among the logits in memory.
    first_logits_row: usize,
    graphs: Graphs,
    stamps: Stamps,
    /// Of the step that runs.
    first_layer: usize,
    /// Logits will be asked for after the step that runs.
    has_wanted: bool,
    /// Why nothing is started any more.
    fault: Option<String>,
}

impl Tail {
    /// Takes all memory that steps need.
    ///
    /// # Errors
    /// [`CudaError::Driver`] where the device has too little memory, [`CudaError::NotDeterministic`] where there are no
    /// kernels for that.
    pub fn new(weights: TailWeights, sizes: TailSizes) -> Result<Self, CudaError> {
        let gpu = Arc::clone(&weights.gpu);
        let config = &weights.config;
        let heads = heads_of(config)?;
        let kernels = Kernels::new(&gpu, weights.dtype, heads)?;
        let cut = kernels.attention.cut(sizes.item_positions);
        let kv = gpu.zeros(sizes.kv_blocks * Self::block_bytes(config, weights.dtype))?;
        let mut products = Products::new(&gpu, weights.dtype)?;
        let packed = weights.matrices();
        let packed = packed.filter(|matrix| matrix.in_fewer_bits().is_some());
        if let Some(most_columns) = packed.map(Matrix::columns).max() {
            products.take_packed(&gpu, most_columns)?;
        }
        let matrices = weights.matrices();
        let chains = Chains::new(
            &gpu,
            weights.dtype,
            weights.blocks.len(),
            matrices,
            sizes.in_flight,
        )?;
        if sizes.deterministic && chains.is_none() {
            return Err(CudaError::NotDeterministic);
        }
        let blocks = &weights.blocks;
        let most = |of: fn(&LayerWeights) -> &Matrix| {
            let planes = blocks.iter().map(|block| of(block).most_planes());
            planes.max().unwrap_or(1)
        };
        let onto_x = most(|block| &block.output).max(most(|block| &block.down));
        let most_planes = [most(|block| &block.qkv), onto_x];
        let (rows, partial) = (sizes.max_rows, partial_values(heads, cut, sizes.max_rows));
        let buffers = Buffers::new(&weights, rows, most_planes, partial)?;
        let last = Planes {
            address: gpu.address(&buffers.product),
            planes: 0,
            stride: 0,
        };
        let stamps = Stamps::new(&gpu, weights.layers.len())?;
        let sampling = Sampling::new(&gpu, config.vocab_size)?;
        let step = Step::new(&gpu, sizes.max_rows, config.hidden_size)?;
        gpu.stream().synchronize()?;
        Ok(Self {
            kernels,
            products,
            chains,
            last,
            has_logits: false,
            first_logits_row: 0,
            bounds: Bounds {
                max_rows: if sizes.deterministic {
                    sizes.max_rows.min(DETERMINISTIC_ROWS)
                } else {
                    sizes.max_rows
                },
                first_block: sizes.first_block,
                kv_blocks: sizes.kv_blocks,
                cut,
                one_order: sizes.deterministic,
                layers: weights.layers,
            },
            step,
            kv,
            buffers,
            graphs: Graphs::new(sizes.graphs),
            stamps,
            first_layer: weights.layers.end,
            has_wanted: false,
            sampling,
            fault: None,
            weights,
        })
    }

    /// Bytes of one block of KV memory, `[keys or values, kv_head, position, head_dim]`.
    #[must_use]
    pub const fn block_bytes(config: &ModelConfig, dtype: Dtype) -> usize {
        2 * config.kv_size() * BLOCK_POSITIONS * dtype.bytes()
    }

    /// The most rows of a step.
    #[must_use]
    pub const fn max_rows(&self) -> usize {
        self.bounds.max_rows
    }

    /// The weights it runs.
    #[must_use]
    pub const fn weights(&self) -> &TailWeights {
        &self.weights
    }

    /// Takes in hidden states ahead of their step, `[rows, hidden_size]`, also while a step runs: they are copied
    /// meanwhile. They go into their step as [`Input::TakenIn`](crate::Input::TakenIn). `None` where there is no room.
    pub fn take_in(&mut self, hidden_states: &[f32]) -> Option<TakenIn> {
        self.step.take_in(hidden_states)
    }

    /// Whether the device has done all that was started. After a fault it has.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        is_idle(self.weights.gpu.stream())
    }

    /// Starts a step: the rows of `segments`, which are ordered by entry layer, through their layers. Keys and
    /// values are written; the tables do not advance. `wanted`: rows of the batch whose logits will be asked for.
    ///
    /// Returns before the device is done. [`Tail::finish`] ends the step.
    ///
    /// # Errors
    /// [`CudaError::Forward`] or [`CudaError::Rows`] where the rows do not fit, and nothing has been started;
    /// otherwise the device's fault, see [`CudaError::Broken`].
    pub fn start(&mut self, segments: &[Segment<'_>], wanted: &[u32]) -> Result<(), CudaError> {
        self.guarded(|tail| {
            let batch = Batch::new(segments, wanted);
            tail.check(&batch)?;
            tail.upload(&batch)?;
            tail.start_uploaded()
        })
    }

    /// Waits until the device has done the step, and tells how long it took.
    ///
    /// # Errors
    /// The device's fault.
    pub fn finish(&mut self) -> Result<Times, CudaError> {
        self.guarded(|tail| {
            let gpu = Arc::clone(&tail.weights.gpu);
            let first = tail.first_layer - tail.weights.layers.start;
            let (layers_ns, logits_ns) = tail.stamps.read(&gpu, &tail.kernels, first)?;
            Ok(Times {
                first_layer: tail.first_layer,
                layers_ns,
                logits_ns,
            })
        })
    }

    /// Fills the KV memory, for measurements.
    ///
    /// # Errors
    /// The device's fault.
    pub fn fill_kv(&mut self, scale: f32) -> Result<(), CudaError> {
        let gpu = &self.weights.gpu;
        let count = self.kv.len() / self.weights.dtype.bytes();
        self.kernels
            .fill_random(gpu, gpu.address(&self.kv), count, scale, 0)
    }

    /// Runs nothing after a fault, and remembers the first one.
    pub(crate) fn guarded<T>(
        &mut self,
        run: impl FnOnce(&mut Self) -> Result<T, CudaError>,
    ) -> Result<T, CudaError> {
        if let Some(fault) = &self.fault {
            let fault = fault.clone();
            return Err(CudaError::Broken { fault });
        }
        run(self).inspect_err(|error| {
            if error.is_fault() {
                self.fault = Some(error.to_string());
            }
        })
    }

    /// Refuses what [`Tail::upload`] must not be given.
    pub(crate) fn check(&self, batch: &Batch<'_>) -> Result<(), CudaError> {
        step::check(&self.weights.config, &self.bounds, batch)
    }

    /// Brings a step to the device that [`Tail::check`] has let through.
    pub(crate) fn upload(&mut self, batch: &Batch<'_>) -> Result<(), CudaError> {
        self.step.upload(&self.weights.gpu, &self.bounds, batch)?;
        let layers = self.weights.layers;
        let first = batch.segments.first();
        self.first_layer = first.map_or(layers.end, |segment| segment.entry_layer);
        self.has_wanted = !batch.wanted.is_empty() && self.weights.end.is_some();
        Ok(())
    }

    /// Starts the step that was brought to the device.
    pub(crate) fn start_uploaded(&mut self) -> Result<(), CudaError> {
        let gpu = Arc::clone(&self.weights.gpu);
        let first_layer = self.first_layer;
        self.last.planes = 0;
        self.has_logits = false;
        let rows = self.step.rows();
        match &mut self.chains {
            Some(chains) if rows <= Chains::most_rows() => {
                chains.begin(&gpu)?;
                let key = GraphKey {
                    first_layer,
                    rows: Chains::kernel_rows(rows),
                    has_wanted: self.has_wanted,
                    has_items: self.step.has_items(),
                    has_prompts: self.step.has_prompts(),
                    has_merges: self.step.has_merges(),
                };
                self.start_chains(&gpu, key)
            }
            _ => self.start_layers(&gpu, first_layer),
        }
    }

    /// The kernels of a step of few rows: as a graph, once they have been seen before.
    fn start_chains(&mut self, gpu: &Gpu, key: GraphKey) -> Result<(), CudaError> {
        match self.graphs.next(key, self.step.address(gpu)) {
            Next::Start => self.run_chains(gpu, key)?,
            Next::Record => {
                let recording = Recording::begin(gpu)?;
                let recorded = self.run_chains(gpu, key);
                // Ended also where something failed: nothing can be done with a device that records.
                let graph = recording.end(gpu);
                recorded?;
                self.graphs.keep(key, graph?);
                self.graphs.replay(key)?;
            }
            Next::Replay => self.graphs.replay(key)?,
        }
        self.has_logits = key.has_wanted;
        if let Some(last) = self.weights.blocks.last() {
            self.last = self.planes(gpu, &self.buffers.product, &last.down, key.rows);
        }
        Ok(())
    }
}

fn small(size: usize) -> u32 {
    u32::try_from(size).expect("sizes are bounded by ModelConfig and the step")
}
