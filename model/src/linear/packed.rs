//! Weights in blocks of 32 with 4, 5 or 8 bits (GGML's Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0) or in superblocks
//! of 256 with 4, 5 or 6 (Q4_K, Q5_K and Q6_K), repacked into tiles of 16 rows. The bits are the same ones in
//! another order: nothing grows, nothing is rounded.
//!
//! A weight is `d · (q - offset) + m`; its product with a group of activations `a = s · v` is
//! `d · s · (Σ q v - offset · Σ v) + m · s · Σ v`, where both sums are exact integers.

use std::cell::Cell;

use super::activations::{Group, QuantizedRows, over_tiles};
use super::{DisjointOut, for_chunks};
use crate::simd::{LANES, dispatch, tile_unit};
use crate::weights::RawTensor;
use format::Format;
use rows::RowProduct;
use tiles::TileProduct;

mod format;
mod pack;
mod rows;
mod tiles;

/// Input rows from which the tile unit is used: it computes blocks of 16, or of 8 at least.
const TILE_UNIT_ROWS: usize = 8;

/// Quantised input, in the layout of the kernel that will read it.
pub enum PackedInput {
    Rows(QuantizedRows<1>),
    Tiles(QuantizedRows<LANES>),
}

thread_local! {
    /// The memory of the last [`PackedInput::Tiles`], for the next one.
    static SPARE: Cell<Vec<Group<LANES>>> = const { Cell::new(Vec::new()) };
}

impl PackedInput {
    /// `x`: `[rows, columns]`.
    pub fn new(x: &[f32], rows: usize, columns: usize) -> Self {
        if rows >= TILE_UNIT_ROWS && tile_unit::detected() {
            Self::Tiles(QuantizedRows::new(x, rows, columns, SPARE.take()))
        } else {
            Self::Rows(QuantizedRows::new(x, rows, columns, Vec::new()))
        }
    }
}

impl Drop for PackedInput {
    fn drop(&mut self) {
        if let Self::Tiles(x) = self {
            SPARE.set(x.take_memory());
        }
    }
}

/// A quantised matrix `[outputs, columns]`.
pub struct PackedMatrix {
    pub outputs: usize,
    columns: usize,
    format: Format,
    data: Vec<u8>,
}

impl PackedMatrix {
    pub fn new(tensor: &RawTensor) -> Self {
        let format = Format::of(tensor.dtype);
        let (outputs, columns) = (tensor.shape[0], tensor.shape[1]);
        let row_bytes = columns / format.columns() * format.block_bytes();
        // Rows past the last are zero: their scale is zero, so what they compute is never read.
        let mut data = vec![0; outputs.next_multiple_of(LANES) * row_bytes];
        for_chunks(LANES * row_bytes, outputs, &mut data, |tile, data| {
            let rows = tile * LANES..outputs.min((tile + 1) * LANES);
            for (lane, row) in rows.enumerate() {
                let row = &tensor.data[row * row_bytes..(row + 1) * row_bytes];
                let blocks = row.chunks_exact(format.block_bytes());
                for (block, tile) in blocks.zip(data.chunks_exact_mut(format.tile_bytes())) {
                    pack::pack(format, block, tile, lane);
                }
            }
        });
        Self {
            outputs,
            columns,
            format,
            data,
        }
    }

    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Writes columns 0 to `outputs` of `out`, `[rows, ..]`.
    pub fn forward(&self, x: &PackedInput, out: &DisjointOut<'_>) {
        let tiles = self.outputs.div_ceil(LANES);
        match x {
            PackedInput::Rows(x) => over_tiles(tiles, x.rows, |tiles| {
                dispatch(RowProduct {
                    matrix: self,
                    x,
                    out,
                    tiles,
                });
            }),
            PackedInput::Tiles(x) => over_tiles(tiles, x.rows, |tiles| {
                dispatch(TileProduct {
                    matrix: self,
                    x,
                    out,
                    tiles,
                });
            }),
        }
    }

    /// The blocks of tile `index`, `[block, format.tile_bytes()]`.
    #[inline(always)]
    fn tile(&self, index: usize) -> &[u8] {
        let bytes = self.columns / self.format.columns() * self.format.tile_bytes();
        &self.data[index * bytes..][..bytes]
    }

    /// Row `index` as f32.
    pub fn row(&self, index: usize, out: &mut [f32]) {
        let blocks = self.tile(index / LANES);
        let blocks = blocks.chunks_exact(self.format.tile_bytes());
        for (tile, out) in blocks.zip(out.chunks_exact_mut(self.format.columns())) {
            pack::dequantize(self.format, tile, index % LANES, out);
        }
    }
}

#[cfg(test)]
mod tests;
