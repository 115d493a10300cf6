//! Attention over blocks is softmax attention, and a position has its own bits.

use super::*;
use crate::kv_cache::store::tests::store_of;
use crate::layer_range::LayerRange;

/// Values between -1 and 1 that have no pattern; the same for the same `seed`.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        f32::from_bits(0x3F80_0000 | (state >> 41) as u32) * 2.0 - 3.0
    };
    (0..len).map(|_| next()).collect()
}

/// A session of `positions` whose blocks lie backwards in the store, and its keys and values,
/// `[position, kv_heads, head_dim]`.
struct Session {
    store: KvStore,
    table: KvTable,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Session {
    fn new(shape: AttentionShape, positions: usize) -> Self {
        let kv_size = shape.num_kv_heads * shape.head_dim;
        let columns = u32::try_from(KvTable::columns_for(positions)).unwrap();
        let mut session = Self {
            store: store_of(shape.num_kv_heads, shape.head_dim, columns as usize),
            table: KvTable::new(LayerRange::new(0, 1)),
            keys: noise(positions * kv_size, 1),
            values: noise(positions * kv_size, 2),
        };
        for column in (0..columns).rev() {
            session.table.push_column(&[BlockId(column)]);
        }
        let rows = session.keys.chunks_exact(kv_size);
        for (position, (keys, values)) in rows.zip(session.values.chunks_exact(kv_size)).enumerate()
        {
            let block = session.table.block(0, position / BLOCK_POSITIONS);
            let slot = position % BLOCK_POSITIONS;
            session.store.write(block, slot, keys, values);
        }
        session
    }

    /// Attention of the last `q.len() / q_size` positions.
    fn attend(&mut self, shape: AttentionShape, q: &[f32]) -> Vec<f32> {
        let q_size = shape.num_attention_heads * shape.head_dim;
        let positions = self.keys.len() / (shape.num_kv_heads * shape.head_dim);
        self.table.truncate(0);
        self.table.advance(positions - q.len() / q_size);
        let segment = Segment {
            table: &self.table,
            rows: q.len() / q_size,
        };
        let mut out = vec![0.0; q.len()];
        shape.forward((&self.store, 0), &[segment], q, q_size, &mut out);
        out
    }

    /// The formula, in f64, for one query head at the last position.
    fn expected(&self, shape: AttentionShape, query_head: usize, q: &[f32]) -> Vec<f64> {
        let head_dim = shape.head_dim;
        let kv_size = shape.num_kv_heads * head_dim;
        let kv_head = query_head / (shape.num_attention_heads / shape.num_kv_heads);
        let positions = self.keys.len() / kv_size;
        let first = shape
            .window
            .map_or(0, |window| positions.saturating_sub(window));
        let head = |rows: &[f32], position: usize| -> Vec<f64> {
            let at = position * kv_size + kv_head * head_dim;
            rows[at..at + head_dim]
                .iter()
                .copied()
                .map(f64::from)
                .collect()
        };
        let mut total = 0.0;
        let mut sums = vec![0.0; head_dim];
        for position in first..positions {
            let key = head(&self.keys, position);
            let dot: f64 = key.iter().zip(q).map(|(key, q)| key * f64::from(*q)).sum();
            let weight = (dot / (head_dim as f64).sqrt()).exp();
            total += weight;
            let value = head(&self.values, position);
            sums.iter_mut()
                .zip(value)
                .for_each(|(sum, value)| *sum += weight * value);
        }
        sums.into_iter().map(|sum| sum / total).collect()
    }
}

fn shapes() -> impl Iterator<Item = AttentionShape> {
    let sizes = [(9, 3, 64), (4, 1, 128), (4, 2, 16), (2, 2, 10)];
    sizes.into_iter().flat_map(|(queries, kv, head_dim)| {
        [None, Some(1), Some(20), Some(33)].map(|window| AttentionShape {
            num_attention_heads: queries,
            num_kv_heads: kv,
            head_dim,
            window,
        })
    })
}

#[test]
fn attention_over_blocks_is_the_softmax_average_of_the_visible_values() {
    for shape in shapes() {
        let q = noise(shape.num_attention_heads * shape.head_dim, 3);
        for positions in [1, 15, 16, 17, 31, 32, 33, 48, 49, 100] {
            let mut session = Session::new(shape, positions);
            let found = session.attend(shape, &q);
            let heads = q
                .chunks_exact(shape.head_dim)
                .zip(found.chunks_exact(shape.head_dim));
            for (query_head, (q, found)) in heads.enumerate() {
                let expected = session.expected(shape, query_head, q);
                for (found, expected) in found.iter().zip(expected) {
                    assert!(
                        (f64::from(*found) - expected).abs() < 1e-5,
                        "{shape:?} at {positions} positions: {found}, expected {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_position_gets_the_same_bits_alone_and_among_others() {
    for shape in shapes() {
        let q_size = shape.num_attention_heads * shape.head_dim;
        let q = noise(70 * q_size, 4);
        let together = Session::new(shape, 100).attend(shape, &q);
        for row in [0, 1, 2, 33, 34, 69] {
            let row_at = row * q_size..(row + 1) * q_size;
            let alone = Session::new(shape, 31 + row).attend(shape, &q[row_at.clone()]);
            assert_eq!(alone, together[row_at], "{shape:?} row {row}");
        }
    }
}
