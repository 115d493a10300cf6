//! How many sessions, and how much KV cache, there is room for.
//!
//! A session is admitted with the blocks that it can ever need, so that none runs out in the middle of an answer.
//! Blocks of a prefix that the tail holds already are not needed again.
//!
//! Invariant: a [`SessionRoom`] lives as long as the session in the engine, whose blocks it owns. It travels
//! there with the session and is dropped with it, so no block is given to another session while the engine
//! may still write it.

mod room;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use headway_model::LayerRange;
use headway_wire::{Codec, PrefixDigest};
use tokio::sync::futures::OwnedNotified;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

pub(crate) use self::room::{OutOfRoom, SessionRoom};
use crate::auth::Tenant;
pub(crate) use crate::kv_pool::PoolPart;
use crate::kv_pool::{KvPool, Shortage};
use crate::metrics::Metrics;

/// After how long a device that found no room may ask again. A session rarely ends sooner.
const RETRY_AFTER_MS: u32 = 1000;

/// How often prefixes are looked at that nobody has used for long.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);

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

/// Finds what one tenant has sent before, and nothing of another tenant.
///
/// A digest alone would not do: whoever offers digests says them without having sent what they stand for, and
/// could mix those of two prompts or of two codecs. So a block is found only behind the block it was computed
/// behind, and by those who send in the same codec. Blocks found one after the other are then what one session
/// has sent, by induction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PrefixKey {
    tenant: Tenant,
    /// `None`: token ids.
    codec: Option<Codec>,
    /// Of the block before; `None` for the first one.
    previous: Option<PrefixDigest>,
    digest: PrefixDigest,
}

/// How much KV cache a tail has. Where it lies on several devices, what is said of bytes to a session that finds no
/// room is said of the device that is short.
#[derive(Clone, Debug)]
pub(crate) struct KvLimits {
    /// Of the device's memory; of several devices', each with its layers.
    pub(crate) parts: Vec<PoolPart>,
    /// Keys and values of [`headway_model::BLOCK_POSITIONS`] positions in one layer.
    pub(crate) block_bytes: usize,
    /// How long a prefix is kept that no session uses.
    pub(crate) prefix_retention: Duration,
}

/// The KV cache that a session wants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvRequest<'a> {
    pub(crate) tenant: &'a Tenant,
    /// `None`: token ids go up.
    pub(crate) codec: Option<Codec>,
    /// From its entry layer to the model's last one.
    pub(crate) layers: LayerRange,
    /// The most it will hold.
    pub(crate) positions: usize,
    /// Of its first blocks, as far as they may be reused.
    pub(crate) prefix: &'a [PrefixDigest],
    /// Its own blocks may be reused by others.
    pub(crate) keeps_prefix: bool,
}

/// Makes the keys of one session's blocks, one after the other.
struct PrefixChain {
    tenant: Tenant,
    codec: Option<Codec>,
    last: Option<PrefixDigest>,
}

impl PrefixChain {
    fn new(request: &KvRequest<'_>) -> Self {
        Self {
            tenant: request.tenant.clone(),
            codec: request.codec,
            last: None,
        }
    }

    fn key(&mut self, digest: PrefixDigest) -> PrefixKey {
        PrefixKey {
            tenant: self.tenant.clone(),
            codec: self.codec,
            previous: self.last.replace(digest),
            digest,
        }
    }
}

struct Held {
    sessions: usize,
    pool: KvPool<PrefixKey>,
}

/// The room of one tail. Clones share it.
#[derive(Clone)]
pub(crate) struct Capacity {
    max_sessions: usize,
    block_bytes: usize,
    held: Arc<Mutex<Held>>,
    released: Arc<Notify>,
    metrics: Arc<Metrics>,
}

impl Capacity {
    pub(crate) fn new(max_sessions: usize, limits: KvLimits, metrics: Arc<Metrics>) -> Self {
        let pool = KvPool::new(&limits.parts, limits.prefix_retention);
        let limit_bytes = pool.counts().total * limits.block_bytes;
        metrics.kv_limit_bytes.set(gauge_value(limit_bytes));
        let capacity = Self {
            max_sessions,
            block_bytes: limits.block_bytes,
            held: Arc::new(Mutex::new(Held { sessions: 0, pool })),
            released: Arc::default(),
            metrics,
        };
        capacity.show(&capacity.lock());
        capacity
    }

    /// Takes room for one session, until the answer is dropped.
    pub(crate) fn reserve(
        &self,
        request: &KvRequest<'_>,
        now: Instant,
    ) -> Result<SessionRoom, CapacityError> {
        let mut chain = PrefixChain::new(request);
        let keys: Vec<PrefixKey> = request
            .prefix
            .iter()
            .map(|&digest| chain.key(digest))
            .collect();
        let columns = headway_model::KvTable::columns_for(request.positions);
        let mut held = self.lock();
        let granted = held
            .pool
            .reserve(request.layers.len(), columns, &keys, now)
            .map_err(|shortage| self.kv_error(&shortage));
        // A session that never fits is told so, however many others there are.
        if held.sessions >= self.max_sessions
            && !matches!(granted, Err(CapacityError::NeverFits { .. }))
        {
            if let Ok(grant) = granted {
                held.pool.release(grant.lease, now);
            }
            let max_sessions = self.max_sessions;
            return Err(CapacityError::Sessions {
                max_sessions,
                retry_after_ms: RETRY_AFTER_MS,
            });
        }
        let grant = granted?;
        held.sessions += 1;
        self.metrics.sessions.inc();
        self.show(&held);
        drop(held);
        Ok(SessionRoom::new(self.clone(), request, grant))
    }

    /// Completes when a session has given its room back since this was called.
    pub(crate) fn released(&self) -> OwnedNotified {
        Arc::clone(&self.released).notified_owned()
    }

    /// Forgets prefixes that nobody has used for long. For ever.
    pub(crate) async fn forget_old_prefixes(self) {
        let mut interval = tokio::time::interval(EXPIRY_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let mut held = self.lock();
            held.pool.expire(Instant::now());
            self.show(&held);
        }
    }

    fn kv_error(&self, shortage: &Shortage) -> CapacityError {
        let bytes = |blocks: usize| blocks.saturating_mul(self.block_bytes);
        match *shortage {
            Shortage::NeverFits {
                needed_blocks,
                total_blocks,
            } => CapacityError::NeverFits {
                needed_bytes: bytes(needed_blocks),
                max_bytes: bytes(total_blocks),
            },
            Shortage::Full {
                needed_blocks,
                free_blocks,
                total_blocks,
            } => CapacityError::KvCache {
                needed_bytes: bytes(needed_blocks),
                free_bytes: bytes(free_blocks),
                max_bytes: bytes(total_blocks),
                retry_after_ms: RETRY_AFTER_MS,
            },
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, held: &Held) {
        let counts = held.pool.counts();
        self.metrics.show_kv_blocks(&counts);
        let reserved_bytes = (counts.held + counts.promised) * self.block_bytes;
        self.metrics.kv_bytes.set(gauge_value(reserved_bytes));
    }
}

impl CapacityError {
    /// True where room may come when a session leaves.
    pub(crate) fn may_pass(&self) -> bool {
        !matches!(self, Self::NeverFits { .. })
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
