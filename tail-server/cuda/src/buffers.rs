//! The memory of a step between its kernels, taken once.

use cudarc::driver::{CudaSlice, PinnedHostSlice};
use headway_model::ModelConfig;

use crate::calls::pinned;
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::products::{OWN_ROWS, Rows};

/// Rows whose logits are in memory at a time: 256 rows of a vocabulary of 150,000 take 154 MB.
pub const LOGITS_ROWS: usize = 256;

/// Of `max_rows` rows each. Without a type: of the weights' type.
pub(crate) struct Buffers {
    /// The residual stream, f32.
    pub(crate) x: CudaSlice<f32>,
    /// After a norm.
    pub(crate) normed: Rows,
    /// f32, as the products come.
    pub(crate) qkv: CudaSlice<f32>,
    /// Rotated queries.
    pub(crate) q: CudaSlice<u8>,
    /// What is to be added to the residual stream, f32.
    pub(crate) product: CudaSlice<f32>,
    /// Of attention.
    pub(crate) context: Rows,
    pub(crate) gate_up: CudaSlice<u8>,
    pub(crate) gated: Rows,
    /// `[rows, head_dim / 2, 2]`.
    pub(crate) angles: CudaSlice<f32>,
    /// Of attention.
    pub(crate) partial: CudaSlice<f32>,
    /// `[LOGITS_ROWS, vocab_size]`.
    pub(crate) logits: CudaSlice<f32>,
    /// For one row, and more once they are asked for.
    pub(crate) host_logits: PinnedHostSlice<f32>,
}

impl Buffers {
    /// `most_planes`: of a q, k and v product, and of one onto the residual stream. `partial`: values of attention's
    /// partial results.
    pub(crate) fn new(
        gpu: &Gpu,
        config: &ModelConfig,
        dtype: Dtype,
        max_rows: usize,
        most_planes: [usize; 2],
        partial: usize,
    ) -> Result<Self, CudaError> {
        // Of the logits' rows too, which are normed together.
        let rows = max_rows.max(LOGITS_ROWS);
        let typed = |columns: usize| gpu.zeros::<u8>(rows * columns * dtype.bytes());
        let operand = |columns| Rows::new(gpu, dtype, rows, columns);
        // Products of few rows come in several planes.
        let planes = |columns: usize, most: usize| {
            let values = columns * rows.max(most * rows.min(OWN_ROWS));
            gpu.zeros::<f32>(values)
        };
        Ok(Self {
            x: gpu.zeros(rows * config.hidden_size)?,
            normed: operand(config.hidden_size)?,
            qkv: planes(config.q_size() + 2 * config.kv_size(), most_planes[0])?,
            q: typed(config.q_size())?,
            product: planes(config.hidden_size, most_planes[1])?,
            context: operand(config.q_size())?,
            gate_up: typed(2 * config.intermediate_size)?,
            gated: operand(config.intermediate_size)?,
            angles: gpu.zeros(rows * config.head_dim)?,
            partial: gpu.zeros(partial)?,
            logits: gpu.zeros(LOGITS_ROWS * config.vocab_size)?,
            host_logits: pinned(gpu.context(), config.vocab_size)?,
        })
    }
}
