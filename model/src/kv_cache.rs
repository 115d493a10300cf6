//! Keys and values of the positions a session has passed, in blocks.
//!
//! A block holds [`store::BLOCK_POSITIONS`] positions of one layer. [`KvStore`] is the memory of a device's
//! blocks, [`KvTable`] says which of them hold a session's positions, and in what order. So sessions
//! share one memory, take it as they grow, and share the blocks of a prefix that they have in common.
//! [`KvCache`] is a store and a table for a device that runs one session.

use crate::config::ModelConfig;
use crate::layer_range::LayerRange;
use store::{BlockId, KvStore};
use table::KvTable;

pub mod store;
pub mod table;

/// The cache of one session over some layers: a store of its own, and a table that has all its blocks.
pub struct KvCache {
    table: KvTable,
    store: KvStore,
}

impl KvCache {
    /// Room for `capacity` positions in `layers`, rounded up to whole blocks.
    #[must_use]
    pub fn new(config: &ModelConfig, layers: LayerRange, capacity: usize) -> Self {
        let columns = KvTable::columns_for(capacity);
        let mut table = KvTable::new(layers);
        for column in 0..columns {
            // A layer reads its blocks one after the other: they lie side by side.
            let block = |layer| (layer - layers.start) * columns + column;
            let blocks: Vec<BlockId> = layers.iter().map(|layer| block_id(block(layer))).collect();
            table.push_column(&blocks);
        }
        Self {
            table,
            store: KvStore::new(config, layers.len() * columns),
        }
    }

    /// Bytes that [`KvCache::new`] takes with these arguments.
    #[must_use]
    pub const fn bytes_for(config: &ModelConfig, layers: LayerRange, capacity: usize) -> usize {
        layers.len() * KvTable::columns_for(capacity) * KvStore::block_bytes(config)
    }

    /// Bytes taken.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.store.bytes()
    }

    /// Positions held.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.table.len()
    }

    /// True where no position is held.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Positions there is room for.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.table.capacity()
    }

    /// Layers held.
    #[must_use]
    pub const fn layers(&self) -> LayerRange {
        self.table.layers()
    }

    /// Counts `rows` positions as held, after every layer has written them.
    pub fn advance(&mut self, rows: usize) {
        self.table.advance(rows);
    }

    /// Forgets the positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.table.truncate(len);
    }

    /// The table and the store, for a forward pass that writes one by the other.
    pub(crate) const fn parts(&mut self) -> (&mut KvTable, &mut KvStore) {
        (&mut self.table, &mut self.store)
    }
}

fn block_id(index: usize) -> BlockId {
    BlockId(u32::try_from(index).expect("1024 layers of 2^24 positions have 2^29 blocks"))
}

#[cfg(test)]
mod tests {
    use super::store::BLOCK_POSITIONS;
    use super::*;

    const LAYERS: LayerRange = LayerRange::new(2, 4);

    fn blocks(ids: &[u32]) -> Vec<BlockId> {
        ids.iter().copied().map(BlockId).collect()
    }

    #[test]
    fn a_block_belongs_to_one_column_and_one_layer() {
        let mut table = KvTable::new(LAYERS);
        table.push_column(&blocks(&[7, 3]));
        table.push_column(&blocks(&[0, 9]));
        let at = |layer, column| table.block(layer, column).0;
        assert_eq!([at(2, 0), at(3, 0), at(2, 1), at(3, 1)], [7, 3, 0, 9]);
        assert_eq!(table.columns(), 2);
        assert_eq!(table.capacity(), 2 * BLOCK_POSITIONS);
        assert_eq!(KvTable::columns_for(0), 0);
        assert_eq!(KvTable::columns_for(BLOCK_POSITIONS), 1);
        assert_eq!(KvTable::columns_for(BLOCK_POSITIONS + 1), 2);
    }

    #[test]
    fn truncation_keeps_the_blocks_and_never_adds_positions() {
        let mut table = KvTable::new(LAYERS);
        table.push_column(&blocks(&[0, 1]));
        table.advance(20);
        table.truncate(5);
        assert_eq!((table.len(), table.columns()), (5, 1));
        table.truncate(20);
        assert_eq!(table.len(), 5);
    }

    #[test]
    #[should_panic(expected = "a column has one block for each layer")]
    fn a_column_of_another_number_of_blocks_is_refused() {
        KvTable::new(LAYERS).push_column(&blocks(&[1, 2, 3]));
    }

    #[test]
    #[should_panic(expected = "more positions than the table has blocks for")]
    fn a_table_does_not_advance_beyond_its_blocks() {
        let mut table = KvTable::new(LAYERS);
        table.push_column(&blocks(&[0, 1]));
        table.advance(BLOCK_POSITIONS + 1);
    }

    #[test]
    fn a_table_of_no_layers_counts_positions_and_takes_no_blocks() {
        let mut table = KvTable::new(LayerRange::new(3, 3));
        table.push_column(&[]);
        table.advance(BLOCK_POSITIONS);
        assert_eq!(
            (table.len(), table.capacity()),
            (BLOCK_POSITIONS, BLOCK_POSITIONS)
        );
    }
}
