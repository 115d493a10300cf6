//! The quantisations in which head weights can be offered.

use std::fmt;
use std::str::FromStr;

use candle_core::quantized::GgmlDType;
use serde::{Deserialize, Serialize};

use crate::weights::{dequantize_values, from_floats};

/// How the matrices of the head layers are stored on the device. Norms and biases stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantization {
    /// As in the model's own file: nothing is changed, and the split is lossless.
    None,
    /// 8 bits, blocks of 32.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 6 bits, superblocks of 256.
    #[serde(rename = "q6_k")]
    Q6K,
    /// 5 bits with minimum, blocks of 32.
    #[serde(rename = "q5_1")]
    Q5_1,
    /// 5 bits, blocks of 32.
    #[serde(rename = "q5_0")]
    Q5_0,
    /// 5 bits, superblocks of 256.
    #[serde(rename = "q5_k")]
    Q5K,
    /// 4 bits with minimum, blocks of 32.
    #[serde(rename = "q4_1")]
    Q4_1,
    /// 4 bits, blocks of 32.
    #[serde(rename = "q4_0")]
    Q4_0,
    /// 4 bits, superblocks of 256.
    #[serde(rename = "q4_k")]
    Q4K,
}

impl Quantization {
    /// All of them, most exact first.
    pub const ALL: [Self; 9] = [
        Self::None,
        Self::Q8_0,
        Self::Q6K,
        Self::Q5_1,
        Self::Q5_0,
        Self::Q5K,
        Self::Q4_1,
        Self::Q4_0,
        Self::Q4K,
    ];

    /// The name on command lines, in URLs and in manifests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Q8_0 => "q8_0",
            Self::Q6K => "q6_k",
            Self::Q5_1 => "q5_1",
            Self::Q5_0 => "q5_0",
            Self::Q5K => "q5_k",
            Self::Q4_1 => "q4_1",
            Self::Q4_0 => "q4_0",
            Self::Q4K => "q4_k",
        }
    }

    /// The block type for matrices with `columns` values a row, or `None` to leave them as they are.
    ///
    /// A k-quantisation needs rows of a multiple of 256 values; other rows get the block type of the
    /// next higher precision that fits, as llama.cpp's quantiser does.
    #[must_use]
    pub const fn block_type(self, columns: usize) -> Option<GgmlDType> {
        let superblocks = columns.is_multiple_of(256);
        if !columns.is_multiple_of(32) {
            return None;
        }
        Some(match self {
            Self::None => return None,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q6K if superblocks => GgmlDType::Q6K,
            Self::Q6K => GgmlDType::Q8_0,
            Self::Q5_1 => GgmlDType::Q5_1,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q5K if superblocks => GgmlDType::Q5K,
            Self::Q5K => GgmlDType::Q5_1,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4K if superblocks => GgmlDType::Q4K,
            Self::Q4K => GgmlDType::Q5_0,
        })
    }

    /// The quantisation whose blocks are these, or `None` for those that are never offered.
    pub(crate) const fn of_blocks(dtype: GgmlDType) -> Option<Self> {
        Some(match dtype {
            GgmlDType::Q8_0 => Self::Q8_0,
            GgmlDType::Q6K => Self::Q6K,
            GgmlDType::Q5_1 => Self::Q5_1,
            GgmlDType::Q5_0 => Self::Q5_0,
            GgmlDType::Q5K => Self::Q5K,
            GgmlDType::Q4_1 => Self::Q4_1,
            GgmlDType::Q4_0 => Self::Q4_0,
            GgmlDType::Q4K => Self::Q4K,
            _ => return None,
        })
    }

    /// Quantises rows of `columns` values each: the quantisation whose blocks they became (see
    /// [`Quantization::block_type`]), and the blocks; `None` where the values stay as they are.
    #[must_use]
    pub fn quantize(self, values: &[f32], columns: usize) -> Option<(Self, Vec<u8>)> {
        let dtype = self.block_type(columns)?;
        Some((Self::of_blocks(dtype)?, from_floats(values, dtype)))
    }

    /// The values of whole blocks; `None` for [`Quantization::None`], which has none.
    #[must_use]
    pub fn dequantize(self, blocks: &[u8]) -> Option<Vec<f32>> {
        // Any block type fits rows of superblocks.
        let dtype = self.block_type(256)?;
        let values = blocks.len() / dtype.type_size() * dtype.block_size();
        dequantize_values(self.name(), dtype, blocks, values).ok()
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A quantisation's name that is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not a quantisation; expected one of {}", names())]
pub struct UnknownQuantization {
    found: String,
}

fn names() -> String {
    Quantization::ALL.map(Quantization::name).join(", ")
}

impl FromStr for Quantization {
    type Err = UnknownQuantization;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|quantization| quantization.name() == text)
            .ok_or_else(|| UnknownQuantization {
                found: text.to_owned(),
            })
    }
}
