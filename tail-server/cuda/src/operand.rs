//! What products read beside a matrix.

use cudarc::driver::CudaSlice;

use crate::calls::{Boxes, TensorMap};
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::products::{CHUNK, TILE_ROWS, takes};

#[expect(clippy::cast_possible_truncation, reason = "it is 64")]
const CHUNK_COLUMNS: u32 = CHUNK as u32;

/// Rows `[capacity, columns]` of the weights' type that products read.
pub(crate) struct Rows {
    memory: CudaSlice<u8>,
    /// One for each of [`TILE_ROWS`].
    maps: Option<[TensorMap; TILE_ROWS.len()]>,
}

impl Rows {
    pub(crate) fn new(
        gpu: &Gpu,
        dtype: Dtype,
        capacity: usize,
        columns: usize,
    ) -> Result<Self, CudaError> {
        let memory = gpu.zeros::<u8>(capacity * columns * dtype.bytes())?;
        Self::from_values(gpu, dtype, memory, columns)
    }

    /// Of values that are there already.
    pub(crate) fn from_values(
        gpu: &Gpu,
        dtype: Dtype,
        memory: CudaSlice<u8>,
        columns: usize,
    ) -> Result<Self, CudaError> {
        let capacity = memory.len() / (columns * dtype.bytes());
        let maps = if takes(gpu, dtype, columns) {
            let map = |rows| {
                TensorMap::new(Boxes {
                    dtype,
                    address: gpu.address(&memory),
                    sizes: &[columns as u64, capacity as u64],
                    strides_bytes: &[columns as u64 * 2],
                    copied: &[CHUNK_COLUMNS, rows],
                })
            };
            let mut maps = [map(TILE_ROWS[0])?; TILE_ROWS.len()];
            for (to, rows) in maps.iter_mut().zip(TILE_ROWS) {
                *to = map(rows)?;
            }
            Some(maps)
        } else {
            None
        };
        Ok(Self { memory, maps })
    }

    pub(crate) fn address(&self, gpu: &Gpu) -> u64 {
        gpu.address(&self.memory)
    }

    /// For the kernels of [`TILE_ROWS`] number `index`.
    pub(crate) fn map(&self, index: usize) -> Option<&TensorMap> {
        self.maps.as_ref().map(|maps| &maps[index])
    }
}
