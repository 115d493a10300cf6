//! The parts of a pool: which blocks are whose layers', and how many are used for what.

use headway_model::BlockId;

use super::PoolPart;
use super::free_blocks::FreeBlocks;

/// The parts of a pool, in the order of their layers; at least one.
pub(super) struct Parts(Vec<Part>);

/// The blocks of some layers.
pub(super) struct Part {
    /// The first part's are those that no other part serves, however many they are.
    layers: usize,
    pub(super) total: usize,
    pub(super) free: FreeBlocks,
    pub(super) held: usize,
    pub(super) promised: usize,
}

impl Parts {
    /// Numbers the blocks from 0 on.
    pub(super) fn new(parts: &[PoolPart]) -> Self {
        let mut start = 0_u32;
        let part = |part: &PoolPart| {
            let blocks = u32::try_from(part.blocks).unwrap_or(u32::MAX);
            let end = start.saturating_add(blocks);
            let free = FreeBlocks::new(start..end);
            start = end;
            Part {
                layers: part.layers,
                total: free.len(),
                free,
                held: 0,
                promised: 0,
            }
        };
        let parts: Vec<Part> = parts.iter().map(part).collect();
        assert!(!parts.is_empty(), "a pool has a part");
        Self(parts)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Part> {
        self.0.iter()
    }

    /// How many of a column's blocks are each part's, where it has `layers` of them: of the model's last layers.
    pub(super) fn of(&self, layers: usize) -> impl Iterator<Item = (&Part, usize)> {
        self.0.iter().zip(self.shares(layers))
    }

    fn of_mut(&mut self, layers: usize) -> impl Iterator<Item = (&mut Part, usize)> {
        let shares = self.shares(layers);
        self.0.iter_mut().zip(shares)
    }

    /// The last layers are the last parts'.
    fn shares(&self, layers: usize) -> Vec<usize> {
        let mut shares = vec![0; self.0.len()];
        let mut left = layers;
        for (index, part) in self.0.iter().enumerate().rev() {
            shares[index] = if index == 0 {
                left
            } else {
                left.min(part.layers)
            };
            left -= shares[index];
        }
        shares
    }

    /// Promises so many columns of `layers`, for which the caller has found room.
    pub(super) fn promise(&mut self, layers: usize, columns: usize) {
        for (part, layers) in self.of_mut(layers) {
            part.promised += layers * columns;
        }
    }

    /// Nobody has been promised these columns any more.
    pub(super) fn end_promise(&mut self, layers: usize, columns: usize) {
        for (part, layers) in self.of_mut(layers) {
            part.promised -= layers * columns;
        }
    }

    /// A column of `layers` can be taken without evicting another.
    pub(super) fn has_free(&self, layers: usize) -> bool {
        self.of(layers)
            .all(|(part, layers)| part.free.len() >= layers)
    }

    /// The blocks of a promised column, in the order of its layers; they are held. `None`, and nothing is taken,
    /// where a part has too few.
    pub(super) fn take_promised(&mut self, layers: usize) -> Option<Vec<BlockId>> {
        if !self.has_free(layers) {
            return None;
        }
        let mut blocks = Vec::with_capacity(layers);
        for (part, layers) in self.of_mut(layers) {
            blocks.extend(part.free.take(layers)?);
            part.promised -= layers;
            part.held += layers;
        }
        Some(blocks)
    }

    /// A column of `layers` that nobody held is held.
    pub(super) fn hold(&mut self, layers: usize) {
        for (part, layers) in self.of_mut(layers) {
            part.held += layers;
        }
    }

    /// A column of `layers` is not held any more.
    pub(super) fn let_go(&mut self, layers: usize) {
        for (part, layers) in self.of_mut(layers) {
            part.held -= layers;
        }
    }

    /// A column's blocks, which nobody holds, are free.
    pub(super) fn give_back(&mut self, mut blocks: Vec<BlockId>) {
        for (part, layers) in self.of_mut(blocks.len()) {
            let rest = blocks.split_off(layers);
            part.free.give_back(blocks);
            blocks = rest;
        }
    }
}
