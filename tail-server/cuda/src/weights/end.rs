//! The weights behind the model's last layer.

use std::sync::Arc;

use cudarc::driver::CudaSlice;
use headway_model::ModelConfig;
use headway_model::weights::names;

use super::Source;
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::products::{Matrix, Outputs};

/// From the residual stream to logits.
pub(crate) struct EndWeights {
    pub(crate) output_norm: CudaSlice<f32>,
    /// `[vocab_size, hidden_size]`.
    pub(crate) lm_head: Matrix,
}

impl EndWeights {
    /// `embedding`: where it is here, a tied lm_head shares its memory.
    pub(super) fn new<S: Source>(
        gpu: &Gpu,
        dtype: Dtype,
        config: &ModelConfig,
        embedding: Option<&Arc<CudaSlice<u8>>>,
        source: &mut S,
    ) -> Result<Self, CudaError> {
        let vocabulary = [config.vocab_size, config.hidden_size];
        let memory = match embedding {
            Some(embedding) if config.tied_embeddings => Arc::clone(embedding),
            _ => {
                let tied = config.tied_embeddings;
                let name = if tied {
                    names::EMBEDDING
                } else {
                    names::LM_HEAD
                };
                Arc::new(source.matrix(&[(name.to_owned(), vocabulary)])?)
            }
        };
        let lm_head = Matrix::new(gpu, dtype, memory, vocabulary, Outputs::Plain)?.in_one_plane();
        Ok(Self {
            output_norm: source.vector(&[(names::OUTPUT_NORM.to_owned(), config.hidden_size)])?,
            lm_head,
        })
    }

    pub(super) fn bytes(&self) -> usize {
        self.output_norm.num_bytes() + self.lm_head.bytes()
    }
}
