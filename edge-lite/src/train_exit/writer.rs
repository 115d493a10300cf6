//! What runs the model while it writes: all of its layers on the CPU, or on a GPU.

use headway_model::decoder::Segment;
use headway_model::kv_cache::store::KvStore;
use headway_model::{Decoder, KvTable};

use super::own_text::{AT_END, AT_EXIT_LAYERS, AT_SPLIT, Taps, max_positions};
use crate::error::DeviceError;

/// The next rows of a text.
pub(super) struct Part<'a> {
    pub(super) token_ids: &'a [u32],
    /// Blocks of all layers, with room for the rows: slot by slot of [`Writer::texts_at_a_time`], layer by layer.
    pub(super) table: &'a KvTable,
}

/// Takes hidden states, `[rows, hidden_size]`: where they are taken, and all rows of a step.
pub(super) type Take<'a> = dyn FnMut(usize, &[f32]) + 'a;

/// Takes the logits behind the last row of each part, `[parts, vocab_size]`.
pub(super) type Sample<'a> = dyn FnMut(&mut [f32]) + 'a;

/// Runs rows through all layers.
pub(super) trait Writer {
    /// Of how many texts there is memory for keys and values.
    fn texts_at_a_time(&self) -> usize;

    /// Runs a step. Each of the places where hidden states are taken is given once.
    fn step(
        &mut self,
        parts: &[Part<'_>],
        take: &mut Take<'_>,
        sample: &mut Sample<'_>,
    ) -> Result<(), DeviceError>;
}

/// Blocks for the keys and values of so many texts.
pub(super) fn kv_blocks(config: &headway_model::ModelConfig, texts: usize) -> usize {
    texts * KvTable::columns_for(max_positions(config)) * config.num_layers
}

/// Writes on the CPU.
pub(super) struct CpuWriter<'a> {
    decoder: &'a Decoder,
    taps: Taps,
    store: KvStore,
}

impl<'a> CpuWriter<'a> {
    /// A step's matrix products then cost little more than reading the weights.
    const TEXTS_AT_A_TIME: usize = 64;

    /// With `decoder`, of all layers.
    pub(super) fn new(decoder: &'a Decoder, taps: Taps) -> Self {
        let config = decoder.config();
        Self {
            decoder,
            taps,
            store: KvStore::new(config, kv_blocks(config, Self::TEXTS_AT_A_TIME)),
        }
    }
}

impl Writer for CpuWriter<'_> {
    fn texts_at_a_time(&self) -> usize {
        Self::TEXTS_AT_A_TIME
    }

    fn step(
        &mut self,
        parts: &[Part<'_>],
        take: &mut Take<'_>,
        sample: &mut Sample<'_>,
    ) -> Result<(), DeviceError> {
        let config = self.decoder.config();
        let new: Vec<u32> = parts
            .iter()
            .flat_map(|part| part.token_ids)
            .copied()
            .collect();
        let segments: Vec<_> = parts
            .iter()
            .map(|part| Segment {
                table: part.table,
                rows: part.token_ids.len(),
            })
            .collect();
        let mut hidden_states = self.decoder.embed(&new)?;
        let places = [
            (self.taps.split_layer, AT_SPLIT),
            (self.taps.exit_layers, AT_EXIT_LAYERS),
            (config.num_layers, AT_END),
        ];
        for layer in 0..=config.num_layers {
            for (_, place) in places.iter().filter(|(before, _)| *before == layer) {
                take(*place, &hidden_states);
            }
            if layer < config.num_layers {
                let (rows, store) = (&mut hidden_states, &mut self.store);
                self.decoder.forward_layer(layer, rows, &segments, store)?;
            }
        }
        let last = last_rows(parts, &hidden_states, config.hidden_size);
        sample(&mut self.decoder.logits(&last)?);
        Ok(())
    }
}

/// The last row of each part.
pub(super) fn last_rows(parts: &[Part<'_>], rows: &[f32], hidden_size: usize) -> Vec<f32> {
    let mut end = 0;
    let last = parts.iter().flat_map(|part| {
        end += part.token_ids.len();
        &rows[(end - 1) * hidden_size..end * hidden_size]
    });
    last.copied().collect()
}
