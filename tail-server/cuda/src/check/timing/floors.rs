//! What a device cannot be faster than, from its own bandwidth and its own rate of products.

use std::sync::Arc;

use cudarc::driver::sys::CUevent_flags;
use headway_model::ModelConfig;

use super::{Case, config, float, median};
use crate::calls::BlasProduct;
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::kernels::Kernels;
use crate::weights::heads_of;

const COPY_BYTES: usize = 1 << 30;
/// Rows, outputs and columns of the product.
const SIDE: usize = 8192;
const RUNS: usize = 10;

/// Measured on the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floors {
    /// Read and written by a copy.
    pub(super) bytes_per_ms: f64,
    /// Of a large bf16 product of random values, which take more power than zeros.
    pub(super) operations_per_ms: f64,
}

impl Floors {
    pub(super) fn measure(gpu: &Arc<Gpu>) -> Result<Self, CudaError> {
        Ok(Self {
            bytes_per_ms: float(2 * COPY_BYTES) / copy_ms(gpu)?,
            operations_per_ms: 2.0 * float(SIDE).powi(3) / product_ms(gpu)?,
        })
    }

    /// The larger one of reading the weights once and the sessions' keys and values once, and of what products and
    /// attention compute. `matrix_bytes`: of one layer's matrices, and of the lm_head.
    pub(super) fn of(
        &self,
        config: &ModelConfig,
        case: &Case,
        [layer_bytes, lm_head_bytes]: [usize; 2],
    ) -> f64 {
        let layers = case.layers().len();
        let (hidden, kv) = (config.hidden_size, config.kv_size());
        let in_layer = hidden * (2 * config.q_size() + 2 * kv + 3 * config.intermediate_size);
        let lm_head = hidden * config.vocab_size;
        let bf16 = Dtype::Bf16.bytes();
        let kv_bytes = case.batch * (case.context + case.rows) * layers * 2 * kv * bf16;
        let bytes = layers * layer_bytes + lm_head_bytes + kv_bytes;

        // A row at position p attends to p + 1 positions: products with q, and of the weights with the values.
        let attended = case.rows * case.context + case.rows * (case.rows + 1) / 2;
        let rows = float(case.batch * case.rows);
        let operations = 2.0 * rows * float(layers * in_layer)
            + 2.0 * float(case.batch * lm_head)
            + 4.0 * float(case.batch * attended) * float(config.q_size() * layers);
        (float(bytes) / self.bytes_per_ms).max(operations / self.operations_per_ms)
    }
}

/// A copy of [`COPY_BYTES`] within the device.
fn copy_ms(gpu: &Gpu) -> Result<f64, CudaError> {
    let from = gpu.zeros::<u8>(COPY_BYTES)?;
    let mut to = gpu.zeros::<u8>(COPY_BYTES)?;
    median_ms(gpu, || Ok(gpu.stream().memcpy_dtod(&from, &mut to)?))
}

fn product_ms(gpu: &Arc<Gpu>) -> Result<f64, CudaError> {
    let dtype = Dtype::Bf16;
    let bytes = SIDE * SIDE * dtype.bytes();
    let [x, weights, y] = [
        gpu.zeros::<u8>(bytes)?,
        gpu.zeros(bytes)?,
        gpu.zeros(bytes)?,
    ];
    let [x, weights, y] = [&x, &weights, &y].map(|memory| gpu.address(memory));
    let kernels = Kernels::new(gpu, dtype, heads_of(&config())?)?;
    kernels.fill_random(gpu, x, SIDE * SIDE, 1.0, 1)?;
    kernels.fill_random(gpu, weights, SIDE * SIDE, 1.0, 2)?;
    let product = BlasProduct {
        dtype,
        out: dtype,
        x,
        weights,
        y,
        y_stride: SIDE,
        rows: SIDE,
        outputs: SIDE,
        columns: SIDE,
    };
    median_ms(gpu, || product.start(gpu))
}

/// Of [`RUNS`] runs after a first one, between events around each.
fn median_ms(gpu: &Gpu, mut run: impl FnMut() -> Result<(), CudaError>) -> Result<f64, CudaError> {
    let event = || {
        gpu.context()
            .new_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
    };
    let (start, end) = (event()?, event()?);
    let mut times_ms = Vec::new();
    for index in 0..=RUNS {
        start.record(gpu.stream())?;
        run()?;
        end.record(gpu.stream())?;
        let elapsed_ms = f64::from(start.elapsed_ms(&end)?);
        if index > 0 {
            times_ms.push(elapsed_ms);
        }
    }
    Ok(median(times_ms))
}
