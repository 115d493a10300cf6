//! Weights in superblocks of 256 with 2 or 3 bits (GGML's Q2_K and Q3_K), through candle's dot products.
//!
//! candle's `QMatMul` repacks the weights into a second copy and sums in another order for large
//! batches; the row kernel underneath does neither, and is what is used here.

use candle_core::quantized::GgmlDType;
use candle_core::quantized::k_quants::{BlockQ2K, BlockQ3K, BlockQ8K, GgmlType};

use super::DisjointOut;
use super::activations::over_tiles;
use crate::simd::LANES;
use crate::weights::RawTensor;

/// Columns of a superblock.
const SUPERBLOCK: usize = 256;

/// A quantised matrix `[outputs, columns]`.
pub struct BlockMatrix {
    pub outputs: usize,
    columns: usize,
    rows: Box<dyn BlockRows>,
}

impl BlockMatrix {
    pub fn new(tensor: &RawTensor) -> Self {
        let data = tensor.data.as_slice();
        let rows: Box<dyn BlockRows> = match tensor.dtype {
            GgmlDType::Q2K => Box::new(to_blocks::<BlockQ2K>(data)),
            GgmlDType::Q3K => Box::new(to_blocks::<BlockQ3K>(data)),
            other => unreachable!("{other:?} has no superblocks"),
        };
        Self {
            outputs: tensor.shape[0],
            columns: tensor.shape[1],
            rows,
        }
    }

    pub fn bytes(&self) -> usize {
        self.rows.bytes()
    }

    /// `x`: `[rows, columns]`. Writes columns 0 to `outputs` of `out`.
    pub fn forward(&self, x: &[f32], rows: usize, out: &DisjointOut<'_>) {
        let mut quantized = vec![BlockQ8K::zeros(); x.len() / SUPERBLOCK];
        BlockQ8K::from_float(x, &mut quantized);
        let blocks = self.columns / SUPERBLOCK;
        over_tiles(self.outputs.div_ceil(LANES), rows, |tiles| {
            for tile in tiles {
                let outputs = tile * LANES..self.outputs.min((tile + 1) * LANES);
                for (row, x) in quantized.chunks_exact(blocks).enumerate() {
                    let mut lanes = [0.0; LANES];
                    for (lane, output) in lanes.iter_mut().zip(outputs.clone()) {
                        *lane = self.rows.dot(output * blocks..(output + 1) * blocks, x);
                    }
                    out.write(row, outputs.start, &lanes[..outputs.len()]);
                }
            }
        });
    }

    /// Row `index` as f32.
    pub fn row(&self, index: usize, out: &mut [f32]) {
        let blocks = self.columns / SUPERBLOCK;
        self.rows
            .dequantize(index * blocks..(index + 1) * blocks, out);
    }
}

/// The blocks of one type, with the type hidden.
trait BlockRows: Send + Sync {
    /// The product of consecutive blocks with as many blocks of activations.
    fn dot(&self, blocks: std::ops::Range<usize>, x: &[BlockQ8K]) -> f32;
    fn dequantize(&self, blocks: std::ops::Range<usize>, out: &mut [f32]);
    fn bytes(&self) -> usize;
}

impl<T: GgmlType<VecDotType = BlockQ8K> + Send + Sync> BlockRows for Vec<T> {
    fn dot(&self, blocks: std::ops::Range<usize>, x: &[BlockQ8K]) -> f32 {
        T::vec_dot(x.len() * SUPERBLOCK, &self[blocks], x)
    }

    fn dequantize(&self, blocks: std::ops::Range<usize>, out: &mut [f32]) {
        T::to_float(&self[blocks], out);
    }

    fn bytes(&self) -> usize {
        size_of_val(self.as_slice())
    }
}

#[expect(
    unsafe_code,
    reason = "candle's block types can be filled from bytes only by copying over them"
)]
fn to_blocks<T: GgmlType>(bytes: &[u8]) -> Vec<T> {
    let mut blocks = vec![T::zeros(); bytes.len() / size_of::<T>()];
    // SAFETY: the block types are `repr(C)` structs of integers and halves without padding, valid for
    // any bytes, and the destination has at least `len * size_of::<T>()` of them.
    unsafe {
        let len = blocks.len() * size_of::<T>();
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), blocks.as_mut_ptr().cast::<u8>(), len);
    }
    blocks
}
