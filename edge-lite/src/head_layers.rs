//! The layers that run on this device, `[0, k)`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use headway_model::config::ModelConfig;
use headway_model::weights::Weights;
use headway_wire::message::Activations;
use headway_wire::{Codec, codec};

use crate::device_layers::{DeviceLayers, Holding, Sequence};
use crate::drafting::{Draft, DraftPass, Outlook};
use crate::error::DeviceError;
use crate::prefix::PrefixDigests;

/// The head layers, ready to run for any number of generations.
#[derive(Clone)]
pub struct HeadLayers {
    layers: DeviceLayers,
}

impl HeadLayers {
    /// Loads the embedding and layers `[0, split_layer)` from part files. Blocks.
    ///
    /// # Errors
    /// As [`DeviceLayers::load`].
    pub(crate) fn load(
        config: ModelConfig,
        files: &[PathBuf],
        split_layer: usize,
        holding: Holding,
    ) -> Result<Self, DeviceError> {
        let weights = Weights::open_parts(config, files)?;
        Ok(Self {
            layers: DeviceLayers::load(&weights, split_layer, holding)?,
        })
    }

    /// The layers.
    pub(crate) const fn layers(&self) -> &DeviceLayers {
        &self.layers
    }

    /// Starts one generation of at most `capacity` positions, whose rows are also taken by `digests` and `draft`.
    pub(crate) fn pass(
        &self,
        capacity: usize,
        codec: Codec,
        digests: Option<PrefixDigests>,
        draft: Option<DraftPass>,
    ) -> HeadPass {
        HeadPass {
            sequence: self.layers.sequence(capacity),
            hidden_size: self.layers.config().hidden_size,
            codec,
            digests,
            draft,
        }
    }
}

/// The head layers' side of one generation.
pub(crate) struct HeadPass {
    sequence: Sequence,
    hidden_size: usize,
    codec: Codec,
    /// Here rather than where the rows are sent, because a digest of many rows takes time, too.
    digests: Option<PrefixDigests>,
    /// Guesses from what the layers made.
    draft: Option<DraftPass>,
}

/// Encoded hidden states and what they cost.
pub(crate) struct HeadRows {
    pub(crate) activations: Activations,
    pub(crate) compute: Duration,
}

impl HeadPass {
    /// Runs the layers on `token_ids`, which stand at `position` and after it; the first `known` of them are the
    /// sequence's, the others guesses. Blocks.
    ///
    /// `position` may lie before the sequence's end: those rows are computed again, on the CPU to the same bits,
    /// because the keys and values before `position` are still what they were. On a GPU their last bits may differ
    /// where they are computed in another number at a time.
    pub(crate) fn run(
        &mut self,
        position: usize,
        token_ids: &[u32],
        known: usize,
    ) -> Result<HeadRows, DeviceError> {
        assert!(
            position <= self.sequence.len(),
            "rows are computed without gaps"
        );
        let started = Instant::now();
        let hidden_states = self.hidden_states(position, token_ids)?;
        let compute = started.elapsed();
        self.encoded(position, &hidden_states, known, compute)
    }

    /// Runs the layers on what the model guesses after `sequence`, all of whose rows were made, as long as `outlook` takes
    /// it and `is_wanted` says so. Blocks.
    pub(crate) fn run_ahead(
        &mut self,
        mut sequence: Vec<u32>,
        mut outlook: Outlook,
        is_wanted: impl Fn() -> bool,
    ) -> Result<(Option<HeadRows>, Draft), DeviceError> {
        let started = Instant::now();
        let position = sequence.len();
        let mut draft = Draft::default();
        let mut hidden_states = Vec::new();
        while let Some(pass) = self.draft.as_mut()
            && !outlook.is_full()
            && is_wanted()
        {
            let guess = pass.guess(&sequence)?;
            if !draft.add(guess, &mut outlook) {
                break;
            }
            hidden_states.extend(self.hidden_states(sequence.len(), &[guess.token_id])?);
            sequence.push(guess.token_id);
        }
        if hidden_states.is_empty() {
            return Ok((None, draft));
        }
        let compute = started.elapsed();
        let rows = self.encoded(position, &hidden_states, 0, compute)?;
        Ok((Some(rows), draft))
    }

    /// What is behind the layers for `token_ids` at `position` and after it.
    fn hidden_states(
        &mut self,
        position: usize,
        token_ids: &[u32],
    ) -> Result<Vec<f32>, DeviceError> {
        self.sequence.truncate(position);
        let hidden_states = self.sequence.hidden_states(token_ids)?;
        if let Some(draft) = &mut self.draft {
            draft.take_rows(position, &hidden_states);
        }
        Ok(hidden_states)
    }

    fn encoded(
        &mut self,
        position: usize,
        hidden_states: &[f32],
        known: usize,
        compute: Duration,
    ) -> Result<HeadRows, DeviceError> {
        let activations = codec::encode(self.codec, hidden_states, self.hidden_size)?;
        if let Some(digests) = self.digests.as_mut().filter(|_| known > 0) {
            let rows = codec::encoded_rows(&activations, self.codec).take(known);
            digests.extend(position, rows);
        }
        Ok(HeadRows {
            activations,
            compute,
        })
    }

    /// Positions whose keys and values are here.
    pub(crate) fn len(&self) -> usize {
        self.sequence.len()
    }

    /// Runs the layers on the next positions, for their keys and values only. Blocks.
    pub(crate) fn advance(&mut self, token_ids: &[u32]) -> Result<Duration, DeviceError> {
        let started = Instant::now();
        self.hidden_states(self.sequence.len(), token_ids)?;
        Ok(started.elapsed())
    }

    /// Digests the rows at `position` and after it, as far as they were not yet.
    pub(crate) fn digest(&mut self, position: usize, activations: &Activations) {
        if let Some(digests) = &mut self.digests {
            digests.extend(position, codec::encoded_rows(activations, self.codec));
        }
    }

    /// Digests of the sequence's rows made so far, where they are taken.
    pub(crate) fn digests(&self) -> Option<&PrefixDigests> {
        self.digests.as_ref()
    }
}
