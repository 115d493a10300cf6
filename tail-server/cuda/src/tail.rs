//! The tail at work: a step's rows through the layers, and their logits.

use std::sync::Arc;

use cudarc::driver::CudaSlice;
use headway_model::{BLOCK_POSITIONS, ModelConfig};

use crate::attention::{Attend, RopeKv, partial_values};
use crate::buffers::Buffers;
use crate::chain::{Chains, Link, LinkNorm, LinkRows, Shared};
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::kernels::{AddNorm, Kernels, NormRows, Planes};
use crate::products::{Matrix, Products};
use crate::sampling::Sampling;
use crate::stamps::Stamps;
use crate::step::{Bounds, Joined, Segment, Step};
use crate::weights::{LayerWeights, TailWeights, heads_of};

mod logits;

/// How much memory a tail takes, beside its weights.
#[derive(Clone, Copy, Debug)]
pub struct TailSizes {
    /// The most rows of a step.
    pub max_rows: usize,
    /// Blocks of KV memory.
    pub kv_blocks: usize,
    /// Positions that one thread block attends to; a row with more is computed by several at a time.
    pub item_positions: usize,
    /// Rows of prompts are computed by the arithmetic of decoding rows, so that keys and values of prefill, decode
    /// and replay have the same bits as far as attention goes. Prompts then take longer.
    pub one_order: bool,
}

impl TailSizes {
    /// With the usual `item_positions`.
    #[must_use]
    pub const fn new(max_rows: usize, kv_blocks: usize) -> Self {
        Self {
            max_rows,
            kv_blocks,
            item_positions: 512,
            one_order: false,
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
    stamps: Stamps,
    /// Of the step that runs.
    first_layer: usize,
    /// Why nothing is started any more.
    fault: Option<String>,
}

impl Tail {
    /// Takes all memory that steps need.
    ///
    /// # Errors
    /// [`CudaError::Driver`] where the device has too little memory.
    pub fn new(weights: TailWeights, sizes: TailSizes) -> Result<Self, CudaError> {
        let gpu = Arc::clone(&weights.gpu);
        let config = &weights.config;
        let heads = heads_of(config)?;
        let kernels = Kernels::new(&gpu, weights.dtype, heads)?;
        let cut = kernels.attention.cut(sizes.item_positions);
        let kv = gpu.zeros(sizes.kv_blocks * Self::block_bytes(config, weights.dtype))?;
        let products = Products::new(&gpu, weights.dtype)?;
        let blocks = &weights.blocks;
        let most = |of: fn(&LayerWeights) -> &Matrix| {
            let planes = blocks.iter().map(|block| of(block).most_planes());
            planes.max().unwrap_or(1)
        };
        let onto_x = most(|block| &block.output).max(most(|block| &block.down));
        let most_planes = [most(|block| &block.qkv), onto_x];
        let (rows, partial) = (sizes.max_rows, partial_values(heads, cut, sizes.max_rows));
        let buffers = Buffers::new(&gpu, config, weights.dtype, rows, most_planes, partial)?;
        let last = Planes {
            address: gpu.address(&buffers.product),
            planes: 0,
            stride: 0,
        };
        let stamps = Stamps::new(&gpu, weights.layers.len())?;
        let sampling = Sampling::new(&gpu, config.vocab_size)?;
        let step = Step::new(&gpu, (1 << 16) + sizes.max_rows * (config.hidden_size + 64))?;
        gpu.stream().synchronize()?;
        Ok(Self {
            kernels,
            products,
            chains: Chains::new(&gpu, weights.dtype, &weights.blocks)?,
            last,
            has_logits: false,
            first_logits_row: 0,
            bounds: Bounds {
                max_rows: sizes.max_rows,
                kv_blocks: sizes.kv_blocks,
                cut,
                one_order: sizes.one_order,
                layers: weights.layers,
            },
            step,
            kv,
            buffers,
            stamps,
            first_layer: weights.layers.end,
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

    /// The weights it runs.
    #[must_use]
    pub const fn weights(&self) -> &TailWeights {
        &self.weights
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
        self.guarded(|tail| tail.start_step(segments, wanted))
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
    fn guarded<T>(
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

    fn start_step(&mut self, segments: &[Segment<'_>], wanted: &[u32]) -> Result<(), CudaError> {
        let gpu = Arc::clone(&self.weights.gpu);
        let TailWeights { config, layers, .. } = &self.weights;
        self.step
            .upload(&gpu, config, &self.bounds, segments, wanted)?;
        let first_layer = segments
            .first()
            .map_or(layers.end, |segment| segment.entry_layer);
        self.first_layer = first_layer;
        let step = self.step.address(&gpu);
        let x = gpu.address(&self.buffers.x);
        let rows = small(self.step.rows());
        let embedding = self
            .weights
            .embedding
            .as_ref()
            .map_or(0, |matrix| gpu.address(&**matrix));
        self.kernels
            .assemble(&gpu, [x, embedding, step], rows, small(config.hidden_size))?;
        let angles = gpu.address(&self.buffers.angles);
        let frequencies = gpu.address(&self.weights.inverse_frequencies);
        let factor = self.weights.attention_factor;
        self.kernels
            .angles(&gpu, [angles, frequencies, step], rows, factor)?;

        let mut joined = Joined::default();
        let mut joining = self.step.joined().iter().peekable();
        let of_layers: Vec<(usize, Joined)> = (first_layer..layers.end)
            .map(|layer| {
                while let Some(next) = joining.next_if(|next| next.entry_layer <= layer) {
                    joined = *next;
                }
                (layer, joined)
            })
            .collect();
        self.last.planes = 0;
        self.has_logits = false;
        if self.step.rows() <= Chains::most_rows()
            && let Some(chains) = &mut self.chains
        {
            chains.begin(&gpu)?;
            return self.run_chains(&gpu, &of_layers, wanted.len());
        }
        for (layer, joined) in of_layers {
            self.last = self.run_layer(&gpu, layer, joined, self.last)?;
        }
        Ok(())
    }

    /// The layers, with all products between two attentions as one kernel.
    fn run_chains(
        &mut self,
        gpu: &Gpu,
        layers: &[(usize, Joined)],
        wanted: usize,
    ) -> Result<(), CudaError> {
        let Some(chains) = &self.chains else {
            return Ok(());
        };
        let (buffers, config) = (&self.buffers, &self.weights.config);
        let rows = self.step.rows();
        let shared = Shared {
            buffers,
            config,
            before: self.last,
            rows,
            step: self.step.address(gpu),
            stamps: self.stamps.address(gpu),
        };
        let start = self.weights.layers.start;
        let blocks = &self.weights.blocks;
        let planes = |memory: &CudaSlice<f32>, matrix: &Matrix| Planes {
            address: gpu.address(memory),
            planes: matrix.splits(),
            stride: (rows * matrix.outputs()) as u64,
        };
        let link = |layer, matrix, x, out| Link {
            matrix,
            x,
            norm: None,
            out,
            layer,
        };
        let first = |index: usize| Link {
            norm: Some(LinkNorm {
                weight: &blocks[index].attention_norm,
                rows: LinkRows::BeforeLayer,
            }),
            ..link(
                index,
                &blocks[index].qkv,
                &buffers.normed,
                gpu.address(&buffers.qkv),
            )
        };
        if let Some((layer, _)) = layers.first() {
            chains.start(gpu, 0, &[first(layer - start)], &shared)?;
        }
        let onto_x = gpu.address(&buffers.product);
        for (layer, joined) in layers {
            let index = layer - start;
            let weights = &blocks[index];
            let qkv = planes(&buffers.qkv, &weights.qkv);
            self.attend(gpu, *layer, *joined, qkv)?;
            let gated = buffers.gated.address(gpu);
            let mut links = vec![
                link(index, &weights.output, &buffers.context, onto_x),
                Link {
                    norm: Some(LinkNorm {
                        weight: &weights.mlp_norm,
                        rows: LinkRows::WithinLayer,
                    }),
                    ..link(index, &weights.gate_up, &buffers.normed, gated)
                },
                link(index, &weights.down, &buffers.gated, onto_x),
            ];
            if index + 1 < blocks.len() {
                links.push(first(index + 1));
            } else if wanted > 0 {
                let weight = &self.weights.output_norm;
                let rows = LinkRows::Wanted;
                let logits = gpu.address(&buffers.logits);
                links.push(Link {
                    norm: Some(LinkNorm { weight, rows }),
                    ..link(index + 1, &self.weights.lm_head, &buffers.normed, logits)
                });
            }
            chains.start(gpu, index + 1, &links, &shared)?;
        }
        self.has_logits = wanted > 0;
        if let Some(last) = blocks.last() {
            self.last = planes(&buffers.product, &last.down);
        }
        Ok(())
    }

    /// One layer on the first `joined.rows` rows.
    /// `before`: what the layer before gives to the residual stream; the same of this layer is returned.
    fn run_layer(
        &self,
        gpu: &Gpu,
        layer: usize,
        joined: Joined,
        before: Planes,
    ) -> Result<Planes, CudaError> {
        let index = layer - self.weights.layers.start;
        let weights: &LayerWeights = &self.weights.blocks[index];
        let buffers = &self.buffers;
        let products = &self.products;
        let rows = joined.rows as usize;
        let gate_up = gpu.address(&buffers.gate_up);

        let norm = &weights.attention_norm;
        self.add_norm(gpu, norm, before, index, NormRows::BeforeLayer(joined.rows))?;
        let qkv = products.planes(gpu, &weights.qkv, &buffers.normed, rows, &buffers.qkv)?;
        self.attend(gpu, layer, joined, qkv)?;
        let product = &buffers.product;
        let onto_x = products.planes(gpu, &weights.output, &buffers.context, rows, product)?;

        let norm = &weights.mlp_norm;
        self.add_norm(gpu, norm, onto_x, index, NormRows::WithinLayer(joined.rows))?;
        let between = [gate_up, buffers.gated.address(gpu)];
        products.gated(gpu, &weights.gate_up, &buffers.normed, rows, between)?;
        products.planes(gpu, &weights.down, &buffers.gated, rows, product)
    }

    /// What stands between the product with q, k and v, and the one with attention's output.
    fn attend(
        &self,
        gpu: &Gpu,
        layer: usize,
        joined: Joined,
        qkv: Planes,
    ) -> Result<(), CudaError> {
        let config = &self.weights.config;
        let index = layer - self.weights.layers.start;
        let weights = &self.weights.blocks[index];
        let (buffers, kernels) = (&self.buffers, &self.kernels);
        let step = self.step.address(gpu);
        let q = gpu.address(&buffers.q);
        let optional =
            |vector: Option<&CudaSlice<f32>>| vector.map_or(0, |vector| gpu.address(vector));
        let kv = gpu.address(&self.kv);
        let rope_kv = RopeKv {
            qkv,
            q,
            kv,
            angles: gpu.address(&buffers.angles),
            bias: optional(weights.qkv_bias.as_ref()),
            q_norm: optional(weights.qk_norm.as_ref().map(|norms| &norms[0])),
            k_norm: optional(weights.qk_norm.as_ref().map(|norms| &norms[1])),
        };
        let layers = [small(layer), small(index)];
        kernels
            .attention
            .rope_kv(gpu, rope_kv, step, layers, joined.rows)?;
        let attend = Attend {
            q,
            kv,
            out: buffers.context.address(gpu),
            partial: gpu.address(&buffers.partial),
            window: config
                .window_of(layer)
                .map_or(0, |window| u32::try_from(window).unwrap_or(0)),
            has_items: self.step.has_items(),
            has_prompts: self.step.has_prompts(),
            has_merges: self.step.has_merges(),
        };
        kernels.attention.attend(gpu, attend, step, layers)
    }

    /// The last product onto the residual stream, and the norm of what that gives. `layer`: counted from the first
    /// one here.
    fn add_norm(
        &self,
        gpu: &Gpu,
        weight: &CudaSlice<f32>,
        product: Planes,
        layer: usize,
        rows: NormRows,
    ) -> Result<(), CudaError> {
        let buffers = &self.buffers;
        let what = AddNorm {
            x: gpu.address(&buffers.x),
            product,
            weight: gpu.address(weight),
            out: buffers.normed.address(gpu),
            hidden_size: small(self.weights.config.hidden_size),
            stamps: self.stamps.address(gpu),
        };
        let at = (self.step.address(gpu), small(layer));
        self.kernels.add_norm(gpu, what, rows, at)
    }
}

fn small(size: usize) -> u32 {
    u32::try_from(size).expect("sizes are bounded by ModelConfig and the step")
}
