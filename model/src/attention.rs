//! Grouped-query attention of new positions over a session's KV cache.

use std::ops::Range;

use crate::kv_cache::store::{BLOCK_POSITIONS, BlockId, KvStore};
use crate::kv_cache::table::KvTable;
use crate::linear::DisjointOut;
use crate::simd::{LANES, Simd, Work, dispatch};
use crate::threads::parallel;

/// Query-key products below which handing work to other threads costs more than it saves.
const PARALLEL_PRODUCTS: usize = 1 << 17;

/// Sizes of the heads, and how far back they see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionShape {
    pub num_attention_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub window: Option<usize>,
}

/// One layer of a session's cache.
#[derive(Clone, Copy)]
pub(crate) struct LayerCache<'a> {
    pub store: &'a KvStore,
    pub table: &'a KvTable,
    pub layer: usize,
}

impl LayerCache<'_> {
    #[inline(always)]
    fn block(&self, column: usize) -> BlockId {
        self.table.block(self.layer, column)
    }
}

impl AttentionShape {
    /// Attention of `rows` new positions, the first at `table.len()`, whose keys and values are written.
    ///
    /// `q`: `[rows, q_stride]`, of which the first `num_attention_heads · head_dim` columns are the
    /// rotated queries. Writes `out`: `[rows, num_attention_heads, head_dim]`.
    pub(crate) fn forward(
        self,
        cache: LayerCache<'_>,
        q: &[f32],
        q_stride: usize,
        out: &mut [f32],
    ) {
        let rows = q.len() / q_stride;
        let q_size = self.num_attention_heads * self.head_dim;
        let first_position = cache.table.len();
        let products = rows * q_size * (first_position + rows);
        let out = DisjointOut::new(out, q_size);
        let work = |items: Range<usize>| {
            dispatch(Attend {
                shape: self,
                cache,
                q,
                q_stride,
                first_position,
                out,
                items,
            });
        };
        let items = rows * self.num_kv_heads;
        if products < PARALLEL_PRODUCTS {
            work(0..items)
        } else {
            parallel(items, 4, work)
        }
    }
}

/// Some (row, key-value head) pairs; an item is `row · num_kv_heads + kv_head`.
struct Attend<'a> {
    shape: AttentionShape,
    cache: LayerCache<'a>,
    q: &'a [f32],
    q_stride: usize,
    first_position: usize,
    out: DisjointOut<'a>,
    items: Range<usize>,
}

impl Work for Attend<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let AttentionShape {
            num_attention_heads,
            num_kv_heads,
            head_dim,
            window,
        } = self.shape;
        let group_size = num_attention_heads / num_kv_heads * head_dim;
        let mut scores = Vec::new();
        let mut context = vec![0.0; group_size];
        for item in self.items.clone() {
            let (row, kv_head) = (item / num_kv_heads, item % num_kv_heads);
            let position = self.first_position + row;
            let group = Group {
                cache: self.cache,
                kv_head,
                head_dim,
                q: &self.q[row * self.q_stride + kv_head * group_size..][..group_size],
                visible: window.map_or(0, |window| (position + 1).saturating_sub(window))
                    ..position + 1,
            };
            group.attend::<S>(&mut scores, &mut context);
            self.out.write(row, kv_head * group_size, &context);
        }
    }
}

/// The queries of one position that share a key-value head.
///
/// They pass over the blocks together, so that a block is read once for all of them. Tiles are aligned
/// to absolute positions, and sums go on from block to block: the order of every sum depends on the
/// position alone.
struct Group<'a> {
    cache: LayerCache<'a>,
    kv_head: usize,
    head_dim: usize,
    /// `[group, head_dim]`.
    q: &'a [f32],
    /// The positions that the queries see; not empty.
    visible: Range<usize>,
}

impl Group<'_> {
    /// Softmax attention. `context`: `[group, head_dim]`.
    #[inline(always)]
    fn attend<S: Simd>(&self, scores: &mut Vec<f32>, context: &mut [f32]) {
        let visible = self.visible.clone();
        let tiled = visible.start / LANES * LANES..visible.end.next_multiple_of(LANES);
        scores.clear();
        scores.resize(self.q.len() / self.head_dim * tiled.len(), 0.0);
        self.scores::<S>(tiled.clone(), scores);
        let mut inverses = Vec::new();
        for scores in scores.chunks_exact_mut(tiled.len()) {
            scores[..visible.start - tiled.start].fill(f32::NEG_INFINITY);
            scores[visible.end - tiled.start..].fill(f32::NEG_INFINITY);
            inverses.push(1.0 / softmax_numerators::<S>(scores));
        }
        context.fill(0.0);
        self.add_values::<S>(tiled, scores, context);
        for (context, inverse) in context.chunks_exact_mut(self.head_dim).zip(inverses) {
            context.iter_mut().for_each(|value| *value *= inverse);
        }
    }

    /// `scores = q · k / √head_dim` at the positions of `tiled`, whole tiles.
    /// `scores`: `[group, tiled.len()]`.
    #[inline(always)]
    #[expect(clippy::cast_precision_loss, reason = "head_dim is small")]
    fn scores<S: Simd>(&self, tiled: Range<usize>, scores: &mut [f32]) {
        let head_dim = self.head_dim;
        let scale = S::splat(1.0 / (head_dim as f32).sqrt());
        for (column, part) in columns(tiled.clone()) {
            let keys = self
                .cache
                .store
                .keys(self.cache.block(column), self.kv_head);
            let keys = &keys[part.start % BLOCK_POSITIONS * head_dim..];
            let part = part.start - tiled.start..part.end - tiled.start;
            let scores = scores.chunks_exact_mut(tiled.len());
            for (q, scores) in self.q.chunks_exact(head_dim).zip(scores) {
                block_scores::<S>(q, keys, scale, &mut scores[part.clone()]);
            }
        }
    }

    /// `context += Σ weight · value` over the visible positions, in their order.
    /// `weights`: `[group, tiled.len()]`.
    #[inline(always)]
    fn add_values<S: Simd>(&self, tiled: Range<usize>, weights: &[f32], context: &mut [f32]) {
        let head_dim = self.head_dim;
        for (column, part) in columns(self.visible.clone()) {
            let values = self
                .cache
                .store
                .values(self.cache.block(column), self.kv_head);
            let values = &values[part.start % BLOCK_POSITIONS * head_dim..];
            let part = part.start - tiled.start..part.end - tiled.start;
            let contexts = context.chunks_exact_mut(head_dim);
            for (weights, context) in weights.chunks_exact(tiled.len()).zip(contexts) {
                add_weighted::<S>(&weights[part.clone()], values, context);
            }
        }
    }
}

/// `scores = scale · q · k` for one query and some tiles of a block. `keys`: `[tile, head_dim, 16]`.
///
/// Two tiles at a time: either sum alone waits for its last product.
#[inline(always)]
fn block_scores<S: Simd>(q: &[f32], keys: &[f32], scale: S::F, scores: &mut [f32]) {
    let tile_len = q.len() * LANES;
    let mut keys = keys.chunks(2 * tile_len);
    for scores in scores.chunks_mut(2 * LANES) {
        let keys = keys.next().expect("a tile of keys for each tile of scores");
        let [mut first, mut second] = [S::splat(0.0); 2];
        if scores.len() == LANES {
            for (keys, q) in keys.as_chunks::<LANES>().0.iter().zip(q) {
                first = S::fma(S::load(keys), S::splat(*q), first);
            }
            S::store(S::mul(first, scale), scores);
            continue;
        }
        let (first_keys, second_keys) = keys.split_at(tile_len);
        let tiles = first_keys
            .as_chunks::<LANES>()
            .0
            .iter()
            .zip(second_keys.as_chunks::<LANES>().0);
        for ((first_keys, second_keys), q) in tiles.zip(q) {
            let q = S::splat(*q);
            first = S::fma(S::load(first_keys), q, first);
            second = S::fma(S::load(second_keys), q, second);
        }
        let (first_scores, second_scores) = scores.split_at_mut(LANES);
        S::store(S::mul(first, scale), first_scores);
        S::store(S::mul(second, scale), second_scores);
    }
}

/// `positions`, cut where columns end: each column with the positions that lie in it.
#[inline(always)]
fn columns(positions: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
    let columns = positions.start / BLOCK_POSITIONS..positions.end.div_ceil(BLOCK_POSITIONS);
    columns.map(move |column| {
        let start = positions.start.max(column * BLOCK_POSITIONS);
        let end = positions.end.min((column + 1) * BLOCK_POSITIONS);
        (column, start..end)
    })
}

/// `context += Σ weight · value`, in order of the positions. `values`: `[position, head_dim]`.
#[inline(always)]
fn add_weighted<S: Simd>(weights: &[f32], values: &[f32], context: &mut [f32]) {
    match context.len() {
        64 => add_weighted_of::<S, 4>(weights, values, context),
        128 => add_weighted_of::<S, 8>(weights, values, context),
        head_dim => {
            for (weight, values) in weights.iter().zip(values.chunks_exact(head_dim)) {
                let sums = context.iter_mut().zip(values);
                sums.for_each(|(sum, value)| *sum = value.mul_add(*weight, *sum));
            }
        }
    }
}

/// [`add_weighted`] with `head_dim = 16 · VECTORS`, its sums in registers.
#[inline(always)]
fn add_weighted_of<S: Simd, const VECTORS: usize>(
    weights: &[f32],
    values: &[f32],
    context: &mut [f32],
) {
    let context = context.as_chunks_mut::<LANES>().0;
    let mut sums = [S::splat(0.0); VECTORS];
    for (sum, context) in sums.iter_mut().zip(context.iter()) {
        *sum = S::load(context);
    }
    for (weight, values) in weights.iter().zip(values.chunks_exact(VECTORS * LANES)) {
        let weight = S::splat(*weight);
        for (sum, values) in sums.iter_mut().zip(values.as_chunks::<LANES>().0) {
            *sum = S::fma(S::load(values), weight, *sum);
        }
    }
    for (sum, context) in sums.into_iter().zip(context) {
        S::store(sum, context);
    }
}

/// Replaces scores by `exp(score - max)` and returns their sum.
#[inline(always)]
fn softmax_numerators<S: Simd>(scores: &mut [f32]) -> f32 {
    let mut largest = S::splat(f32::NEG_INFINITY);
    for scores in scores.as_chunks::<LANES>().0 {
        largest = S::max(largest, S::load(scores));
    }
    let mut lanes = [0.0; LANES];
    S::store(largest, &mut lanes);
    let largest = lanes
        .iter()
        .fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
    let mut total = S::splat(0.0);
    for scores in scores.as_chunks_mut::<LANES>().0 {
        exp(scores, largest);
        total = S::add(total, S::load(scores));
    }
    S::sum(total)
}

/// `x = exp(x - offset)` for `x <= offset`: `2^n · e^r` with a polynomial for `|r| <= ln 2 / 2`
/// (coefficients of the Cephes library's `expf`; relative error below 2e-7). 0 below about -87.
#[inline(always)]
pub(crate) fn exp(values: &mut [f32; LANES], offset: f32) {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 · 2^23 rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    for value in values {
        let x = *value - offset;
        let shifted = x.mul_add(LOG2_E, ROUND);
        let n = shifted - ROUND;
        let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
        let mut p = 1.987_569_1e-4_f32;
        p = p.mul_add(r, 1.398_199_9e-3);
        p = p.mul_add(r, 8.333_452e-3);
        p = p.mul_add(r, 4.166_579_6e-2);
        p = p.mul_add(r, 1.666_666_5e-1);
        p = p.mul_add(r, 5.000_000_3e-1);
        p = p.mul_add(r * r, r + 1.0);
        let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3F80_0000));
        *value = if x < -87.0 { 0.0 } else { p * power };
    }
}

#[cfg(test)]
mod tests;
