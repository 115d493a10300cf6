//! Guesses of the next token from the hidden states of a layer in the middle.
//!
//! Behind layer `k` a model knows much of what it is going to say. An early exit is a small network that makes it say
//! so: an affine map from the hidden states behind layer `k` to those that the model's last layers expect, one decoder
//! layer or a few, the final norm, and the rows of the lm_head for the tokens that are frequent. It is trained on the
//! model's own text, as in Kangaroo ([arXiv:2404.18911](https://arxiv.org/abs/2404.18911)); the affine map begins as a
//! tuned lens ([arXiv:2303.08112](https://arxiv.org/abs/2303.08112)). What it says is a guess for the model to verify.

use std::path::Path;

use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::early_exit::file::ExitFile;
use crate::error::{ForwardError, LoadError};
use crate::kv_cache::KvCache;
use crate::linear::Linear;

mod file;

pub use file::{ExitWeights, INPUT_BIAS, INPUT_WEIGHT, exit_tensors};

/// An early exit, ready to run.
pub struct EarlyExit {
    split_layer: usize,
    token_ids: Vec<u32>,
    input: Linear,
    decoder: Decoder,
}

impl EarlyExit {
    /// Opens the exit at `path` for the model of digest `model_digest` and sizes `model`, cut behind `split_layer`.
    ///
    /// # Errors
    /// [`LoadError::Exit`] where it belongs to another model or layer, [`LoadError`] where the file is none or is
    /// damaged.
    pub fn open(
        path: &Path,
        model_digest: &str,
        model: &ModelConfig,
        split_layer: usize,
    ) -> Result<Self, LoadError> {
        let file = ExitFile::open(path)?;
        file.check(model_digest, model, split_layer)?;
        Ok(Self {
            split_layer,
            input: file.input()?,
            decoder: file.decoder()?,
            token_ids: file.token_ids,
        })
    }

    /// The layers of its model before the exit at `path`, of whatever model it is.
    ///
    /// # Errors
    /// [`LoadError`] where the file is none or is damaged.
    pub fn split_layer_of(path: &Path) -> Result<usize, LoadError> {
        Ok(ExitFile::open(path)?.split_layer)
    }

    /// The layers of the model before the exit.
    #[must_use]
    pub const fn split_layer(&self) -> usize {
        self.split_layer
    }

    /// Columns of a row of hidden states.
    #[must_use]
    pub const fn hidden_size(&self) -> usize {
        self.decoder.config().hidden_size
    }

    /// The tokens it can guess, one for each logit.
    #[must_use]
    pub fn token_ids(&self) -> &[u32] {
        &self.token_ids
    }

    /// Bytes that the weights take.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        self.input.bytes() + self.decoder.weight_bytes()
    }

    /// An empty cache for one sequence.
    #[must_use]
    pub fn new_cache(&self, capacity: usize) -> KvCache {
        self.decoder.new_cache(capacity)
    }

    /// Takes the hidden states behind layer `split_layer` of the next positions, `[rows, hidden_size]`, one row at
    /// least. Returns the logits of the token after the last one, `[token_ids().len()]`.
    ///
    /// # Errors
    /// [`ForwardError`] where the sizes do not fit, or the cache is full.
    pub fn logits(
        &self,
        hidden_states: &[f32],
        cache: &mut KvCache,
    ) -> Result<Vec<f32>, ForwardError> {
        let columns = self.hidden_size();
        let rows = hidden_states.len() / columns;
        if rows == 0 || rows * columns != hidden_states.len() {
            return Err(ForwardError::Shape {
                found: hidden_states.len(),
                rows: rows.max(1),
                columns,
            });
        }
        let mut inner = vec![0.0; hidden_states.len()];
        self.input.forward(hidden_states, rows, &mut inner);
        self.decoder
            .forward(self.decoder.layers(), &mut inner, cache)?;
        self.decoder.logits(&inner[(rows - 1) * columns..])
    }
}

/// The configuration of an exit of `num_layers` layers that guesses `draft_vocab_size` tokens.
#[must_use]
pub fn exit_config(model: &ModelConfig, num_layers: usize, draft_vocab_size: usize) -> ModelConfig {
    ModelConfig {
        num_layers,
        vocab_size: draft_vocab_size,
        tied_embeddings: true,
        ..model.clone()
    }
}

#[cfg(test)]
mod tests;
