//! What a tail says of its load and of what rows cost it, for devices that decide where to compute.

use serde::{Deserialize, Serialize};

/// What a tail answers on `GET /v1/load`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TailLoad {
    /// Sessions that hold a KV cache.
    pub sessions: usize,
    /// The most sessions.
    pub max_sessions: usize,
    /// Sessions whose prompt is not computed yet.
    pub queued_prompts: usize,
    /// Whether it lets its sessions leave: then it takes no new one.
    pub draining: bool,
    /// The most rows of one step of its engine, all sessions together.
    pub step_rows: usize,
    /// The most guessed tokens that a step of a session verifies.
    pub max_draft_tokens: usize,
    /// What rows cost, as measured in recent steps.
    pub costs: RowCosts,
}

/// Means over recent steps of a tail's engine, in microseconds; `None` before there was such a step.
///
/// The tail's prices (`row`) share a step's time among its rows. What a session waits for (`step`) is the whole of it.
/// Alone on a tail both are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RowCosts {
    /// A row of a prompt, in one layer.
    pub prefill_row_layer_us: Option<f64>,
    /// A decode row's share of one layer.
    pub decode_row_layer_us: Option<f64>,
    /// One layer of a step in which there were decode rows.
    pub decode_step_layer_us: Option<f64>,
    /// Final norm, lm_head and sampler, for one row that was sampled.
    pub sampled_row_us: Option<f64>,
    /// From a step's arrival to its first engine step.
    pub queue_us: Option<f64>,
}
