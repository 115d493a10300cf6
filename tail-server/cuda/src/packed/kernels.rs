//! Products with weights in fewer bits: our kernels for few rows; for more, cuBLAS on weights that are widened to bf16
//! a piece at a time, small enough that the piece is still in the L2 cache.

use cudarc::driver::{CudaFunction, CudaSlice};

use super::{Format, PackedMemory, TILE, tiles};
use crate::calls::{Arg, BlasProduct, Launch, allow_shared, launch};
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::operand::Rows;
use crate::products::{Matrix, Outputs};

/// Rows of each kernel, and the stages of its rings of weights and of x, as in `kernels/packed.cu`.
pub(crate) const PACKED_KERNELS: [[u32; 3]; 4] =
    [[8, 10, 16], [16, 10, 12], [32, 9, 10], [64, 8, 8]];
/// The most rows of a product by our kernels.
pub(crate) const PACKED_ROWS: usize = 64;
/// As in `kernels/chain.cuh`.
const THREADS: u32 = 320;
const WIDEN_THREADS: u32 = 256;
/// As in `kernels/packed.cuh`.
const STAGE_BYTES: u32 = 20 << 10;
/// Of weights that are widened at a time, where a tile is not larger.
const PIECE_BYTES: usize = 32 << 20;

/// Dynamic shared memory of a kernel of [`PACKED_KERNELS`].
pub(crate) const fn packed_shared_bytes([rows, weight_stages, x_stages]: [u32; 3]) -> u32 {
    weight_stages * STAGE_BYTES + x_stages * rows * 128 + 1024
}

/// The kernels, and the memory of a piece.
pub(crate) struct PackedProducts {
    planes: Vec<CudaFunction>,
    gated: Vec<CudaFunction>,
    /// For each of [`Format::ALL`].
    widen: Vec<CudaFunction>,
    /// bf16.
    piece: CudaSlice<u8>,
}

/// Where the result of a product goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) address: u64,
    /// From one plane to the next, in values.
    pub(crate) plane_stride: u64,
    /// Values of a row.
    pub(crate) columns: usize,
}

impl PackedProducts {
    /// For matrices of up to `most_columns` columns.
    pub(crate) fn new(gpu: &Gpu, most_columns: usize) -> Result<Self, CudaError> {
        let kernels = |name: &str| -> Result<Vec<CudaFunction>, CudaError> {
            let kernels = PACKED_KERNELS.iter().map(|sizes| {
                let kernel = gpu.function(&format!("packed_{name}_{}", sizes[0]))?;
                allow_shared(&kernel, packed_shared_bytes(*sizes))?;
                Ok(kernel)
            });
            kernels.collect()
        };
        let widen = Format::ALL.iter();
        let widen = widen.map(|format| gpu.function(&format!("widen_{}", format.name())));
        Ok(Self {
            planes: kernels("planes")?,
            gated: kernels("gated")?,
            widen: widen.collect::<Result<_, _>>()?,
            piece: gpu.zeros(PIECE_BYTES.max(TILE * most_columns * 2))?,
        })
    }

    /// At most [`PACKED_ROWS`] rows: planes of f32, or gated outputs in bf16.
    pub(crate) fn start(
        &self,
        gpu: &Gpu,
        (matrix, packed): (&Matrix, &PackedMemory),
        x: &Rows,
        rows: usize,
        out: Place,
    ) -> Result<(), CudaError> {
        let index = packed_kernel(rows);
        let kernels = match matrix.kind() {
            Outputs::Plain => &self.planes,
            Outputs::Gated => &self.gated,
        };
        let x = x
            .map(index)
            .expect("rows are mapped where weights are packed");
        let args = [
            Arg::Address(gpu.address(&packed.chunks)),
            Arg::Address(gpu.address(&packed.row_scales)),
            Arg::U32(packed.format.number()),
            Arg::Map(x),
            Arg::Address(out.address),
            Arg::U64(out.plane_stride),
            Arg::U32(small(rows)),
            Arg::U32(small(out.columns)),
            Arg::U32(matrix.chunks()),
            Arg::U32(matrix.splits()),
        ];
        let blocks = Launch {
            grid: [matrix.items().min(gpu.multiprocessors()), 1],
            threads: THREADS,
            shared_bytes: packed_shared_bytes(PACKED_KERNELS[index]),
        };
        launch(gpu, &kernels[index], blocks, &args)
    }

    /// Any number of rows, by cuBLAS: `[rows, outputs]` of type `out` at `y`; where gated, gates and ups as they are.
    pub(crate) fn start_widened(
        &self,
        gpu: &Gpu,
        (matrix, packed): (&Matrix, &PackedMemory),
        x: &Rows,
        rows: usize,
        (out, y): (Dtype, u64),
    ) -> Result<(), CudaError> {
        let (outputs, columns, kind) = (matrix.outputs(), matrix.columns(), matrix.kind());
        let piece_tiles = self.piece.len() / (TILE * columns * 2);
        let all_tiles = tiles(outputs, kind);
        let (width, halves) = match kind {
            Outputs::Plain => (outputs, 1),
            Outputs::Gated => (outputs / 2, 2),
        };
        let tile_outputs = TILE / halves;
        for first in (0..all_tiles).step_by(piece_tiles) {
            let count = piece_tiles.min(all_tiles - first);
            self.widen(gpu, (matrix, packed), first, count)?;
            let begin = first * tile_outputs;
            let end = width.min(begin + count * tile_outputs);
            for half in 0..halves {
                let skipped = half * count * tile_outputs * columns * 2;
                let product = BlasProduct {
                    dtype: Dtype::Bf16,
                    out,
                    x: x.address(gpu),
                    weights: gpu.address(&self.piece) + skipped as u64,
                    y: y + ((half * width + begin) * out.bytes()) as u64,
                    y_stride: outputs,
                    rows,
                    outputs: end - begin,
                    columns,
                };
                product.start(gpu)?;
            }
        }
        Ok(())
    }

    /// `count` tiles from `first` on as bf16, `[128 · count, columns]`; where gated, all gates before all ups.
    fn widen(
        &self,
        gpu: &Gpu,
        (matrix, packed): (&Matrix, &PackedMemory),
        first: usize,
        count: usize,
    ) -> Result<(), CudaError> {
        let kernel = Format::ALL
            .iter()
            .position(|format| *format == packed.format)
            .expect("all formats are listed");
        let args = [
            Arg::Address(gpu.address(&packed.chunks)),
            Arg::Address(gpu.address(&packed.row_scales)),
            Arg::Address(gpu.address(&self.piece)),
            Arg::U32(small(first)),
            Arg::U32(small(matrix.columns())),
            Arg::U32(u32::from(matrix.kind() == Outputs::Gated)),
        ];
        let blocks = Launch {
            grid: [small(count), matrix.chunks()],
            threads: WIDEN_THREADS,
            shared_bytes: 0,
        };
        launch(gpu, &self.widen[kernel], blocks, &args)
    }
}

/// The smallest of [`PACKED_KERNELS`] that takes so many rows.
pub(crate) fn packed_kernel(rows: usize) -> usize {
    let fits = PACKED_KERNELS
        .iter()
        .position(|[most, ..]| *most as usize >= rows);
    fits.expect("the caller has seen to the number of rows")
}

fn small(size: usize) -> u32 {
    u32::try_from(size).expect("sizes are bounded by ModelConfig and the step")
}
