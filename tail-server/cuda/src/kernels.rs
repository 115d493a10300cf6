//! The kernels of `kernels/`, with their arguments by name. Addresses are of device memory.

use cudarc::driver::CudaFunction;

use crate::attention::AttentionKernels;
use crate::calls::{Arg, Launch, launch};
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;

/// The kernels for one type and one shape of heads.
pub(crate) struct Kernels {
    /// Attention, and what stands before it.
    pub(crate) attention: AttentionKernels,
    heads: Heads,
    assemble: CudaFunction,
    angles: CudaFunction,
    add_norm: CudaFunction,
    add_product: CudaFunction,
    stamp: CudaFunction,
    fill_random: CudaFunction,
}

/// The shape of a model's heads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) attention: u32,
    pub(crate) kv: u32,
    /// A multiple of 8, at most 256.
    pub(crate) dim: u32,
    pub(crate) interleaved: bool,
    pub(crate) eps: f32,
}

/// A product as a sum: f32 `[planes, rows, columns]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planes {
    pub(crate) address: u64,
    pub(crate) planes: u32,
    /// From one plane to the next, in values.
    pub(crate) stride: u64,
}

/// A product added to the residual stream, and the norm of the sum.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AddNorm {
    /// `[rows, hidden_size]`, f32.
    pub(crate) x: u64,
    pub(crate) product: Planes,
    /// f32.
    pub(crate) weight: u64,
    /// `[rows, hidden_size]`, of the kernels' type.
    pub(crate) out: u64,
    pub(crate) hidden_size: u32,
    /// When each layer began, and when the last one had ended; u64, nanoseconds of the device's clock.
    pub(crate) stamps: u64,
}

/// Which rows a norm reads.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NormRows {
    /// The first ones of the batch, of which those that join at this layer have no product yet.
    BeforeLayer(u32),
    /// The first ones of the batch.
    WithinLayer(u32),
    /// `count` of the wanted ones, from `first` on.
    Wanted { first: u32, count: u32 },
}

impl Kernels {
    pub(crate) fn new(gpu: &Gpu, dtype: Dtype, heads: Heads) -> Result<Self, CudaError> {
        let name = dtype.name();
        Ok(Self {
            attention: AttentionKernels::new(gpu, dtype, heads)?,
            heads,
            assemble: gpu.function(&format!("assemble_{name}"))?,
            angles: gpu.function("angles")?,
            add_norm: gpu.function(&format!("add_norm_{name}"))?,
            add_product: gpu.function("add_product")?,
            stamp: gpu.function("stamp")?,
            fill_random: gpu.function(&format!("fill_random_{name}"))?,
        })
    }

    /// `x`: `[rows, hidden_size]`, f32. `embedding` may be 0 where no row is a token; `incoming`: hidden states.
    pub(crate) fn assemble(
        &self,
        gpu: &Gpu,
        [x, embedding, incoming, step]: [u64; 4],
        rows: u32,
        hidden_size: u32,
    ) -> Result<(), CudaError> {
        let args = [
            Arg::Address(x),
            Arg::Address(embedding),
            Arg::Address(incoming),
            Arg::Address(step),
            Arg::U32(hidden_size),
        ];
        launch(gpu, &self.assemble, blocks([rows, 1], 256), &args)
    }

    /// `out`: `[rows, head_dim / 2]`, cosine and sine.
    pub(crate) fn angles(
        &self,
        gpu: &Gpu,
        [out, inverse_frequencies, step]: [u64; 3],
        rows: u32,
        factor: f32,
    ) -> Result<(), CudaError> {
        let args = [
            Arg::Address(out),
            Arg::Address(inverse_frequencies),
            Arg::Address(step),
            Arg::U32(self.heads.dim / 2),
            Arg::F32(factor),
        ];
        launch(gpu, &self.angles, blocks([rows, 1], 64), &args)
    }

    pub(crate) fn add_norm(
        &self,
        gpu: &Gpu,
        what: AddNorm,
        rows: NormRows,
        (step, layer): (u64, u32),
    ) -> Result<(), CudaError> {
        let (count, rows, first) = match rows {
            NormRows::BeforeLayer(count) => (count, 0, 0),
            NormRows::WithinLayer(count) => (count, 1, 0),
            NormRows::Wanted { first, count } => (count, 2, first),
        };
        let args = [
            Arg::Address(what.x),
            Arg::Address(what.product.address),
            Arg::U32(what.product.planes),
            Arg::U64(what.product.stride),
            Arg::Address(what.weight),
            Arg::Address(what.out),
            Arg::Address(step),
            Arg::U32(layer),
            Arg::U32(what.hidden_size),
            Arg::F32(self.heads.eps),
            Arg::U32(rows),
            Arg::U32(first),
            Arg::Address(what.stamps),
        ];
        launch(gpu, &self.add_norm, blocks([count, 1], 512), &args)
    }

    /// The first `rows` of `x`, `[rows, hidden_size]`, f32, with the last layer's product; `layer` is one past it.
    pub(crate) fn add_product(
        &self,
        gpu: &Gpu,
        (x, product): (u64, Planes),
        rows: u32,
        hidden_size: u32,
        (step, layer): (u64, u32),
    ) -> Result<(), CudaError> {
        let args = [
            Arg::Address(x),
            Arg::Address(product.address),
            Arg::U32(product.planes),
            Arg::U64(product.stride),
            Arg::Address(step),
            Arg::U32(layer),
            Arg::U32(hidden_size),
        ];
        launch(gpu, &self.add_product, blocks([rows, 1], 512), &args)
    }

    /// Writes down at `address` when all that was started before is done; u64, nanoseconds of the device's clock.
    pub(crate) fn stamp(&self, gpu: &Gpu, address: u64) -> Result<(), CudaError> {
        let args = [Arg::Address(address)];
        launch(gpu, &self.stamp, blocks([1, 1], 1), &args)
    }

    /// `count` values in `(-scale, scale)`.
    pub(crate) fn fill_random(
        &self,
        gpu: &Gpu,
        out: u64,
        count: usize,
        scale: f32,
        seed: u32,
    ) -> Result<(), CudaError> {
        let args = [
            Arg::Address(out),
            Arg::U64(count as u64),
            Arg::F32(scale),
            Arg::U32(seed),
        ];
        launch(gpu, &self.fill_random, blocks([1024, 1], 256), &args)
    }
}

/// Without dynamic shared memory.
const fn blocks(grid: [u32; 2], threads: u32) -> Launch {
    Launch {
        grid,
        threads,
        shared_bytes: 0,
    }
}
