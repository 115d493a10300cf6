//! One session's room: its place among the sessions, and its blocks of the KV cache.

use std::collections::VecDeque;
use std::time::Instant;

use headway_model::{BLOCK_POSITIONS, KvTable};
use headway_wire::{PREFIX_BLOCK_POSITIONS, PrefixDigest};

use super::{Capacity, KvRequest, PrefixChain};
use crate::kv_pool::{Grant, LeaseId};

/// A digest covers whole blocks.
const _: () = assert!(PREFIX_BLOCK_POSITIONS == BLOCK_POSITIONS);

/// Room for one session; dropping it gives the room back.
pub(crate) struct SessionRoom {
    capacity: Capacity,
    lease: LeaseId,
    table: KvTable,
    reused_positions: usize,
    prefix: Prefix,
}

/// What others may reuse of the session.
struct Prefix {
    chain: PrefixChain,
    is_kept: bool,
    /// Columns that the pool knows by their digests.
    columns: usize,
    /// Of the columns after those, as far as they are known; full or not.
    digests: VecDeque<PrefixDigest>,
}

/// The session has more positions than it was opened with.
#[derive(Debug, thiserror::Error)]
#[error("a session of {capacity} positions has no room for {rows} more than its {len}")]
pub(crate) struct OutOfRoom {
    capacity: usize,
    len: usize,
    rows: usize,
}

impl SessionRoom {
    pub(super) fn new(capacity: Capacity, request: &KvRequest<'_>, grant: Grant) -> Self {
        let mut table = KvTable::new(request.layers);
        for column in &grant.reused {
            table.push_column(column);
        }
        let columns = grant.reused.len();
        let mut chain = PrefixChain::new(request);
        chain.last = columns.checked_sub(1).map(|last| request.prefix[last]);
        table.advance(columns * BLOCK_POSITIONS);
        Self {
            capacity,
            lease: grant.lease,
            reused_positions: table.len(),
            table,
            prefix: Prefix {
                chain,
                is_kept: request.keeps_prefix,
                columns,
                digests: VecDeque::new(),
            },
        }
    }

    /// Positions that were there from the start.
    pub(crate) fn reused_positions(&self) -> usize {
        self.reused_positions
    }

    /// The session's positions and their blocks.
    pub(crate) fn table(&self) -> &KvTable {
        &self.table
    }

    /// For the device, which advances it.
    pub(crate) fn table_mut(&mut self) -> &mut KvTable {
        &mut self.table
    }

    /// Takes the blocks for `rows` more positions.
    ///
    /// # Errors
    /// [`OutOfRoom`] beyond the positions that were reserved.
    pub(crate) fn grow(&mut self, rows: usize) -> Result<(), OutOfRoom> {
        let needed = self.table.len() + rows;
        if needed <= self.table.capacity() {
            return Ok(());
        }
        let mut held = self.capacity.lock();
        while self.table.capacity() < needed {
            let Some(column) = held.pool.take_column(self.lease) else {
                return Err(OutOfRoom {
                    capacity: self.table.capacity(),
                    len: self.table.len(),
                    rows,
                });
            };
            self.table.push_column(&column);
        }
        self.capacity.show(&held);
        Ok(())
    }

    /// Takes note of the digests of the session's next blocks.
    pub(crate) fn note_digests(&mut self, digests: Vec<PrefixDigest>) {
        if self.prefix.is_kept {
            self.prefix.digests.extend(digests);
        }
    }

    /// Lets others reuse the blocks that are full and whose digests are known.
    pub(crate) fn keep_full_columns(&mut self, now: Instant) {
        let full_columns = self.table.len() / BLOCK_POSITIONS;
        let prefix = &mut self.prefix;
        if prefix.columns >= full_columns || prefix.digests.is_empty() {
            return;
        }
        let mut held = self.capacity.lock();
        while prefix.columns < full_columns
            && let Some(digest) = prefix.digests.pop_front()
        {
            let key = prefix.chain.key(digest);
            held.pool.keep(self.lease, prefix.columns, key, now);
            prefix.columns += 1;
        }
        self.capacity.show(&held);
    }
}

impl Drop for SessionRoom {
    fn drop(&mut self) {
        {
            let mut held = self.capacity.lock();
            held.sessions -= 1;
            held.pool.release(self.lease, Instant::now());
            self.capacity.show(&held);
        }
        self.capacity.metrics.sessions.dec();
        self.capacity.released.notify_waiters();
    }
}
