//! The layers that run on this device, `[0, k)`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headway_model::config::ModelConfig;
use headway_model::layer_range::LayerRange;
use headway_model::weights::{WeightDtype, Weights};
use headway_model::{Decoder, KvCache};
use headway_wire::message::Activations;
use headway_wire::{Codec, codec};

use crate::error::DeviceError;
use crate::prefix::PrefixDigests;

/// The head layers, ready to run for any number of generations.
#[derive(Clone)]
pub struct HeadLayers {
    decoder: Arc<Decoder>,
}

impl HeadLayers {
    /// Loads the embedding and layers `[0, split_layer)` from part files. Blocks.
    ///
    /// # Errors
    /// [`DeviceError::Load`].
    pub fn load(
        config: ModelConfig,
        files: &[PathBuf],
        split_layer: usize,
        dtype: WeightDtype,
    ) -> Result<Self, DeviceError> {
        let weights = Weights::open_parts(config, files)?;
        let decoder = Decoder::load(&weights, LayerRange::new(0, split_layer), dtype)?;
        Ok(Self {
            decoder: Arc::new(decoder),
        })
    }

    /// The layers.
    #[must_use]
    pub fn decoder(&self) -> &Arc<Decoder> {
        &self.decoder
    }

    /// Starts one generation of at most `capacity` positions, whose rows are also taken by `digests`.
    pub(crate) fn pass(
        &self,
        capacity: usize,
        codec: Codec,
        digests: Option<PrefixDigests>,
    ) -> HeadPass {
        HeadPass {
            decoder: Arc::clone(&self.decoder),
            cache: self.decoder.new_cache(capacity),
            codec,
            digests,
        }
    }
}

/// The head layers' side of one generation.
pub(crate) struct HeadPass {
    decoder: Arc<Decoder>,
    cache: KvCache,
    codec: Codec,
    /// Here rather than where the rows are sent, because a digest of many rows takes time, too.
    digests: Option<PrefixDigests>,
}

/// Encoded hidden states and what they cost.
pub(crate) struct HeadRows {
    pub(crate) activations: Activations,
    pub(crate) compute: Duration,
}

impl HeadPass {
    /// Runs the layers on `token_ids`, which stand at `position` and after it. Blocks.
    ///
    /// `position` may lie before the cache's end: those rows are computed again, to the same bits, because
    /// the keys and values before `position` are still what they were.
    pub(crate) fn run(
        &mut self,
        position: usize,
        token_ids: &[u32],
    ) -> Result<HeadRows, DeviceError> {
        assert!(
            position <= self.cache.len(),
            "rows are computed without gaps"
        );
        let started = Instant::now();
        self.cache.truncate(position);
        let mut hidden_states = self.decoder.embed(token_ids)?;
        self.decoder
            .forward(self.decoder.layers(), &mut hidden_states, &mut self.cache)?;
        let compute = started.elapsed();
        let activations = codec::encode(
            self.codec,
            &hidden_states,
            self.decoder.config().hidden_size,
        )?;
        if let Some(digests) = &mut self.digests {
            digests.extend(position, codec::encoded_rows(&activations, self.codec));
        }
        Ok(HeadRows {
            activations,
            compute,
        })
    }

    /// Digests of all rows made so far, where they are taken.
    pub(crate) fn digests(&self) -> Option<&PrefixDigests> {
        self.digests.as_ref()
    }
}
