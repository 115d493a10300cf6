//! Checks each step of a session against what was admitted and what came before. Pure but for the clock
//! reading that is passed through.

use std::time::Instant;

use bytes::Bytes;
use headway_wire::message::{Step, TokenIds, step};
use headway_wire::{
    Codec, CodecError, Limits, PREFIX_BLOCK_POSITIONS, PrefixDigest, PrefixHasher, codec,
};
use tokio::sync::OwnedSemaphorePermit;

use crate::admission::{Admission, Admitted};
use crate::batcher::Phase;
use crate::engine::{Drafter, StepInput, StepRequest};

#[cfg(test)]
mod tests;

/// Why a step is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error(
        "the step starts at position {got}; {expected} positions have been received, so it must start there"
    )]
    Position { expected: usize, got: usize },
    #[error("the step ends at position {got}; the session was opened with max_positions {max}")]
    BeyondSession { max: usize, got: usize },
    #[error("the step carries {got}; a session with split layer {split_layer} sends {expected}")]
    Input {
        split_layer: usize,
        expected: &'static str,
        got: &'static str,
    },
    #[error("token id {got} is outside the vocabulary of {vocab_size}")]
    TokenId { vocab_size: usize, got: u32 },
    #[error(
        "the session's sampling has penalties, which need the token ids of every step in Step.history"
    )]
    HistoryMissing,
    #[error(
        "Step.history carries token ids, which may not leave the device; leave it out: no sampling of this \
         tail needs it"
    )]
    HistoryUpload,
    #[error(
        "Step.draft carries token ids, which may not leave the device; leave it out: this tail verifies no \
         drafts beside activations"
    )]
    DraftUpload,
    #[error(
        "a step came before the result of the draft at position {position}; that result says where the \
         next step starts"
    )]
    DraftUnanswered { position: usize },
    #[error(
        "the step at position {position} runs ahead; this session was opened without, see Opened.max_ahead_steps"
    )]
    Ahead { position: usize },
    #[error(
        "a step at position {position} came while steps that run ahead wait; send it behind their results, or as one \
         that runs ahead"
    )]
    AheadUnanswered { position: usize },
    #[error(
        "the tail was told to run free; only sessions of split layer 0 can be, see Opened.free_running"
    )]
    FreeRun,
    #[error("the activations cannot be read")]
    Activations(#[from] CodecError),
}

/// What a session may send next.
pub(super) struct StepChecker {
    split_layer: usize,
    codec: Option<Codec>,
    /// No activations have come yet, before which token ids may.
    prefill_token_ids: bool,
    needs_history: bool,
    token_upload: bool,
    max_positions: usize,
    prefill_positions: usize,
    vocab_size: usize,
    hidden_size: usize,
    limits: Limits,
    /// Positions received so far, those that the tail held from the start included.
    received: usize,
    /// Set while it is not known how much of a draft stands.
    draft: Option<OpenDraft>,
    /// Of what was received; absent where nothing of the session is kept.
    hasher: Option<PrefixHasher>,
    /// Completed since they were last handed to the engine.
    digests: Vec<PrefixDigest>,
}

/// A draft whose result is not known yet.
struct OpenDraft {
    position: usize,
    /// What goes into the digests as far as it is accepted; empty where nothing is kept.
    rows: Vec<Bytes>,
}

/// The rows of a step, checked.
struct CheckedRows {
    input: StepInput,
    rows: usize,
    history: Vec<u32>,
    /// For the digests, one for each row; empty where nothing is kept.
    bytes: Vec<Bytes>,
}

impl StepChecker {
    /// For a session of which the tail holds the first `reused_positions` positions, of the blocks that
    /// `admitted.prefix` names.
    pub(super) fn new(admitted: &Admitted, admission: &Admission, reused_positions: usize) -> Self {
        let hasher = admitted.keeps_prefix.then(|| {
            let (split_layer, codec) = admitted.digested();
            // Checked at admission to be a u32.
            let split_layer = u32::try_from(split_layer).unwrap_or(u32::MAX);
            let mut hasher = PrefixHasher::new(split_layer, codec);
            let blocks = reused_positions / PREFIX_BLOCK_POSITIONS;
            if let Some(last) = blocks.checked_sub(1) {
                hasher.skip_to(blocks, &admitted.prefix[last]);
            }
            hasher
        });
        Self {
            split_layer: admitted.split_layer,
            codec: admitted.codec,
            prefill_token_ids: admitted.prefill_token_ids,
            needs_history: admitted.needs_history,
            token_upload: admission.token_upload(),
            max_positions: admitted.max_positions,
            prefill_positions: admitted.prefill_positions,
            vocab_size: admission.vocab_size(),
            hidden_size: admission.hidden_size(),
            limits: *admission.limits(),
            received: reused_positions,
            draft: None,
            hasher,
            digests: Vec::new(),
        }
    }

    /// The memory that the step's rows will take once they are decoded. The frame's check has bounded the
    /// rows.
    pub(super) fn memory_kib(&self, step: &Step) -> u32 {
        let bytes = match &step.input {
            Some(step::Input::Activations(activations)) => {
                activations.rows as usize * self.hidden_size * size_of::<f32>()
            }
            Some(step::Input::TokenIds(TokenIds { ids })) => ids.len() * size_of::<u32>(),
            None => 0,
        };
        u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
    }

    /// Accepts the session's next step.
    pub(super) fn check(
        &mut self,
        step: Step,
        arrived: Instant,
        memory: OwnedSemaphorePermit,
    ) -> Result<StepRequest, StepError> {
        if let Some(OpenDraft { position, .. }) = self.draft {
            return Err(StepError::DraftUnanswered { position });
        }
        let position = step.position as usize;
        if position != self.received {
            return Err(StepError::Position {
                expected: self.received,
                got: position,
            });
        }
        let draft = step.draft.map_or_else(Vec::new, |draft| draft.ids);
        if !draft.is_empty() && self.codec.is_some() && !self.token_upload {
            return Err(StepError::DraftUpload);
        }
        self.check_token_ids(&draft)?;
        let CheckedRows {
            input,
            rows,
            history,
            bytes,
        } = self.rows(step.input, step.history)?;
        let end = position + rows;
        if end > self.max_positions {
            return Err(StepError::BeyondSession {
                max: self.max_positions,
                got: end,
            });
        }
        self.received = end;
        if self.prefill_token_ids && matches!(input, StepInput::HiddenStates(_)) {
            // The layers below have no keys and values of these positions, and nobody may find them by a digest.
            self.prefill_token_ids = false;
            self.hasher = None;
        }
        if draft.is_empty() {
            self.digest(&bytes);
        } else {
            self.draft = Some(OpenDraft {
                position,
                rows: bytes,
            });
        }
        Ok(StepRequest {
            input,
            rows,
            history,
            sample: step.sample,
            phase: self.phase(position, rows, !draft.is_empty()),
            draft,
            drafter: Drafter::Device,
            digests: std::mem::take(&mut self.digests),
            arrived,
            memory,
        })
    }

    /// Positions that the tail holds or will hold once what was handed to the engine is done.
    pub(super) const fn received(&self) -> usize {
        self.received
    }

    /// Positions that the session may have.
    pub(super) const fn max_positions(&self) -> usize {
        self.max_positions
    }

    /// The tail holds `positions` positions after a step's result.
    pub(super) fn answered(&mut self, positions: usize) {
        // The result of a draft holds its first row at least; one of a step before it does not.
        if let Some(draft) = self.draft.take_if(|draft| positions > draft.position) {
            self.received = positions;
            let accepted = positions.saturating_sub(draft.position);
            self.digest(&draft.rows[..accepted.min(draft.rows.len())]);
        }
    }

    fn digest(&mut self, rows: &[Bytes]) {
        if let Some(hasher) = &mut self.hasher {
            self.digests
                .extend(rows.iter().filter_map(|row| hasher.push(row)));
        }
    }

    /// Several rows at once are nobody's next token, wherever they stand.
    fn phase(&self, position: usize, rows: usize, is_draft: bool) -> Phase {
        if is_draft {
            Phase::Verify
        } else if position < self.prefill_positions || rows > 1 {
            Phase::Prefill
        } else {
            Phase::Decode
        }
    }

    fn rows(
        &self,
        input: Option<step::Input>,
        history: Option<TokenIds>,
    ) -> Result<CheckedRows, StepError> {
        match (input, self.codec) {
            (Some(step::Input::TokenIds(TokenIds { ids })), codec)
                if codec.is_none() || self.prefill_token_ids =>
            {
                self.check_token_ids(&ids)?;
                let history = if self.needs_history {
                    ids.clone()
                } else {
                    Vec::new()
                };
                let row = |id: &u32| Bytes::copy_from_slice(&id.to_le_bytes());
                Ok(CheckedRows {
                    rows: ids.len(),
                    bytes: self.if_kept(|| ids.iter().map(row).collect()),
                    input: StepInput::TokenIds(ids),
                    history,
                })
            }
            (Some(step::Input::Activations(activations)), Some(codec)) => {
                let history = self.history(history)?;
                let values = codec::decode(&activations, codec, self.hidden_size, &self.limits)?;
                let rows = || codec::encoded_rows(&activations, codec);
                Ok(CheckedRows {
                    rows: activations.rows as usize,
                    // Shares the frame's memory.
                    bytes: self
                        .if_kept(|| rows().map(|row| activations.data.slice_ref(row)).collect()),
                    input: StepInput::HiddenStates(values),
                    history,
                })
            }
            (input, _) => Err(self.wrong_input(input.as_ref())),
        }
    }

    fn if_kept(&self, bytes: impl FnOnce() -> Vec<Bytes>) -> Vec<Bytes> {
        if self.hasher.is_some() {
            bytes()
        } else {
            Vec::new()
        }
    }

    /// The frame's check has made sure that there is one id for each row, where there are any.
    fn history(&self, history: Option<TokenIds>) -> Result<Vec<u32>, StepError> {
        match history {
            // It has left the device already; whoever made the device's software should hear of it.
            Some(_) if !self.token_upload => Err(StepError::HistoryUpload),
            Some(TokenIds { ids }) => {
                self.check_token_ids(&ids)?;
                Ok(if self.needs_history { ids } else { Vec::new() })
            }
            None if self.needs_history => Err(StepError::HistoryMissing),
            None => Ok(Vec::new()),
        }
    }

    fn check_token_ids(&self, ids: &[u32]) -> Result<(), StepError> {
        let vocab_size = self.vocab_size;
        match ids.iter().find(|&&id| id as usize >= vocab_size) {
            Some(&got) => Err(StepError::TokenId { vocab_size, got }),
            None => Ok(()),
        }
    }

    fn wrong_input(&self, input: Option<&step::Input>) -> StepError {
        const TOKEN_IDS: &str = "token ids";
        const ACTIVATIONS: &str = "activations";
        let got = match input {
            None => "nothing",
            Some(step::Input::TokenIds(_)) => TOKEN_IDS,
            Some(step::Input::Activations(_)) => ACTIVATIONS,
        };
        let expected = if self.codec.is_none() {
            TOKEN_IDS
        } else {
            ACTIVATIONS
        };
        StepError::Input {
            split_layer: self.split_layer,
            expected,
            got,
        }
    }
}
