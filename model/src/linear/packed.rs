//! Weights in blocks of 32 with 4, 5 or 8 bits (GGML's Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0), repacked into
//! tiles of 16 rows. The bytes are the same ones in another order: nothing grows, nothing is rounded.
//!
//! One tile of one block of columns is, in this order:
//! - 4-bit and 5-bit types: four vectors of 64 bytes. Vector `j` holds, for lane (row) `r`, the bytes
//!   `4j` to `4j + 3` of the row's block: low nibbles are columns `4j..`, high ones columns `16 + 4j..`.
//!   8-bit: eight vectors, columns `4j..`.
//! - 5-bit types: one vector with each row's 32 fifth bits.
//! - 16 half-precision scales `d`, one a row; for Q4_1 and Q5_1 also 16 minima `m`.
//!
//! A weight is `d · (q - offset) + m`; its product with a group of activations `a = s · v` is
//! `d · s · (Σ q v - offset · Σ v) + m · s · Σ v`, where both sums are exact integers.

use std::cell::Cell;

use candle_core::quantized::GgmlDType;
use half::f16;

use super::DisjointOut;
use super::activations::{GROUP, Group, QuantizedRows, over_tiles};
use crate::simd::{LANES, Simd, dispatch, tile_unit};
use crate::weights::RawTensor;
use rows::RowProduct;
use tiles::TileProduct;

mod rows;
mod tiles;

/// Input rows from which the tile unit is worth it: it computes blocks of 16, and half of one takes
/// as long as eight rows without it.
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

/// How the blocks of a GGML type are laid out.
#[derive(Clone, Copy)]
struct Format {
    bits: usize,
    offset: i8,
    has_min: bool,
}

impl Format {
    fn of(dtype: GgmlDType) -> Self {
        let (bits, offset, has_min) = match dtype {
            GgmlDType::Q4_0 => (4, 8, false),
            GgmlDType::Q4_1 => (4, 0, true),
            GgmlDType::Q5_0 => (5, 16, false),
            GgmlDType::Q5_1 => (5, 0, true),
            GgmlDType::Q8_0 => (8, 0, false),
            other => unreachable!("{other:?} is not a packed type"),
        };
        Self {
            bits,
            offset,
            has_min,
        }
    }

    /// Bytes of a row's block that hold the values, without fifth bits.
    const fn value_bytes(self) -> usize {
        if self.bits == 8 { GROUP } else { GROUP / 2 }
    }

    const fn fifth_bytes(self) -> usize {
        if self.bits == 5 { GROUP / 8 } else { 0 }
    }

    /// Bytes of a row's block: GGML order is d, m, fifth bits, values.
    const fn block_bytes(self) -> usize {
        2 + 2 * self.has_min as usize + self.fifth_bytes() + self.value_bytes()
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
        let groups = columns / GROUP;
        let tile_bytes = LANES * format.block_bytes();
        // Rows past the last are zero: their scale is zero, so what they compute is never read.
        let mut data = vec![0; outputs.div_ceil(LANES) * groups * tile_bytes];
        let blocks = tensor.data.chunks_exact(format.block_bytes());
        for (index, block) in blocks.enumerate() {
            let (row, group) = (index / groups, index % groups);
            let tile = ((row / LANES) * groups + group) * tile_bytes;
            pack_block(
                format,
                block,
                row % LANES,
                &mut data[tile..tile + tile_bytes],
            );
        }
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

    /// The bytes of tile `index`, `[group, tile_bytes]`.
    #[inline(always)]
    fn tile(&self, index: usize) -> &[u8] {
        let bytes = self.columns / GROUP * LANES * self.format.block_bytes();
        &self.data[index * bytes..][..bytes]
    }

    /// Row `index` as f32.
    pub fn row(&self, index: usize, out: &mut [f32]) {
        let groups = self.columns / GROUP;
        let tile_bytes = LANES * self.format.block_bytes();
        for (group, out) in out.chunks_exact_mut(GROUP).enumerate() {
            let start = ((index / LANES) * groups + group) * tile_bytes;
            unpack_block(
                self.format,
                &self.data[start..start + tile_bytes],
                index % LANES,
                out,
            );
        }
    }
}

fn pack_block(format: Format, block: &[u8], lane: usize, tile: &mut [u8]) {
    let (head, values) = block.split_at(block.len() - format.value_bytes());
    for (j, word) in values.chunks_exact(4).enumerate() {
        tile[64 * j + 4 * lane..][..4].copy_from_slice(word);
    }
    let mut at = LANES * format.value_bytes();
    let (scales, fifth) = head.split_at(head.len() - format.fifth_bytes());
    if !fifth.is_empty() {
        tile[at + 4 * lane..][..4].copy_from_slice(fifth);
        at += LANES * 4;
    }
    for scale in scales.chunks_exact(2) {
        tile[at + 2 * lane..][..2].copy_from_slice(scale);
        at += LANES * 2;
    }
}

fn unpack_block(format: Format, tile: &[u8], lane: usize, out: &mut [f32]) {
    let half_at =
        |at: usize| f16::from_le_bytes([tile[at + 2 * lane], tile[at + 2 * lane + 1]]).to_f32();
    let fifth_at = LANES * format.value_bytes();
    let scale_at = fifth_at + LANES * format.fifth_bytes();
    let scale = half_at(scale_at);
    let min = if format.has_min {
        half_at(scale_at + 2 * LANES)
    } else {
        0.0
    };
    for (column, out) in out.iter_mut().enumerate() {
        let in_half = if format.bits == 8 {
            column
        } else {
            column % 16
        };
        let byte = tile[64 * (in_half / 4) + 4 * lane + in_half % 4];
        let value = match format.bits {
            8 => i16::from(byte.cast_signed()),
            _ if column < 16 => i16::from(byte & 0x0F),
            _ => i16::from(byte >> 4),
        };
        let fifth =
            format.bits == 5 && tile[fifth_at + 4 * lane + column / 8] >> (column % 8) & 1 == 1;
        let value = value + if fifth { 16 } else { 0 } - i16::from(format.offset);
        *out = f32::from(value) * scale + min;
    }
}

/// The eight vectors of a tile, in order of their columns.
///
/// A loop and not `array::from_fn`: a closure would be compiled without the vector instructions.
#[inline(always)]
fn unpack<S: Simd, const BITS: usize>(data: &[u8]) -> [S::B; 8] {
    let mut vectors = [S::load_b(data); 8];
    if BITS == 8 {
        for j in 0..8 {
            vectors[j] = S::load_b(&data[64 * j..]);
        }
        return vectors;
    }
    for j in 0..4 {
        let bytes = S::load_b(&data[64 * j..]);
        vectors[j] = S::low_nibbles(bytes);
        vectors[j + 4] = S::high_nibbles(bytes);
    }
    if BITS == 5 {
        let fifth_bits = S::load_b(&data[256..]);
        let mut shift = 0;
        for vector in &mut vectors {
            *vector = S::add_fifth_bit(*vector, fifth_bits, shift);
            shift += 4;
        }
    }
    vectors
}

#[cfg(test)]
mod tests;
