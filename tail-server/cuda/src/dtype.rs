//! The types in which weights, activations and keys and values are held on the device.

use cudarc::cublas::sys::cudaDataType;
use headway_model::weights::WeightDtype;

/// A type of the device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// Four bytes; products are true f32, without TF32.
    F32,
    /// Two bytes, of which 10 bits are the fraction.
    F16,
    /// Two bytes, of which 7 bits are the fraction.
    Bf16,
}

impl Dtype {
    /// All of them, most exact first.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// The name in kernels' names and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// Bytes of one value.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The model crate's name of it.
    #[must_use]
    pub const fn of_weights(self) -> WeightDtype {
        match self {
            Self::F32 => WeightDtype::F32,
            Self::F16 => WeightDtype::F16,
            Self::Bf16 => WeightDtype::Bf16,
        }
    }

    /// What activations, and weights that are not in fewer bits, are held in where `dtype` was asked for:
    /// [`WeightDtype::Native`] stands here for quantised ones, which bf16 holds almost without loss.
    #[must_use]
    pub const fn for_weights(dtype: WeightDtype) -> Self {
        match dtype {
            WeightDtype::F32 => Self::F32,
            WeightDtype::F16 => Self::F16,
            WeightDtype::Bf16 | WeightDtype::Native | WeightDtype::Fp8 => Self::Bf16,
        }
    }

    pub(crate) const fn of_cublas(self) -> cudaDataType {
        match self {
            Self::F32 => cudaDataType::CUDA_R_32F,
            Self::F16 => cudaDataType::CUDA_R_16F,
            Self::Bf16 => cudaDataType::CUDA_R_16BF,
        }
    }
}
