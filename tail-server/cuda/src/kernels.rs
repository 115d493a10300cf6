//! The kernels of `kernels/`, with their arguments by name. Addresses are of device memory.

use cudarc::driver::CudaFunction;

use crate::calls::{Arg, Launch, launch};
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;

/// The kernels for one type and one shape of heads.
pub(crate) struct Kernels {
    heads: Heads,
    assemble: CudaFunction,
    angles: CudaFunction,
    add_norm: CudaFunction,
    rope_kv: CudaFunction,
    attend: CudaFunction,
    /// Query heads that one thread block of `attend` computes.
    attend_group: u32,
    merge: CudaFunction,
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
}

/// What stands between the q, k and v products and attention, in one layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RopeKv {
    /// Rows of `[heads of all three kinds, head_dim]`.
    pub(crate) qkv: Planes,
    /// `[rows, attention heads, head_dim]`.
    pub(crate) q: u64,
    pub(crate) kv: u64,
    pub(crate) angles: u64,
    /// f32, or 0.
    pub(crate) bias: u64,
    /// f32, or 0.
    pub(crate) q_norm: u64,
    /// f32, or 0.
    pub(crate) k_norm: u64,
}

/// One layer's attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attend {
    /// `[rows, attention heads, head_dim]`.
    pub(crate) q: u64,
    pub(crate) kv: u64,
    /// `[rows, attention heads, head_dim]`.
    pub(crate) out: u64,
    pub(crate) partial: u64,
    /// Positions a row sees; 0 for all.
    pub(crate) window: u32,
    pub(crate) items: u32,
    pub(crate) merges: u32,
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
        let lanes = match heads.dim {
            ..=64 => 8,
            65..=128 => 16,
            _ => 32,
        };
        let attend_group = match heads.attention / heads.kv {
            1 => 1,
            2..=4 => 4,
            _ => 8,
        };
        Ok(Self {
            heads,
            assemble: gpu.function(&format!("assemble_{name}"))?,
            angles: gpu.function("angles")?,
            add_norm: gpu.function(&format!("add_norm_{name}"))?,
            rope_kv: gpu.function(&format!("rope_kv_{name}"))?,
            attend: gpu.function(&format!("attend_{name}_{lanes}_{attend_group}"))?,
            attend_group,
            merge: gpu.function(&format!("merge_{name}"))?,
            fill_random: gpu.function(&format!("fill_random_{name}"))?,
        })
    }

    /// `x`: `[rows, hidden_size]`, f32. `embedding` may be 0 where no row is a token.
    pub(crate) fn assemble(
        &self,
        gpu: &Gpu,
        [x, embedding, step]: [u64; 3],
        rows: u32,
        hidden_size: u32,
    ) -> Result<(), CudaError> {
        let args = [
            Arg::Address(x),
            Arg::Address(embedding),
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
        ];
        launch(gpu, &self.add_norm, blocks([count, 1], 512), &args)
    }

    /// `layer`: of the model, and counted from the tail's first one.
    pub(crate) fn rope_kv(
        &self,
        gpu: &Gpu,
        what: RopeKv,
        step: u64,
        layer: [u32; 2],
        rows: u32,
    ) -> Result<(), CudaError> {
        let args = [
            Arg::Address(what.qkv.address),
            Arg::U32(what.qkv.planes),
            Arg::U64(what.qkv.stride),
            Arg::Address(what.q),
            Arg::Address(what.kv),
            Arg::Address(what.angles),
            Arg::Address(step),
            Arg::Address(what.bias),
            Arg::Address(what.q_norm),
            Arg::Address(what.k_norm),
            Arg::U32(layer[0]),
            Arg::U32(layer[1]),
            Arg::U32(self.heads.attention),
            Arg::U32(self.heads.kv),
            Arg::U32(self.heads.dim),
            Arg::U32(u32::from(self.heads.interleaved)),
            Arg::F32(self.heads.eps),
        ];
        let warps = self.heads.attention + 2 * self.heads.kv;
        let grid = [rows, warps.div_ceil(4)];
        launch(gpu, &self.rope_kv, blocks(grid, 128), &args)
    }

    #[expect(clippy::cast_precision_loss, reason = "head_dim is at most 256")]
    pub(crate) fn attend(
        &self,
        gpu: &Gpu,
        what: Attend,
        step: u64,
        layer: u32,
    ) -> Result<(), CudaError> {
        let Heads {
            attention, kv, dim, ..
        } = self.heads;
        let args = [
            Arg::Address(what.q),
            Arg::Address(what.kv),
            Arg::Address(what.out),
            Arg::Address(what.partial),
            Arg::Address(step),
            Arg::U32(layer),
            Arg::U32(attention),
            Arg::U32(kv),
            Arg::U32(dim),
            Arg::U32(what.window),
            Arg::F32(std::f32::consts::LOG2_E / (dim as f32).sqrt()),
        ];
        let groups = (attention / kv).div_ceil(self.attend_group);
        launch(
            gpu,
            &self.attend,
            blocks([what.items, kv * groups], 128),
            &args,
        )?;
        let args = [
            Arg::Address(what.partial),
            Arg::Address(what.out),
            Arg::Address(step),
            Arg::U32(attention),
            Arg::U32(dim),
        ];
        launch(
            gpu,
            &self.merge,
            blocks([what.merges, attention], dim.next_multiple_of(32)),
            &args,
        )
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
