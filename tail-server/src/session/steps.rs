//! Checks each step of a session against what was admitted and what came before. Pure but for the clock
//! reading that is passed through.

use std::time::Instant;

use headway_wire::message::{Step, TokenIds, step};
use headway_wire::{Codec, CodecError, Limits, codec};
use tokio::sync::OwnedSemaphorePermit;

use crate::admission::{Admission, Admitted};
use crate::batcher::Phase;
use crate::engine::{StepInput, StepRequest};

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
    #[error("the activations cannot be read")]
    Activations(#[from] CodecError),
}

/// What a session may send next.
pub(super) struct StepChecker {
    split_layer: usize,
    codec: Option<Codec>,
    needs_history: bool,
    token_upload: bool,
    max_positions: usize,
    prefill_positions: usize,
    vocab_size: usize,
    hidden_size: usize,
    limits: Limits,
    /// Positions received so far.
    received: usize,
}

impl StepChecker {
    pub(super) fn new(admitted: &Admitted, admission: &Admission) -> Self {
        Self {
            split_layer: admitted.split_layer,
            codec: admitted.codec,
            needs_history: admitted.needs_history,
            token_upload: admission.token_upload(),
            max_positions: admitted.max_positions,
            prefill_positions: admitted.prefill_positions,
            vocab_size: admission.vocab_size(),
            hidden_size: admission.hidden_size(),
            limits: *admission.limits(),
            received: 0,
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
        let position = step.position as usize;
        if position != self.received {
            return Err(StepError::Position {
                expected: self.received,
                got: position,
            });
        }
        let (input, rows, history) = self.rows(step.input, step.history)?;
        let end = position + rows;
        if end > self.max_positions {
            return Err(StepError::BeyondSession {
                max: self.max_positions,
                got: end,
            });
        }
        self.received = end;
        let phase = if position < self.prefill_positions {
            Phase::Prefill
        } else {
            Phase::Decode
        };
        Ok(StepRequest {
            input,
            rows,
            history,
            sample: step.sample,
            phase,
            arrived,
            memory,
        })
    }

    fn rows(
        &self,
        input: Option<step::Input>,
        history: Option<TokenIds>,
    ) -> Result<(StepInput, usize, Vec<u32>), StepError> {
        match (input, self.codec) {
            (Some(step::Input::TokenIds(TokenIds { ids })), None) => {
                self.check_token_ids(&ids)?;
                let history = if self.needs_history {
                    ids.clone()
                } else {
                    Vec::new()
                };
                let rows = ids.len();
                Ok((StepInput::TokenIds(ids), rows, history))
            }
            (Some(step::Input::Activations(activations)), Some(codec)) => {
                let history = self.history(history)?;
                let values = codec::decode(&activations, codec, self.hidden_size, &self.limits)?;
                Ok((
                    StepInput::HiddenStates(values),
                    activations.rows as usize,
                    history,
                ))
            }
            (input, _) => Err(self.wrong_input(input.as_ref())),
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
