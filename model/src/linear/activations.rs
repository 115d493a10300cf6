//! Input rows quantised to 8 bits in groups of 32, for the products with quantised weights.

use crate::linear::for_chunks;
use crate::simd::{LANES, Simd, Work, dispatch};
use crate::threads::parallel;

/// Columns that share one scale; the block size of the packed weight types.
pub const GROUP: usize = 32;

/// 32 columns of `ROWS` activation rows. Value = `values · scale` of its row.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct Group<const ROWS: usize> {
    pub values: [[i8; GROUP]; ROWS],
    pub scales: [f32; ROWS],
    /// Sums of each row's first and last 16 `values`.
    pub sums: [[i32; 2]; ROWS],
    /// `scale ·` sum of all.
    pub scaled_sums: [f32; ROWS],
}

/// `rows × columns` activations in blocks of `ROWS` rows; what fills the last block means nothing.
pub struct QuantizedRows<const ROWS: usize> {
    pub rows: usize,
    /// `[block, group]`, and perhaps more behind them.
    groups: Vec<Group<ROWS>>,
    groups_per_row: usize,
}

impl<const ROWS: usize> QuantizedRows<ROWS> {
    /// `x`: `[rows, columns]`, `columns` a multiple of 32. `memory` is used where it is large enough.
    pub fn new(x: &[f32], rows: usize, columns: usize, memory: Vec<Group<ROWS>>) -> Self {
        let mut this = Self {
            rows,
            groups: memory,
            groups_per_row: columns / GROUP,
        };
        let len = rows.div_ceil(ROWS) * this.groups_per_row;
        if this.groups.len() < len {
            let zero = Group {
                values: [[0; GROUP]; ROWS],
                scales: [0.0; ROWS],
                sums: [[0; 2]; ROWS],
                scaled_sums: [0.0; ROWS],
            };
            this.groups.resize(len, zero);
        }
        let groups = &mut this.groups[..len];
        for_chunks(this.groups_per_row, rows, groups, |block, groups| {
            let x = &x[block * ROWS * columns..rows.min((block + 1) * ROWS) * columns];
            dispatch(Quantize { x, groups });
        });
        this
    }

    /// The memory, for the next rows.
    pub fn take_memory(&mut self) -> Vec<Group<ROWS>> {
        std::mem::take(&mut self.groups)
    }

    /// All groups, `[block, group]`.
    #[inline(always)]
    pub fn all(&self) -> &[Group<ROWS>] {
        &self.groups[..self.rows.div_ceil(ROWS) * self.groups_per_row]
    }

    /// The groups of block `index`, which has rows from `index * ROWS` on.
    #[inline(always)]
    pub fn block(&self, index: usize) -> &[Group<ROWS>] {
        &self.groups[index * self.groups_per_row..][..self.groups_per_row]
    }
}

struct Quantize<'a, const ROWS: usize> {
    /// At most `ROWS` rows.
    x: &'a [f32],
    groups: &'a mut [Group<ROWS>],
}

impl<const ROWS: usize> Work for Quantize<'_, ROWS> {
    #[inline(always)]
    #[expect(clippy::cast_precision_loss, reason = "a sum is at most 32 · 127")]
    fn run<S: Simd>(self) {
        for (row, x) in self.x.chunks_exact(self.groups.len() * GROUP).enumerate() {
            for (x, group) in x.as_chunks::<GROUP>().0.iter().zip(self.groups.iter_mut()) {
                let (scale, sums) = quantize_group::<S>(x, &mut group.values[row]);
                group.scales[row] = scale;
                group.sums[row] = sums;
                group.scaled_sums[row] = scale * (sums[0] + sums[1]) as f32;
            }
        }
    }
}

/// Rounds a group to 8 bits, ties to even. Returns its scale and the sums of its halves.
#[inline(always)]
fn quantize_group<S: Simd>(x: &[f32; GROUP], values: &mut [i8; GROUP]) -> (f32, [i32; 2]) {
    // Adding 1.5 · 2^23 rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let (low, high) = (S::load(x), S::load(&x[LANES..]));
    let largest = S::largest(S::max(S::abs(low), S::abs(high)));
    let inverse = S::splat(if largest > 0.0 { 127.0 / largest } else { 0.0 });
    let round = S::splat(ROUND);
    let zero = S::splat_i(ROUND.to_bits().cast_signed());
    let low = S::sub_i(S::bits(S::add(S::mul(low, inverse), round)), zero);
    let high = S::sub_i(S::bits(S::add(S::mul(high, inverse), round)), zero);
    S::store_low_bytes(low, values);
    S::store_low_bytes(high, &mut values[LANES..]);
    (largest / 127.0, [S::sum_i(low), S::sum_i(high)])
}

/// Splits tiles for `rows` input rows: decode wants few hand-overs, prompts even shares.
pub fn over_tiles(tiles: usize, rows: usize, work: impl Fn(std::ops::Range<usize>) + Sync) {
    parallel(tiles, if rows < 8 { 1 } else { 16 }, work);
}
