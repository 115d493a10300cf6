//! Decides from an `Open` alone whether a session can be, and what it may do. Pure; whether there is room
//! right now is [`crate::capacity`]'s question.

use headway_model::LayerRange;
use headway_model::manifest::Manifest;
use headway_model::sampler::{Sampler, SamplingError, SamplingParams};
use headway_wire::message::{Open, Sampling};
use headway_wire::prefix::{self, PREFIX_DIGEST_BYTES};
use headway_wire::{Codec, CodecError, Limits, PREFIX_BLOCK_POSITIONS, PrefixDigest};

#[cfg(test)]
pub(crate) mod tests;

/// The most positions of one step, where the frame's size does not allow fewer. Longer prompts come in
/// several steps, so that upload, head layers and tail layers overlap.
const MAX_STEP_POSITIONS: u32 = 512;

/// Steps of a session that may wait for the result that they run ahead of. They have few rows each: such a step is one
/// guess and its draft.
pub(crate) const MAX_AHEAD_STEPS: u32 = 12;

/// Bytes of a frame that are not activations or token ids: sampling, logit biases, tags and lengths.
const FRAME_OVERHEAD_BYTES: usize = 64 << 10;

/// Bytes of one token id in protobuf, at most.
const TOKEN_ID_BYTES: usize = 5;

/// Why a session is not admitted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdmissionError {
    #[error(
        "this tail serves the model with digest {tail}, the device has {device}; \
         the device must load its head layers from this tail's manifest"
    )]
    DigestMismatch { tail: String, device: String },
    #[error("split layer {got} is not served; this tail accepts {min} to {max}")]
    SplitLayer { min: usize, max: usize, got: usize },
    #[error(
        "token ids may not leave the device, and split layer 0 sends nothing else; \
         run at least one layer on the device: this tail accepts split layers {min} to {max}"
    )]
    TokenUpload { min: usize, max: usize },
    #[error(
        "token ids may not leave the device, and penalties need those of the prompt and the answer; \
         leave repetition_penalty, presence_penalty and frequency_penalty out"
    )]
    HistoryUpload,
    #[error("codec {got} is not accepted; this tail accepts {accepted}")]
    Codec { accepted: String, got: String },
    #[error("the codec cannot be read")]
    CodecForm(#[from] CodecError),
    #[error("{got} positions were asked for; this tail holds at most {max} in one session")]
    Positions { max: usize, got: usize },
    #[error("logit bias for token id {got}; the vocabulary has {vocab_size}")]
    LogitBias { vocab_size: usize, got: u32 },
    #[error("the sampling parameters make no sense")]
    Sampling(#[from] SamplingError),
}

/// What an admitted session may do.
pub(crate) struct Admitted {
    /// The first layer the tail runs for it.
    pub(crate) split_layer: usize,
    /// `None` where token ids come instead of activations.
    pub(crate) codec: Option<Codec>,
    /// Token ids come before the first activations; they pass all layers.
    pub(crate) prefill_token_ids: bool,
    pub(crate) sampler: Sampler,
    /// The sampler must see every token id, so activations come with them.
    pub(crate) needs_history: bool,
    /// KV capacity in positions.
    pub(crate) max_positions: usize,
    /// Positions before this one are prompt, or are sent again after a move.
    pub(crate) prefill_positions: usize,
    pub(crate) is_resumed: bool,
    /// To the last one, from the first one that any of its rows passes.
    pub(crate) layers: LayerRange,
    /// Digests of its first blocks, as far as they may be reused: a row is left to be sent.
    pub(crate) prefix: Vec<PrefixDigest>,
    /// Its own blocks may be reused by others.
    pub(crate) keeps_prefix: bool,
}

/// The rules of one tail.
pub(crate) struct Admission {
    manifest: Manifest,
    codecs: Vec<Codec>,
    limits: Limits,
}

impl Admitted {
    /// The split layer and the codec of the rows that are digested; no codec: token ids.
    pub(crate) fn digested(&self) -> (usize, Option<Codec>) {
        if self.prefill_token_ids {
            (0, None)
        } else {
            (self.split_layer, self.codec)
        }
    }
}

impl Admission {
    /// `max_draft_tokens`: of one step.
    pub(crate) fn new(manifest: Manifest, codecs: Vec<Codec>, max_draft_tokens: u32) -> Self {
        let limits = Limits {
            max_draft_tokens,
            ..frame_limits(&manifest, &codecs)
        };
        Self {
            manifest,
            codecs,
            limits,
        }
    }

    /// The limits of a frame: no larger than the largest step of any accepted codec.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn vocab_size(&self) -> usize {
        self.manifest.identity.config.vocab_size
    }

    /// Whether steps may carry token ids at all.
    pub(crate) fn token_upload(&self) -> bool {
        self.manifest.token_upload
    }

    /// Of one step; none where the token ids of guesses may not leave the device.
    pub(crate) fn max_draft_tokens(&self) -> u32 {
        if self.token_upload() {
            self.limits.max_draft_tokens
        } else {
            0
        }
    }

    /// Steps that may run ahead of the result before them; none where nothing may be guessed.
    pub(crate) fn max_ahead_steps(&self) -> u32 {
        match self.max_draft_tokens() {
            0 => 0,
            _ => MAX_AHEAD_STEPS,
        }
    }

    pub(crate) fn hidden_size(&self) -> usize {
        self.manifest.identity.config.hidden_size
    }

    /// Refuses a device that means another model than this tail's: behind one address there are tails of two models
    /// while one takes the place of the other.
    pub(crate) fn check_model(&self, device_digest: &str) -> Result<(), AdmissionError> {
        if device_digest == self.manifest.model_digest {
            return Ok(());
        }
        Err(AdmissionError::DigestMismatch {
            tail: self.manifest.model_digest.clone(),
            device: device_digest.to_owned(),
        })
    }

    /// Checks `open`, whose form [`headway_wire::frame`] has checked, against this tail's model.
    pub(crate) fn admit(&self, open: &Open) -> Result<Admitted, AdmissionError> {
        self.check_model(&open.model_digest)?;
        // With all layers on the device there is nothing to open a session for.
        let last = self.manifest.identity.config.num_layers.saturating_sub(1);
        let (min, max) = (self.manifest.split.min, self.manifest.split.max.min(last));
        let split_layer = open.split_layer as usize;
        let token_upload = self.manifest.token_upload;
        if split_layer == 0 && !token_upload {
            return Err(AdmissionError::TokenUpload { min, max });
        }
        if !(min..=max).contains(&split_layer) {
            return Err(AdmissionError::SplitLayer {
                min,
                max,
                got: split_layer,
            });
        }
        let (max, max_positions) = (self.manifest.max_positions, open.max_positions as usize);
        if max_positions > max {
            return Err(AdmissionError::Positions {
                max,
                got: max_positions,
            });
        }

        let sampling = self.sampling_params(open.sampling.as_ref())?;
        let needs_history = sampling.needs_history();
        if needs_history && !token_upload {
            return Err(AdmissionError::HistoryUpload);
        }
        let prompt_tokens = open.prompt_tokens as usize;
        let model_config = &self.manifest.identity.config;
        let prefill_positions = prompt_tokens.max(open.resume_positions as usize);
        let prefill_token_ids =
            open.prefill_token_ids && split_layer > 0 && min == 0 && token_upload;
        let first_layer = if prefill_token_ids { 0 } else { split_layer };
        // Of a session with two kinds of rows, those of token ids only.
        let digested_positions = if prefill_token_ids {
            prefill_positions.min(prompt_tokens)
        } else {
            prefill_positions
        };
        Ok(Admitted {
            split_layer,
            codec: self.accepted_codec(open, split_layer)?,
            sampler: Sampler::new(sampling, prompt_tokens)?,
            prefill_token_ids,
            needs_history,
            max_positions,
            prefill_positions,
            is_resumed: open.resume_positions > 0,
            layers: LayerRange::new(first_layer, model_config.num_layers),
            prefix: reusable_prefix(open, digested_positions, needs_history),
            keeps_prefix: open.keep_prefix,
        })
    }

    fn accepted_codec(
        &self,
        open: &Open,
        split_layer: usize,
    ) -> Result<Option<Codec>, AdmissionError> {
        if split_layer == 0 {
            return Ok(None);
        }
        // The frame's check has made sure that there is one.
        let codec = Codec::try_from(open.codec.unwrap_or_default())?;
        // The group size is the device's choice.
        let kind = std::mem::discriminant(&codec);
        if !self
            .codecs
            .iter()
            .any(|accepted| std::mem::discriminant(accepted) == kind)
        {
            let accepted = self.manifest.codecs.join(", ");
            return Err(AdmissionError::Codec {
                accepted,
                got: codec.to_string(),
            });
        }
        Ok(Some(codec))
    }

    /// On the wire the zero of an absent field is off, for `top_p` and `repetition_penalty` too.
    fn sampling_params(
        &self,
        sampling: Option<&Sampling>,
    ) -> Result<SamplingParams, AdmissionError> {
        let Some(sampling) = sampling else {
            return Ok(SamplingParams::default());
        };
        let vocab_size = self.vocab_size();
        let outside = |token_id: u32| token_id as usize >= vocab_size;
        if let Some(bias) = sampling
            .logit_bias
            .iter()
            .find(|bias| outside(bias.token_id))
        {
            return Err(AdmissionError::LogitBias {
                vocab_size,
                got: bias.token_id,
            });
        }
        let one_if_absent = |value: f32| if value == 0.0 { 1.0 } else { value };
        Ok(SamplingParams {
            temperature: sampling.temperature,
            top_k: sampling.top_k as usize,
            top_p: one_if_absent(sampling.top_p),
            min_p: sampling.min_p,
            repetition_penalty: one_if_absent(sampling.repetition_penalty),
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            seed: sampling.seed,
            logit_bias: sampling
                .logit_bias
                .iter()
                .map(|bias| (bias.token_id, bias.bias))
                .collect(),
            logprobs: sampling.logprobs,
            top_logprobs: sampling.top_logprobs as usize,
        })
    }
}

/// What the device may leave out. At least one row is left to be sent, after which a token is sampled; and where
/// the sampler must see every token id, all are sent.
fn reusable_prefix(
    open: &Open,
    digested_positions: usize,
    needs_history: bool,
) -> Vec<PrefixDigest> {
    if needs_history {
        return Vec::new();
    }
    let blocks = digested_positions.saturating_sub(1) / PREFIX_BLOCK_POSITIONS;
    prefix::digests(&open.prefix_digests)
        .take(blocks)
        .copied()
        .collect()
}

/// A frame needs to hold one step or one Open and no more, so that a small model's tail does not buffer what
/// only a large one's could use.
fn frame_limits(manifest: &Manifest, codecs: &[Codec]) -> Limits {
    let default = Limits::default();
    let hidden_size = manifest.identity.config.hidden_size;
    let max_prefix_digests = manifest.max_positions / PREFIX_BLOCK_POSITIONS;
    let row_bytes = codecs
        .iter()
        .map(|codec| codec.encoded_bytes_max(1, hidden_size))
        .max()
        .unwrap_or(0);
    let position_bytes = row_bytes + TOKEN_ID_BYTES;
    let fitting = (default.max_frame_bytes - FRAME_OVERHEAD_BYTES) / position_bytes;
    let max_step_positions = u32::try_from(fitting)
        .unwrap_or(u32::MAX)
        .clamp(1, MAX_STEP_POSITIONS);
    let step_bytes = max_step_positions as usize * position_bytes;
    let open_bytes = max_prefix_digests * PREFIX_DIGEST_BYTES;
    Limits {
        max_frame_bytes: FRAME_OVERHEAD_BYTES + step_bytes.max(open_bytes),
        max_prefix_digests: u32::try_from(max_prefix_digests).unwrap_or(u32::MAX),
        max_step_positions,
        ..default
    }
}
