//! Products for few input rows, and for machines without a tile unit.

use std::ops::Range;

use super::PackedMatrix;
use super::format::{Format, Packing, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Scales, unpack};
use crate::linear::DisjointOut;
use crate::linear::activations::{Group, QuantizedRows};
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
        let Format {
            bits,
            has_min,
            groups,
            ..
        } = self.matrix.format;
        match (groups, bits, has_min) {
            (1, 4, false) => self.all_tiles::<S, Q4_0>(),
            (1, 4, true) => self.all_tiles::<S, Q4_1>(),
            (1, 5, false) => self.all_tiles::<S, Q5_0>(),
            (1, 5, true) => self.all_tiles::<S, Q5_1>(),
            (1, ..) => self.all_tiles::<S, Q8_0>(),
            (_, 4, _) => self.all_tiles::<S, Q4K>(),
            (_, 5, _) => self.all_tiles::<S, Q5K>(),
            _ => self.all_tiles::<S, Q6K>(),
        }
    }
}

impl RowProduct<'_> {
    #[inline(always)]
    fn all_tiles<S: Simd, P: Packing>(self) {
        for tile in self.tiles.clone() {
            let mut row = 0;
            while row + 4 <= self.x.rows {
                self.tile_rows::<S, P, 4>(tile, row);
                row += 4;
            }
            while row < self.x.rows {
                self.tile_rows::<S, P, 1>(tile, row);
                row += 1;
            }
        }
    }

    /// One tile of outputs for `ROWS` input rows from `row` on.
    #[inline(always)]
    fn tile_rows<S: Simd, P: Packing, const ROWS: usize>(&self, tile: usize, row: usize) {
        let format = P::FORMAT;
        let x: [&[Group<1>]; ROWS] = std::array::from_fn(
            #[inline(always)]
            |r| self.x.block(row + r),
        );
        let mut sums = [S::splat(0.0); ROWS];
        let blocks = self.matrix.tile(tile).chunks_exact(format.tile_bytes());
        for (block, data) in blocks.enumerate() {
            for (in_block, field) in (0..format.groups).zip(0_u32..) {
                let weights = group_weights::<S, P>(data, in_block);
                let scales = Scales::<S>::load::<P>(data, field);
                for (r, sum) in sums.iter_mut().enumerate() {
                    let x = &x[r][block * format.groups + in_block];
                    *sum = add_group::<S, P>(*sum, &weights, &scales, x);
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

/// The vectors of a group, ready for dot products.
#[inline(always)]
fn group_weights<S: Simd, P: Packing>(tile: &[u8], group: usize) -> [S::B; 8] {
    let format = P::FORMAT;
    let mut weights = unpack::<S, P>(&tile[LANES * group * format.group_bytes()..]);
    if format.bits == 8 {
        for weights in &mut weights {
            *weights = S::prepare_i8(*weights);
        }
    }
    weights
}

/// `sum` and the products of one group of one input row.
#[inline(always)]
fn add_group<S: Simd, P: Packing>(
    sum: S::F,
    weights: &[S::B; 8],
    scales: &Scales<S>,
    x: &Group<1>,
) -> S::F {
    let format = P::FORMAT;
    let x_scale = S::splat(x.scales[0]);
    let [first, second] = x.sums[0];
    let bias = i32::from(format.offset) + if format.bits == 8 { S::I8_BIAS } else { 0 };
    let values = x.values[0].as_chunks::<4>().0;
    if format.scales_per_group() == 2 {
        let dot = group_dot::<S, P>(-bias * first, &weights[..4], &values[..4]);
        let sum = S::fma(S::mul(scales.scales[0], x_scale), dot, sum);
        let dot = group_dot::<S, P>(-bias * second, &weights[4..], &values[4..]);
        return S::fma(S::mul(scales.scales[1], x_scale), dot, sum);
    }
    let dot = group_dot::<S, P>(-bias * (first + second), weights, values);
    let sum = S::fma(S::mul(scales.scales[0], x_scale), dot, sum);
    if format.has_min {
        S::fma(scales.min, S::splat(x.scaled_sums[0]), sum)
    } else {
        sum
    }
}

/// `start + Σ weight · value`.
#[inline(always)]
fn group_dot<S: Simd, P: Packing>(start: i32, weights: &[S::B], values: &[[i8; 4]]) -> S::F {
    let mut dot = S::splat_i(start);
    for (weights, values) in weights.iter().zip(values) {
        dot = if P::FORMAT.bits == 8 {
            S::dot_i8(dot, *weights, *values)
        } else {
            S::dot_u6(dot, *weights, *values)
        };
    }
    S::to_f(dot)
}
