//! Matrix products with weights as they are stored: dense, or quantised in blocks.
//!
//! Weights lie in tiles of 16 output rows, so that one vector holds one column of a tile: each lane
//! sums its own output in order of the columns, whatever the number of input rows. That makes the
//! result of a row independent of its batch (the crate's invariant), needs no sum across lanes, and
//! streams the weights once for a whole prompt chunk.

use candle_core::quantized::GgmlDType;

use crate::error::LoadError;
use crate::weights::{RawTensor, StoreAs};
use blocks::BlockMatrix;
use dense::DenseMatrix;
use packed::{PackedInput, PackedMatrix};

mod activations;
mod blocks;
mod dense;
mod disjoint_out;
mod packed;

pub(crate) use disjoint_out::{DisjointOut, for_chunks, for_rows};

/// `y = x Wᵀ + b`, for several matrices stacked along their outputs (q, k and v; gate and up).
pub struct Linear {
    matrices: Vec<Matrix>,
    bias: Option<Vec<f32>>,
    columns: usize,
    outputs: usize,
}

enum Matrix {
    Dense(DenseMatrix),
    Packed(PackedMatrix),
    Blocks(BlockMatrix),
}

impl Linear {
    /// Stacks `tensors`, each `[outputs, columns]`. Neighbours of the same type become one matrix.
    ///
    /// # Errors
    /// [`LoadError::TensorType`] for a type that no kernel computes with.
    pub fn new(
        tensors: Vec<RawTensor>,
        bias: Option<Vec<f32>>,
        store_as: StoreAs,
    ) -> Result<Self, LoadError> {
        let columns = tensors.first().map_or(0, |tensor| tensor.shape[1]);
        let outputs = tensors.iter().map(|tensor| tensor.shape[0]).sum();
        let mut merged: Vec<RawTensor> = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let tensor = store_as.apply(tensor)?;
            match merged.last_mut() {
                Some(last) if last.dtype == tensor.dtype => {
                    last.shape[0] += tensor.shape[0];
                    last.data.extend_from_slice(&tensor.data);
                }
                _ => merged.push(tensor),
            }
        }
        let matrices = merged
            .into_iter()
            .map(Matrix::new)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            matrices,
            bias,
            columns,
            outputs,
        })
    }

    /// Length of an output row.
    #[must_use]
    pub const fn outputs(&self) -> usize {
        self.outputs
    }

    /// Bytes the weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let matrices: usize = self.matrices.iter().map(Matrix::bytes).sum();
        matrices
            + self
                .bias
                .as_ref()
                .map_or(0, |bias| bias.len() * size_of::<f32>())
    }

    /// `x`: `[rows, columns]`. Writes `out`: `[rows, outputs]`.
    pub fn forward(&self, x: &[f32], rows: usize, out: &mut [f32]) {
        assert_eq!(x.len(), rows * self.columns, "x must be [rows, columns]");
        assert_eq!(
            out.len(),
            rows * self.outputs,
            "out must be [rows, outputs]"
        );
        // Quantised once, however many matrices are stacked.
        let quantized = self
            .matrices
            .iter()
            .any(|matrix| matches!(matrix, Matrix::Packed(_)))
            .then(|| PackedInput::new(x, rows, self.columns));
        let out = DisjointOut::new(out, self.outputs);
        let mut first_output = 0;
        for matrix in &self.matrices {
            let out = out.at_column(first_output);
            match (matrix, &quantized) {
                (Matrix::Packed(matrix), Some(x)) => matrix.forward(x, &out),
                (Matrix::Dense(matrix), _) => matrix.forward(x, rows, &out),
                (Matrix::Blocks(matrix), _) => matrix.forward(x, rows, &out),
                (Matrix::Packed(_), None) => unreachable!("a packed matrix has quantised input"),
            }
            first_output += matrix.outputs();
        }
        if let Some(bias) = &self.bias {
            out.add_to_rows(bias);
        }
    }

    /// Row `index` of the weights as f32 (an embedding); `out`: `[columns]`.
    pub fn row(&self, index: usize, out: &mut [f32]) {
        let mut index = index;
        for matrix in &self.matrices {
            if index < matrix.outputs() {
                return match matrix {
                    Matrix::Dense(matrix) => matrix.row(index, out),
                    Matrix::Packed(matrix) => matrix.row(index, out),
                    Matrix::Blocks(matrix) => matrix.row(index, out),
                };
            }
            index -= matrix.outputs();
        }
        panic!("row {index} is past the end of the matrix");
    }
}

impl Matrix {
    fn new(tensor: RawTensor) -> Result<Self, LoadError> {
        match tensor.dtype {
            GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 => {
                Ok(Self::Dense(DenseMatrix::new(&tensor)))
            }
            GgmlDType::Q4_0
            | GgmlDType::Q4_1
            | GgmlDType::Q5_0
            | GgmlDType::Q5_1
            | GgmlDType::Q8_0
            | GgmlDType::Q4K
            | GgmlDType::Q5K
            | GgmlDType::Q6K => Ok(Self::Packed(PackedMatrix::new(&tensor))),
            GgmlDType::Q2K | GgmlDType::Q3K => Ok(Self::Blocks(BlockMatrix::new(&tensor))),
            GgmlDType::Q8_1 | GgmlDType::Q8K => Err(LoadError::TensorType {
                tensor: tensor.name,
                found: format!("{:?}", tensor.dtype),
                expected: "f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q2_k to q6_k".to_owned(),
            }),
        }
    }

    const fn outputs(&self) -> usize {
        match self {
            Self::Dense(matrix) => matrix.outputs,
            Self::Packed(matrix) => matrix.outputs,
            Self::Blocks(matrix) => matrix.outputs,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Dense(matrix) => matrix.bytes(),
            Self::Packed(matrix) => matrix.bytes(),
            Self::Blocks(matrix) => matrix.bytes(),
        }
    }
}

#[cfg(test)]
mod tests;
