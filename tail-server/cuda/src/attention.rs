//! Attention, and what stands between it and the q, k and v products. Addresses are of device memory.
//!
//! Three kernels attend. `attend_decode_*`, on Hopper's tensor cores, for bf16 and f16 with the usual head_dims: rows
//! of a session that share positions are computed together. `attend_prompt_*`, likewise, for segments of many rows.
//! `attend_*`, on CUDA cores, for everything else. `attend_merge_*` merges what was computed in several items.
//!
//! Launches depend on whether a step has prompts, other rows, and rows of several items, and on nothing else of it:
//! thread blocks take what the step's array says there is for the layer.

use cudarc::driver::CudaFunction;
use headway_model::BLOCK_POSITIONS;

use crate::calls::{Arg, Launch, allow_shared, launch};
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::kernels::{Heads, Planes};

/// Rows times query heads of a tile of `attend_decode_*`, and of `attend_prompt_*`.
const DECODE_TILE: u32 = 16;
const PROMPT_TILE: u32 = 128;
/// Thread blocks of `attend_*` and `attend_merge_*`, and of `attend_decode_*`, for each multiprocessor.
const BLOCKS_EACH: u32 = 4;
const DECODE_BLOCKS_EACH: u32 = 2;
/// Items of all key-value heads of one row, at most: about one for each multiprocessor of a large device.
const ROW_UNITS: usize = 128;
/// Threads of a thread block of `rope_kv_*`.
const ROPE_THREADS: u32 = 128;

/// The kernels for one type and one shape of heads.
pub(crate) struct AttentionKernels {
    heads: Heads,
    rope_kv: CudaFunction,
    /// Lanes that share a head in `rope_kv`.
    rope_lanes: u32,
    cores: Cores,
    merge: CudaFunction,
    multiprocessors: u32,
}

/// What computes attention.
enum Cores {
    Cuda {
        attend: CudaFunction,
    },
    Tensor {
        decode: CudaFunction,
        prompt: CudaFunction,
    },
}

/// How rows and positions are cut into items: constants of the kernels and the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Positions of an item, a multiple of [`BLOCK_POSITIONS`], unless the row has more than `row_items` of them.
    pub(crate) item_positions: usize,
    /// The most items of a row.
    pub(crate) row_items: usize,
    /// Rows of one session that share items.
    pub(crate) tile_rows: usize,
    /// Rows of a prompt's items; 0 where there is no kernel for prompts.
    pub(crate) prompt_rows: usize,
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

/// As `Rope` in `kernels/rope_kv.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RopeArgs {
    qkv: u64,
    planes: u32,
    plane_stride: u64,
    q: u64,
    kv: u64,
    angles: u64,
    step: u64,
    bias: u64,
    q_norm: u64,
    k_norm: u64,
    layer: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    interleaved: u32,
    eps: f32,
}

/// One layer's attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attend {
    /// `[rows, attention heads, head_dim]`.
    pub(crate) q: u64,
    pub(crate) kv: u64,
    /// `[rows, attention heads, head_dim]`.
    pub(crate) out: u64,
    /// [`partial_values`] of f32, of which nothing is kept.
    pub(crate) partial: u64,
    /// Positions a row sees; 0 for all.
    pub(crate) window: u32,
    /// Whether a layer of the step may have rows that are not those of prompts.
    pub(crate) has_items: bool,
    /// Whether a layer of the step may have items of prompts.
    pub(crate) has_prompts: bool,
    /// Whether a layer of the step may have rows of several items.
    pub(crate) has_merges: bool,
}

/// Values of memory that partial results of `rows` rows take, `[rows, row_items, heads, 4 + head_dim]`.
pub(crate) const fn partial_values(heads: Heads, cut: Cut, rows: usize) -> usize {
    rows * cut.row_items * heads.attention as usize * (4 + heads.dim as usize)
}

impl AttentionKernels {
    pub(crate) fn new(gpu: &Gpu, dtype: Dtype, heads: Heads) -> Result<Self, CudaError> {
        let name = dtype.name();
        let lanes = match heads.dim {
            ..=64 => 8,
            65..=128 => 16,
            _ => 32,
        };
        let per_kv_head = heads.attention / heads.kv;
        let group = match per_kv_head {
            1 => 1,
            2..=4 => 4,
            _ => 8,
        };
        let fits_tensor_cores = gpu.is_hopper()
            && dtype != Dtype::F32
            && matches!(heads.dim, 64 | 128)
            && per_kv_head <= DECODE_TILE;
        let cores = if fits_tensor_cores {
            let decode = gpu.function(&format!("attend_decode_{name}_{}", heads.dim))?;
            let prompt = gpu.function(&format!("attend_prompt_{name}_{}", heads.dim))?;
            allow_shared(&decode, decode_bytes(heads.dim))?;
            allow_shared(&prompt, prompt_bytes(heads.dim))?;
            Cores::Tensor { decode, prompt }
        } else {
            let attend = gpu.function(&format!("attend_{name}_{lanes}_{group}"))?;
            Cores::Cuda { attend }
        };
        Ok(Self {
            heads,
            rope_kv: gpu.function(&format!("rope_kv_{name}_{lanes}"))?,
            rope_lanes: lanes,
            cores,
            merge: gpu.function(&format!("attend_merge_{name}"))?,
            multiprocessors: gpu.multiprocessors(),
        })
    }

    /// How steps are cut for these kernels.
    pub(crate) fn cut(&self, item_positions: usize) -> Cut {
        let per_kv_head = self.heads.attention / self.heads.kv;
        let (tile_rows, prompt_rows) = match self.cores {
            Cores::Cuda { .. } => (1, 0),
            Cores::Tensor { .. } => (DECODE_TILE / per_kv_head, PROMPT_TILE / per_kv_head),
        };
        Cut {
            item_positions: item_positions.max(1).next_multiple_of(BLOCK_POSITIONS),
            row_items: (ROW_UNITS / self.heads.kv as usize).clamp(16, 64),
            tile_rows: tile_rows as usize,
            prompt_rows: prompt_rows as usize,
        }
    }

    /// For a kernel that does this after the product itself. `layer`: of the model.
    pub(crate) const fn rope_args(&self, what: &RopeKv, step: u64, layer: u32) -> RopeArgs {
        RopeArgs {
            qkv: what.qkv.address,
            planes: what.qkv.planes,
            plane_stride: what.qkv.stride,
            q: what.q,
            kv: what.kv,
            angles: what.angles,
            step,
            bias: what.bias,
            q_norm: what.q_norm,
            k_norm: what.k_norm,
            layer,
            heads: self.heads.attention,
            kv_heads: self.heads.kv,
            head_dim: self.heads.dim,
            interleaved: self.heads.interleaved as u32,
            eps: self.heads.eps,
        }
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
        let heads = self.heads.attention + 2 * self.heads.kv;
        let shape = Launch {
            grid: [rows, heads.div_ceil(ROPE_THREADS / self.rope_lanes)],
            threads: ROPE_THREADS,
            shared_bytes: 0,
        };
        launch(gpu, &self.rope_kv, shape, &args)
    }

    /// `layer`: of the model, and counted from the tail's first one.
    pub(crate) fn attend(
        &self,
        gpu: &Gpu,
        what: Attend,
        step: u64,
        layer: [u32; 2],
    ) -> Result<(), CudaError> {
        let [q, kv, out, partial] = [what.q, what.kv, what.out, what.partial].map(Arg::Address);
        let [layer, tail_layer] = layer.map(Arg::U32);
        let [heads, kv_heads, dim] =
            [self.heads.attention, self.heads.kv, self.heads.dim].map(Arg::U32);
        let (window, scale) = (Arg::U32(what.window), Arg::F32(scale(self.heads.dim)));
        let step = Arg::Address(step);
        match &self.cores {
            Cores::Cuda { attend } => {
                let args = [
                    q, kv, out, partial, step, layer, tail_layer, heads, kv_heads, dim, window,
                    scale,
                ];
                launch(gpu, attend, self.blocks(BLOCKS_EACH, 128, 0), &args)?;
            }
            Cores::Tensor { decode, prompt } => {
                if what.has_items {
                    let args = [
                        q, kv, out, partial, step, layer, tail_layer, heads, kv_heads, window,
                        scale,
                    ];
                    let bytes = decode_bytes(self.heads.dim);
                    let shape = self.blocks(DECODE_BLOCKS_EACH, 128, bytes);
                    launch(gpu, decode, shape, &args)?;
                }
                if what.has_prompts {
                    let args = [
                        q, kv, out, step, layer, tail_layer, heads, kv_heads, window, scale,
                    ];
                    let shape = self.blocks(1, 384, prompt_bytes(self.heads.dim));
                    launch(gpu, prompt, shape, &args)?;
                }
            }
        }
        if what.has_merges {
            let args = [partial, out, step, tail_layer, heads, kv_heads, dim];
            launch(gpu, &self.merge, self.blocks(BLOCKS_EACH, 128, 0), &args)?;
        }
        Ok(())
    }

    /// `each`: thread blocks for each multiprocessor.
    const fn blocks(&self, each: u32, threads: u32, shared_bytes: u32) -> Launch {
        Launch {
            grid: [each * self.multiprocessors, 1],
            threads,
            shared_bytes,
        }
    }
}

/// What scores are multiplied with, times log2(e).
#[expect(clippy::cast_precision_loss, reason = "head_dim is at most 256")]
fn scale(head_dim: u32) -> f32 {
    std::f32::consts::LOG2_E / (head_dim as f32).sqrt()
}

/// Shared memory of `attend_decode_*`: the struct `DecodeMemory` there.
const fn decode_bytes(head_dim: u32) -> u32 {
    let stages = 4 * 128 / head_dim;
    let blocks = stages * 2 * 32 * head_dim * 2;
    blocks + 4 * DECODE_TILE * ((head_dim + 4) * 4 + 8) + stages * 16
}

/// Shared memory of `attend_prompt_*`: the struct `PromptMemory` there.
const fn prompt_bytes(head_dim: u32) -> u32 {
    (4 * 128 + PROMPT_TILE) * head_dim * 2 + 8 * 8
}
