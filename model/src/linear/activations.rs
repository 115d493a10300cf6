//! Input rows quantised to 8 bits in groups of 32, for the products with quantised weights.

use crate::simd::{Simd, Work, dispatch};
use crate::threads::parallel;

/// Columns that share one scale; the block size of the packed weight types.
pub const GROUP: usize = 32;

/// `rows × columns` activations. Value = `values · scale` of its group.
pub struct QuantizedRows {
    pub rows: usize,
    pub groups: usize,
    /// `[rows, groups, 32]`.
    values: Vec<i8>,
    /// `[rows, groups]`.
    scales: Vec<f32>,
    /// Sums of the group's `values`, `[rows, groups]`.
    sums: Vec<i16>,
}

impl QuantizedRows {
    /// `x`: `[rows, columns]`, `columns` a multiple of 32.
    pub fn new(x: &[f32], rows: usize, columns: usize) -> Self {
        let groups = columns / GROUP;
        let mut this = Self {
            rows,
            groups,
            values: vec![0; rows * columns],
            scales: vec![0.0; rows * groups],
            sums: vec![0; rows * groups],
        };
        dispatch(Quantize { x, out: &mut this });
        this
    }

    /// Values, scale and sum of one group.
    #[inline(always)]
    pub fn group(&self, row: usize, group: usize) -> (&[i8; GROUP], f32, i16) {
        let index = row * self.groups + group;
        let values = self.values[index * GROUP..]
            .first_chunk()
            .expect("a group has 32 values");
        (values, self.scales[index], self.sums[index])
    }
}

struct Quantize<'a> {
    x: &'a [f32],
    out: &'a mut QuantizedRows,
}

impl Work for Quantize<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let groups = self
            .x
            .as_chunks::<GROUP>()
            .0
            .iter()
            .zip(self.out.values.as_chunks_mut::<GROUP>().0);
        let scales = self.out.scales.iter_mut().zip(&mut self.out.sums);
        for ((x, values), (scale, sum)) in groups.zip(scales) {
            (*scale, *sum) = quantize_group(x, values);
        }
    }
}

/// Rounds a group to 8 bits, ties to even. Returns its scale and the sum of its values.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "values are within -127..=127, so their low byte is all of them"
)]
fn quantize_group(x: &[f32; GROUP], values: &mut [i8; GROUP]) -> (f32, i16) {
    // Adding 1.5 · 2^23 rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let mut largest = [0.0_f32; 16];
    for (i, largest) in largest.iter_mut().enumerate() {
        let (a, b) = (x[i].abs(), x[i + 16].abs());
        *largest = if a > b { a } else { b };
    }
    let mut width = 8;
    while width > 0 {
        for i in 0..width {
            largest[i] = if largest[i] > largest[i + width] {
                largest[i]
            } else {
                largest[i + width]
            };
        }
        width /= 2;
    }
    let largest = largest[0];
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let mut sum = 0_i32;
    for (value, x) in values.iter_mut().zip(x) {
        let rounded = (x * inverse + ROUND)
            .to_bits()
            .wrapping_sub(ROUND.to_bits())
            .cast_signed();
        sum = sum.wrapping_add(rounded);
        *value = rounded as i8;
    }
    (largest / 127.0, sum as i16)
}

/// Splits tiles for `rows` input rows: decode wants few hand-overs, prompts even shares.
pub fn over_tiles(tiles: usize, rows: usize, work: impl Fn(std::ops::Range<usize>) + Sync) {
    parallel(tiles, if rows < 8 { 1 } else { 4 }, work);
}
