//! Input rows quantised to 8 bits in groups of 32, for the products with quantised weights.

use super::DisjointOut;
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
    #[expect(
        clippy::cast_possible_truncation,
        reason = "values are within -127..=127, their sum within 16 bits"
    )]
    fn run<S: Simd>(self) {
        let groups = self
            .x
            .chunks_exact(GROUP)
            .zip(self.out.values.chunks_exact_mut(GROUP));
        for ((x, values), (scale, sum)) in
            groups.zip(self.out.scales.iter_mut().zip(&mut self.out.sums))
        {
            let mut largest = [0.0_f32; GROUP];
            largest
                .iter_mut()
                .zip(x)
                .for_each(|(largest, x)| *largest = x.abs());
            let largest = largest
                .iter()
                .fold(0.0_f32, |a, b| if *b > a { *b } else { a });
            *scale = largest / 127.0;
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            for (value, x) in values.iter_mut().zip(x) {
                *value = (x * inverse).round_ties_even() as i8;
            }
            *sum = values.iter().map(|value| i16::from(*value)).sum();
        }
    }
}

/// Keeps the two imports that the kernels share in one place.
pub type Out<'a> = DisjointOut<'a>;

/// Splits tiles for `rows` input rows: decode wants few hand-overs, prompts even shares.
pub fn over_tiles(tiles: usize, rows: usize, work: impl Fn(std::ops::Range<usize>) + Sync) {
    parallel(tiles, if rows < 8 { 1 } else { 4 }, work);
}
