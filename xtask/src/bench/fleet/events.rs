//! What happens when: a clock that only moves to the next event, and the events that are to come.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// A moment or a time, in microseconds.
pub(super) type Micros = u64;

/// Microseconds of a second.
pub(super) const SECOND: Micros = 1_000_000;

/// Events that are to come, in the order of their times, and among equals in the order in which they were added: so the
/// same seed gives the same run.
#[derive(Debug)]
pub(super) struct Events<E> {
    heap: BinaryHeap<Entry<E>>,
    now: Micros,
    added: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry<E> {
    at: Micros,
    order: u64,
    event: E,
}

impl<E> Events<E> {
    pub(super) fn new() -> Self {
        Self {
            heap: BinaryHeap::new(),
            now: 0,
            added: 0,
        }
    }

    /// The moment of the last event that was taken.
    pub(super) const fn now(&self) -> Micros {
        self.now
    }

    /// Adds an event `delay` from now.
    pub(super) fn after(&mut self, delay: Micros, event: E) {
        self.added += 1;
        self.heap.push(Entry {
            at: self.now + delay,
            order: self.added,
            event,
        });
    }

    /// The next event, whose moment is then now.
    pub(super) fn next(&mut self) -> Option<E> {
        let entry = self.heap.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }

    /// When the next event is.
    pub(super) fn next_at(&self) -> Option<Micros> {
        self.heap.peek().map(|entry| entry.at)
    }
}

impl<E> Ord for Entry<E> {
    /// The earliest is the greatest: the heap gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Entry<E> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_the_order_of_time_and_then_of_adding() {
        let mut events = Events::new();
        for (delay, name) in [(5, 'd'), (1, 'a'), (3, 'b'), (3, 'c')] {
            events.after(delay, name);
        }
        let mut came = Vec::new();
        while let Some(event) = events.next() {
            came.push((events.now(), event));
        }
        assert_eq!(came, [(1, 'a'), (3, 'b'), (3, 'c'), (5, 'd')]);
    }
}
