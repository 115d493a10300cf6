//! Products of rows with the model's matrices: our own kernels where they are faster, cuBLAS elsewhere.

use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaSlice};

use crate::calls::{Arg, BlasProduct, Boxes, Launch, TensorMap, allow_shared, launch};
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::kernels::Planes;
use crate::packed::kernels::{PACKED_ROWS, PackedProducts, Place};
use crate::packed::{PackedMemory, PackedValues, TILE, tiles};

/// Rows that our kernels take at a time; the smallest that holds a step's rows is taken.
const TILE_ROWS: [u32; 6] = [8, 16, 32, 64, 128, 256];
/// Stages of shared memory of each kernel, as in `kernels/products.cu`.
const STAGES: [u32; 6] = [6, 6, 5, 4, 6, 4];
/// The most rows of a product by our kernels.
pub(crate) const OWN_ROWS: usize = 256;
/// As in `kernels/products.cuh`.
const CHUNK: usize = 64;
const THREADS: u32 = 288;

/// A matrix `[outputs, columns]` on the device.
pub(crate) struct Matrix {
    store: Store,
    outputs: usize,
    columns: usize,
    kind: Outputs,
    /// Planes that our kernels make of a product with it.
    splits: u32,
}

/// How its values are held.
enum Store {
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

/// Our kernels multiply 16-bit values, and copy rows of whole 16 bytes.
fn takes(gpu: &Gpu, dtype: Dtype, columns: usize) -> bool {
    gpu.is_hopper() && dtype.bytes() == 2 && columns.is_multiple_of(8)
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
                    copied: &[size(CHUNK), rows],
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

/// The kernels for one type.
pub(crate) struct Products {
    dtype: Dtype,
    own: Option<OwnKernels>,
    /// For weights in fewer bits.
    packed: Option<PackedProducts>,
    silu_mul: CudaFunction,
    /// Rows up to which our kernels are taken.
    own_rows: usize,
}

struct OwnKernels {
    planes: Vec<CudaFunction>,
    gated: Vec<CudaFunction>,
}

impl Products {
    pub(crate) fn new(gpu: &Gpu, dtype: Dtype) -> Result<Self, CudaError> {
        let name = dtype.name();
        let own = if gpu.is_hopper() && dtype.bytes() == 2 {
            Some(OwnKernels {
                planes: own_kernels(gpu, &format!("product_{name}_planes"))?,
                gated: own_kernels(gpu, &format!("product_{name}_gated"))?,
            })
        } else {
            None
        };
        Ok(Self {
            dtype,
            own,
            packed: None,
            silu_mul: gpu.function(&format!("silu_mul_{name}"))?,
            own_rows: 64,
        })
    }

    /// Gets ready for weights in fewer bits, of up to `most_columns` columns.
    pub(crate) fn take_packed(&mut self, gpu: &Gpu, most_columns: usize) -> Result<(), CudaError> {
        self.packed = Some(PackedProducts::new(gpu, most_columns)?);
        Ok(())
    }

    /// Rows up to which our kernels are taken; 0 for cuBLAS always.
    pub(crate) const fn set_own_rows(&mut self, rows: usize) {
        self.own_rows = if rows < OWN_ROWS { rows } else { OWN_ROWS };
    }

    /// `out` gets `x Wᵀ` of the first `rows` rows, as planes of f32 `[rows, outputs]`.
    pub(crate) fn planes(
        &self,
        gpu: &Gpu,
        matrix: &Matrix,
        x: &Rows,
        rows: usize,
        out: &CudaSlice<f32>,
    ) -> Result<Planes, CudaError> {
        let address = gpu.address(out);
        let stride = rows * matrix.outputs;
        let few = Planes {
            address,
            planes: matrix.splits,
            stride: stride as u64,
        };
        if let Some(weights) = matrix.in_fewer_bits()
            && rows <= self.own_rows.min(PACKED_ROWS)
        {
            assert!(
                matrix.splits as usize * stride <= out.len(),
                "room for all planes"
            );
            let place = Place {
                address,
                plane_stride: stride as u64,
                columns: matrix.outputs,
            };
            let packed = self.packed();
            packed.start(gpu, (matrix, weights), x, rows, place)?;
            return Ok(few);
        }
        if let (Some(own), Some(map), Some(maps)) = (&self.own, matrix.map(), &x.maps)
            && rows <= self.own_rows
        {
            assert!(
                matrix.splits as usize * stride <= out.len(),
                "room for all planes"
            );
            let place = (address, stride as u64, matrix.outputs);
            start(
                gpu,
                &own.planes,
                matrix,
                [map, maps_for(maps, rows)],
                rows,
                place,
            )?;
            return Ok(few);
        }
        assert!(stride <= out.len(), "room for all rows");
        self.blas(gpu, matrix, x, rows, (Dtype::F32, address))?;
        Ok(Planes {
            address,
            planes: 1,
            stride: 0,
        })
    }

    /// `out` gets silu(gate) · up of the first `rows` rows, `[rows, outputs / 2]`; `gate_up` is what lies between,
    /// `[rows, outputs]`.
    pub(crate) fn gated(
        &self,
        gpu: &Gpu,
        matrix: &Matrix,
        x: &Rows,
        rows: usize,
        [gate_up, out]: [u64; 2],
    ) -> Result<(), CudaError> {
        if let Some(weights) = matrix.in_fewer_bits()
            && rows <= self.own_rows.min(PACKED_ROWS)
        {
            let place = Place {
                address: out,
                plane_stride: 0,
                columns: matrix.outputs / 2,
            };
            let packed = self.packed();
            return packed.start(gpu, (matrix, weights), x, rows, place);
        }
        if let (Some(own), Some(map), Some(maps)) = (&self.own, matrix.map(), &x.maps)
            && rows <= self.own_rows
        {
            let place = (out, 0, matrix.outputs / 2);
            return start(
                gpu,
                &own.gated,
                matrix,
                [map, maps_for(maps, rows)],
                rows,
                place,
            );
        }
        self.blas(gpu, matrix, x, rows, (self.dtype, gate_up))?;
        let width = size(matrix.outputs / 2);
        let args = [Arg::Address(gate_up), Arg::Address(out), Arg::U32(width)];
        let blocks = Launch {
            grid: [size(rows), width.div_ceil(256)],
            threads: 256,
            shared_bytes: 0,
        };
        launch(gpu, &self.silu_mul, blocks, &args)
    }

    fn packed(&self) -> &PackedProducts {
        let packed = self.packed.as_ref();
        packed.expect("`take_packed` comes before products with weights in fewer bits")
    }

    fn blas(
        &self,
        gpu: &Gpu,
        matrix: &Matrix,
        x: &Rows,
        rows: usize,
        (out, y): (Dtype, u64),
    ) -> Result<(), CudaError> {
        let memory = match &matrix.store {
            Store::Dense { memory, .. } => memory,
            Store::Packed(weights) => {
                let packed = self.packed();
                return packed.start_widened(gpu, (matrix, weights), x, rows, (out, y));
            }
        };
        let product = BlasProduct {
            dtype: self.dtype,
            out,
            x: x.address(gpu),
            weights: gpu.address(&**memory),
            y,
            y_stride: matrix.outputs,
            rows,
            outputs: matrix.outputs,
            columns: matrix.columns,
        };
        product.start(gpu)
    }
}

fn own_kernels(gpu: &Gpu, name: &str) -> Result<Vec<CudaFunction>, CudaError> {
    let kernels = TILE_ROWS.iter().zip(STAGES).map(|(rows, stages)| {
        let kernel = gpu.function(&format!("{name}_{rows}"))?;
        allow_shared(&kernel, shared_bytes(*rows, stages))?;
        Ok(kernel)
    });
    kernels.collect()
}

/// Of the stages, and what it takes to begin at a multiple of 1,024.
const fn shared_bytes(rows: u32, stages: u32) -> u32 {
    stages * (128 + rows) * 128 + 1024
}

fn tile_rows_index(rows: usize) -> usize {
    let fits = TILE_ROWS.iter().position(|tile| *tile as usize >= rows);
    fits.unwrap_or(TILE_ROWS.len() - 1)
}

fn maps_for(maps: &[TensorMap; TILE_ROWS.len()], rows: usize) -> &TensorMap {
    &maps[tile_rows_index(rows)]
}

/// `place`: where the result goes, from one plane to the next, and its columns.
fn start(
    gpu: &Gpu,
    kernels: &[CudaFunction],
    matrix: &Matrix,
    [weights, x]: [&TensorMap; 2],
    rows: usize,
    (out, stride, outputs): (u64, u64, usize),
) -> Result<(), CudaError> {
    let index = tile_rows_index(rows);
    let items = matrix.items() * size(rows).div_ceil(TILE_ROWS[index]);
    let args = [
        Arg::Map(weights),
        Arg::Map(x),
        Arg::Address(out),
        Arg::U64(stride),
        Arg::U32(size(rows)),
        Arg::U32(size(outputs)),
        Arg::U32(matrix.chunks()),
        Arg::U32(matrix.splits),
    ];
    let blocks = Launch {
        grid: [items.min(gpu.multiprocessors()), 1],
        threads: THREADS,
        shared_bytes: shared_bytes(TILE_ROWS[index], STAGES[index]),
    };
    launch(gpu, &kernels[index], blocks, &args)
}

fn size(value: usize) -> u32 {
    u32::try_from(value).expect("sizes are bounded by ModelConfig and the step")
}
