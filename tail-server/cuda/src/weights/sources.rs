//! Where a tail's weights come from, and in what type its matrices are held.

use std::sync::Arc;

use cudarc::driver::CudaSlice;
use half::bf16;
use headway_model::Quantization;
use headway_model::weights::{WeightDtype, Weights};

use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::kernels::Kernels;
use crate::packed::blocks::{self, BlockRows};
use crate::packed::{Format, PackedValues, float8};
use crate::products::{Matrix, Outputs};

/// A tensor's name, and its outputs and columns.
type Part = (String, [usize; 2]);

/// Where weights come from. Several tensors become one, one below the other.
pub(super) trait Source {
    /// Two or four bytes a value, row-major.
    fn dense(&mut self, parts: &[Part]) -> Result<CudaSlice<u8>, CudaError>;

    /// What rows are multiplied with.
    fn matrix(&mut self, parts: &[Part], kind: Outputs) -> Result<Matrix, CudaError>;

    /// The lm_head. `embedding`: the same values, where they are on the device.
    fn lm_head(
        &mut self,
        part: Part,
        embedding: Option<&Arc<CudaSlice<u8>>>,
    ) -> Result<Matrix, CudaError>;

    /// f32.
    fn vector(&mut self, parts: &[(String, usize)]) -> Result<CudaSlice<f32>, CudaError>;
}

/// How the matrices of a file are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// In the weights' type.
    Dense,
    /// e4m3, but for the lm_head: what it loses is not averaged out by anything behind it.
    Float8,
    /// Blocks as blocks.
    Blocks,
}

pub(super) struct FromFile<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) weights: &'a Weights,
    pub(super) dtype: Dtype,
    pub(super) hold: Hold,
}

fn shape(parts: &[Part]) -> [usize; 2] {
    let outputs = parts.iter().map(|(_, [outputs, _])| outputs).sum();
    let columns = parts.first().map_or(0, |(_, [_, columns])| *columns);
    [outputs, columns]
}

fn values(parts: &[Part]) -> usize {
    shape(parts).into_iter().product()
}

impl FromFile<'_> {
    fn dense_matrix(&mut self, parts: &[Part], kind: Outputs) -> Result<Matrix, CudaError> {
        let memory = Arc::new(self.dense(parts)?);
        Matrix::new(self.gpu, self.dtype, memory, shape(parts), kind)
    }

    /// The blocks of all parts, where all of them have blocks that there are kernels for.
    fn blocks(&self, parts: &[Part]) -> Result<Option<Vec<BlockRows>>, CudaError> {
        let quantizations: Option<Vec<Quantization>> = parts
            .iter()
            .map(|(name, _)| self.weights.matrix_quantization(name))
            .collect();
        let Some(quantizations) = quantizations.filter(|_| self.hold == Hold::Blocks) else {
            return Ok(None);
        };
        let mut all = Vec::new();
        for ((name, shape), quantization) in parts.iter().zip(quantizations) {
            let mut blocks = Vec::new();
            let take = |piece: &[u8]| {
                blocks.extend_from_slice(piece);
                Ok::<_, CudaError>(())
            };
            self.weights
                .read_matrix(name, *shape, WeightDtype::Native, take)?;
            all.push(BlockRows {
                quantization,
                outputs: shape[0],
                blocks,
            });
        }
        Ok(Some(all))
    }
}

/// All parts as f32, one below the other.
fn floats(weights: &Weights, parts: &[Part]) -> Result<Vec<f32>, CudaError> {
    let mut all = Vec::with_capacity(values(parts));
    for (name, shape) in parts {
        weights.read_matrix(name, *shape, WeightDtype::F32, |piece| {
            let values = piece.as_chunks::<4>().0.iter();
            all.extend(values.map(|value| f32::from_le_bytes(*value)));
            Ok::<_, CudaError>(())
        })?;
    }
    Ok(all)
}

fn vector(
    gpu: &Gpu,
    weights: &Weights,
    parts: &[(String, usize)],
) -> Result<CudaSlice<f32>, CudaError> {
    let mut values = Vec::new();
    for (name, len) in parts {
        values.extend(weights.read_vector(name, *len)?);
    }
    Ok(gpu.stream().clone_htod(&values)?)
}

/// Our kernels copy rows of x of whole 16 bytes.
const fn can_pack([_, columns]: [usize; 2]) -> bool {
    columns.is_multiple_of(8)
}

impl Source for FromFile<'_> {
    fn dense(&mut self, parts: &[Part]) -> Result<CudaSlice<u8>, CudaError> {
        let mut matrix = self.gpu.zeros(values(parts) * self.dtype.bytes())?;
        let mut at = 0;
        for (name, shape) in parts {
            self.weights
                .read_matrix(name, *shape, self.dtype.of_weights(), |piece| {
                    let mut to = matrix.slice_mut(at..at + piece.len());
                    at += piece.len();
                    // The piece is read before this returns: it is not pinned.
                    self.gpu
                        .stream()
                        .memcpy_htod(piece, &mut to)
                        .map_err(CudaError::from)
                })?;
        }
        Ok(matrix)
    }

    fn matrix(&mut self, parts: &[Part], kind: Outputs) -> Result<Matrix, CudaError> {
        let shape = shape(parts);
        if self.hold == Hold::Float8 && can_pack(shape) {
            let values = floats(self.weights, parts)?;
            return Matrix::packed(self.gpu, &float8::pack(&values, shape, kind));
        }
        match self.blocks(parts)? {
            Some(rows) => Matrix::packed(self.gpu, &blocks::pack(&rows, shape[1], kind)),
            None => self.dense_matrix(parts, kind),
        }
    }

    fn lm_head(
        &mut self,
        part: Part,
        embedding: Option<&Arc<CudaSlice<u8>>>,
    ) -> Result<Matrix, CudaError> {
        let parts = [part];
        if let Some(rows) = self.blocks(&parts)? {
            let packed = blocks::pack(&rows, shape(&parts)[1], Outputs::Plain);
            return Matrix::packed(self.gpu, &packed);
        }
        match embedding {
            Some(memory) => {
                let (memory, shape) = (Arc::clone(memory), shape(&parts));
                Matrix::new(self.gpu, self.dtype, memory, shape, Outputs::Plain)
            }
            None => self.dense_matrix(&parts, Outputs::Plain),
        }
    }

    fn vector(&mut self, parts: &[(String, usize)]) -> Result<CudaSlice<f32>, CudaError> {
        vector(self.gpu, self.weights, parts)
    }
}

/// See [`super::TailWeights::quantized`].
pub(super) struct OnTheFly<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) weights: &'a Weights,
    /// e4m3 without one.
    pub(super) quantization: Option<Quantization>,
    pub(super) is_widened: bool,
}

impl OnTheFly<'_> {
    fn up(&self, values: &[f32]) -> Result<CudaSlice<u8>, CudaError> {
        let values = values.iter().map(|value| bf16::from_f32(*value));
        let bytes: Vec<u8> = values.flat_map(bf16::to_le_bytes).collect();
        Ok(self.gpu.stream().clone_htod(&bytes)?)
    }
}

impl Source for OnTheFly<'_> {
    fn dense(&mut self, parts: &[Part]) -> Result<CudaSlice<u8>, CudaError> {
        self.up(&floats(self.weights, parts)?)
    }

    fn matrix(&mut self, parts: &[Part], kind: Outputs) -> Result<Matrix, CudaError> {
        let [outputs, columns] = shape(parts);
        let values = floats(self.weights, parts)?;
        let blocks = match self.quantization {
            Some(quantization) => quantization.quantize(&values, columns),
            None => None,
        };
        let packed = match blocks {
            Some((quantization, blocks)) => {
                let rows = BlockRows {
                    quantization,
                    outputs,
                    blocks,
                };
                blocks::pack(&[rows], columns, kind)
            }
            None => float8::pack(&values, [outputs, columns], kind),
        };
        if !self.is_widened {
            return Matrix::packed(self.gpu, &packed);
        }
        let memory = Arc::new(self.up(&packed.widened(true))?);
        Matrix::new(self.gpu, Dtype::Bf16, memory, [outputs, columns], kind)
    }

    fn lm_head(
        &mut self,
        part: Part,
        _embedding: Option<&Arc<CudaSlice<u8>>>,
    ) -> Result<Matrix, CudaError> {
        self.matrix(&[part], Outputs::Plain)
    }

    fn vector(&mut self, parts: &[(String, usize)]) -> Result<CudaSlice<f32>, CudaError> {
        vector(self.gpu, self.weights, parts)
    }
}

/// See [`super::TailWeights::random`].
pub(super) struct Random<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) dtype: Dtype,
    /// Of the matrices that are not in the weights' type.
    pub(super) format: Option<Format>,
    pub(super) kernels: Kernels,
    pub(super) seed: u32,
}

impl Source for Random<'_> {
    #[expect(
        clippy::cast_precision_loss,
        reason = "a row has far fewer than 2^24 columns"
    )]
    fn dense(&mut self, parts: &[Part]) -> Result<CudaSlice<u8>, CudaError> {
        let count = values(parts);
        let columns = parts.first().map_or(1, |(_, [_, columns])| *columns);
        let matrix = self.gpu.zeros(count * self.dtype.bytes())?;
        self.seed += 1;
        let address = self.gpu.address(&matrix);
        // Keeps the variance of a row.
        let scale = (3.0 / columns as f32).sqrt();
        self.kernels
            .fill_random(self.gpu, address, count, scale, self.seed)?;
        Ok(matrix)
    }

    fn matrix(&mut self, parts: &[Part], kind: Outputs) -> Result<Matrix, CudaError> {
        let shape = shape(parts);
        if let Some(format) = self.format {
            return Matrix::packed(self.gpu, &PackedValues::repeated(format, shape, kind));
        }
        let memory = Arc::new(self.dense(parts)?);
        Matrix::new(self.gpu, self.dtype, memory, shape, kind)
    }

    fn lm_head(
        &mut self,
        part: Part,
        embedding: Option<&Arc<CudaSlice<u8>>>,
    ) -> Result<Matrix, CudaError> {
        let parts = [part];
        let is_packed = self.format.is_some_and(|format| format != Format::Float8);
        if is_packed {
            return self.matrix(&parts, Outputs::Plain);
        }
        let memory = match embedding {
            Some(embedding) => Arc::clone(embedding),
            None => Arc::new(self.dense(&parts)?),
        };
        let shape = shape(&parts);
        Matrix::new(self.gpu, self.dtype, memory, shape, Outputs::Plain)
    }

    fn vector(&mut self, parts: &[(String, usize)]) -> Result<CudaSlice<f32>, CudaError> {
        let len = parts.iter().map(|(_, len)| len).sum();
        Ok(self.gpu.stream().clone_htod(&vec![1_f32; len])?)
    }
}
