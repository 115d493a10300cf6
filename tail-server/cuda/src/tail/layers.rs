//! The layers one kernel after the other, and what stands between products in any case.

use cudarc::driver::CudaSlice;

use super::{Tail, small};
use crate::attention::{Attend, RopeKv};
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::kernels::{AddNorm, NormRows, Planes};
use crate::step::Joined;
use crate::weights::{LayerWeights, TailWeights};

impl Tail {
    /// All layers from `first_layer` on.
    pub(super) fn start_layers(&mut self, gpu: &Gpu, first_layer: usize) -> Result<(), CudaError> {
        self.assemble(gpu, self.step.rows())?;
        let mut joined = Joined::default();
        let mut at = 0;
        for layer in first_layer..self.weights.layers.end {
            while let Some(next) = self.step.joined().get(at)
                && next.entry_layer <= layer
            {
                joined = *next;
                at += 1;
            }
            self.last = self.run_layer(gpu, layer, joined.rows, self.last)?;
        }
        if self.weights.end.is_none() {
            self.add_product(gpu, self.last, self.step.rows())?;
        }
        Ok(())
    }

    /// From what came in to the residual stream, and the rows' angles; at most `rows`.
    pub(super) fn assemble(&self, gpu: &Gpu, rows: usize) -> Result<(), CudaError> {
        let TailWeights { config, .. } = &self.weights;
        let step = self.step.address(gpu);
        let incoming = self.step.incoming(gpu);
        let x = gpu.address(&self.buffers.x);
        let rows = small(rows);
        let embedding = self
            .weights
            .embedding
            .as_ref()
            .map_or(0, |matrix| gpu.address(&**matrix));
        self.kernels.assemble(
            gpu,
            [x, embedding, incoming, step],
            rows,
            small(config.hidden_size),
        )?;
        let angles = gpu.address(&self.buffers.angles);
        let frequencies = gpu.address(&self.weights.inverse_frequencies);
        let factor = self.weights.attention_factor;
        self.kernels
            .angles(gpu, [angles, frequencies, step], rows, factor)
    }

    /// One layer on the first `rows` rows.
    /// `before`: what the layer before gives to the residual stream; the same of this layer is returned.
    fn run_layer(
        &self,
        gpu: &Gpu,
        layer: usize,
        rows: u32,
        before: Planes,
    ) -> Result<Planes, CudaError> {
        let index = layer - self.weights.layers.start;
        let weights: &LayerWeights = &self.weights.blocks[index];
        let buffers = &self.buffers;
        let products = &self.products;
        let gate_up = gpu.address(&buffers.gate_up);

        let norm = &weights.attention_norm;
        self.add_norm(gpu, norm, before, index, NormRows::BeforeLayer(rows))?;
        let qkv = products.planes(
            gpu,
            &weights.qkv,
            &buffers.normed,
            rows as usize,
            &buffers.qkv,
        )?;
        let step = self.step.address(gpu);
        let rope_kv = self.rope_kv(gpu, index, qkv);
        let layers = [small(layer), small(index)];
        self.kernels
            .attention
            .rope_kv(gpu, rope_kv, step, layers, rows)?;
        self.attend(gpu, index)?;
        let rows = rows as usize;
        let product = &buffers.product;
        let onto_x = products.planes(gpu, &weights.output, &buffers.context, rows, product)?;

        let norm = &weights.mlp_norm;
        self.add_norm(gpu, norm, onto_x, index, NormRows::WithinLayer(small(rows)))?;
        let between = [gate_up, buffers.gated.address(gpu)];
        products.gated(gpu, &weights.gate_up, &buffers.normed, rows, between)?;
        products.planes(gpu, &weights.down, &buffers.gated, rows, product)
    }

    /// What is done to the product with q, k and v of a layer, counted from the first one here.
    pub(super) fn rope_kv(&self, gpu: &Gpu, index: usize, qkv: Planes) -> RopeKv {
        let weights = &self.weights.blocks[index];
        let optional =
            |vector: Option<&CudaSlice<f32>>| vector.map_or(0, |vector| gpu.address(vector));
        RopeKv {
            qkv,
            q: gpu.address(&self.buffers.q),
            kv: gpu.address(&self.kv),
            angles: gpu.address(&self.buffers.angles),
            bias: optional(weights.qkv_bias.as_ref()),
            q_norm: optional(weights.qk_norm.as_ref().map(|norms| &norms[0])),
            k_norm: optional(weights.qk_norm.as_ref().map(|norms| &norms[1])),
        }
    }

    /// Attention of a layer, counted from the first one here; its queries, keys and values are in their places.
    pub(super) fn attend(&self, gpu: &Gpu, index: usize) -> Result<(), CudaError> {
        let layer = self.weights.layers.start + index;
        let window = self.weights.config.window_of(layer);
        let attend = Attend {
            q: gpu.address(&self.buffers.q),
            kv: gpu.address(&self.kv),
            out: self.buffers.context.address(gpu),
            partial: gpu.address(&self.buffers.partial),
            window: window.map_or(0, |window| u32::try_from(window).unwrap_or(0)),
            has_items: self.step.has_items(),
            has_prompts: self.step.has_prompts(),
            has_merges: self.step.has_merges(),
        };
        let layers = [small(layer), small(index)];
        let step = self.step.address(gpu);
        self.kernels.attention.attend(gpu, attend, step, layers)
    }

    /// The last product onto the residual stream, and the norm of what that gives. `layer`: counted from the first
    /// one here.
    pub(super) fn add_norm(
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
