//! The tail's layers, loaded where they run.

use headway_model::weights::Weights;
use headway_model::{Decoder, KvStore, LayerRange, LoadError};

use crate::capacity::PoolPart;
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
    #[error("--device: a GPU cannot be used; --device cpu needs none")]
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
    /// Ranges of the layers that follow each other, one for each GPU.
    #[cfg(feature = "cuda")]
    Cuda(Vec<headway_cuda::TailWeights>),
}

/// The KV cache of all devices together.
pub(crate) struct KvMemory {
    /// As asked for, or as suits the devices.
    pub(crate) bytes: usize,
    /// For each device, in the order of the layers.
    pub(crate) parts: Vec<PoolPart>,
}

impl TailLayers {
    /// Loads `layers` to where `config.place` says, and logs where that is.
    pub(crate) fn load(
        weights: &Weights,
        layers: LayerRange,
        config: &Config,
    ) -> Result<Self, TailLayersError> {
        #[cfg(feature = "cuda")]
        if let Some(ordinals) = gpus(&config.place) {
            return Ok(Self::Cuda(load_stages(ordinals, weights, layers, config)?));
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
            Self::Cuda(stages) => stages[0].config().num_layers,
        }
    }

    /// Bytes that the weights take.
    pub(crate) fn weight_bytes(&self) -> usize {
        match self {
            Self::Cpu(decoder) => decoder.weight_bytes(),
            #[cfg(feature = "cuda")]
            Self::Cuda(stages) => stages.iter().map(|stage| stage.bytes()).sum(),
        }
    }

    /// The KV cache, `max_bytes` on all devices together, in proportion to their layers; `None`: as suits each device.
    /// To be asked while nothing but the weights is in the devices' memory.
    ///
    /// # Errors
    /// [`TailLayersError::Cuda`] where a GPU does not say what is free.
    pub(crate) fn kv_memory(&self, max_bytes: Option<usize>) -> Result<KvMemory, TailLayersError> {
        let layers = self.layers_of_devices();
        let block_bytes = self.block_bytes();
        if let Some(bytes) = max_bytes {
            let parts = share_blocks(bytes / block_bytes, &layers);
            return Ok(KvMemory { bytes, parts });
        }
        let usual_bytes = self.usual_kv_bytes()?;
        let parts = layers.into_iter().zip(&usual_bytes);
        let part = |(layers, bytes)| PoolPart {
            layers,
            blocks: bytes / block_bytes,
        };
        Ok(KvMemory {
            parts: parts.map(part).collect(),
            bytes: usual_bytes.iter().sum(),
        })
    }

    /// How many layers each device has.
    fn layers_of_devices(&self) -> Vec<usize> {
        match self {
            Self::Cpu(decoder) => vec![decoder.layers().len()],
            #[cfg(feature = "cuda")]
            Self::Cuda(stages) => stages.iter().map(|stage| stage.layers().len()).collect(),
        }
    }

    /// How much KV cache each device should have.
    fn usual_kv_bytes(&self) -> Result<Vec<usize>, TailLayersError> {
        match self {
            Self::Cpu(_) => Ok(vec![CPU_KV_BYTES]),
            #[cfg(feature = "cuda")]
            Self::Cuda(stages) => stages
                .iter()
                .map(|stage| {
                    let (free_bytes, _) = stage.gpu().memory_bytes()?;
                    Ok(all_but_the_reserve(free_bytes))
                })
                .collect(),
        }
    }

    /// How many rows a step should have at most, where nobody says.
    fn usual_step_tokens(&self) -> usize {
        match self {
            Self::Cpu(_) => CPU_STEP_TOKENS,
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => GPU_STEP_TOKENS,
        }
    }

    /// As many rows as a step may have, of those that were asked for.
    pub(crate) fn step_tokens(&self, config: &Config) -> usize {
        let asked = config.step_tokens;
        let step_tokens = asked.unwrap_or_else(|| self.usual_step_tokens());
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(_) if config.deterministic => {
                step_tokens.min(headway_cuda::DETERMINISTIC_ROWS)
            }
            _ => step_tokens,
        }
    }

    /// Bytes of one block of the device's KV memory.
    pub(crate) fn block_bytes(&self) -> usize {
        match self {
            Self::Cpu(decoder) => KvStore::block_bytes(decoder.config()),
            #[cfg(feature = "cuda")]
            Self::Cuda(stages) => {
                headway_cuda::Tail::block_bytes(stages[0].config(), stages[0].dtype())
            }
        }
    }
}

/// What the KV cache may take of so many bytes.
#[cfg(feature = "cuda")]
fn all_but_the_reserve(free_bytes: usize) -> usize {
    free_bytes.saturating_sub(GPU_RESERVE_BYTES.max(free_bytes / 10))
}

/// Loads the layers to the GPUs of these numbers, a range to each.
#[cfg(feature = "cuda")]
fn load_stages(
    mut ordinals: Vec<usize>,
    weights: &Weights,
    layers: LayerRange,
    config: &Config,
) -> Result<Vec<headway_cuda::TailWeights>, TailLayersError> {
    let most = layers.len().max(1);
    if ordinals.len() > most {
        tracing::warn!(layers = layers.len(), "there are more GPUs than layers");
        ordinals.truncate(most);
    }
    let mut gpus = Vec::with_capacity(ordinals.len());
    for ordinal in ordinals {
        let gpu = headway_cuda::Gpu::open(ordinal)?;
        tracing::info!(ordinal, name = gpu.name()?, "the layers run on a GPU");
        gpus.push(gpu);
    }
    let stages = headway_cuda::load_stages(&gpus, weights, layers, config.dtype)?;
    if stages.len() > 1 {
        for stage in &stages {
            let (ordinal, weight_bytes) = (stage.gpu().ordinal(), stage.bytes());
            tracing::info!(ordinal, layers = %stage.layers(), weight_bytes, "a GPU's layers");
        }
    }
    Ok(stages)
}

/// The GPUs that were asked for, or the first one where there is one.
#[cfg(feature = "cuda")]
fn gpus(place: &Place) -> Option<Vec<usize>> {
    match place {
        Place::Cpu => None,
        Place::Cuda(ordinals) => Some(ordinals.clone()),
        Place::Auto => headway_cuda::is_present().then(|| vec![0]),
    }
}

/// Blocks for devices with so many layers each, such that all have room for as many columns.
fn share_blocks(total_blocks: usize, layers: &[usize]) -> Vec<PoolPart> {
    let all: usize = layers.iter().sum();
    let (columns, rest) = match all {
        0 => (0, 0),
        all => (total_blocks / all, total_blocks % all),
    };
    let part = |&layers: &usize| PoolPart {
        layers,
        blocks: columns * layers,
    };
    let mut parts: Vec<PoolPart> = layers.iter().map(part).collect();
    // All sessions pass the last layers.
    if let Some(last) = parts.last_mut() {
        last.blocks += rest;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_shared_out_by_layers_and_the_rest_is_the_last_devices() {
        let blocks = |total, layers: &[usize]| -> Vec<usize> {
            let parts = share_blocks(total, layers);
            parts.into_iter().map(|part| part.blocks).collect()
        };
        assert_eq!(blocks(17, &[5]), [17]);
        assert_eq!(blocks(35, &[6, 6, 4]), [12, 12, 11]);
        assert_eq!(blocks(3, &[6, 4]), [0, 3]);
        assert_eq!(blocks(usize::MAX, &[1]), [usize::MAX]);
    }

    #[test]
    #[cfg(feature = "cuda")]
    fn a_tenth_is_left_free_and_two_gibibytes_at_least() {
        assert_eq!(all_but_the_reserve(130 << 30), 117 << 30);
        assert_eq!(all_but_the_reserve(10 << 30), 8 << 30);
        assert_eq!(all_but_the_reserve(1 << 30), 0);
    }
}
