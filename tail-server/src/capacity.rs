//! How many sessions, and how much KV cache, there is room for.
//!
//! Invariant: a [`Reservation`] lives as long as the KV cache it stands for. It travels into the engine with
//! the session and is dropped beside the cache, so the memory counted is never less than the memory taken.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::Metrics;

/// After how long a device that found no room may ask again. A session rarely ends sooner.
const RETRY_AFTER_MS: u32 = 1000;

/// Why there is no room.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CapacityError {
    #[error(
        "all {max_sessions} sessions of this tail are taken; try again later or on another tail"
    )]
    Sessions {
        max_sessions: usize,
        retry_after_ms: u32,
    },
    #[error(
        "{max_queue} sessions of this tail wait for their prompts to be computed, and no more may; \
         try again later or on another tail"
    )]
    Queue {
        max_queue: usize,
        retry_after_ms: u32,
    },
    #[error(
        "the session needs {needed_bytes} bytes of KV cache and {free_bytes} of {max_bytes} are free; \
         try again later, on another tail, or with fewer positions"
    )]
    KvCache {
        needed_bytes: usize,
        free_bytes: usize,
        max_bytes: usize,
        retry_after_ms: u32,
    },
    #[error(
        "the session needs {needed_bytes} bytes of KV cache, more than the {max_bytes} this tail has; \
         ask for fewer positions"
    )]
    NeverFits {
        needed_bytes: usize,
        max_bytes: usize,
    },
}

#[derive(Debug, Default)]
struct Used {
    sessions: usize,
    kv_bytes: usize,
}

/// The room of one tail. Clones share it.
#[derive(Clone)]
pub(crate) struct Capacity {
    max_sessions: usize,
    max_kv_bytes: usize,
    used: Arc<Mutex<Used>>,
    metrics: Arc<Metrics>,
}

impl Capacity {
    pub(crate) fn new(max_sessions: usize, max_kv_bytes: usize, metrics: Arc<Metrics>) -> Self {
        metrics.kv_limit_bytes.set(gauge_value(max_kv_bytes));
        Self {
            max_sessions,
            max_kv_bytes,
            used: Arc::default(),
            metrics,
        }
    }

    /// Takes room for one session with `kv_bytes` of cache, until the reservation is dropped.
    pub(crate) fn reserve(&self, kv_bytes: usize) -> Result<Reservation, CapacityError> {
        let max_bytes = self.max_kv_bytes;
        if kv_bytes > max_bytes {
            return Err(CapacityError::NeverFits {
                needed_bytes: kv_bytes,
                max_bytes,
            });
        }
        {
            let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            if used.sessions >= self.max_sessions {
                let max_sessions = self.max_sessions;
                return Err(CapacityError::Sessions {
                    max_sessions,
                    retry_after_ms: RETRY_AFTER_MS,
                });
            }
            let free_bytes = max_bytes - used.kv_bytes;
            if kv_bytes > free_bytes {
                let (needed_bytes, retry_after_ms) = (kv_bytes, RETRY_AFTER_MS);
                return Err(CapacityError::KvCache {
                    needed_bytes,
                    free_bytes,
                    max_bytes,
                    retry_after_ms,
                });
            }
            used.sessions += 1;
            used.kv_bytes += kv_bytes;
        }
        self.metrics.sessions.inc();
        self.metrics.kv_bytes.add(gauge_value(kv_bytes));
        Ok(Reservation {
            capacity: self.clone(),
            kv_bytes,
        })
    }
}

/// Room for one session; dropping it gives the room back.
pub(crate) struct Reservation {
    capacity: Capacity,
    kv_bytes: usize,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let Self { capacity, kv_bytes } = self;
        {
            let mut used = capacity.used.lock().unwrap_or_else(PoisonError::into_inner);
            used.sessions -= 1;
            used.kv_bytes -= *kv_bytes;
        }
        capacity.metrics.sessions.dec();
        capacity.metrics.kv_bytes.sub(gauge_value(*kv_bytes));
    }
}

/// The sessions whose prompt is not computed yet. A prompt costs as much as hundreds of tokens of an answer, so
/// a tail with many of them before it keeps everybody waiting, however many sessions it has room for.
pub(crate) struct PromptQueue {
    max_queue: usize,
    slots: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl PromptQueue {
    pub(crate) fn new(max_queue: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            max_queue,
            slots: Arc::new(Semaphore::new(max_queue)),
            metrics,
        }
    }

    /// Takes a place, until it is dropped.
    pub(crate) fn enter(&self) -> Result<QueuePlace, CapacityError> {
        let full = |_| CapacityError::Queue {
            max_queue: self.max_queue,
            retry_after_ms: RETRY_AFTER_MS,
        };
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(full)?;
        self.metrics.queued_prompts.inc();
        Ok(QueuePlace {
            metrics: Arc::clone(&self.metrics),
            _slot: slot,
        })
    }
}

/// A place in the [`PromptQueue`]; dropping it gives it to the next.
pub(crate) struct QueuePlace {
    metrics: Arc<Metrics>,
    _slot: OwnedSemaphorePermit,
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        self.metrics.queued_prompts.dec();
    }
}

pub(crate) fn gauge_value(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity(max_sessions: usize, max_kv_bytes: usize) -> Capacity {
        Capacity::new(
            max_sessions,
            max_kv_bytes,
            Arc::new(Metrics::new().unwrap()),
        )
    }

    #[test]
    fn a_full_tail_refuses_with_retry_after() {
        let capacity = capacity(1, 100);
        let _held = capacity
            .reserve(10)
            .unwrap_or_else(|error| panic!("{error}"));
        let refused = capacity.reserve(10).err();
        assert!(matches!(
            refused,
            Some(CapacityError::Sessions {
                max_sessions: 1,
                retry_after_ms: 1..
            })
        ));
    }

    #[test]
    fn a_full_queue_of_prompts_refuses_with_retry_after_until_one_is_computed() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let queue = PromptQueue::new(1, Arc::clone(&metrics));
        let place = queue.enter().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(metrics.queued_prompts.get(), 1);
        assert!(matches!(
            queue.enter().err(),
            Some(CapacityError::Queue {
                max_queue: 1,
                retry_after_ms: 1..
            })
        ));
        drop(place);
        assert_eq!(metrics.queued_prompts.get(), 0);
        assert!(queue.enter().is_ok());
    }

    #[test]
    fn kv_bytes_are_never_promised_twice() {
        let capacity = capacity(10, 100);
        let _held = capacity
            .reserve(60)
            .unwrap_or_else(|error| panic!("{error}"));
        let refused = capacity.reserve(41).err();
        assert!(matches!(
            refused,
            Some(CapacityError::KvCache { free_bytes: 40, .. })
        ));
        assert!(capacity.reserve(40).is_ok());
    }

    #[test]
    fn a_dropped_reservation_gives_its_room_back() {
        let capacity = capacity(1, 100);
        drop(capacity.reserve(100));
        assert!(capacity.reserve(100).is_ok());
    }

    #[test]
    fn a_session_larger_than_the_tail_is_not_told_to_try_again() {
        let refused = capacity(1, 100).reserve(101).err();
        assert_eq!(
            refused,
            Some(CapacityError::NeverFits {
                needed_bytes: 101,
                max_bytes: 100
            })
        );
    }
}
