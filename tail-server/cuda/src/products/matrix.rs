//! Matrices on the device.

use std::sync::Arc;

use cudarc::driver::CudaSlice;

use super::{CHUNK, size, takes};
use crate::calls::{Boxes, TensorMap};
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::packed::{PackedMemory, PackedValues, TILE, tiles};

/// A matrix `[outputs, columns]` on the device.
pub(crate) struct Matrix {
    pub(super) store: Store,
    outputs: usize,
    columns: usize,
    kind: Outputs,
    /// Planes that our kernels make of a product with it.
    splits: u32,
}

/// How its values are held.
pub(super) enum Store {
    /// Row-major, in the type of the weights.
    Dense {
        memory: Arc<CudaSlice<u8>>,
        /// For our kernels, where they take it.
        map: Option<TensorMap>,
    },
    /// In fewer bits. The type of x is bf16.
    Packed(PackedMemory),
}

/// What a matrix's outputs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outputs {
    /// Sums.
    Plain,
    /// Gates, and below them as many ups.
    Gated,
}

impl Matrix {
    /// Of `memory`, `[outputs, columns]` in the type of the weights.
    pub(crate) fn new(
        gpu: &Gpu,
        dtype: Dtype,
        memory: Arc<CudaSlice<u8>>,
        [outputs, columns]: [usize; 2],
        kind: Outputs,
    ) -> Result<Self, CudaError> {
        assert_eq!(memory.len(), outputs * columns * dtype.bytes());
        let fits = match kind {
            Outputs::Plain => true,
            Outputs::Gated => outputs.is_multiple_of(16),
        };
        let map = if takes(gpu, dtype, columns) && fits {
            let address = gpu.address(&*memory);
            Some(map_of_weights(dtype, address, [outputs, columns], kind)?)
        } else {
            None
        };
        let splits = match kind {
            Outputs::Plain => splits(gpu, outputs, columns.div_ceil(CHUNK)),
            Outputs::Gated => 1,
        };
        Ok(Self {
            store: Store::Dense { memory, map },
            outputs,
            columns,
            kind,
            splits,
        })
    }

    /// Of weights in fewer bits.
    pub(crate) fn packed(gpu: &Gpu, values: &PackedValues) -> Result<Self, CudaError> {
        let [outputs, columns] = values.shape();
        let packed = values.up(gpu)?;
        let splits = match values.kind() {
            Outputs::Plain => {
                let chunks = columns.div_ceil(packed.format.chunk_columns());
                splits(gpu, outputs, chunks)
            }
            Outputs::Gated => 1,
        };
        Ok(Self {
            store: Store::Packed(packed),
            outputs,
            columns,
            kind: values.kind(),
            splits,
        })
    }

    /// Bytes of device memory.
    pub(crate) fn bytes(&self) -> usize {
        match &self.store {
            Store::Dense { memory, .. } => memory.len(),
            Store::Packed(packed) => packed.bytes(),
        }
    }

    /// It is this memory.
    pub(crate) fn is_in(&self, other: &Arc<CudaSlice<u8>>) -> bool {
        matches!(&self.store, Store::Dense { memory, .. } if Arc::ptr_eq(memory, other))
    }

    /// Its products come in one plane.
    pub(crate) fn in_one_plane(self) -> Self {
        Self { splits: 1, ..self }
    }

    pub(crate) const fn outputs(&self) -> usize {
        self.outputs
    }

    pub(crate) const fn kind(&self) -> Outputs {
        self.kind
    }

    pub(crate) const fn columns(&self) -> usize {
        self.columns
    }

    /// Of a dense one, where our kernels take it.
    pub(crate) const fn map(&self) -> Option<&TensorMap> {
        match &self.store {
            Store::Dense { map, .. } => map.as_ref(),
            Store::Packed(_) => None,
        }
    }

    /// Its memory, where it is in fewer bits.
    pub(crate) const fn in_fewer_bits(&self) -> Option<&PackedMemory> {
        match &self.store {
            Store::Dense { .. } => None,
            Store::Packed(packed) => Some(packed),
        }
    }

    /// Our kernels take it.
    pub(crate) const fn has_kernels(&self) -> bool {
        self.map().is_some() || self.in_fewer_bits().is_some()
    }

    pub(crate) const fn splits(&self) -> u32 {
        self.splits
    }

    /// Steps in which our kernels go along a row.
    pub(crate) fn chunks(&self) -> u32 {
        let packed = self.in_fewer_bits();
        let chunk = packed.map_or(CHUNK, |packed| packed.format.chunk_columns());
        size(self.columns.div_ceil(chunk))
    }

    /// Parts into which our kernels cut a product of few rows.
    pub(crate) fn items(&self) -> u32 {
        size(tiles(self.outputs, self.kind)) * self.splits
    }

    /// Planes that a product may come in.
    pub(crate) fn most_planes(&self) -> usize {
        if self.has_kernels() {
            self.splits as usize
        } else {
            1
        }
    }
}

fn map_of_weights(
    dtype: Dtype,
    address: u64,
    [outputs, columns]: [usize; 2],
    kind: Outputs,
) -> Result<TensorMap, CudaError> {
    let [outputs, columns] = [outputs, columns].map(|size| size as u64);
    let row_bytes = columns * 2;
    let chunk = size(CHUNK);
    let map = match kind {
        Outputs::Plain => TensorMap::new(Boxes {
            dtype,
            address,
            sizes: &[columns, outputs],
            strides_bytes: &[row_bytes],
            copied: &[chunk, size(TILE)],
        }),
        // Eight gates, their eight ups, the next eight gates: a thread has a gate and its up.
        Outputs::Gated => TensorMap::new(Boxes {
            dtype,
            address,
            sizes: &[columns, 8, 2, outputs / 16],
            strides_bytes: &[row_bytes, outputs / 2 * row_bytes, 8 * row_bytes],
            copied: &[chunk, 8, 2, size(TILE / 16)],
        }),
    };
    Ok(map?)
}

/// As many as keep every multiprocessor busy, with enough columns for each. It depends on the matrix alone, so that
/// sums are the same whatever the number of rows.
fn splits(gpu: &Gpu, outputs: usize, chunks: usize) -> u32 {
    const MOST: usize = 8;
    const FEWEST_CHUNKS: usize = 4;
    let tiles = outputs.div_ceil(TILE);
    let mut splits = 1;
    while 2 * splits <= MOST
        && tiles * splits * 2 <= gpu.multiprocessors() as usize
        && chunks >= 2 * splits * FEWEST_CHUNKS
    {
        splits *= 2;
    }
    size(splits)
}
