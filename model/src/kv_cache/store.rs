//! The memory of a device's blocks of keys and values.
//!
//! Within a block, keys of one head lie in tiles of 16 positions, `[kv_head, tile, head_dim, 16]`, so
//! that attention computes 16 scores at a time; values lie behind them as
//! `[kv_head, position, head_dim]`.

use std::ops::Range;

use crate::config::ModelConfig;
use crate::simd::LANES;

/// Positions of one block. A multiple of 16, so that a tile of keys lies in one block.
pub const BLOCK_POSITIONS: usize = 32;

const _: () = assert!(BLOCK_POSITIONS.is_multiple_of(LANES));

/// Numbers a block of a device's KV memory: keys and values of [`BLOCK_POSITIONS`] positions in one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

impl BlockId {
    /// Its place among the blocks.
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The memory of blocks on the CPU, f32. Which session a block belongs to is not known here.
pub struct KvStore {
    num_blocks: usize,
    num_kv_heads: usize,
    head_dim: usize,
    /// `[block, keys or values, kv_head, position, head_dim]`, where keys are in tiles.
    data: Vec<f32>,
}

impl KvStore {
    /// Memory of `num_blocks` blocks, zeroed: the system commits a page when it is first written.
    #[must_use]
    pub fn new(config: &ModelConfig, num_blocks: usize) -> Self {
        Self {
            num_blocks,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            data: vec![0.0; num_blocks * Self::block_bytes(config) / size_of::<f32>()],
        }
    }

    /// Bytes of one block.
    #[must_use]
    pub const fn block_bytes(config: &ModelConfig) -> usize {
        2 * size_of::<f32>() * config.kv_size() * BLOCK_POSITIONS
    }

    /// Number of blocks; their ids are below it.
    #[must_use]
    pub const fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Bytes taken.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        size_of_val(self.data.as_slice())
    }

    /// True where its blocks are those of a model with the sizes of `config`.
    pub(crate) const fn is_for(&self, config: &ModelConfig) -> bool {
        self.num_kv_heads == config.num_kv_heads && self.head_dim == config.head_dim
    }

    /// Writes the keys and values of place `slot` of `block`, `[kv_heads, head_dim]` each.
    pub(crate) fn write(&mut self, block: BlockId, slot: usize, keys: &[f32], values: &[f32]) {
        debug_assert!(slot < BLOCK_POSITIONS, "a place of the block");
        let head_dim = self.head_dim;
        let tile = slot / LANES * head_dim * LANES + slot % LANES;
        let heads = keys
            .chunks_exact(head_dim)
            .zip(values.chunks_exact(head_dim));
        for (kv_head, (keys, values)) in heads.enumerate() {
            let to = self.keys_at(block, kv_head);
            let lanes = self.data[to][tile..].iter_mut().step_by(LANES);
            lanes.zip(keys).for_each(|(to, key)| *to = *key);
            let to = self.values_at(block, kv_head);
            self.data[to][slot * head_dim..][..head_dim].copy_from_slice(values);
        }
    }

    /// One head's keys in `block`: `[tile, head_dim, 16]`.
    #[inline]
    pub(crate) fn keys(&self, block: BlockId, kv_head: usize) -> &[f32] {
        &self.data[self.keys_at(block, kv_head)]
    }

    /// One head's values in `block`: `[position, head_dim]`.
    #[inline]
    pub(crate) fn values(&self, block: BlockId, kv_head: usize) -> &[f32] {
        &self.data[self.values_at(block, kv_head)]
    }

    #[inline]
    const fn keys_at(&self, block: BlockId, kv_head: usize) -> Range<usize> {
        let head_len = BLOCK_POSITIONS * self.head_dim;
        let start = (2 * block.index() * self.num_kv_heads + kv_head) * head_len;
        start..start + head_len
    }

    #[inline]
    const fn values_at(&self, block: BlockId, kv_head: usize) -> Range<usize> {
        self.keys_at(block, self.num_kv_heads + kv_head)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A store of blocks of the given sizes, without a model around it.
    pub(crate) fn store_of(num_kv_heads: usize, head_dim: usize, num_blocks: usize) -> KvStore {
        KvStore {
            num_blocks,
            num_kv_heads,
            head_dim,
            data: vec![0.0; num_blocks * 2 * num_kv_heads * head_dim * BLOCK_POSITIONS],
        }
    }

    #[test]
    fn keys_lie_in_tiles_and_values_in_rows_of_their_own_block_and_head() {
        let mut store = store_of(2, 3, 2);
        let (keys, values) = (
            [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            [7.0, 8.0, 9.0, 10.0, 11.0, 12.0],
        );
        store.write(BlockId(1), 17, &keys, &values);
        let tile = &store.keys(BlockId(1), 1)[3 * LANES..];
        assert_eq!(
            [tile[1], tile[LANES + 1], tile[2 * LANES + 1]],
            [4.0, 5.0, 6.0]
        );
        assert_eq!(store.values(BlockId(1), 1)[17 * 3..18 * 3], values[3..]);
        assert_eq!(store.values(BlockId(1), 0)[17 * 3..18 * 3], values[..3]);
        assert_eq!(store.data.iter().filter(|value| **value != 0.0).count(), 12);
        assert!(
            store.data[..store.data.len() / 2]
                .iter()
                .all(|value| *value == 0.0)
        );
    }
}
