//! The tail's layers, loaded where they run.

use headway_model::weights::Weights;
use headway_model::{Decoder, KvStore, LayerRange, LoadError};

use crate::config::{Config, Place};

/// KV cache on the CPU where nobody says how much.
const CPU_KV_BYTES: usize = 2 << 30;

/// Rows of a step on the CPU: a step's time follows its rows, and everybody waits for it.
const CPU_STEP_TOKENS: usize = 128;

/// Rows of a step on a GPU: enough for its matrix units, where reading the weights is a small part. Twice as many
/// make prompts hardly faster, and the sessions beside them wait for twice as long.
#[cfg(feature = "cuda")]
const GPU_STEP_TOKENS: usize = 1024;

/// What a GPU's KV cache leaves free at least: buffers of a step (some hundred MiB for 1,024 rows of a model with
/// 4,096 columns), the libraries' own memory, and other programs' changes.
#[cfg(feature = "cuda")]
const GPU_RESERVE_BYTES: usize = 2 << 30;

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
#[cfg_attr(
    feature = "cuda",
    expect(
        clippy::large_enum_variant,
        reason = "there is one, moved at the start"
    )
)]
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

    /// How much KV cache the device should have, where nobody says. To be asked while nothing but the weights is in
    /// its memory.
    ///
    /// # Errors
    /// [`TailLayersError::Cuda`] where a GPU does not say what is free.
    pub(crate) fn usual_kv_bytes(&self) -> Result<usize, TailLayersError> {
        match self {
            Self::Cpu(_) => Ok(CPU_KV_BYTES),
            #[cfg(feature = "cuda")]
            Self::Cuda(weights) => {
                let (free_bytes, _) = weights.gpu().memory_bytes()?;
                Ok(all_but_the_reserve(free_bytes))
            }
        }
    }

    /// How many rows a step should have at most, where nobody says.
    pub(crate) fn usual_step_tokens(&self) -> usize {
        match self {
            Self::Cpu(_) => CPU_STEP_TOKENS,
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => GPU_STEP_TOKENS,
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

/// What the KV cache may take of so many bytes.
#[cfg(feature = "cuda")]
fn all_but_the_reserve(free_bytes: usize) -> usize {
    free_bytes.saturating_sub(GPU_RESERVE_BYTES.max(free_bytes / 10))
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

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_is_left_free_and_two_gibibytes_at_least() {
        assert_eq!(all_but_the_reserve(130 << 30), 117 << 30);
        assert_eq!(all_but_the_reserve(10 << 30), 8 << 30);
        assert_eq!(all_but_the_reserve(1 << 30), 0);
    }
}
