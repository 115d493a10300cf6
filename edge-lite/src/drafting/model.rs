//! Guesses of a model on this device: an early exit behind the head layers, or a small model of the same tokens.

use std::sync::Arc;

use headway_model::manifest::Manifest;
use headway_model::sampler::Sampler;
use headway_model::weights::{WeightDtype, Weights};
use headway_model::{EarlyExit, KvCache};

use super::Guess;
use crate::config::DraftModelFile;
use crate::device_layers::{DeviceLayers, Holding, Sequence};
use crate::error::{DeviceError, Error, RequestError};

/// Rows of a prompt that an exit takes at a time; bounds the memory.
const EXIT_ROWS: usize = 256;

/// What guesses.
#[derive(Clone)]
pub(crate) enum DraftModel {
    /// From the hidden states that the head layers make anyway.
    EarlyExit(Arc<EarlyExit>),
    /// A whole model, all of whose layers are here.
    Companion(DeviceLayers),
}

impl DraftModel {
    /// Loads what `file` names for the model of `manifest`, cut behind `split_layer`. Blocks.
    ///
    /// # Errors
    /// [`RequestError::DraftModel`] where it cannot guess for this model, [`DeviceError::Load`].
    pub(crate) fn load(
        file: &DraftModelFile,
        manifest: &Manifest,
        split_layer: usize,
        holding: Holding,
    ) -> Result<Self, Error> {
        let model = &manifest.identity.config;
        match file {
            DraftModelFile::EarlyExit(path) => {
                let digest = &manifest.model_digest;
                let exit = EarlyExit::open(path, digest, model, split_layer)?;
                Ok(Self::EarlyExit(Arc::new(exit)))
            }
            DraftModelFile::Companion(path) => {
                let weights = Weights::open(path)?;
                let companion = weights.config();
                if companion.vocab_size != model.vocab_size {
                    return Err(RequestError::DraftModel {
                        path: path.clone(),
                        got: companion.vocab_size,
                        expected: model.vocab_size,
                    }
                    .into());
                }
                let holding = Holding {
                    dtype: WeightDtype::Native,
                    ..holding
                };
                let layers = DeviceLayers::load(&weights, companion.num_layers, holding)?;
                Ok(Self::Companion(layers))
            }
        }
    }
}

/// A model's side of one generation.
pub(crate) struct DraftPass {
    state: State,
    /// After the last row that was taken; empty where that row was not run.
    logits: Vec<f32>,
    /// The tail's draws are drawn here, too: a model that is nearly right then mostly draws the same token.
    sampler: Arc<Sampler>,
}

enum State {
    EarlyExit {
        exit: Arc<EarlyExit>,
        cache: KvCache,
        hidden_size: usize,
        /// Hidden states behind the cache's last position that the exit has not seen.
        unseen: Vec<f32>,
    },
    Companion(Sequence),
}

impl DraftModel {
    /// Bytes that the weights take.
    pub(crate) fn weight_bytes(&self) -> usize {
        match self {
            Self::EarlyExit(exit) => exit.weight_bytes(),
            Self::Companion(layers) => layers.weight_bytes(),
        }
    }

    /// Starts a generation of at most `capacity` positions.
    pub(crate) fn pass(&self, capacity: usize, sampler: Arc<Sampler>) -> DraftPass {
        let state = match self {
            Self::EarlyExit(exit) => State::EarlyExit {
                cache: exit.new_cache(capacity),
                hidden_size: exit.hidden_size(),
                exit: Arc::clone(exit),
                unseen: Vec::new(),
            },
            Self::Companion(layers) => State::Companion(layers.sequence(capacity)),
        };
        DraftPass {
            state,
            logits: Vec::new(),
            sampler,
        }
    }
}

impl DraftPass {
    /// The head layers made `rows`, `[n, hidden_size]`, which stand at `position` and after it; what stood there before is
    /// forgotten.
    pub(crate) fn take_rows(&mut self, position: usize, rows: &[f32]) {
        self.logits.clear();
        match &mut self.state {
            State::EarlyExit {
                cache,
                unseen,
                hidden_size,
                ..
            } => {
                cache.truncate(position);
                debug_assert!(
                    position <= cache.len() + unseen.len() / *hidden_size,
                    "rows come without gaps"
                );
                unseen.truncate((position - cache.len()) * *hidden_size);
                unseen.extend_from_slice(rows);
            }
            State::Companion(sequence) => sequence.truncate(position),
        }
    }

    /// The token after `sequence`, whose last row was taken. Blocks.
    pub(crate) fn guess(&mut self, sequence: &[u32]) -> Result<Guess, DeviceError> {
        let token_ids = match &mut self.state {
            State::EarlyExit {
                exit,
                cache,
                hidden_size,
                unseen,
            } => {
                for rows in unseen.chunks(EXIT_ROWS * *hidden_size) {
                    self.logits = exit.logits(rows, cache)?;
                }
                unseen.clear();
                Some(exit.token_ids())
            }
            State::Companion(companion) => {
                let new = &sequence[companion.len()..];
                if !new.is_empty() {
                    self.logits = companion.logits(new)?;
                }
                None
            }
        };
        debug_assert!(!self.logits.is_empty(), "the last row was taken");
        let sampled = self.sampler.sample_adjusted(&self.logits, sequence.len());
        let index = sampled.token_id as usize;
        let token_id = token_ids.map_or(sampled.token_id, |token_ids| token_ids[index]);
        Ok(Guess::of_model(token_id, probability(&self.logits, index)))
    }
}

fn probability(logits: &[f32], index: usize) -> f32 {
    let total: f32 = logits
        .iter()
        .map(|logit| (logit - logits[index]).exp())
        .sum();
    1.0 / total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probability_is_the_softmaxs() {
        let logits = [1.0, 3.0, 2.0];
        let all: f32 = (0..3).map(|index| probability(&logits, index)).sum();
        assert!((all - 1.0).abs() < 1e-6);
        assert!((probability(&logits, 1) - 0.665).abs() < 1e-3);
    }
}
