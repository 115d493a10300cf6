//! Which sessions are open on this tail, and which of them should leave: the one that has been idle longest
//! where a newcomer finds no room, those that are the cheapest to rebuild where the tail has more than it should.
//!
//! Both cost the device time and never a token: it has all it takes to rebuild its session.
//!
//! - [`Notice::Evicted`] is an order: the session ends.
//! - [`Notice::Leave`] is a request. A session that has nowhere to go stays, and is not closed at the deadline;
//!   the deadline is what the device is told. Closing at a deadline is what draining does, see [`crate::drain`].
//!
//! A session is idle from when its last step was answered, or from when it entered where none has come yet. With
//! a step in the engine it is not idle.
//!
//! All is behind one lock that is held for a look-up at each step, and for a look at all sessions, O(n), at each
//! eviction. Waiting for the room of a session that was told to end is [`crate::capacity::Capacity::released`]'s
//! part: the room comes free a moment after the session has left.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

#[cfg(test)]
mod tests;

/// What a session is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// End now: the room is needed.
    Evicted,
    /// Move to another tail before the deadline. Whoever cannot may stay.
    Leave { deadline: tokio::time::Instant },
}

/// The open sessions of one tail. Clones share them.
#[derive(Clone)]
pub(crate) struct LiveSessions {
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    sessions: HashMap<u64, Entry>,
    next_id: u64,
}

/// One open session.
struct Entry {
    /// Positions that it holds on this tail: what a rebuilding has to compute again.
    positions: usize,
    /// `None` while it has a step in the engine.
    idle_since: Option<Instant>,
    /// The last notice; `None`: it has not been told anything.
    notice: watch::Sender<Option<Notice>>,
}

impl LiveSessions {
    pub(crate) fn new() -> Self {
        Self {
            table: Arc::default(),
        }
    }

    /// Counts a session in until what is returned is dropped.
    pub(crate) fn enter(&self, now: Instant) -> LiveSession {
        let (notice, told) = watch::channel(None);
        let mut table = lock(&self.table);
        let id = table.next_id;
        table.next_id += 1;
        let entry = Entry {
            positions: 0,
            idle_since: Some(now),
            notice,
        };
        table.sessions.insert(id, entry);
        drop(table);
        LiveSession {
            table: Arc::clone(&self.table),
            id,
            told,
        }
    }

    /// Sessions that have a step in the engine.
    pub(crate) fn busy(&self) -> usize {
        let table = lock(&self.table);
        let entries = table.sessions.values();
        entries.filter(|entry| entry.idle_since.is_none()).count()
    }

    /// Tells the session that has been idle longest, and at least `min_idle`, to end; false where there is none.
    ///
    /// No session is told so twice, so that each newcomer that asks gets another one's room. One that was asked to
    /// leave and has stayed may be told. A step may arrive before the session hears of it: it ends all the same.
    pub(crate) fn evict_idlest(&self, min_idle: Duration, now: Instant) -> bool {
        let table = lock(&self.table);
        let idlest = table
            .sessions
            .iter()
            .filter_map(|(id, entry)| Some((entry.idle_since?, id, entry)))
            .filter(|(_, _, entry)| !entry.is_evicted())
            .min_by_key(|(idle_since, id, _)| (*idle_since, **id));
        match idlest {
            Some((idle_since, _, entry))
                if now.saturating_duration_since(idle_since) >= min_idle =>
            {
                entry.notice.send_replace(Some(Notice::Evicted));
                true
            }
            _ => false,
        }
    }

    /// Asks sessions to leave until at most `target` remain that have been told nothing, those with the fewest
    /// positions first: they are the cheapest to rebuild. Among equals, idle ones and older ones go first. Returns
    /// how many were asked.
    pub(crate) fn leave_down_to(&self, target: usize, deadline: tokio::time::Instant) -> usize {
        let table = lock(&self.table);
        let mut staying: Vec<(&u64, &Entry)> = table
            .sessions
            .iter()
            .filter(|(_, entry)| entry.notice.borrow().is_none())
            .collect();
        let surplus = staying.len().saturating_sub(target);
        staying.sort_unstable_by_key(|(id, entry)| {
            (entry.positions, entry.idle_since.is_none(), **id)
        });
        for (_, entry) in &staying[..surplus] {
            entry.notice.send_replace(Some(Notice::Leave { deadline }));
        }
        surplus
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Entry {
    fn is_evicted(&self) -> bool {
        matches!(*self.notice.borrow(), Some(Notice::Evicted))
    }
}

/// One session among those that are open; dropping it counts it out.
pub(crate) struct LiveSession {
    table: Arc<Mutex<Table>>,
    id: u64,
    told: watch::Receiver<Option<Notice>>,
}

impl LiveSession {
    /// A step has come; with it the session has `positions` of them. It is not idle.
    pub(crate) fn note_busy(&self, positions: usize) {
        self.note(positions, None);
    }

    /// All steps that have come are answered, and the session holds `positions`. It is idle from `now` on.
    pub(crate) fn note_idle(&self, positions: usize, now: Instant) {
        self.note(positions, Some(now));
    }

    fn note(&self, positions: usize, idle_since: Option<Instant>) {
        if let Some(entry) = lock(&self.table).sessions.get_mut(&self.id) {
            entry.positions = positions;
            entry.idle_since = idle_since;
        }
    }

    /// The next notice; pending for ever where none comes. Loses nothing when cancelled. Where a session is asked to
    /// leave and evicted before it has heard of either, it hears of the eviction.
    pub(crate) async fn notice(&mut self) -> Notice {
        while self.told.changed().await.is_ok() {
            if let Some(notice) = *self.told.borrow_and_update() {
                return notice;
            }
        }
        // The sender is among the open sessions for as long as this one is.
        std::future::pending().await
    }
}

impl Drop for LiveSession {
    fn drop(&mut self) {
        lock(&self.table).sessions.remove(&self.id);
    }
}
