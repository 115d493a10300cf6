//! The weights behind the model's last layer.

use std::sync::Arc;

use cudarc::driver::CudaSlice;
use headway_model::ModelConfig;
use headway_model::weights::names;

use super::sources::Source;
use crate::error::CudaError;
use crate::products::Matrix;

/// From the residual stream to logits.
pub(crate) struct EndWeights {
    pub(crate) output_norm: CudaSlice<f32>,
    /// `[vocab_size, hidden_size]`.
    pub(crate) lm_head: Matrix,
}

impl EndWeights {
    /// `embedding`: where it is here, a tied lm_head may share its memory.
    pub(super) fn new<S: Source>(
        config: &ModelConfig,
        embedding: Option<&Arc<CudaSlice<u8>>>,
        source: &mut S,
    ) -> Result<Self, CudaError> {
        let vocabulary = [config.vocab_size, config.hidden_size];
        let lm_head = if config.tied_embeddings {
            let part = (names::EMBEDDING.to_owned(), vocabulary);
            source.lm_head(part, embedding)?
        } else {
            source.lm_head((names::LM_HEAD.to_owned(), vocabulary), None)?
        };
        Ok(Self {
            output_norm: source.vector(&[(names::OUTPUT_NORM.to_owned(), config.hidden_size)])?,
            lm_head: lm_head.in_one_plane(),
        })
    }

    pub(super) fn bytes(&self) -> usize {
        self.output_norm.num_bytes() + self.lm_head.bytes()
    }
}
