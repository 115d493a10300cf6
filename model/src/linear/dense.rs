//! Dense weights in f32, f16 or bf16, in tiles of 16 rows: `[tile, column, 16]`. Sums are f32.

use candle_core::quantized::GgmlDType;
use half::{bf16, f16};

use super::DisjointOut;
use super::activations::over_tiles;
use crate::simd::{LANES, Simd, Work, dispatch};
use crate::weights::RawTensor;

/// A dense matrix `[outputs, columns]`.
pub struct DenseMatrix {
    pub outputs: usize,
    columns: usize,
    dtype: GgmlDType,
    data: Storage,
}

/// f32 weights are kept as floats for their alignment; halves as little-endian bytes.
enum Storage {
    Floats(Vec<f32>),
    Halves(Vec<u8>),
}

impl DenseMatrix {
    pub fn new(tensor: &RawTensor) -> Self {
        let (outputs, columns) = (tensor.shape[0], tensor.shape[1]);
        let len = outputs.div_ceil(LANES) * LANES * columns;
        let place = |index: usize| {
            let (row, column) = (index / columns, index % columns);
            ((row / LANES) * columns + column) * LANES + row % LANES
        };
        let data = if tensor.dtype == GgmlDType::F32 {
            let mut data = vec![0.0; len];
            for (index, bytes) in tensor.data.as_chunks::<4>().0.iter().enumerate() {
                data[place(index)] = f32::from_le_bytes(*bytes);
            }
            Storage::Floats(data)
        } else {
            let mut data = vec![0; 2 * len];
            for (index, bytes) in tensor.data.as_chunks::<2>().0.iter().enumerate() {
                data[2 * place(index)..][..2].copy_from_slice(bytes);
            }
            Storage::Halves(data)
        };
        Self {
            outputs,
            columns,
            dtype: tensor.dtype,
            data,
        }
    }

    pub fn bytes(&self) -> usize {
        match &self.data {
            Storage::Floats(data) => size_of_val(data.as_slice()),
            Storage::Halves(data) => data.len(),
        }
    }

    /// `x`: `[rows, columns]`. Writes columns 0 to `outputs` of `out`.
    pub fn forward(&self, x: &[f32], rows: usize, out: &DisjointOut<'_>) {
        over_tiles(self.outputs.div_ceil(LANES), rows, |tiles| {
            dispatch(Product {
                matrix: self,
                x,
                rows,
                out,
                tiles,
            });
        });
    }

    /// Row `index` as f32.
    pub fn row(&self, index: usize, out: &mut [f32]) {
        for (column, out) in out.iter_mut().enumerate() {
            let at = ((index / LANES) * self.columns + column) * LANES + index % LANES;
            *out = match &self.data {
                Storage::Floats(data) => data[at],
                Storage::Halves(data) => {
                    let bytes = [data[2 * at], data[2 * at + 1]];
                    if self.dtype == GgmlDType::F16 {
                        f16::from_le_bytes(bytes).to_f32()
                    } else {
                        bf16::from_le_bytes(bytes).to_f32()
                    }
                }
            };
        }
    }
}

struct Product<'a> {
    matrix: &'a DenseMatrix,
    x: &'a [f32],
    rows: usize,
    out: &'a DisjointOut<'a>,
    tiles: std::ops::Range<usize>,
}

impl Work for Product<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let tile_len = self.matrix.columns * LANES;
        match &self.matrix.data {
            Storage::Floats(data) => self.all_tiles::<S>(
                #[inline(always)]
                |tile, column| S::load(&data[tile * tile_len + column * LANES..]),
            ),
            Storage::Halves(data) if self.matrix.dtype == GgmlDType::F16 => self.all_tiles::<S>(
                #[inline(always)]
                |tile, column| S::load_f16(&data[2 * (tile * tile_len + column * LANES)..]),
            ),
            Storage::Halves(data) => self.all_tiles::<S>(
                #[inline(always)]
                |tile, column| S::load_bf16(&data[2 * (tile * tile_len + column * LANES)..]),
            ),
        }
    }
}

impl Product<'_> {
    #[inline(always)]
    fn all_tiles<S: Simd>(&self, load: impl Fn(usize, usize) -> S::F) {
        for tile in self.tiles.clone() {
            let mut row = 0;
            while row + 8 <= self.rows {
                self.tile_rows::<S, 8>(tile, row, &load);
                row += 8;
            }
            while row < self.rows {
                self.tile_rows::<S, 1>(tile, row, &load);
                row += 1;
            }
        }
    }

    /// One tile of outputs for `ROWS` input rows from `row` on; each lane sums in column order.
    #[inline(always)]
    fn tile_rows<S: Simd, const ROWS: usize>(
        &self,
        tile: usize,
        row: usize,
        load: &impl Fn(usize, usize) -> S::F,
    ) {
        let columns = self.matrix.columns;
        let x: [&[f32]; ROWS] = std::array::from_fn(
            #[inline(always)]
            |r| &self.x[(row + r) * columns..(row + r + 1) * columns],
        );
        let mut sums = [S::splat(0.0); ROWS];
        for column in 0..columns {
            let weights = load(tile, column);
            for (sum, x) in sums.iter_mut().zip(&x) {
                *sum = S::fma(weights, S::splat(x[column]), *sum);
            }
        }
        let outputs = LANES.min(self.matrix.outputs - tile * LANES);
        for (r, sum) in sums.into_iter().enumerate() {
            let mut lanes = [0.0; LANES];
            S::store(sum, &mut lanes);
            self.out.write(row + r, tile * LANES, &lanes[..outputs]);
        }
    }
}
