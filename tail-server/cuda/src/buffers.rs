//! The memory of a step between its kernels, taken once.

use cudarc::driver::{CudaSlice, PinnedHostSlice};

use crate::calls::pinned;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::operand::Rows;
use crate::products::OWN_ROWS;
use crate::weights::TailWeights;

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
    /// `[LOGITS_ROWS, vocab_size]` where there is an lm_head.
    pub(crate) logits: CudaSlice<f32>,
    /// Logits or hidden states of one row, and of more once they are asked for.
    pub(crate) host_rows: PinnedHostSlice<f32>,
}

impl Buffers {
    /// `most_planes`: of a q, k and v product, and of one onto the residual stream. `partial`: values of attention's
    /// partial results.
    pub(crate) fn new(
        weights: &TailWeights,
        max_rows: usize,
        most_planes: [usize; 2],
        partial: usize,
    ) -> Result<Self, CudaError> {
        let TailWeights {
            gpu, config, dtype, ..
        } = weights;
        let dtype = *dtype;
        // Of the logits' rows too, which are normed together.
        let rows = max_rows.max(LOGITS_ROWS);
        let typed = |columns: usize| gpu.zeros::<u8>(rows * columns * dtype.bytes());
        // Nothing reads the one row of a stage without an lm_head.
        let logits_rows = weights.end.as_ref().map_or(1, |_| LOGITS_ROWS);
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
            logits: gpu.zeros(logits_rows * config.vocab_size)?,
            host_rows: pinned(gpu.context(), config.vocab_size)?,
        })
    }

    /// Room for so many values in `host_rows`.
    pub(crate) fn make_room(&mut self, gpu: &Gpu, len: usize) -> Result<(), CudaError> {
        if len > self.host_rows.len() {
            self.host_rows = pinned(gpu.context(), len)?;
        }
        Ok(())
    }
}
