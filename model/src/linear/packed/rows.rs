//! Products for few input rows, and for machines without a tile unit.

use std::ops::Range;

use super::{PackedMatrix, unpack};
use crate::linear::DisjointOut;
use crate::linear::activations::{GROUP, Group, QuantizedRows};
use crate::simd::{LANES, Simd, Work};

/// The product of `x` with some tiles of the matrix.
pub struct RowProduct<'a> {
    pub matrix: &'a PackedMatrix,
    pub x: &'a QuantizedRows<1>,
    pub out: &'a DisjointOut<'a>,
    pub tiles: Range<usize>,
}

impl Work for RowProduct<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        match (self.matrix.format.bits, self.matrix.format.has_min) {
            (4, false) => self.all_tiles::<S, 4, false>(),
            (4, true) => self.all_tiles::<S, 4, true>(),
            (5, false) => self.all_tiles::<S, 5, false>(),
            (5, true) => self.all_tiles::<S, 5, true>(),
            _ => self.all_tiles::<S, 8, false>(),
        }
    }
}

impl RowProduct<'_> {
    #[inline(always)]
    fn all_tiles<S: Simd, const BITS: usize, const MIN: bool>(self) {
        for tile in self.tiles.clone() {
            let mut row = 0;
            while row + 4 <= self.x.rows {
                self.tile_rows::<S, BITS, MIN, 4>(tile, row);
                row += 4;
            }
            while row < self.x.rows {
                self.tile_rows::<S, BITS, MIN, 1>(tile, row);
                row += 1;
            }
        }
    }

    /// One tile of outputs for `ROWS` input rows from `row` on.
    #[inline(always)]
    fn tile_rows<S: Simd, const BITS: usize, const MIN: bool, const ROWS: usize>(
        &self,
        tile: usize,
        row: usize,
    ) {
        let format = self.matrix.format;
        let value_bytes = LANES * if BITS == 8 { GROUP } else { GROUP / 2 };
        let fifth_bytes = LANES * if BITS == 5 { 4 } else { 0 };
        let tile_bytes = value_bytes + fifth_bytes + LANES * if MIN { 4 } else { 2 };
        let data = self.matrix.tile(tile);
        let bias = i32::from(format.offset) + if BITS == 8 { S::I8_BIAS } else { 0 };
        let x: [&[Group<1>]; ROWS] = std::array::from_fn(
            #[inline(always)]
            |r| self.x.block(row + r),
        );
        let mut sums = [S::splat(0.0); ROWS];
        for (group, data) in data.chunks_exact(tile_bytes).enumerate() {
            let mut weights = unpack::<S, BITS>(data);
            if BITS == 8 {
                for weights in &mut weights {
                    *weights = S::prepare_i8(*weights);
                }
            }
            let scale = S::load_f16(&data[value_bytes + fifth_bytes..]);
            for (r, sum) in sums.iter_mut().enumerate() {
                let x = &x[r][group];
                let mut dot = S::splat_i(-bias * x.sums[0]);
                for (weights, values) in weights.iter().zip(x.values[0].as_chunks::<4>().0) {
                    dot = if BITS == 8 {
                        S::dot_i8(dot, *weights, *values)
                    } else {
                        S::dot_u5(dot, *weights, *values)
                    };
                }
                *sum = S::fma(S::mul(scale, S::splat(x.scales[0])), S::to_f(dot), *sum);
                if MIN {
                    let min = S::load_f16(&data[value_bytes + fifth_bytes + 2 * LANES..]);
                    *sum = S::fma(min, S::splat(x.scaled_sums[0]), *sum);
                }
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
