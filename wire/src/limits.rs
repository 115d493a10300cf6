//! The named bounds on what a peer may send. Both ends hold a copy; the tail's is part of its configuration.

/// Token ids in `FreeRun.stop_token_ids`; a model has a few that end a turn.
pub const MAX_STOP_TOKEN_IDS: u32 = 64;

/// The most that one frame may carry. A frame beyond a limit is refused as `over_limit`, with the limit's
/// name, its value and what was sent.
///
/// Decoding needs memory in proportion to the frame: token ids and logit biases grow at most eightfold
/// (a one-byte varint becomes four bytes, an empty two-byte message eight, and a growing vector doubles),
/// activations are not copied. So `max_frame_bytes` bounds the memory of a session's decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one WebSocket message. Set the same limit on the WebSocket, so that a larger message is
    /// not even buffered.
    pub max_frame_bytes: usize,
    /// Positions (rows or token ids) of one `Step`.
    pub max_step_positions: u32,
    /// Columns of one row of hidden states: the model's hidden size. At most 65535, because the outlier
    /// lists of the integer codecs hold columns in 16 bits.
    pub max_columns: u32,
    /// Decoder layers that a device may say it runs.
    pub max_split_layer: u32,
    /// Positions of one session: prompt and answer together.
    pub max_positions: u32,
    /// Entries of `Sampling.logit_bias`.
    pub max_logit_bias: u32,
    /// Most likely tokens reported beside the sampled one.
    pub max_top_logprobs: u32,
    /// Digests in `Open.prefix_digests`.
    pub max_prefix_digests: u32,
    /// Token ids in `Step.draft`.
    pub max_draft_tokens: u32,
    /// Bytes of a text made for people: `Refusal.message` and `GoAway.reason`.
    pub max_text_bytes: usize,
    /// Bytes of `Open.traceparent`; version 00 of W3C Trace Context has exactly 55.
    pub max_traceparent_bytes: usize,
    /// Bytes of `Open.tracestate`; W3C Trace Context asks that at least 512 be carried.
    pub max_tracestate_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_frame_bytes: 16 << 20,
            max_step_positions: 2048,
            max_columns: 32_768,
            max_split_layer: 1024,
            max_positions: 1 << 20,
            max_logit_bias: 1024,
            max_top_logprobs: 20,
            max_prefix_digests: 1 << 15,
            max_draft_tokens: 64,
            max_text_bytes: 4096,
            max_traceparent_bytes: 55,
            max_tracestate_bytes: 512,
        }
    }
}
