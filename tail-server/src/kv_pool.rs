//! Who owns which blocks of a device's KV memory, or of several devices'.
//!
//! A *block* has room for the keys and values of a fixed number of consecutive positions in one layer. Sessions
//! run the layers `[k, L)` with different `k`, so one that runs `layers` of them needs as many blocks for every
//! *column*: those consecutive positions in all of its layers. A session reserves, when it opens, the columns
//! that it may ever need, and takes their blocks column by column as positions are written. A full column whose
//! content is known by a key may be *kept* after its session has ended, and later sessions reuse it instead of
//! computing it again. The leading columns that a session reuses are its *prefix*.
//!
//! The pool has *parts*, each with the blocks of some layers that follow each other: one part where one device runs all
//! layers, otherwise one for each device. A column takes the block of each layer from the layer's part. Numbers of
//! blocks follow each other from part to part, so that a number says which part it is of.
//!
//! This is bookkeeping only: no clock, no lock, no device. Every step costs the blocks that it touches, times the
//! logarithm of all; nothing is looked for among all leases or all columns. The caller writes to a column's blocks
//! after it has taken them and before it keeps them, and never to those that it reuses.
//!
//! Invariants:
//! - A block is free or in exactly one column. A column is held by any number of sessions, or kept, or both; one
//!   that is neither is freed at once. Held, kept and free blocks add up to all blocks, and shared columns are
//!   counted once.
//! - Held and promised blocks are never more than all blocks, in each part. So a column within a reservation can always
//!   be taken: where a part has too few free blocks, kept columns that nobody holds are evicted. They cost a reservation
//!   nothing until they are reused; then they are held, and count.
//! - Evicted is first what was used the longest ago, whether or not it has blocks in the part that is short, and of what was used at the same moment the deepest column,
//!   so that what remains of a prefix can still be reached from its start. A column whose predecessor is gone
//!   cannot be reached, unless that one is written and kept again; if it is not, it is evicted or expires in turn.
//! - What was not used for the retention time is never reused, whether or not `expire` was called since. A column
//!   that a session holds is in use.
//! - A key stands for one column, and a column has at most one key, so the blocks bound the keys too.
//! - The lowest free block of a part is handed out first, so that no more memory is touched than was ever held and kept at once.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

use headway_model::BlockId;

use self::parts::{Part, Parts};

mod free_blocks;
mod parts;
#[cfg(test)]
mod tests;

/// The blocks of some layers that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolPart {
    /// How many layers take their blocks here. The first part also serves all layers before its own.
    pub(crate) layers: usize,
    /// How many blocks there are.
    pub(crate) blocks: usize,
}

/// Names a session's reservation until it is released. No two of one pool are equal, released ones included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LeaseId(u64);

/// What a session has been given.
#[derive(Debug)]
pub(crate) struct Grant {
    /// Stands for the room, and for the hold on the reused columns.
    pub(crate) lease: LeaseId,
    /// One entry per reused column, from the first one on, each with the blocks of its layers. Others read them
    /// too: they must not be written.
    pub(crate) reused: Vec<Vec<BlockId>>,
}

/// Why there is no room.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Shortage {
    /// Waiting does not help: not even an empty pool has as much. Where the pool has several parts, of the part that
    /// is too small.
    #[error(
        "the session needs {needed_blocks} blocks of KV cache, more than the {total_blocks} this tail has; \
         ask for fewer positions"
    )]
    NeverFits {
        /// Blocks of all columns asked for; `usize::MAX` where they cannot be counted.
        needed_blocks: usize,
        /// Blocks of the pool.
        total_blocks: usize,
    },
    /// Other sessions hold or have been promised too much. Where the pool has several parts, of the first part that is
    /// short.
    #[error(
        "the session needs {needed_blocks} blocks of KV cache and {free_blocks} are free; \
         try again later, on another tail, or with fewer positions"
    )]
    Full {
        /// Blocks of the columns asked for, without those that it would share with sessions that hold them.
        needed_blocks: usize,
        /// Blocks that no session holds or has been promised; some may be kept.
        free_blocks: usize,
        /// Blocks of the pool.
        total_blocks: usize,
    },
}

/// How many blocks there are of what, in all parts. `held + kept + free = total`, and `held + promised <= total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    /// All blocks of the pool.
    pub(crate) total: usize,
    /// Blocks of columns that sessions hold, each once however many hold it.
    pub(crate) held: usize,
    /// Blocks that sessions have reserved and not taken yet. They are among the free and the kept ones.
    pub(crate) promised: usize,
    /// Blocks of kept columns that no session holds.
    pub(crate) kept: usize,
    /// Blocks in no column.
    pub(crate) free: usize,
}

/// The blocks of a tail. `K` is what a column's content is known by: a digest of everything up to the
/// column's end, together with whatever must not be shared across, such as the tenant.
pub(crate) struct KvPool<K> {
    parts: Parts,
    retention: Duration,
    leases: HashMap<LeaseId, Lease>,
    columns: HashMap<ColumnId, Column<K>>,
    keys: HashMap<K, ColumnId>,
    /// The kept columns that no session holds, the next one to evict first.
    unheld: BTreeSet<Unheld>,
    next_lease: u64,
    next_column: u64,
}

/// What one session holds and has been promised.
struct Lease {
    /// Blocks of each of its columns.
    layers: usize,
    /// Columns that it has reserved and not taken yet.
    promised_columns: usize,
    /// Its columns by their index, the reused ones first.
    columns: Vec<ColumnId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct ColumnId(u64);

struct Column<K> {
    /// One per layer.
    blocks: Vec<BlockId>,
    /// How many columns are before it; the same in all sessions that share it.
    index: usize,
    /// How many sessions hold it.
    holders: usize,
    /// By what it is kept.
    key: Option<K>,
    /// Its entry in the order of eviction, while it is kept and not held.
    unheld: Option<Unheld>,
}

/// The order of eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Unheld {
    last_used: Instant,
    /// The column's index.
    depth: Reverse<usize>,
    column: ColumnId,
}

impl<K: Clone + Eq + Hash> KvPool<K> {
    /// A pool of the blocks from 0 on, all free, in the layers' order. Columns that nobody holds are kept for `retention` after
    /// their last use; with a retention of zero nothing is ever kept.
    ///
    /// A block's id has 32 bits: of more blocks than that, the rest is never used.
    pub(crate) fn new(parts: &[PoolPart], retention: Duration) -> Self {
        Self {
            parts: Parts::new(parts),
            retention,
            leases: HashMap::new(),
            columns: HashMap::new(),
            keys: HashMap::new(),
            unheld: BTreeSet::new(),
            next_lease: 0,
            next_column: 0,
        }
    }

    /// Makes room for `columns` columns of the last `layers` layers, a block for each, until the lease is released.
    ///
    /// `offered` are the keys of the session's leading columns. Those that are known are reused, up to the first
    /// that is unknown, or known with another number of layers or at another index. The others are promised. A
    /// session that must compute a column itself, for the logits of its last position, offers no key for it.
    ///
    /// Without layers there is nothing to hold, whatever `columns` says.
    ///
    /// # Errors
    /// A [`Shortage`], and then no column counts as used.
    pub(crate) fn reserve(
        &mut self,
        layers: usize,
        columns: usize,
        offered: &[K],
        now: Instant,
    ) -> Result<Grant, Shortage> {
        let columns = if layers == 0 { 0 } else { columns };
        for (part, layers) in self.parts.of(layers) {
            let needed_blocks = layers.saturating_mul(columns);
            if needed_blocks > part.total {
                return Err(Shortage::NeverFits {
                    needed_blocks,
                    total_blocks: part.total,
                });
            }
        }
        self.expire(now);
        let known = self.known(layers, &offered[..offered.len().min(columns)]);
        let held = |id: &&ColumnId| self.columns.get(id).is_some_and(|it| it.holders > 0);
        let needed_columns = columns - known.iter().filter(held).count();
        for (part, layers) in self.parts.of(layers) {
            let needed_blocks = layers * needed_columns;
            let free_blocks = part.total - part.held - part.promised;
            if needed_blocks > free_blocks {
                return Err(Shortage::Full {
                    needed_blocks,
                    free_blocks,
                    total_blocks: part.total,
                });
            }
        }

        let reused = known.iter().filter_map(|id| self.hold(*id)).collect();
        let promised_columns = columns - known.len();
        self.parts.promise(layers, promised_columns);
        let lease = LeaseId(self.next_lease);
        self.next_lease += 1;
        self.leases.insert(
            lease,
            Lease {
                layers,
                promised_columns,
                columns: known,
            },
        );
        Ok(Grant { lease, reused })
    }

    /// Takes the blocks of the lease's next column, one per layer. Their content is whatever was there before.
    ///
    /// `None` where the lease has taken all that it reserved, or is released: a fault of the caller's.
    pub(crate) fn take_column(&mut self, lease: LeaseId) -> Option<Vec<BlockId>> {
        let taker = self.leases.get(&lease)?;
        let layers = taker.layers;
        let promised_columns = taker.promised_columns.checked_sub(1)?;
        while !self.parts.has_free(layers)
            && let Some(evicted) = self.unheld.pop_first()
        {
            self.forget(evicted.column);
        }
        let blocks = self.parts.take_promised(layers)?;

        let id = ColumnId(self.next_column);
        self.next_column += 1;
        let taker = self.leases.get_mut(&lease)?;
        let index = taker.columns.len();
        taker.promised_columns = promised_columns;
        taker.columns.push(id);
        let column = Column {
            blocks: blocks.clone(),
            index,
            holders: 1,
            key: None,
            unheld: None,
        };
        self.columns.insert(id, column);
        Some(blocks)
    }

    /// The lease's column `index` is full, and `key` tells what is in it: from now on sessions may reuse it, also
    /// after the lease has ended. It must not be written any more.
    ///
    /// Does nothing where the key is known already, the column has one already, the lease has no such column, or
    /// the retention is zero.
    pub(crate) fn keep(&mut self, lease: LeaseId, index: usize, key: K, now: Instant) {
        self.expire(now);
        if self.retention.is_zero() || self.keys.contains_key(&key) {
            return;
        }
        let id = self.leases.get(&lease).and_then(|it| it.columns.get(index));
        if let Some(&id) = id
            && let Some(column) = self.columns.get_mut(&id)
            && column.key.is_none()
        {
            column.key = Some(key.clone());
            self.keys.insert(key, id);
        }
    }

    /// Ends the lease: what it was promised is free for others, and so are its columns that no other session holds
    /// and no key tells. Those with a key are last used `now`. Does nothing where it is released already.
    pub(crate) fn release(&mut self, lease: LeaseId, now: Instant) {
        let Some(lease) = self.leases.remove(&lease) else {
            return;
        };
        self.parts.end_promise(lease.layers, lease.promised_columns);
        for id in lease.columns {
            self.let_go(id, now);
        }
    }

    /// Forgets the kept columns that were not used for the retention time. Those that sessions hold stay.
    ///
    /// To be called now and then, so that nothing stays in a device's memory longer than was said, although no
    /// session needs the room.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some(&oldest) = self.unheld.first()
            && now.saturating_duration_since(oldest.last_used) >= self.retention
        {
            self.unheld.remove(&oldest);
            self.forget(oldest.column);
        }
    }

    /// How many blocks are used for what.
    pub(crate) fn counts(&self) -> Counts {
        let sum = |of: fn(&Part) -> usize| self.parts.iter().map(of).sum();
        Counts {
            total: sum(|part| part.total),
            held: sum(|part| part.held),
            promised: sum(|part| part.promised),
            kept: sum(|part| part.total - part.held - part.free.len()),
            free: sum(|part| part.free.len()),
        }
    }

    /// The leading columns that can be reused. No two are the same, as each is at its own index.
    fn known(&self, layers: usize, offered: &[K]) -> Vec<ColumnId> {
        let reusable = |(index, key)| {
            let id = self.keys.get(key)?;
            let column = self.columns.get(id)?;
            (column.index == index && column.blocks.len() == layers).then_some(*id)
        };
        offered.iter().enumerate().map_while(reusable).collect()
    }

    /// Counts one more session as a holder of the column, whose blocks are returned.
    fn hold(&mut self, id: ColumnId) -> Option<Vec<BlockId>> {
        let column = self.columns.get_mut(&id)?;
        column.holders += 1;
        if let Some(unheld) = column.unheld.take() {
            self.unheld.remove(&unheld);
            self.parts.hold(column.blocks.len());
        }
        Some(column.blocks.clone())
    }

    /// Counts one holder less. After the last one, the column stays where it has a key.
    fn let_go(&mut self, id: ColumnId, now: Instant) {
        let Some(column) = self.columns.get_mut(&id) else {
            return;
        };
        column.holders -= 1;
        if column.holders > 0 {
            return;
        }
        self.parts.let_go(column.blocks.len());
        if column.key.is_none() {
            self.forget(id);
            return;
        }
        let unheld = Unheld {
            last_used: now,
            depth: Reverse(column.index),
            column: id,
        };
        column.unheld = Some(unheld);
        self.unheld.insert(unheld);
    }

    /// Frees the blocks of a column that nobody holds and that is not in the order of eviction any more.
    fn forget(&mut self, id: ColumnId) {
        let Some(column) = self.columns.remove(&id) else {
            return;
        };
        if let Some(key) = column.key {
            self.keys.remove(&key);
        }
        self.parts.give_back(column.blocks);
    }
}
