//! Products of rows with the model's matrices: our own kernels where they are faster, cuBLAS elsewhere.

use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaSlice};

use crate::calls::{Arg, BlasProduct, Boxes, Launch, TensorMap, allow_shared, launch};
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::kernels::Planes;
use crate::operand::Rows;

/// Rows that our kernels take at a time; the smallest that holds a step's rows is taken.
pub(crate) const TILE_ROWS: [u32; 6] = [8, 16, 32, 64, 128, 256];
/// Stages of shared memory of each kernel, as in `kernels/products.cu`.
const STAGES: [u32; 6] = [6, 6, 5, 4, 6, 4];
/// The most rows of a product by our kernels.
pub(crate) const OWN_ROWS: usize = 256;
/// As in `kernels/products.cuh`.
const TILE: usize = 128;
pub(crate) const CHUNK: usize = 64;
const THREADS: u32 = 288;

/// A matrix `[outputs, columns]` on the device.
pub(crate) struct Matrix {
    memory: Arc<CudaSlice<u8>>,
    outputs: usize,
    columns: usize,
    kind: Outputs,
    /// For our kernels, where they take it.
    map: Option<TensorMap>,
    /// Planes that our kernels make of a product with it.
    splits: u32,
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
            Outputs::Plain => splits(gpu, outputs, columns),
            Outputs::Gated => 1,
        };
        Ok(Self {
            memory,
            outputs,
            columns,
            kind,
            map,
            splits,
        })
    }

    /// Bytes of device memory.
    pub(crate) fn bytes(&self) -> usize {
        self.memory.len()
    }

    /// The memory itself, row-major.
    pub(crate) const fn memory(&self) -> &Arc<CudaSlice<u8>> {
        &self.memory
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

    pub(crate) const fn map(&self) -> Option<&TensorMap> {
        self.map.as_ref()
    }

    /// Our kernels take it.
    pub(crate) const fn is_mapped(&self) -> bool {
        self.map.is_some()
    }

    pub(crate) const fn splits(&self) -> u32 {
        self.splits
    }

    /// Steps in which our kernels go along a row.
    pub(crate) fn chunks(&self) -> u32 {
        size(self.columns.div_ceil(CHUNK))
    }

    /// Parts into which our kernels cut a product of few rows.
    pub(crate) fn items(&self) -> u32 {
        size(self.outputs.div_ceil(TILE)) * self.splits
    }

    /// Planes that a product may come in.
    pub(crate) fn most_planes(&self) -> usize {
        self.map.map_or(1, |_| self.splits as usize)
    }
}

/// Our kernels multiply 16-bit values, and copy rows of whole 16 bytes.
pub(crate) fn takes(gpu: &Gpu, dtype: Dtype, columns: usize) -> bool {
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
fn splits(gpu: &Gpu, outputs: usize, columns: usize) -> u32 {
    const MOST: usize = 8;
    const FEWEST_CHUNKS: usize = 4;
    let tiles = outputs.div_ceil(TILE);
    let mut splits = 1;
    while 2 * splits <= MOST
        && tiles * splits * 2 <= gpu.multiprocessors() as usize
        && columns.div_ceil(CHUNK) >= 2 * splits * FEWEST_CHUNKS
    {
        splits *= 2;
    }
    size(splits)
}

/// The kernels for one type.
pub(crate) struct Products {
    dtype: Dtype,
    own: Option<OwnKernels>,
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
            silu_mul: gpu.function(&format!("silu_mul_{name}"))?,
            own_rows: 64,
        })
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
        let x_map = x.map(tile_rows_index(rows));
        if let (Some(own), Some(map), Some(x_map)) = (&self.own, &matrix.map, x_map)
            && rows <= self.own_rows
        {
            assert!(
                matrix.splits as usize * stride <= out.len(),
                "room for all planes"
            );
            let place = (address, stride as u64, matrix.outputs);
            start(gpu, &own.planes, matrix, [map, x_map], rows, place)?;
            return Ok(Planes {
                address,
                planes: matrix.splits,
                stride: stride as u64,
            });
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
        let x_map = x.map(tile_rows_index(rows));
        if let (Some(own), Some(map), Some(x_map)) = (&self.own, &matrix.map, x_map)
            && rows <= self.own_rows
        {
            let place = (out, 0, matrix.outputs / 2);
            return start(gpu, &own.gated, matrix, [map, x_map], rows, place);
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

    fn blas(
        &self,
        gpu: &Gpu,
        matrix: &Matrix,
        x: &Rows,
        rows: usize,
        (out, y): (Dtype, u64),
    ) -> Result<(), CudaError> {
        let product = BlasProduct {
            dtype: self.dtype,
            out,
            x: x.address(gpu),
            weights: gpu.address(&*matrix.memory),
            y,
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
