//! What a plan gives and takes, predicted.
//!
//! ```text
//! head(r, p)   k layers and the embedding, r rows behind p positions      the device's profile
//! up(r)        bytes of r rows over the uplink                            the link
//! tail(r)      (L − k) · (decode + (r − 1) · prefill)                     the tail's load
//! ```
//!
//! A prompt goes through three stages chunk by chunk: head, uplink, tail. A stage begins with a chunk when it has ended
//! the one before and the stage before has ended this one; the head waits where too many chunks are unanswered.
//! A token then takes `head + up + round trip + queue + tail + end`; where all layers are the tail's and it goes on by
//! itself, neither `up` nor the round trip. With `n` guesses, each right with probability
//! `q`, it is a step of `n + 1` rows for `1 + q + … + qⁿ` tokens; the `n` with the least time for a token is taken.

use headway_model::KvCache;
use headway_model::config::ModelConfig;
use headway_model::layer_range::LayerRange;

use super::measured::Measured;
use super::{Plan, PlannerInput, Prediction, PromptForm, Workload};
use crate::profile::{Held, LayerTimes, PartBytes};
use crate::session::MAX_UNANSWERED_STEPS;

/// A step's frame beside its rows, and a result.
const FRAME_BYTES: f64 = 40.0;
/// A token id as it goes up, at most.
const TOKEN_ID_BYTES: f64 = 4.0;
/// Of the available memory, what a plan may take.
const USABLE_MEMORY: f64 = 0.9;

/// `plan` with the best number of guesses and what it gives, or why it is not possible.
pub(super) fn predict(
    input: &PlannerInput<'_>,
    measured: &Measured,
    plan: Plan,
) -> Result<(Plan, Prediction), String> {
    let answer = AnswerOf::new(input, measured, plan)?;
    let memory_bytes = answer.memory_bytes()?;
    let workload = input.workload;
    let prompt = answer.prompt();
    let token = answer.token();
    let further = float(workload.answer_tokens - 1);
    // The second token needs the head's keys and values of the whole prompt.
    let head_left_ms = if workload.answer_tokens > 1 {
        prompt.head_left_ms
    } else {
        0.0
    };
    let plan = Plan {
        draft_tokens: token.guesses,
        ..plan
    };
    let prediction = Prediction {
        first_token_ms: prompt.first_token_ms,
        token_ms: token.ms,
        total_ms: prompt.first_token_ms + head_left_ms + further * token.ms,
        tail_ms: prompt.tail_ms + further * token.tail_ms,
        up_bytes: prompt.up_bytes + further * token.up_bytes,
        memory_bytes,
    };
    Ok((plan, prediction))
}

/// One answer under one plan.
struct AnswerOf<'a> {
    input: &'a PlannerInput<'a>,
    measured: &'a Measured,
    plan: Plan,
    config: &'a ModelConfig,
    /// Of the head layers; absent where there are none.
    times: Option<&'a LayerTimes>,
    /// Layers of the tail.
    tail_layers: f64,
    /// Milliseconds of a byte on the uplink.
    up_byte: f64,
    row_bytes: f64,
}

/// What a prompt takes.
struct PromptTimes {
    first_token_ms: f64,
    /// The head layers still run on it when the first token comes.
    head_left_ms: f64,
    tail_ms: f64,
    up_bytes: f64,
}

/// What a token takes.
struct TokenTimes {
    guesses: usize,
    ms: f64,
    tail_ms: f64,
    up_bytes: f64,
}

impl<'a> AnswerOf<'a> {
    fn new(
        input: &'a PlannerInput<'a>,
        measured: &'a Measured,
        plan: Plan,
    ) -> Result<Self, String> {
        let config = &input.manifest.identity.config;
        let times = match plan.split_layer {
            0 => None,
            _ => Some(times(input, plan)?),
        };
        let sends_hidden_states = !matches!(plan.split_layer, 0) && !is_here(config, plan);
        let up_byte = match measured.up_byte {
            Some(ms) => ms,
            None if sends_hidden_states => return Err("the uplink was not measured".to_owned()),
            None => 0.0,
        };
        let row_bytes = if sends_hidden_states {
            float(plan.codec.encoded_bytes_max(1, config.hidden_size))
        } else {
            TOKEN_ID_BYTES
        };
        Ok(Self {
            input,
            measured,
            plan,
            config,
            times,
            tail_layers: float(config.num_layers - plan.split_layer),
            up_byte,
            row_bytes,
        })
    }

    /// What the weights and the keys and values of the head take; or by how much that is too much.
    fn memory_bytes(&self) -> Result<u64, String> {
        let Some(times) = self.times else {
            return Ok(0);
        };
        let split_layer = self.plan.split_layer;
        let Workload {
            prompt_tokens,
            answer_tokens,
            ..
        } = self.input.workload;
        let positions = (prompt_tokens + answer_tokens).min(self.input.manifest.max_positions);
        let kv_bytes = KvCache::bytes_for(self.config, LayerRange::new(0, split_layer), positions);
        let parts = PartBytes::of(&self.input.manifest.identity.parts, self.config);
        let lm_head = if is_here(self.config, self.plan) {
            parts.lm_head_own
        } else {
            0
        };
        let layers = times.layer_bytes.saturating_mul(split_layer as u64);
        let bytes = [times.embedding_bytes, layers, lm_head, kv_bytes as u64];
        let bytes = bytes.into_iter().fold(0, u64::saturating_add);
        let profile = self.input.profile;
        let available = profile.device.memory_available_bytes;
        // A GPU's memory is its own, and it says no when the layers are loaded.
        if profile.key.place == "cpu" && float_bytes(bytes) > float_bytes(available) * USABLE_MEMORY
        {
            return Err("weights and KV cache need more memory than is available".to_owned());
        }
        Ok(bytes)
    }

    /// `rows` rows behind `positions` through the head.
    fn head(&self, rows: usize, positions: usize) -> f64 {
        self.times.map_or(0.0, |times| {
            let layers = float(self.plan.split_layer) * times.layer_ms(rows, positions);
            layers + float(rows) * times.embedding_row_ms
        })
    }

    fn lm_head(&self) -> f64 {
        let parts = PartBytes::of(&self.input.manifest.identity.parts, self.config);
        self.times
            .map_or(0.0, |times| times.lm_head_ms(parts.lm_head))
    }

    fn prompt(&self) -> PromptTimes {
        let workload = self.input.workload;
        let tokens = workload.prompt_tokens;
        if is_here(self.config, self.plan) {
            return PromptTimes {
                // The last row goes alone, for its logits.
                first_token_ms: self.head_of_prompt(tokens - 1)
                    + self.head(1, tokens - 1)
                    + self.lm_head(),
                head_left_ms: 0.0,
                tail_ms: 0.0,
                up_bytes: 0.0,
            };
        }
        let cached = cached_tokens(workload);
        let rows = tokens - cached;
        let open = self.measured.open;
        let Piped {
            arrived_ms,
            tail_ms,
            up_bytes,
        } = self.piped(cached, rows);
        // What the tail holds is known by digests of what would be sent, so all of it is computed before.
        let before = if cached > 0 && self.plan.prefill == PromptForm::HiddenStates {
            self.head_of_prompt(tokens)
        } else {
            0.0
        };
        let first_token_ms = before + open + arrived_ms + self.measured.rtt / 2.0;
        let head_left_ms = match self.plan.prefill {
            PromptForm::TokenIds => (open + self.head_of_prompt(tokens) - first_token_ms).max(0.0),
            PromptForm::HiddenStates | PromptForm::Nothing => 0.0,
        };
        PromptTimes {
            first_token_ms,
            head_left_ms,
            tail_ms,
            up_bytes,
        }
    }

    /// The first `tokens` of the prompt, chunk by chunk.
    fn head_of_prompt(&self, tokens: usize) -> f64 {
        let most = self.plan.prompt_chunk_positions;
        let chunks = (0..tokens).step_by(most);
        chunks
            .map(|start| self.head(most.min(tokens - start), start))
            .sum()
    }

    /// `rows` rows behind `cached` positions through head, uplink and tail, chunk by chunk.
    fn piped(&self, cached: usize, rows: usize) -> Piped {
        let measured = self.measured;
        let is_token_ids = self.plan.prefill == PromptForm::TokenIds;
        let (row_bytes, tail_layers) = if is_token_ids {
            (TOKEN_ID_BYTES, float(self.config.num_layers))
        } else {
            (self.row_bytes, self.tail_layers)
        };
        let is_computed_here = !is_token_ids && cached == 0;
        let (mut made, mut sent, mut computed) = (0.0_f64, 0.0_f64, 0.0_f64);
        let mut answered: Vec<f64> = Vec::new();
        let (mut up_bytes, mut tail_ms) = (0.0, 0.0);
        let most = self.plan.prompt_chunk_positions;
        for start in (0..rows).step_by(most) {
            let chunk = most.min(rows - start);
            if is_computed_here {
                made += self.head(chunk, cached + start);
            }
            let oldest = answered.len().checked_sub(MAX_UNANSWERED_STEPS);
            if let Some(oldest) = oldest {
                made = made.max(answered[oldest]);
            }
            let bytes = float(chunk) * row_bytes + FRAME_BYTES;
            sent = made.max(sent) + bytes * self.up_byte;
            let arrived = sent + measured.rtt / 2.0 + measured.queue;
            computed = arrived.max(computed) + tail_layers * measured.tail_layer(float(chunk));
            answered.push(computed + measured.rtt / 2.0);
            up_bytes += bytes;
            tail_ms += tail_layers * float(chunk) * measured.prefill_row_layer;
        }
        Piped {
            arrived_ms: computed + measured.sampled_row,
            tail_ms: tail_ms + measured.sampled_row,
            up_bytes,
        }
    }

    fn token(&self) -> TokenTimes {
        let Workload {
            prompt_tokens,
            answer_tokens,
            right_share,
            ..
        } = self.input.workload;
        let positions = prompt_tokens + answer_tokens / 2;
        if is_here(self.config, self.plan) {
            return TokenTimes {
                guesses: 0,
                ms: self.head(1, positions) + self.lm_head(),
                tail_ms: 0.0,
                up_bytes: 0.0,
            };
        }
        let mut best = self.step(1, positions, 1.0);
        if self.plan.split_layer == 0 && self.input.manifest.free_running {
            best.ms -= self.measured.rtt + best.up_bytes * self.up_byte;
            best.up_bytes = 0.0;
        }
        let (mut tokens, mut right) = (1.0, 1.0);
        for guesses in 1..=self.measured.most_guesses {
            right *= right_share;
            tokens += right;
            let step = self.step(1 + guesses, positions, tokens);
            if step.ms < best.ms {
                best = step;
            }
        }
        best
    }

    /// What a token takes of a step of `rows` rows that gives `tokens` of them.
    fn step(&self, rows: usize, positions: usize, tokens: f64) -> TokenTimes {
        let measured = self.measured;
        let count = float(rows);
        // Guesses go up beside their rows, as token ids.
        let guesses = (count - 1.0) * TOKEN_ID_BYTES;
        let bytes = count * self.row_bytes + guesses + FRAME_BYTES;
        let end = count * measured.sampled_row;
        let ms = self.head(rows, positions)
            + bytes * self.up_byte
            + FRAME_BYTES * measured.down_byte
            + measured.rtt
            + measured.queue
            + self.tail_layers * measured.tail_layer(count)
            + end;
        let charged = measured.decode_row_layer + (count - 1.0) * measured.prefill_row_layer;
        TokenTimes {
            guesses: rows - 1,
            ms: ms / tokens,
            tail_ms: (self.tail_layers * charged + end) / tokens,
            up_bytes: bytes / tokens,
        }
    }
}

/// A prompt's way.
struct Piped {
    /// From the open session to the first token leaving the tail.
    arrived_ms: f64,
    tail_ms: f64,
    up_bytes: f64,
}

/// What was measured of layers held as `plan` holds them.
fn times<'a>(input: &PlannerInput<'a>, plan: Plan) -> Result<&'a LayerTimes, String> {
    let quantization = plan.head_quantization;
    let layers = &input.profile.layers;
    let held = Held::of(quantization, input.policy.dtype, input.manifest);
    layers
        .iter()
        .find(|times| times.held == held && times.layer_ms(1, 0) > 0.0)
        .ok_or_else(|| {
            format!("layers with head quantisation {quantization} were not measured here")
        })
}

fn is_here(config: &ModelConfig, plan: Plan) -> bool {
    plan.split_layer == config.num_layers
}

/// Of the prompt, what the tail holds; the last position is always sent.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 0 and the number of tokens"
)]
fn cached_tokens(workload: Workload) -> usize {
    let cached = (float(workload.prompt_tokens) * workload.cached_share) as usize;
    cached.min(workload.prompt_tokens - 1)
}

#[expect(clippy::cast_precision_loss, reason = "counts and sizes")]
const fn float(count: usize) -> f64 {
    count as f64
}

#[expect(clippy::cast_precision_loss, reason = "sizes of memories")]
const fn float_bytes(bytes: u64) -> f64 {
    bytes as f64
}
