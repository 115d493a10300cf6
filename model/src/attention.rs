//! Grouped-query attention of new positions over their sessions' KV caches.

use std::ops::Range;

use crate::decoder::Segment;
use crate::kv_cache::store::{BLOCK_POSITIONS, BlockId, KvStore};
use crate::kv_cache::table::KvTable;
use crate::linear::DisjointOut;
use crate::simd::{LANES, Simd, Work, dispatch};
use crate::threads::parallel;
use scores::{Strided, block_scores};
use values::{Values, Weights};

mod scores;
mod values;

/// Query-key products below which handing work to other threads costs more than it saves.
const PARALLEL_PRODUCTS: usize = 1 << 17;

/// Queries that pass over the blocks together.
const GROUP_QUERIES: usize = 24;

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
struct LayerCache<'a> {
    store: &'a KvStore,
    table: &'a KvTable,
    layer: usize,
}

impl LayerCache<'_> {
    #[inline(always)]
    fn block(&self, column: usize) -> BlockId {
        self.table.block(self.layer, column)
    }
}

impl AttentionShape {
    /// Attention in `layer` of the new positions of `segments`, whose keys and values are written.
    ///
    /// `q`: `[rows of all segments, q_stride]`, of which the first `num_attention_heads · head_dim` columns are the
    /// rotated queries. Writes `out`: `[rows, num_attention_heads, head_dim]`.
    pub(crate) fn forward(
        self,
        (store, layer): (&KvStore, usize),
        segments: &[Segment<'_>],
        q: &[f32],
        q_stride: usize,
        out: &mut [f32],
    ) {
        let q_size = self.num_attention_heads * self.head_dim;
        let rows_per_item = (GROUP_QUERIES / self.queries_per_kv_head()).max(1);
        let (mut products, mut first_row, mut items) = (0, 0, 0);
        let shares: Vec<_> = segments
            .iter()
            .map(|segment| {
                let share = Share {
                    segment: *segment,
                    first_row,
                    row_blocks: segment.rows.div_ceil(rows_per_item),
                    first_item: items,
                };
                products += segment.rows * q_size * (segment.table.len() + segment.rows);
                first_row += segment.rows;
                items += share.row_blocks * self.num_kv_heads;
                share
            })
            .collect();
        let out = DisjointOut::new(out, q_size);
        let work = |items: Range<usize>| {
            dispatch(Attend {
                shape: self,
                store,
                layer,
                shares: &shares,
                q,
                q_stride,
                out,
                rows_per_item,
                items,
            });
        };
        if products < PARALLEL_PRODUCTS {
            work(0..items)
        } else {
            parallel(items, 8, work)
        }
    }

    const fn queries_per_kv_head(&self) -> usize {
        self.num_attention_heads / self.num_kv_heads
    }
}

/// A segment's part of the work.
#[derive(Clone, Copy)]
struct Share<'a> {
    segment: Segment<'a>,
    /// Its first row in the batch.
    first_row: usize,
    row_blocks: usize,
    /// Items of the segments before it.
    first_item: usize,
}

/// Some (segment, row block, key-value head) triples. A segment's later rows see more and come first, so that the
/// threads end together: its items are `blocks from the last · num_kv_heads + kv_head`.
struct Attend<'a> {
    shape: AttentionShape,
    store: &'a KvStore,
    layer: usize,
    shares: &'a [Share<'a>],
    q: &'a [f32],
    q_stride: usize,
    out: DisjointOut<'a>,
    rows_per_item: usize,
    items: Range<usize>,
}

impl Work for Attend<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let AttentionShape {
            num_kv_heads,
            head_dim,
            ..
        } = self.shape;
        let group_size = self.shape.queries_per_kv_head() * head_dim;
        let mut scores = Vec::new();
        let mut context = Vec::new();
        for item in self.items.clone() {
            let behind = self
                .shares
                .partition_point(|share| share.first_item <= item);
            let share = self.shares[behind - 1];
            let Segment { table, rows } = share.segment;
            let item = item - share.first_item;
            let row_block = share.row_blocks - 1 - item / num_kv_heads;
            let kv_head = item % num_kv_heads;
            let rows =
                row_block * self.rows_per_item..((row_block + 1) * self.rows_per_item).min(rows);
            let group = Group {
                cache: LayerCache {
                    store: self.store,
                    table,
                    layer: self.layer,
                },
                kv_head,
                head_dim,
                queries: self.queries(share, rows.clone(), kv_head),
            };
            context.clear();
            context.resize(rows.len() * group_size, 0.0);
            group.attend::<S>(&mut scores, &mut context);
            for (row, context) in rows.zip(context.chunks_exact(group_size)) {
                let row = share.first_row + row;
                self.out.write(row, kv_head * group_size, context);
            }
        }
    }
}

impl<'a> Attend<'a> {
    /// The queries of `rows` of a segment that read `kv_head`, row by row.
    fn queries(&self, share: Share<'_>, rows: Range<usize>, kv_head: usize) -> Vec<Query<'a>> {
        let shape = self.shape;
        let group_size = shape.queries_per_kv_head() * shape.head_dim;
        let first_position = share.segment.table.len();
        rows.flat_map(|row| {
            let end = first_position + row + 1;
            let start = shape.window.map_or(0, |window| end.saturating_sub(window));
            let q = (share.first_row + row) * self.q_stride + kv_head * group_size;
            let q = &self.q[q..][..group_size];
            q.chunks_exact(shape.head_dim).map(move |q| Query {
                q,
                visible: start..end,
            })
        })
        .collect()
    }
}

/// One query head of one position.
struct Query<'a> {
    /// `[head_dim]`.
    q: &'a [f32],
    /// The positions that it sees; not empty.
    visible: Range<usize>,
}

/// Queries of neighbouring positions that share a key-value head, in order of their positions.
///
/// They pass over the blocks together, so that what is read once serves several of them. Tiles are aligned
/// to absolute positions, and sums go on from block to block: the order of every sum depends on the
/// position alone.
struct Group<'a> {
    cache: LayerCache<'a>,
    kv_head: usize,
    head_dim: usize,
    queries: Vec<Query<'a>>,
}

impl Group<'_> {
    /// Softmax attention. `context`: `[query, head_dim]`, zeros at first.
    #[inline(always)]
    fn attend<S: Simd>(&self, scores: &mut Vec<f32>, context: &mut [f32]) {
        let (first, last) = (
            &self.queries[0].visible,
            &self.queries[self.queries.len() - 1].visible,
        );
        let tiled = first.start / LANES * LANES..last.end.next_multiple_of(LANES);
        scores.resize(self.queries.len() * tiled.len(), 0.0);
        self.scores::<S>(tiled.clone(), scores);
        let mut inverses = Vec::with_capacity(self.queries.len());
        for (query, scores) in self
            .queries
            .iter()
            .zip(scores.chunks_exact_mut(tiled.len()))
        {
            let visible = query.visible.start - tiled.start..query.visible.end - tiled.start;
            let tiles = visible.start / LANES * LANES..visible.end.next_multiple_of(LANES);
            scores[tiles.start..visible.start].fill(f32::NEG_INFINITY);
            scores[visible.end..tiles.end].fill(f32::NEG_INFINITY);
            inverses.push(1.0 / softmax_numerators::<S>(&mut scores[tiles]));
        }
        self.add_values::<S>(tiled, scores, context);
        for (context, inverse) in context.chunks_exact_mut(self.head_dim).zip(inverses) {
            context.iter_mut().for_each(|value| *value *= inverse);
        }
    }

    /// `scores = q · k / √head_dim` at the positions of `tiled`, whole tiles.
    /// `scores`: `[query, tiled.len()]`.
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
            let tiles = part.len() / LANES;
            let mut queries = self.queries.as_slice();
            let mut scores = Strided {
                values: &mut scores[part.start - tiled.start..],
                stride: tiled.len(),
            };
            while let [_, ..] = queries {
                let taken = match queries.len() {
                    6.. => block_scores::<S, 6>(queries, keys, tiles, scale, &mut scores),
                    3.. => block_scores::<S, 3>(queries, keys, tiles, scale, &mut scores),
                    2.. => block_scores::<S, 2>(queries, keys, tiles, scale, &mut scores),
                    _ => block_scores::<S, 1>(queries, keys, tiles, scale, &mut scores),
                };
                queries = &queries[taken..];
                scores.skip(taken);
            }
        }
    }

    /// `context += Σ weight · value` over each query's visible positions, in their order.
    /// `weights`: `[query, tiled.len()]`.
    #[inline(always)]
    fn add_values<S: Simd>(&self, tiled: Range<usize>, weights: &[f32], context: &mut [f32]) {
        for (column, part) in columns(tiled.clone()) {
            let block = self.cache.block(column);
            let values = Values {
                values: self.cache.store.values(block, self.kv_head),
                start: column * BLOCK_POSITIONS,
                head_dim: self.head_dim,
            };
            let mut first = 0;
            while first < self.queries.len() {
                let queries = &self.queries[first..];
                let weights = Weights {
                    values: &weights[first * tiled.len()..],
                    stride: tiled.len(),
                    start: tiled.start,
                };
                let context = &mut context[first * self.head_dim..];
                first += match queries.len() {
                    6.. => values.add::<S, 6>(queries, part.clone(), weights, context),
                    3.. => values.add::<S, 3>(queries, part.clone(), weights, context),
                    2.. => values.add::<S, 2>(queries, part.clone(), weights, context),
                    _ => values.add::<S, 1>(queries, part.clone(), weights, context),
                };
            }
        }
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
pub fn exp(values: &mut [f32; LANES], offset: f32) {
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
