//! Products for many input rows, on a tile unit.
//!
//! A tile of weights is unpacked once, to signed bytes, for all input rows. The unit gives the exact
//! integer sums of 16 rows and 16 outputs; scales and sums over groups are those of the other kernel,
//! operation by operation, so a row has the same bits from both.

use std::cell::Cell;
use std::ops::Range;

use super::{PackedMatrix, unpack};
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

/// One group of columns of a tile of weights.
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
        let zero = Unpacked {
            values: [[0; 4 * LANES]; GROUP / 4],
            scales: [0.0; LANES],
            minima: [0.0; LANES],
        };
        let mut unpacked = SPARE.take();
        unpacked.resize(self.x.block(0).len(), zero);
        let mut pass = Pass {
            unit: TileUnit::new(),
            dots: [DotTile::default(); 2 * LEAD],
        };
        for tile in self.tiles.clone() {
            let format = self.matrix.format;
            match (format.bits, format.has_min) {
                (4, false) => self.unpack::<S, 4, false>(tile, &mut unpacked),
                (4, true) => self.unpack::<S, 4, true>(tile, &mut unpacked),
                (5, false) => self.unpack::<S, 5, false>(tile, &mut unpacked),
                (5, true) => self.unpack::<S, 5, true>(tile, &mut unpacked),
                _ => self.unpack::<S, 8, false>(tile, &mut unpacked),
            }
            if format.has_min {
                self.all_rows::<S, true>(tile, &unpacked, &mut pass);
            } else {
                self.all_rows::<S, false>(tile, &unpacked, &mut pass);
            }
        }
        SPARE.set(unpacked);
    }
}

impl TileProduct<'_> {
    #[inline(always)]
    fn unpack<S: Simd, const BITS: usize, const MIN: bool>(
        &self,
        tile: usize,
        unpacked: &mut [Unpacked],
    ) {
        let format = self.matrix.format;
        let scales_at = LANES * (format.value_bytes() + format.fifth_bytes());
        let data = self
            .matrix
            .tile(tile)
            .chunks_exact(LANES * format.block_bytes());
        for (data, unpacked) in data.zip(unpacked) {
            let vectors = unpack::<S, BITS>(data);
            for (vector, values) in vectors.into_iter().zip(&mut unpacked.values) {
                S::store_b(S::sub_b(vector, format.offset), values);
            }
            S::store(S::load_f16(&data[scales_at..]), &mut unpacked.scales);
            if MIN {
                let minima = S::load_f16(&data[scales_at + 2 * LANES..]);
                S::store(minima, &mut unpacked.minima);
            }
        }
    }

    #[inline(always)]
    fn all_rows<S: Simd, const MIN: bool>(
        &self,
        tile: usize,
        weights: &[Unpacked],
        pass: &mut Pass,
    ) {
        let mut products = Products::new(pass, self.x.all(), weights);
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
}

/// The products of one tile of weights with all blocks of rows, one after the other.
///
/// A product takes several times as long as it takes to start one. So they are started, written and read
/// in three places of one loop, which goes on from block to block.
struct Products<'a> {
    pass: &'a mut Pass,
    /// `[block, group]`.
    x: &'a [Group<LANES>],
    /// `[group]`.
    weights: &'a [Unpacked],
    /// The next product that is started, and its group.
    next: usize,
    next_group: usize,
}

impl<'a> Products<'a> {
    #[inline(always)]
    fn new(pass: &'a mut Pass, x: &'a [Group<LANES>], weights: &'a [Unpacked]) -> Self {
        let mut products = Self {
            pass,
            x,
            weights,
            next: 0,
            next_group: 0,
        };
        products.start();
        for _ in 0..LEAD {
            products.advance();
        }
        products
    }

    #[inline(always)]
    fn start(&mut self) {
        if let Some(x) = self.x.get(self.next) {
            let weights = &self.weights[self.next_group];
            if self.next.is_multiple_of(2) {
                self.pass.unit.start::<0>(&x.values, &weights.values);
            } else {
                self.pass.unit.start::<1>(&x.values, &weights.values);
            }
        }
        self.next += 1;
        self.next_group += 1;
        if self.next_group == self.weights.len() {
            self.next_group = 0;
        }
    }

    /// Starts a product and writes the one before it.
    #[inline(always)]
    fn advance(&mut self) {
        self.start();
        let written = self.next - 2;
        let dots = &mut self.pass.dots[written % (2 * LEAD)];
        if written.is_multiple_of(2) {
            self.pass.unit.finish::<0>(dots);
        } else {
            self.pass.unit.finish::<1>(dots);
        }
    }

    /// The sums over groups of the next block's first `ROWS` rows.
    #[inline(always)]
    fn sum_block<S: Simd, const MIN: bool, const ROWS: usize>(&mut self) -> [S::F; ROWS] {
        let mut sums = [S::splat(0.0); ROWS];
        for weights in self.weights {
            self.advance();
            let product = self.next - 2 - LEAD;
            let dots = &self.pass.dots[product % (2 * LEAD)];
            add::<S, MIN, ROWS>(dots, &self.x[product], weights, &mut sums);
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
    for r in 0..ROWS {
        let dot = S::to_f(S::load_i(&dots.0[r]));
        sums[r] = S::fma(S::mul(scales, S::splat(x.scales[r])), dot, sums[r]);
        if MIN {
            sums[r] = S::fma(minima, S::splat(x.scaled_sums[r]), sums[r]);
        }
    }
}
