//! Reading matrices as dense values, piece by piece, for memory that is not the CPU's.

use candle_core::quantized::GgmlDType;

use super::{Files, RawTensor, WeightDtype, Weights, dequantize_values, from_floats};
use crate::error::LoadError;
use crate::quantization::Quantization;

/// Values converted at a time, so that a large matrix never stands in memory as f32.
const CONVERT_VALUES: usize = 1 << 20;

impl Weights {
    /// The type that a matrix has in the file; [`WeightDtype::Native`] where it is quantised.
    ///
    /// # Errors
    /// [`LoadError`] where the matrix is missing or misshapen.
    pub fn matrix_dtype(&self, name: &str, shape: [usize; 2]) -> Result<WeightDtype, LoadError> {
        Ok(match self.read(name, &shape)?.dtype {
            GgmlDType::F32 => WeightDtype::F32,
            GgmlDType::F16 => WeightDtype::F16,
            GgmlDType::BF16 => WeightDtype::Bf16,
            _ => WeightDtype::Native,
        })
    }

    /// The blocks in which the file has a matrix, or `None` where it has other values. Reads the file's header only.
    #[must_use]
    pub fn matrix_quantization(&self, name: &str) -> Option<Quantization> {
        let Files::Gguf(files) = &self.files else {
            return None;
        };
        let info = files.iter().find_map(|file| file.info(name))?;
        Quantization::of_blocks(info.ggml_dtype)
    }

    /// Hands the values of a matrix to `take`, in order, some whole rows at a time, as little-endian values of
    /// `dtype`. The file's bytes of the matrix are in memory meanwhile, its dense values never all at once.
    /// [`WeightDtype::Native`] and [`WeightDtype::Fp8`] hand over the bytes as they stand in the file.
    ///
    /// # Errors
    /// [`LoadError`] where the matrix is missing, misshapen or of a type that cannot be dequantised, and
    /// whatever `take` returns.
    pub fn read_matrix<E: From<LoadError>>(
        &self,
        name: &str,
        shape: [usize; 2],
        dtype: WeightDtype,
        take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let tensor = self.read(name, &shape)?;
        let dtype = match dtype {
            WeightDtype::Native | WeightDtype::Fp8 => tensor.dtype,
            WeightDtype::F32 => GgmlDType::F32,
            WeightDtype::F16 => GgmlDType::F16,
            WeightDtype::Bf16 => GgmlDType::BF16,
        };
        convert_pieces(&tensor, dtype, take)
    }
}

/// A matrix's values in another type, some whole rows at a time.
pub(super) fn convert_pieces<E: From<LoadError>>(
    tensor: &RawTensor,
    dtype: GgmlDType,
    mut take: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let columns = tensor.shape[1];
    let row_bytes = columns / tensor.dtype.block_size() * tensor.dtype.type_size();
    let rows_at_once = (CONVERT_VALUES / columns).max(1);
    for rows in tensor.data.chunks(rows_at_once * row_bytes) {
        if tensor.dtype == dtype {
            take(rows)?;
            continue;
        }
        let elements = rows.len() / row_bytes * columns;
        let values = dequantize_values(&tensor.name, tensor.dtype, rows, elements)?;
        take(&from_floats(&values, dtype))?;
    }
    Ok(())
}
