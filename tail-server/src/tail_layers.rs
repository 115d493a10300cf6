//! The tail's layers, loaded where they run.

use headway_model::weights::Weights;
use headway_model::{Decoder, KvStore, LayerRange, LoadError};

use crate::config::{Config, Place};

/// Why the layers cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TailLayersError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[cfg(feature = "cuda")]
    #[error("--device: the GPU cannot be used; --device cpu needs none")]
    Cuda(#[from] headway_cuda::CudaError),
}

/// The weights of the tail layers, in the memory of the device that will run them.
pub(crate) enum TailLayers {
    Cpu(Decoder),
    #[cfg(feature = "cuda")]
    Cuda(headway_cuda::TailWeights),
}

impl TailLayers {
    /// Loads `layers` to where `config.place` says, and logs where that is.
    pub(crate) fn load(
        weights: &Weights,
        layers: LayerRange,
        config: &Config,
    ) -> Result<Self, TailLayersError> {
        #[cfg(feature = "cuda")]
        if let Some(ordinal) = gpu(config.place) {
            let gpu = headway_cuda::Gpu::open(ordinal)?;
            tracing::info!(ordinal, name = gpu.name()?, "the layers run on a GPU");
            let weights = headway_cuda::TailWeights::load(&gpu, weights, layers, config.dtype)?;
            return Ok(Self::Cuda(weights));
        }
        if config.place == Place::Auto {
            tracing::info!("there is no GPU that can be used: the layers run on the CPU");
        }
        Ok(Self::Cpu(Decoder::load(weights, layers, config.dtype)?))
    }

    /// Layers of the whole model.
    pub(crate) fn num_layers(&self) -> usize {
        match self {
            Self::Cpu(decoder) => decoder.config().num_layers,
            #[cfg(feature = "cuda")]
            Self::Cuda(weights) => weights.config().num_layers,
        }
    }

    /// Bytes that the weights take.
    pub(crate) fn weight_bytes(&self) -> usize {
        match self {
            Self::Cpu(decoder) => decoder.weight_bytes(),
            #[cfg(feature = "cuda")]
            Self::Cuda(weights) => weights.bytes(),
        }
    }

    /// Bytes of one block of the device's KV memory.
    pub(crate) fn block_bytes(&self) -> usize {
        match self {
            Self::Cpu(decoder) => KvStore::block_bytes(decoder.config()),
            #[cfg(feature = "cuda")]
            Self::Cuda(weights) => {
                headway_cuda::Tail::block_bytes(weights.config(), weights.dtype())
            }
        }
    }
}

/// The GPU that was asked for, or the first one where there is one.
#[cfg(feature = "cuda")]
fn gpu(place: Place) -> Option<usize> {
    match place {
        Place::Cpu => None,
        Place::Cuda(ordinal) => Some(ordinal),
        Place::Auto => headway_cuda::is_present().then_some(0),
    }
}
