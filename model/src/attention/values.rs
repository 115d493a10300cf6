//! Sums of a block's values, weighted for several queries.

use std::ops::Range;

use super::Query;
use crate::kv_cache::store::BLOCK_POSITIONS;
use crate::simd::{LANES, Simd};

/// Weights of queries, `[query, stride]`, for positions from `start` on.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    pub values: &'a [f32],
    pub stride: usize,
    pub start: usize,
}

impl Weights<'_> {
    #[inline(always)]
    fn of(&self, query: usize, positions: Range<usize>) -> &[f32] {
        &self.values[query * self.stride..]
            [positions.start - self.start..positions.end - self.start]
    }
}

/// One head's values in a block.
pub struct Values<'a> {
    /// `[position, head_dim]`.
    pub values: &'a [f32],
    /// Its first position.
    pub start: usize,
    pub head_dim: usize,
}

impl Values<'_> {
    /// Adds what the first `Q` of `queries` see of `part`. Returns `Q`.
    ///
    /// The positions that all of them see are added to all at once; a window and the positions of the
    /// chunk itself begin and end at different places.
    #[inline(always)]
    pub fn add<S: Simd, const Q: usize>(
        &self,
        queries: &[Query<'_>],
        part: Range<usize>,
        weights: Weights<'_>,
        context: &mut [f32],
    ) -> usize {
        let clamp = |position: usize| position.clamp(part.start, part.end);
        let start = clamp(queries[Q - 1].visible.start);
        let end = clamp(queries[0].visible.end).max(start);
        for (i, query) in queries[..Q].iter().enumerate() {
            let first = clamp(query.visible.start);
            let end = clamp(query.visible.end);
            self.add_positions::<S, 1>(first..start.min(end), i, weights, context);
        }
        self.add_positions::<S, Q>(start..end, 0, weights, context);
        for (i, query) in queries[..Q].iter().enumerate() {
            let first = clamp(query.visible.start).max(end);
            self.add_positions::<S, 1>(first..clamp(query.visible.end), i, weights, context);
        }
        Q
    }

    /// Adds `positions` to the context of `Q` queries from `query` on.
    #[inline(always)]
    fn add_positions<S: Simd, const Q: usize>(
        &self,
        positions: Range<usize>,
        query: usize,
        weights: Weights<'_>,
        context: &mut [f32],
    ) {
        if positions.is_empty() {
            return;
        }
        let head_dim = self.head_dim;
        let values = &self.values[(positions.start - self.start) * head_dim..];
        let weights: [&[f32]; Q] = std::array::from_fn(
            #[inline(always)]
            |i| weights.of(query + i, positions.clone()),
        );
        let context = &mut context[query * head_dim..][..Q * head_dim];
        let mut column = 0;
        while column + 4 * LANES <= head_dim {
            add_weighted::<S, Q, 4>(weights, values, column, context);
            column += 4 * LANES;
        }
        while column + LANES <= head_dim {
            add_weighted::<S, Q, 1>(weights, values, column, context);
            column += LANES;
        }
        for (context, weights) in context.chunks_exact_mut(head_dim).zip(weights) {
            for (weight, values) in weights.iter().zip(values.chunks_exact(head_dim)) {
                let sums = context[column..].iter_mut().zip(&values[column..]);
                sums.for_each(|(sum, value)| *sum = value.mul_add(*weight, *sum));
            }
        }
    }
}

/// `context += Σ weight · value` in order of the positions, for `Q` queries and `VECTORS` vectors of columns
/// from `column` on; sums are in registers. `values`: `[position, head_dim]`, `context`: `[Q, head_dim]`.
#[inline(always)]
fn add_weighted<S: Simd, const Q: usize, const VECTORS: usize>(
    weights: [&[f32]; Q],
    values: &[f32],
    column: usize,
    context: &mut [f32],
) {
    let head_dim = context.len() / Q;
    // Copied, so that no bound is checked and no pointer is loaded for each position.
    let mut local = [[0.0; BLOCK_POSITIONS]; Q];
    for (local, weights) in local.iter_mut().zip(weights) {
        local[..weights.len()].copy_from_slice(weights);
    }
    let values = values.chunks_exact(head_dim).take(weights[0].len());
    let mut sums = [[S::splat(0.0); VECTORS]; Q];
    for (i, sums) in sums.iter_mut().enumerate() {
        let context = &context[i * head_dim + column..];
        for (sum, context) in sums.iter_mut().zip(context.as_chunks::<LANES>().0) {
            *sum = S::load(context);
        }
    }
    for (position, values) in (0..BLOCK_POSITIONS).zip(values) {
        let values = values[column..].as_chunks::<LANES>().0;
        let mut vectors = [S::splat(0.0); VECTORS];
        for (vector, values) in vectors.iter_mut().zip(&values[..VECTORS]) {
            *vector = S::load(values);
        }
        for (sums, weights) in sums.iter_mut().zip(&local) {
            let weight = S::splat(weights[position]);
            for (sum, vector) in sums.iter_mut().zip(vectors) {
                *sum = S::fma(vector, weight, *sum);
            }
        }
    }
    for (i, sums) in sums.into_iter().enumerate() {
        let context = &mut context[i * head_dim + column..];
        for (sum, context) in sums.into_iter().zip(context.as_chunks_mut::<LANES>().0) {
            S::store(sum, context);
        }
    }
}
