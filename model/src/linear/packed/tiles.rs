//! Products for many input rows, on a tile unit.
//!
//! A tile of weights is unpacked once, to signed bytes, for all input rows. The unit gives the exact
//! integer sums of 16 rows and 16 outputs; scales and sums over groups are those of the other kernel,
//! operation by operation, so a row has the same bits from both.

use std::cell::Cell;
use std::ops::Range;

use super::PackedMatrix;
use super::format::{Format, Packing, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Scales, unpack};
use crate::linear::DisjointOut;
use crate::linear::activations::{GROUP, Group, QuantizedRows};
use crate::simd::tile_unit::{DotTile, TileUnit, WeightTile};
use crate::simd::{LANES, Simd, Work};

/// The product of `x` with some tiles of the matrix.
pub struct TileProduct<'a> {
    pub matrix: &'a PackedMatrix,
    pub x: &'a QuantizedRows<LANES>,
    pub out: &'a DisjointOut<'a>,
    pub tiles: Range<usize>,
}

/// One group of columns of a tile of weights, or of those that share a scale.
#[repr(C, align(64))]
#[derive(Clone)]
struct Unpacked {
    values: WeightTile,
    scales: [f32; LANES],
    minima: [f32; LANES],
}

thread_local! {
    /// Kept from piece to piece: a piece is as short as it would take to clear new memory.
    static SPARE: Cell<Vec<Unpacked>> = const { Cell::new(Vec::new()) };
}

impl Work for TileProduct<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let mut pass = Pass {
            unit: TileUnit::new(),
            dots: [DotTile::default(); 2 * LEAD],
            unpacked: SPARE.take(),
        };
        let Format {
            bits,
            has_min,
            groups,
            ..
        } = self.matrix.format;
        for tile in self.tiles.clone() {
            match (groups, bits, has_min) {
                (1, 4, false) => unpack_tile::<S, Q4_0>(self.matrix.tile(tile), &mut pass.unpacked),
                (1, 4, true) => unpack_tile::<S, Q4_1>(self.matrix.tile(tile), &mut pass.unpacked),
                (1, 5, false) => unpack_tile::<S, Q5_0>(self.matrix.tile(tile), &mut pass.unpacked),
                (1, 5, true) => unpack_tile::<S, Q5_1>(self.matrix.tile(tile), &mut pass.unpacked),
                (1, ..) => unpack_tile::<S, Q8_0>(self.matrix.tile(tile), &mut pass.unpacked),
                (_, 4, _) => unpack_tile::<S, Q4K>(self.matrix.tile(tile), &mut pass.unpacked),
                (_, 5, _) => unpack_tile::<S, Q5K>(self.matrix.tile(tile), &mut pass.unpacked),
                _ => unpack_tile::<S, Q6K>(self.matrix.tile(tile), &mut pass.unpacked),
            }
            match (bits, has_min) {
                (6, _) => self.all_rows::<S, false, 2>(tile, &mut pass),
                (_, false) => self.all_rows::<S, false, 1>(tile, &mut pass),
                (_, true) => self.all_rows::<S, true, 1>(tile, &mut pass),
            }
        }
        SPARE.set(pass.unpacked);
    }
}

/// Unpacks all groups of a tile of weights: one entry for each scale, in order of their columns.
#[inline(always)]
fn unpack_tile<S: Simd, P: Packing>(blocks: &[u8], unpacked: &mut Vec<Unpacked>) {
    let format = P::FORMAT;
    let blocks = blocks.chunks_exact(format.tile_bytes());
    let zero = Unpacked {
        values: [[0; 4 * LANES]; GROUP / 4],
        scales: [0.0; LANES],
        minima: [0.0; LANES],
    };
    let parts = format.scales_per_group();
    unpacked.resize(blocks.len() * format.groups * parts, zero);
    let mut groups = unpacked.chunks_exact_mut(parts);
    for block in blocks {
        for ((group, field), unpacked) in (0..format.groups).zip(0_u32..).zip(&mut groups) {
            let vectors = unpack::<S, P>(&block[LANES * group * format.group_bytes()..]);
            let scales = Scales::<S>::load::<P>(block, field);
            for (part, unpacked) in unpacked.iter_mut().enumerate() {
                for (j, vector) in vectors.into_iter().enumerate() {
                    // What another scale belongs to is zero.
                    if parts == 1 || j / 4 == part {
                        let vector = S::sub_b(vector, format.offset);
                        S::store_b(vector, &mut unpacked.values[j]);
                    } else {
                        unpacked.values[j] = [0; 4 * LANES];
                    }
                }
                S::store(scales.scales[part], &mut unpacked.scales);
                S::store(scales.min, &mut unpacked.minima);
            }
        }
    }
}

impl TileProduct<'_> {
    #[inline(always)]
    fn all_rows<S: Simd, const MIN: bool, const PARTS: usize>(&self, tile: usize, pass: &mut Pass) {
        let mut products = Products::<PARTS>::new(pass, self.x.all());
        for block in 0..self.x.rows.div_ceil(LANES) {
            let rows = block * LANES..self.x.rows.min((block + 1) * LANES);
            if rows.len() > LANES / 2 {
                let sums = products.sum_block::<S, MIN, LANES>();
                self.write::<S, LANES>(tile, rows, sums);
            } else {
                let sums = products.sum_block::<S, MIN, { LANES / 2 }>();
                self.write::<S, { LANES / 2 }>(tile, rows, sums);
            }
        }
    }

    #[inline(always)]
    fn write<S: Simd, const ROWS: usize>(
        &self,
        tile: usize,
        rows: Range<usize>,
        sums: [S::F; ROWS],
    ) {
        let outputs = LANES.min(self.matrix.outputs - tile * LANES);
        for (row, sum) in rows.zip(sums) {
            let mut lanes = [0.0; LANES];
            S::store(sum, &mut lanes);
            self.out.write(row, tile * LANES, &lanes[..outputs]);
        }
    }
}

/// How many products are written before the first of them is read: what the unit wrote last cannot be read
/// before it has reached the cache.
const LEAD: usize = 4;

/// What a thread needs for its products.
struct Pass {
    unit: TileUnit,
    /// Product `i` is in place `i % (2 · LEAD)`.
    dots: [DotTile; 2 * LEAD],
    /// The tile of weights at hand, `[group, part]`.
    unpacked: Vec<Unpacked>,
}

/// The products of one tile of weights with all blocks of rows, one after the other; `PARTS` of each group.
///
/// A product takes several times as long as it takes to start one. So they are started, written and read
/// in three places of one loop, which goes on from block to block.
struct Products<'a, const PARTS: usize> {
    unit: &'a TileUnit,
    dots: &'a mut [DotTile; 2 * LEAD],
    /// `[group, part]`.
    weights: &'a [Unpacked],
    /// `[block, group]`.
    x: &'a [Group<LANES>],
    /// The next product that is started, and its weights.
    next: usize,
    next_weights: usize,
}

impl<'a, const PARTS: usize> Products<'a, PARTS> {
    #[inline(always)]
    fn new(pass: &'a mut Pass, x: &'a [Group<LANES>]) -> Self {
        let mut products = Self {
            unit: &pass.unit,
            dots: &mut pass.dots,
            weights: &pass.unpacked,
            x,
            next: 0,
            next_weights: 0,
        };
        products.start();
        for _ in 0..LEAD {
            products.advance();
        }
        products
    }

    #[inline(always)]
    fn start(&mut self) {
        if let Some(x) = self.x.get(self.next / PARTS) {
            let weights = &self.weights[self.next_weights];
            if self.next.is_multiple_of(2) {
                self.unit.start::<0>(&x.values, &weights.values);
            } else {
                self.unit.start::<1>(&x.values, &weights.values);
            }
        }
        self.next += 1;
        self.next_weights += 1;
        if self.next_weights == self.weights.len() {
            self.next_weights = 0;
        }
    }

    /// Starts a product and writes the one before it.
    #[inline(always)]
    fn advance(&mut self) {
        self.start();
        let written = self.next - 2;
        let dots = &mut self.dots[written % (2 * LEAD)];
        if written.is_multiple_of(2) {
            self.unit.finish::<0>(dots);
        } else {
            self.unit.finish::<1>(dots);
        }
    }

    /// The sums over groups of the next block's first `ROWS` rows.
    #[inline(always)]
    fn sum_block<S: Simd, const MIN: bool, const ROWS: usize>(&mut self) -> [S::F; ROWS] {
        let mut sums = [S::splat(0.0); ROWS];
        for weights in self.weights {
            self.advance();
            let product = self.next - 2 - LEAD;
            let dots = &self.dots[product % (2 * LEAD)];
            add::<S, MIN, ROWS>(dots, &self.x[product / PARTS], weights, &mut sums);
        }
        sums
    }
}

/// Adds the scaled dot products of a group to each row's sums.
#[inline(always)]
fn add<S: Simd, const MIN: bool, const ROWS: usize>(
    dots: &DotTile,
    x: &Group<LANES>,
    weights: &Unpacked,
    sums: &mut [S::F; ROWS],
) {
    let scales = S::load(&weights.scales);
    let minima = S::load(&weights.minima);
    for (r, sum) in sums.iter_mut().enumerate() {
        let dot = S::to_f(S::load_i(&dots.0[r]));
        *sum = S::fma(S::mul(scales, S::splat(x.scales[r])), dot, *sum);
        if MIN {
            *sum = S::fma(minima, S::splat(x.scaled_sums[r]), *sum);
        }
    }
}
