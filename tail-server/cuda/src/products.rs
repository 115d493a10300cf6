//! Products of rows with the model's matrices: our own kernels where they are faster, cuBLAS elsewhere.

use cudarc::driver::{CudaFunction, CudaSlice};

use crate::calls::{Arg, BlasProduct, Launch, TensorMap, allow_shared, launch};
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::kernels::Planes;
use crate::operand::Rows;
use crate::packed::kernels::{PACKED_ROWS, PackedProducts, Place};

mod matrix;

use self::matrix::Store;
pub(crate) use self::matrix::{Matrix, Outputs};

/// Rows that our kernels take at a time; the smallest that holds a step's rows is taken.
pub(crate) const TILE_ROWS: [u32; 6] = [8, 16, 32, 64, 128, 256];
/// Stages of shared memory of each kernel, as in `kernels/products.cu`.
const STAGES: [u32; 6] = [6, 6, 5, 4, 6, 4];
/// The most rows of a product by our kernels.
pub(crate) const OWN_ROWS: usize = 256;
/// As in `kernels/products.cuh`.
pub(crate) const CHUNK: usize = 64;
const THREADS: u32 = 288;

/// Our kernels multiply 16-bit values, and copy rows of whole 16 bytes.
pub(crate) fn takes(gpu: &Gpu, dtype: Dtype, columns: usize) -> bool {
    gpu.is_hopper() && dtype.bytes() == 2 && columns.is_multiple_of(8)
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
        let stride = rows * matrix.outputs();
        let few = Planes {
            address,
            planes: matrix.splits(),
            stride: stride as u64,
        };
        if let Some(weights) = matrix.in_fewer_bits()
            && rows <= self.own_rows.min(PACKED_ROWS)
        {
            assert!(
                matrix.splits() as usize * stride <= out.len(),
                "room for all planes"
            );
            let place = Place {
                address,
                plane_stride: stride as u64,
                columns: matrix.outputs(),
            };
            let packed = self.packed();
            packed.start(gpu, (matrix, weights), x, rows, place)?;
            return Ok(few);
        }
        let x_map = x.map(tile_rows_index(rows));
        if let (Some(own), Some(map), Some(x_map)) = (&self.own, matrix.map(), x_map)
            && rows <= self.own_rows
        {
            assert!(
                matrix.splits() as usize * stride <= out.len(),
                "room for all planes"
            );
            let place = (address, stride as u64, matrix.outputs());
            start(gpu, &own.planes, matrix, [map, x_map], rows, place)?;
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
                columns: matrix.outputs() / 2,
            };
            let packed = self.packed();
            return packed.start(gpu, (matrix, weights), x, rows, place);
        }
        let x_map = x.map(tile_rows_index(rows));
        if let (Some(own), Some(map), Some(x_map)) = (&self.own, matrix.map(), x_map)
            && rows <= self.own_rows
        {
            let place = (out, 0, matrix.outputs() / 2);
            return start(gpu, &own.gated, matrix, [map, x_map], rows, place);
        }
        self.blas(gpu, matrix, x, rows, (self.dtype, gate_up))?;
        let width = size(matrix.outputs() / 2);
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
            y_stride: matrix.outputs(),
            rows,
            outputs: matrix.outputs(),
            columns: matrix.columns(),
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
        Arg::U32(matrix.splits()),
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
