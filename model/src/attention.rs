//! Grouped-query attention of new positions over a session's KV cache.

use crate::kv_cache::{HeadView, KvCache};
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

impl AttentionShape {
    /// Attention of `rows` new positions, the first at `cache.len()`, whose keys and values are written.
    ///
    /// `q`: `[rows, q_stride]`, of which the first `num_attention_heads · head_dim` columns are the
    /// rotated queries. Writes `out`: `[rows, num_attention_heads, head_dim]`.
    pub(crate) fn forward(
        self,
        cache: &KvCache,
        layer: usize,
        q: &[f32],
        q_stride: usize,
        out: &mut [f32],
    ) {
        let rows = q.len() / q_stride;
        let q_size = self.num_attention_heads * self.head_dim;
        let products = rows * q_size * (cache.len() + rows);
        let out = DisjointOut::new(out, q_size);
        let first_position = cache.len();
        let work = |items: std::ops::Range<usize>| {
            dispatch(Attend {
                shape: self,
                cache,
                layer,
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
    cache: &'a KvCache,
    layer: usize,
    q: &'a [f32],
    q_stride: usize,
    first_position: usize,
    out: DisjointOut<'a>,
    items: std::ops::Range<usize>,
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
        let group = num_attention_heads / num_kv_heads;
        let mut scores = Vec::new();
        let mut context = vec![0.0; head_dim.next_multiple_of(LANES)];
        for item in self.items.clone() {
            let (row, kv_head) = (item / num_kv_heads, item % num_kv_heads);
            let position = self.first_position + row;
            let visible =
                window.map_or(0, |window| (position + 1).saturating_sub(window))..position + 1;
            let head = self.cache.head(self.layer, kv_head);
            for query_head in kv_head * group..(kv_head + 1) * group {
                let q = &self.q[row * self.q_stride + query_head * head_dim..][..head_dim];
                one_query::<S>(q, head, visible.clone(), &mut scores, &mut context);
                self.out
                    .write(row, query_head * head_dim, &context[..head_dim]);
            }
        }
    }
}

/// Softmax attention of one query over the `visible` positions; `context`: `[head_dim]`, padded.
///
/// Tiles are aligned to absolute positions, so the order of every sum depends on the position alone.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "head_dim is small")]
fn one_query<S: Simd>(
    q: &[f32],
    head: HeadView<'_>,
    visible: std::ops::Range<usize>,
    scores: &mut Vec<f32>,
    context: &mut [f32],
) {
    let head_dim = q.len();
    let scale = S::splat(1.0 / (head_dim as f32).sqrt());
    let tiles = visible.start / LANES..visible.end.div_ceil(LANES);
    scores.clear();
    scores.resize(tiles.len() * LANES, 0.0);
    for (tile, scores) in tiles.clone().zip(scores.as_chunks_mut::<LANES>().0) {
        let keys = &head.keys[tile * head_dim * LANES..(tile + 1) * head_dim * LANES];
        let mut sum = S::splat(0.0);
        for (keys, q) in keys.as_chunks::<LANES>().0.iter().zip(q) {
            sum = S::fma(S::load(keys), S::splat(*q), sum);
        }
        S::store(S::mul(sum, scale), scores);
    }
    let first = tiles.start * LANES;
    scores[..visible.start - first].fill(f32::NEG_INFINITY);
    scores[visible.end - first..].fill(f32::NEG_INFINITY);
    let total = softmax_numerators::<S>(scores);
    weighted_values::<S>(
        &scores[visible.start - first..visible.end - first],
        &head.values[visible.start * head_dim..],
        context,
        head_dim,
    );
    let inverse = 1.0 / total;
    context.iter_mut().for_each(|value| *value *= inverse);
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

/// `context = Σ weight · value`, in order of the positions. `values`: `[position, head_dim]`.
#[inline(always)]
fn weighted_values<S: Simd>(weights: &[f32], values: &[f32], context: &mut [f32], head_dim: usize) {
    if head_dim == 64 {
        return weighted_values_of::<S, 4>(weights, values, context);
    }
    if head_dim == 128 {
        return weighted_values_of::<S, 8>(weights, values, context);
    }
    context.fill(0.0);
    for (weight, values) in weights.iter().zip(values.chunks_exact(head_dim)) {
        context
            .iter_mut()
            .zip(values)
            .for_each(|(sum, value)| *sum = value.mul_add(*weight, *sum));
    }
}

/// [`weighted_values`] with `head_dim = 16 · VECTORS`, its sums in registers.
#[inline(always)]
fn weighted_values_of<S: Simd, const VECTORS: usize>(
    weights: &[f32],
    values: &[f32],
    context: &mut [f32],
) {
    let mut sums = [S::splat(0.0); VECTORS];
    for (weight, values) in weights.iter().zip(values.chunks_exact(VECTORS * LANES)) {
        let weight = S::splat(*weight);
        for (sum, values) in sums.iter_mut().zip(values.as_chunks::<LANES>().0) {
            *sum = S::fma(S::load(values), weight, *sum);
        }
    }
    for (sum, context) in sums.into_iter().zip(context.as_chunks_mut::<LANES>().0) {
        S::store(sum, context);
    }
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
