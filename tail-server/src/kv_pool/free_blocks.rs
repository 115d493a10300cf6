//! The blocks that are in no column.

use std::collections::BTreeSet;
use std::ops::Range;

use headway_model::BlockId;

/// Free blocks, lowest first. The pool's size costs no memory here, only what was in use at one time.
pub(super) struct FreeBlocks {
    /// Were in use before. All of them are lower than those that never were.
    given_back: BTreeSet<BlockId>,
    never_used: Range<u32>,
}

impl FreeBlocks {
    /// These blocks.
    pub(super) fn new(blocks: Range<u32>) -> Self {
        Self {
            given_back: BTreeSet::new(),
            never_used: blocks,
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.given_back.len() + self.never_used.len()
    }

    /// The `count` lowest ones, ascending. `None`, and nothing is taken, where there are fewer.
    pub(super) fn take(&mut self, count: usize) -> Option<Vec<BlockId>> {
        if count > self.len() {
            return None;
        }
        let lowest = || {
            let used_before = self.given_back.pop_first();
            used_before.or_else(|| self.never_used.next().map(BlockId))
        };
        Some(std::iter::from_fn(lowest).take(count).collect())
    }

    /// Blocks that were taken here are free again.
    pub(super) fn give_back(&mut self, blocks: Vec<BlockId>) {
        self.given_back.extend(blocks);
    }
}
