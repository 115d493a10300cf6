//! Scores of several queries over the tiles of a block of keys.

use super::Query;
use crate::simd::{LANES, Simd};

/// Rows of a matrix that are `stride` apart, from some column on.
pub struct Strided<'a> {
    pub values: &'a mut [f32],
    pub stride: usize,
}

impl Strided<'_> {
    /// Goes on at the row that many rows below.
    pub fn skip(&mut self, rows: usize) {
        let at = self.values.len().min(rows * self.stride);
        self.values = &mut std::mem::take(&mut self.values)[at..];
    }
}

/// `scores = scale · q · k` for `Q` queries and `tiles` tiles of a block, one or two. `keys`:
/// `[tile, head_dim, 16]`. Returns `Q`.
///
/// Several sums at a time: one alone waits for its last product.
#[inline(always)]
pub fn block_scores<S: Simd, const Q: usize>(
    queries: &[Query<'_>],
    keys: &[f32],
    tiles: usize,
    scale: S::F,
    scores: &mut Strided<'_>,
) -> usize {
    let q: [&[f32]; Q] = std::array::from_fn(
        #[inline(always)]
        |i| queries[i].q,
    );
    if tiles == 2 {
        tile_scores::<S, Q, 2>(q, keys, scale, scores);
    } else {
        tile_scores::<S, Q, 1>(q, keys, scale, scores);
    }
    Q
}

#[inline(always)]
fn tile_scores<S: Simd, const Q: usize, const TILES: usize>(
    q: [&[f32]; Q],
    keys: &[f32],
    scale: S::F,
    scores: &mut Strided<'_>,
) {
    let head_dim = q[0].len();
    let q = q.map(
        #[inline(always)]
        |q| &q[..head_dim],
    );
    let tiles: [&[[f32; LANES]]; TILES] = std::array::from_fn(
        #[inline(always)]
        |tile| &keys[tile * head_dim * LANES..].as_chunks().0[..head_dim],
    );
    let mut sums = [[S::splat(0.0); TILES]; Q];
    for d in 0..head_dim {
        let mut keys = [S::splat(0.0); TILES];
        for (keys, tile) in keys.iter_mut().zip(tiles) {
            *keys = S::load(&tile[d]);
        }
        for (sums, q) in sums.iter_mut().zip(&q) {
            let q = S::splat(q[d]);
            for (sum, keys) in sums.iter_mut().zip(keys) {
                *sum = S::fma(keys, q, *sum);
            }
        }
    }
    for (i, sums) in sums.into_iter().enumerate() {
        let scores = &mut scores.values[i * scores.stride..][..TILES * LANES];
        for (sum, scores) in sums.into_iter().zip(scores.as_chunks_mut::<LANES>().0) {
            S::store(S::mul(sum, scale), scores);
        }
    }
}
