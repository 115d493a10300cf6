//! Values on the host, as the device holds them.

use cudarc::driver::CudaSlice;
use half::{bf16, f16};

use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;

/// `values` as `dtype` holds them.
pub(super) fn rounded(values: &[f32], dtype: Dtype) -> Vec<f32> {
    let round = |value: &f32| match dtype {
        Dtype::F32 => *value,
        Dtype::F16 => f16::from_f32(*value).to_f32(),
        Dtype::Bf16 => bf16::from_f32(*value).to_f32(),
    };
    values.iter().map(round).collect()
}

/// Copies `values` to the device.
pub(super) fn up(gpu: &Gpu, values: &[f32], dtype: Dtype) -> Result<CudaSlice<u8>, CudaError> {
    let bytes: Vec<u8> = match dtype {
        Dtype::F32 => values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        Dtype::F16 => values
            .iter()
            .flat_map(|value| f16::from_f32(*value).to_le_bytes())
            .collect(),
        Dtype::Bf16 => values
            .iter()
            .flat_map(|value| bf16::from_f32(*value).to_le_bytes())
            .collect(),
    };
    Ok(gpu.stream().clone_htod(&bytes)?)
}

/// Copies values from the device, once all that was started is done.
pub(super) fn down(gpu: &Gpu, memory: &CudaSlice<u8>, dtype: Dtype) -> Result<Vec<f32>, CudaError> {
    let bytes = gpu.stream().clone_dtoh(memory)?;
    gpu.stream().synchronize()?;
    let pairs = || bytes.as_chunks::<2>().0.iter();
    Ok(match dtype {
        Dtype::F32 => bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|value| f32::from_le_bytes(*value))
            .collect(),
        Dtype::F16 => pairs()
            .map(|value| f16::from_le_bytes(*value).to_f32())
            .collect(),
        Dtype::Bf16 => pairs()
            .map(|value| bf16::from_le_bytes(*value).to_f32())
            .collect(),
    })
}
