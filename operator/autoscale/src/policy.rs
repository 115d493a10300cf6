//! What is aimed at.

use std::time::Duration;

/// Bounds, the load of one pod that is aimed at, and the time over which load is looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// The fewest pods.
    pub min: u32,
    /// The most pods; not below `min`.
    pub max: u32,
    /// Sessions of one pod; above 0.
    pub target_sessions: f64,
    /// Share of a pod's KV cache in use, above 0 and at most 1.
    pub target_kv: f64,
    /// How long work may wait for its step, in milliseconds, 95th percentile; above 0.
    pub target_queue_delay_ms: f64,
    /// Over which load is averaged.
    pub stable: Duration,
    /// Over which a burst is noticed; shorter than `stable`.
    pub panic: Duration,
    /// For how long fewer pods must have been enough before one goes.
    pub scale_down_delay: Duration,
}

impl Policy {
    /// `replicas` within the bounds.
    #[must_use]
    pub fn bounded(&self, replicas: u32) -> u32 {
        replicas.min(self.max).max(self.min)
    }
}
