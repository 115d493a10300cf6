//! Which blocks hold a session's positions.

use crate::kv_cache::store::{BLOCK_POSITIONS, BlockId};
use crate::layer_range::LayerRange;

/// The blocks of a session, and how many positions it holds.
///
/// A column is [`BLOCK_POSITIONS`] positions in all of the table's layers. Tables may share columns
/// that lie wholly below the `len` of each: those are only read. A column from `len` on is written, and
/// must be the table's own.
#[derive(Debug)]
pub struct KvTable {
    layers: LayerRange,
    len: usize,
    columns: usize,
    /// `[column, layer]`.
    blocks: Vec<BlockId>,
}

impl KvTable {
    /// A table of `layers` that has no blocks yet.
    #[must_use]
    pub const fn new(layers: LayerRange) -> Self {
        Self {
            layers,
            len: 0,
            columns: 0,
            blocks: Vec::new(),
        }
    }

    /// Layers held.
    #[must_use]
    pub const fn layers(&self) -> LayerRange {
        self.layers
    }

    /// Positions held.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// True where no position is held.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions there are blocks for.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.columns * BLOCK_POSITIONS
    }

    /// Columns there are blocks for.
    #[must_use]
    pub const fn columns(&self) -> usize {
        self.columns
    }

    /// Adds [`BLOCK_POSITIONS`] positions of room: one block for each layer, in order of the layers.
    pub fn push_column(&mut self, blocks: &[BlockId]) {
        assert_eq!(
            blocks.len(),
            self.layers.len(),
            "a column has one block for each layer"
        );
        self.blocks.extend_from_slice(blocks);
        self.columns += 1;
    }

    /// The block that holds the positions of `column` in `layer`.
    #[inline]
    #[must_use]
    pub fn block(&self, layer: usize, column: usize) -> BlockId {
        assert!(
            self.layers.contains(layer),
            "layer {layer} is not in the table of {}",
            self.layers
        );
        self.blocks[column * self.layers.len() + layer - self.layers.start]
    }

    /// All blocks, `[column, layer]`, for a device whose kernels look them up themselves.
    #[must_use]
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Counts `rows` positions as held, after every layer has written them.
    pub fn advance(&mut self, rows: usize) {
        assert!(
            self.len + rows <= self.capacity(),
            "more positions than the table has blocks for"
        );
        self.len += rows;
    }

    /// Forgets the positions from `len` on, and keeps their blocks.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Columns that hold `positions`.
    #[must_use]
    pub const fn columns_for(positions: usize) -> usize {
        positions.div_ceil(BLOCK_POSITIONS)
    }
}
