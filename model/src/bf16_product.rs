//! Products of large matrices in bfloat16 with sums in f32, on processors with a unit for them (AMX).
//!
//! For training, which needs no more precision and no particular order of sums; inference does not come here.

use std::ops::Range;

use crate::linear::DisjointOut;
use crate::simd::LANES;
use crate::simd::bf16_tiles::{Bf16Unit, DEPTH, Sums, Tile, bf16_detected};
use crate::threads::parallel;

/// What a core's own cache holds of the left matrix, beside the rest.
const LEFT_BYTES: usize = 512 << 10;
/// Pairs of column tiles that one piece of work takes.
const COLUMN_PAIRS: usize = 8;

/// A matrix in memory: the value of `row` and `column` is `values[row · row_stride + column · column_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// At least as many as the last row and column need.
    pub values: &'a [f32],
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// From one row to the next.
    pub row_stride: usize,
    /// From one column to the next.
    pub column_stride: usize,
}

/// True where the processor has a unit for these products.
#[must_use]
pub fn is_available() -> bool {
    bf16_detected()
}

/// `left · right` on all threads, `[left.rows, right.columns]`. Panics where [`is_available`] is false, where the matrices
/// do not fit together, or one of them is empty.
#[must_use]
pub fn product(left: Matrix<'_>, right: Matrix<'_>) -> Vec<f32> {
    assert_eq!(
        left.columns, right.rows,
        "as many columns as the right matrix has rows"
    );
    let (rows, columns, depth) = (left.rows, right.columns, left.columns);
    assert!(
        rows > 0 && columns > 0 && depth > 0,
        "matrices are not empty"
    );
    let depth_tiles = depth.div_ceil(DEPTH);
    let left = Lines {
        values: left.values,
        lines: rows,
        depth,
        line_stride: left.row_stride,
        depth_stride: left.column_stride,
    };
    let right = Lines {
        values: right.values,
        lines: columns,
        depth,
        line_stride: right.column_stride,
        depth_stride: right.row_stride,
    };
    let (left, right) = (left.tiles(Tile::of_rows), right.tiles(Tile::of_columns));
    let mut out = vec![0.0; rows * columns];
    let product = Product {
        left: &left,
        right: &right,
        depth_tiles,
        rows,
        columns,
        out: DisjointOut::new(&mut out, columns),
    };
    let pair_bytes = 2 * depth_tiles * size_of::<Tile>();
    let row_pairs = rows.div_ceil(2 * LANES);
    let pairs_each = (LEFT_BYTES / pair_bytes).clamp(1, row_pairs);
    let row_pieces = row_pairs.div_ceil(pairs_each);
    let column_pairs = columns.div_ceil(2 * LANES);
    let column_pieces = column_pairs.div_ceil(COLUMN_PAIRS);
    parallel(row_pieces * column_pieces, 4, |pieces| {
        let unit = Bf16Unit::new();
        for piece in pieces {
            let (row_piece, column_piece) = (piece / column_pieces, piece % column_pieces);
            let first = row_piece * pairs_each;
            let row_pairs = first..(first + pairs_each).min(row_pairs);
            let first = column_piece * COLUMN_PAIRS;
            let column_pairs = first..(first + COLUMN_PAIRS).min(column_pairs);
            product.piece(&unit, row_pairs, column_pairs);
        }
    });
    out
}

struct Product<'a> {
    /// `[row tile][depth tile]`, an even number of row tiles.
    left: &'a [Tile],
    /// `[column tile][depth tile]`, an even number of column tiles.
    right: &'a [Tile],
    depth_tiles: usize,
    rows: usize,
    columns: usize,
    out: DisjointOut<'a>,
}

impl Product<'_> {
    fn piece(&self, unit: &Bf16Unit, row_pairs: Range<usize>, column_pairs: Range<usize>) {
        let mut sums = [[Sums([[0.0; LANES]; LANES]); 2]; 2];
        for column_pair in column_pairs {
            for row_pair in row_pairs.clone() {
                let left = self.pair(self.left, row_pair);
                let right = self.pair(self.right, column_pair);
                unit.products(left, right, &mut sums);
                for (tile, sums) in sums.iter().enumerate() {
                    self.write((2 * row_pair + tile) * LANES, 2 * column_pair * LANES, sums);
                }
            }
        }
    }

    fn pair<'b>(&self, tiles: &'b [Tile], pair: usize) -> [&'b [Tile]; 2] {
        let tiles = &tiles[2 * pair * self.depth_tiles..][..2 * self.depth_tiles];
        let (one, other) = tiles.split_at(self.depth_tiles);
        [one, other]
    }

    /// Writes what lies inside of the output.
    fn write(&self, first_row: usize, first_column: usize, sums: &[Sums; 2]) {
        for (tile, sums) in sums.iter().enumerate() {
            let column = first_column + tile * LANES;
            let count = self.columns.saturating_sub(column).min(LANES);
            if count == 0 {
                continue;
            }
            for (row, sums) in (first_row..self.rows).zip(&sums.0) {
                self.out.write(row, column, &sums[..count]);
            }
        }
    }
}

/// Rows of a left matrix or columns of a right one.
#[derive(Clone, Copy)]
struct Lines<'a> {
    values: &'a [f32],
    lines: usize,
    depth: usize,
    line_stride: usize,
    depth_stride: usize,
}

/// Two neighbours along the depth in one word.
type Pairs = [[u32; LANES]; LANES];

impl Lines<'_> {
    /// `[line tile][depth tile]`, padded with zeros to an even number of line tiles.
    fn tiles(self, tile: impl Fn(Pairs, Order) -> Tile + Sync) -> Vec<Tile> {
        let depth_tiles = self.depth.div_ceil(DEPTH);
        let line_tiles = self.lines.div_ceil(2 * LANES) * 2;
        let zero = Tile([[0; LANES]; LANES]);
        let mut tiles = vec![zero; line_tiles * depth_tiles];
        crate::linear::for_chunks(depth_tiles, self.lines, &mut tiles, |line_tile, tiles| {
            for (depth_tile, to) in tiles.iter_mut().enumerate() {
                let (pairs, order) = self.pairs(line_tile * LANES, depth_tile * DEPTH);
                *to = tile(pairs, order);
            }
        });
        tiles
    }

    /// The values of 16 lines from `line` on, 32 of each from `depth` on, in the order in which they are read fastest.
    fn pairs(self, line: usize, depth: usize) -> (Pairs, Order) {
        let mut pairs = [[0; LANES]; LANES];
        let is_inside = line + LANES <= self.lines && depth + DEPTH <= self.depth;
        if is_inside && self.line_stride == 1 {
            for (pair, words) in pairs.iter_mut().enumerate() {
                let at = |depth: usize| {
                    let values = &self.values[depth * self.depth_stride + line..];
                    values.first_chunk::<LANES>().copied().unwrap_or_default()
                };
                let (even, odd) = (at(depth + 2 * pair), at(depth + 2 * pair + 1));
                for ((word, even), odd) in words.iter_mut().zip(even).zip(odd) {
                    *word = packed(even, odd);
                }
            }
            return (pairs, Order::ByPair);
        }
        for (row, words) in pairs.iter_mut().enumerate() {
            let line = line + row;
            if is_inside && self.depth_stride == 1 {
                let values = &self.values[line * self.line_stride + depth..][..DEPTH];
                for (word, values) in words.iter_mut().zip(values.as_chunks::<2>().0) {
                    *word = packed(values[0], values[1]);
                }
                continue;
            }
            let at = |depth: usize| {
                let is_inside = line < self.lines && depth < self.depth;
                let index = line * self.line_stride + depth * self.depth_stride;
                if is_inside { self.values[index] } else { 0.0 }
            };
            for (pair, word) in words.iter_mut().enumerate() {
                *word = packed(at(depth + 2 * pair), at(depth + 2 * pair + 1));
            }
        }
        (pairs, Order::ByLine)
    }
}

/// How [`Pairs`] lie.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// `[line][pair]`.
    ByLine,
    /// `[pair][line]`.
    ByPair,
}

impl Tile {
    fn of_rows(pairs: Pairs, order: Order) -> Self {
        Self(match order {
            Order::ByLine => pairs,
            Order::ByPair => transposed(&pairs),
        })
    }

    fn of_columns(pairs: Pairs, order: Order) -> Self {
        Self(match order {
            Order::ByLine => transposed(&pairs),
            Order::ByPair => pairs,
        })
    }
}

fn transposed(from: &Pairs) -> Pairs {
    let mut to = [[0; LANES]; LANES];
    for (row, from) in from.iter().enumerate() {
        for (to, from) in to.iter_mut().zip(from) {
            to[row] = *from;
        }
    }
    to
}

/// Two values rounded to bfloat16, the first one in the lower half.
const fn packed(first: f32, second: f32) -> u32 {
    const fn rounded(value: f32) -> u32 {
        let bits = value.to_bits();
        // To the nearest, ties to even.
        bits.wrapping_add(0x7FFF + ((bits >> 16) & 1))
    }
    rounded(first) >> 16 | rounded(second) & 0xFFFF_0000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from_bits(0x3F80_0000 | (state >> 9)) * 2.0 - 3.0
        };
        (0..len).map(|_| next()).collect()
    }

    fn at(matrix: &Matrix<'_>, row: usize, column: usize) -> f64 {
        let value = matrix.values[row * matrix.row_stride + column * matrix.column_stride];
        f64::from(f32::from_bits(packed(value, 0.0) << 16))
    }

    #[test]
    fn products_of_any_size_and_order_are_those_of_the_rounded_matrices() {
        if !is_available() {
            return;
        }
        let sizes = [
            (1, 1, 1),
            (16, 32, 16),
            (17, 33, 31),
            (64, 100, 40),
            (90, 64, 300),
        ];
        for ((rows, depth, columns), order) in sizes
            .into_iter()
            .flat_map(|size| [(size, 0), (size, 1), (size, 2), (size, 3)])
        {
            let (a, b) = (noise(rows * depth, 1), noise(depth * columns, 2));
            let matrix = |values, rows, columns, is_transposed: bool| Matrix {
                values,
                rows,
                columns,
                row_stride: if is_transposed { 1 } else { columns },
                column_stride: if is_transposed { rows } else { 1 },
            };
            let left = matrix(&a, rows, depth, order & 1 == 1);
            let right = matrix(&b, depth, columns, order & 2 == 2);
            let found = product(left, right);
            for (index, found) in found.into_iter().enumerate() {
                let (row, column) = (index / columns, index % columns);
                let expected: f64 = (0..depth)
                    .map(|i| at(&left, row, i) * at(&right, i, column))
                    .sum();
                let difference = (f64::from(found) - expected).abs();
                assert!(
                    difference < 1e-4,
                    "{rows} {depth} {columns}: {found} {expected}"
                );
            }
        }
    }

    #[test]
    fn values_are_rounded_to_the_nearest_bfloat16() {
        for value in noise(1000, 3).into_iter().chain([0.0, -1.0, 1e30, 1e-30]) {
            let expected = half::bf16::from_f32(value).to_bits();
            assert_eq!(packed(value, value), u32::from(expected) * 0x0001_0001);
        }
    }
}
