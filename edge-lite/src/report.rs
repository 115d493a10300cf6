//! What ran where, and how long it took.

use serde::{Deserialize, Serialize};

use crate::router::reason::Segment;

/// Where the layers ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// Head layers here, the rest on the tail.
    Split,
    /// All layers here.
    Device,
    /// All layers on the tail.
    Cloud,
}

impl Route {
    /// The route of a model of `num_layers` layers whose first `split_layer` run here.
    #[must_use]
    pub const fn of(split_layer: usize, num_layers: usize) -> Self {
        match split_layer {
            0 => Self::Cloud,
            k if k >= num_layers => Self::Device,
            _ => Self::Split,
        }
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// A stop string came.
    Stop,
    /// The most tokens, or the last position, was reached.
    Length,
    /// The model ended its turn.
    EndOfTurn,
    /// The caller cancelled.
    Cancelled,
}

/// Wall-clock times of one generation, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Opening the first session on the tail; 0 without a tail.
    pub connect: f64,
    /// From the opened session to the first token.
    pub prefill: f64,
    /// From the request to the first token.
    pub first_token: f64,
    /// From the first token to the last.
    pub decode: f64,
    /// From the request to the end.
    pub total: f64,
}

/// The account of one generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The answer, without a stop string.
    pub text: String,
    /// The sampled tokens, those of a stop string too, but not the one that ended the turn.
    pub token_ids: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Layers that ran here.
    pub split_layer: usize,
    /// Layers of the model.
    pub num_layers: usize,
    /// Bytes that the weights held here take in memory.
    pub head_weight_bytes: usize,
    /// Where the layers ran; of a routed answer, [`Route::Device`] where all of it came from the local model.
    pub route: Route,
    /// Which tokens came from where, and why, in order.
    pub segments: Vec<Segment>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// How long it took.
    pub timings_ms: Timings,
    /// Time in which layers ran here.
    pub head_compute_ms: f64,
    /// Sent on the WebSocket: payloads and frame headers.
    pub bytes_up: u64,
    /// Received on the WebSocket: payloads and frame headers.
    pub bytes_down: u64,
    /// Sessions opened after the first.
    pub reconnects: u32,
    /// Positions that went up as token ids: all of them without layers here, the prompt's where it was sent so beside
    /// layers here, 0 where hidden states went up.
    pub token_id_positions: u64,
    /// Positions that were sent again to rebuild a session.
    pub replayed_positions: u64,
    /// Positions that were not sent because the tail held them from earlier sessions, summed over the sessions of
    /// this generation; 0 without `reuse_prefix`.
    pub reused_positions: u64,
    /// Steps that were sent for tokens and did not run ahead of a result: the answer's round trips. With guesses that were
    /// right, fewer than tokens.
    pub token_steps: u64,
    /// Guessed tokens that were sent.
    pub draft_tokens: u64,
    /// Of those, the right ones.
    pub accepted_draft_tokens: u64,
    /// Device time that right guesses saved the tail, by the tail's account, in microseconds.
    pub tail_draft_saved_us: u64,
    /// Device time that the tail attributed to this generation, in microseconds.
    pub tail_compute_us: u64,
    /// Device time that the head layers here saved the tail, by the tail's account, in microseconds.
    pub tail_saved_us: u64,
    /// Time that steps waited for the tail's engine, in microseconds.
    pub tail_queue_us: u64,
}

/// Counters that a report is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Totals {
    pub(crate) head_compute_ms: f64,
    pub(crate) bytes_up: u64,
    pub(crate) bytes_down: u64,
    pub(crate) reconnects: u32,
    pub(crate) token_id_positions: u64,
    pub(crate) replayed_positions: u64,
    pub(crate) reused_positions: u64,
    pub(crate) token_steps: u64,
    pub(crate) draft_tokens: u64,
    pub(crate) accepted_draft_tokens: u64,
    pub(crate) tail_draft_saved_us: u64,
    pub(crate) tail_compute_us: u64,
    pub(crate) tail_saved_us: u64,
    pub(crate) tail_queue_us: u64,
}

impl Totals {
    /// Adds what another part of the same answer took.
    pub(crate) fn add(&mut self, part: &Self) {
        // All of them by name: a counter that is forgotten here does not compile.
        let Self {
            head_compute_ms,
            bytes_up,
            bytes_down,
            reconnects,
            token_id_positions,
            replayed_positions,
            reused_positions,
            token_steps,
            draft_tokens,
            accepted_draft_tokens,
            tail_draft_saved_us,
            tail_compute_us,
            tail_saved_us,
            tail_queue_us,
        } = part;
        self.head_compute_ms += head_compute_ms;
        self.bytes_up += bytes_up;
        self.bytes_down += bytes_down;
        self.reconnects += reconnects;
        self.token_id_positions += token_id_positions;
        self.replayed_positions += replayed_positions;
        self.reused_positions += reused_positions;
        self.token_steps += token_steps;
        self.draft_tokens += draft_tokens;
        self.accepted_draft_tokens += accepted_draft_tokens;
        self.tail_draft_saved_us += tail_draft_saved_us;
        self.tail_compute_us += tail_compute_us;
        self.tail_saved_us += tail_saved_us;
        self.tail_queue_us += tail_queue_us;
    }
}
