//! A model's layers from the first one on, in the memory of the processor that runs them.

use std::sync::Arc;

use headway_model::config::ModelConfig;
use headway_model::layer_range::LayerRange;
use headway_model::weights::{WeightDtype, Weights};
use headway_model::{Decoder, KvCache};

use crate::error::DeviceError;
use crate::place::Place;

#[cfg(feature = "cuda")]
pub(crate) mod gpu;

/// The embedding and some layers, or all with what follows them; for any number of generations. Clones share them.
#[derive(Clone)]
pub(crate) enum DeviceLayers {
    Cpu(Arc<Decoder>),
    #[cfg(feature = "cuda")]
    Gpu(gpu::GpuLayers),
}

/// How layers are held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holding {
    /// The type of the weights in memory.
    pub(crate) dtype: WeightDtype,
    /// Where they are.
    pub(crate) place: Place,
    /// The most positions of a generation. A GPU's memory for keys and values is taken once, with a view to it.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "a GPU's need"))]
    pub(crate) max_positions: usize,
}

impl DeviceLayers {
    /// Loads the first `num_layers` layers to where `holding` says, and logs where that is. Blocks.
    ///
    /// # Errors
    /// [`DeviceError::Load`]; with the feature `cuda` also `DeviceError::Cuda` where a GPU that was asked for cannot be
    /// used.
    pub(crate) fn load(
        weights: &Weights,
        num_layers: usize,
        holding: Holding,
    ) -> Result<Self, DeviceError> {
        #[cfg(feature = "cuda")]
        {
            if let Some(ordinal) = gpu_of(holding.place) {
                let layers = gpu::GpuLayers::load(ordinal, weights, num_layers, holding)?;
                return Ok(Self::Gpu(layers));
            }
            if holding.place == Place::Auto {
                tracing::info!("there is no GPU that can be used: the layers run on the CPU");
            }
        }
        #[cfg(not(feature = "cuda"))]
        if let Place::Cuda(_) = holding.place {
            return Err(DeviceError::NoCuda);
        }
        let decoder = Decoder::load(weights, LayerRange::new(0, num_layers), holding.dtype)?;
        Ok(Self::Cpu(Arc::new(decoder)))
    }

    /// The model's sizes.
    pub(crate) fn config(&self) -> &ModelConfig {
        match self {
            Self::Cpu(decoder) => decoder.config(),
            #[cfg(feature = "cuda")]
            Self::Gpu(layers) => layers.config(),
        }
    }

    /// How many layers there are here.
    pub(crate) fn num_layers(&self) -> usize {
        match self {
            Self::Cpu(decoder) => decoder.layers().end,
            #[cfg(feature = "cuda")]
            Self::Gpu(layers) => layers.num_layers(),
        }
    }

    /// Bytes that the weights take.
    pub(crate) fn weight_bytes(&self) -> usize {
        match self {
            Self::Cpu(decoder) => decoder.weight_bytes(),
            #[cfg(feature = "cuda")]
            Self::Gpu(layers) => layers.weight_bytes(),
        }
    }

    /// An empty sequence of at most `capacity` positions.
    pub(crate) fn sequence(&self, capacity: usize) -> Sequence {
        match self {
            Self::Cpu(decoder) => Sequence::Cpu {
                cache: decoder.new_cache(capacity),
                decoder: Arc::clone(decoder),
            },
            #[cfg(feature = "cuda")]
            Self::Gpu(layers) => Sequence::Gpu(layers.sequence()),
        }
    }
}

/// What `place` names on this machine: `cpu` or `cuda:N`.
pub(crate) fn name_of(place: Place) -> String {
    #[cfg(feature = "cuda")]
    let gpu = gpu_of(place);
    #[cfg(not(feature = "cuda"))]
    let gpu = match place {
        Place::Cuda(ordinal) => Some(ordinal),
        Place::Auto | Place::Cpu => None,
    };
    gpu.map_or_else(|| "cpu".to_owned(), |ordinal| format!("cuda:{ordinal}"))
}

/// The GPU that was asked for, or the first one where there is one.
#[cfg(feature = "cuda")]
pub(crate) fn gpu_of(place: Place) -> Option<usize> {
    match place {
        Place::Cpu => None,
        Place::Cuda(ordinal) => Some(ordinal),
        Place::Auto => headway_cuda::is_present().then_some(0),
    }
}

/// One generation's positions in the layers.
pub(crate) enum Sequence {
    Cpu {
        decoder: Arc<Decoder>,
        cache: KvCache,
    },
    #[cfg(feature = "cuda")]
    Gpu(gpu::GpuSequence),
}

impl Sequence {
    /// Positions so far.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Cpu { cache, .. } => cache.len(),
            #[cfg(feature = "cuda")]
            Self::Gpu(sequence) => sequence.len(),
        }
    }

    /// Forgets the positions from `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        match self {
            Self::Cpu { cache, .. } => cache.truncate(len),
            #[cfg(feature = "cuda")]
            Self::Gpu(sequence) => sequence.truncate(len),
        }
    }

    /// Runs the layers on the next positions, and gives what is behind the last one, `[token_ids.len(), hidden_size]`.
    /// For layers that end before the model does. Blocks.
    pub(crate) fn hidden_states(&mut self, token_ids: &[u32]) -> Result<Vec<f32>, DeviceError> {
        match self {
            Self::Cpu { decoder, cache } => forward(decoder, cache, token_ids),
            #[cfg(feature = "cuda")]
            Self::Gpu(sequence) => sequence.hidden_states(token_ids),
        }
    }

    /// Runs all layers of the model on the next positions, for what comes after them. Blocks.
    pub(crate) fn extend(&mut self, token_ids: &[u32]) -> Result<(), DeviceError> {
        match self {
            Self::Cpu { decoder, cache } => forward(decoder, cache, token_ids).map(drop),
            #[cfg(feature = "cuda")]
            Self::Gpu(sequence) => sequence.extend(token_ids),
        }
    }

    /// As [`Sequence::extend`], of one position at least; the logits after the last one, `[vocab_size]`.
    pub(crate) fn logits(&mut self, token_ids: &[u32]) -> Result<Vec<f32>, DeviceError> {
        match self {
            Self::Cpu { decoder, cache } => {
                let hidden_states = forward(decoder, cache, token_ids)?;
                let last = hidden_states.len() - decoder.config().hidden_size;
                Ok(decoder.logits(&hidden_states[last..])?)
            }
            #[cfg(feature = "cuda")]
            Self::Gpu(sequence) => sequence.logits(token_ids),
        }
    }

    /// As [`Sequence::logits`], after each of the positions: `[token_ids.len(), vocab_size]`. For a few positions.
    pub(crate) fn all_logits(&mut self, token_ids: &[u32]) -> Result<Vec<f32>, DeviceError> {
        match self {
            Self::Cpu { decoder, cache } => {
                let hidden_states = forward(decoder, cache, token_ids)?;
                Ok(decoder.logits(&hidden_states)?)
            }
            #[cfg(feature = "cuda")]
            Self::Gpu(sequence) => {
                let mut logits = Vec::new();
                for token_id in token_ids {
                    logits.append(&mut sequence.logits(std::slice::from_ref(token_id))?);
                }
                Ok(logits)
            }
        }
    }
}

/// `[token_ids.len(), hidden_size]` behind the last layer.
fn forward(
    decoder: &Decoder,
    cache: &mut KvCache,
    token_ids: &[u32],
) -> Result<Vec<f32>, DeviceError> {
    let mut hidden_states = decoder.embed(token_ids)?;
    decoder.forward(decoder.layers(), &mut hidden_states, cache)?;
    Ok(hidden_states)
}
