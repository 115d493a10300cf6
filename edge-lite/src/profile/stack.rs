//! Layers one after the other, as many as an answer goes through.
//!
//! Only a few of a model's layers are fetched to measure it. Run by themselves they stay in the processor's caches, and
//! its tables of addresses, which the layers of a small model together do not: by itself each is faster than it is in an
//! answer. So the few are held several times, each with keys and values of its own, and rows go through all of them.

use headway_model::layer_range::LayerRange;
use headway_model::sampler::{Sampler, SamplingParams};
use headway_model::{Decoder, KvCache};

use super::measure::Measuring;
use crate::device_layers::{DeviceLayers, Sequence};
use crate::error::DeviceError;

/// Weights of as many bytes at most are held to measure layers. More are in no processor's caches.
const MOST_BYTES: usize = 256 << 20;

/// Layers, and what they keep of the rows that went through.
pub(super) struct Stack {
    /// Those behind the embedding.
    first: Sequence,
    first_layers: usize,
    /// Some of the same layers again.
    copies: Vec<Copied>,
    /// The first ones are all of the model's: what is behind them is not told.
    is_whole: bool,
    hidden_size: usize,
}

struct Copied {
    decoder: Decoder,
    cache: KvCache,
}

/// Which layers rows go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// All that are held.
    All,
    /// The first ones: enough where so many rows go at once that the weights' way from memory is nothing.
    First,
}

impl Stack {
    /// Around `layers`, with room for `capacity` positions; in `available_bytes` of memory.
    ///
    /// # Errors
    /// [`DeviceError::Load`].
    pub(super) fn load(
        measuring: &Measuring,
        layers: &DeviceLayers,
        capacity: usize,
        available_bytes: usize,
    ) -> Result<Self, DeviceError> {
        let num_layers = layers.config().num_layers;
        let first_layers = layers.num_layers();
        let mut stack = Self {
            first: layers.sequence(capacity),
            first_layers,
            copies: Vec::new(),
            is_whole: first_layers == num_layers,
            hidden_size: layers.config().hidden_size,
        };
        let again = LayerRange::new(1, first_layers);
        // The memory of a GPU is no larger cache.
        if again.is_empty() || stack.is_whole || !matches!(layers, DeviceLayers::Cpu(_)) {
            return Ok(stack);
        }
        let (mut bytes, most_bytes) = (0, MOST_BYTES.min(available_bytes / 4));
        while stack.num_layers(Depth::All) < num_layers {
            let decoder = Decoder::load(&measuring.weights, again, measuring.held.dtype)?;
            bytes += decoder.weight_bytes();
            if bytes > most_bytes {
                break;
            }
            let cache = decoder.new_cache(capacity);
            stack.copies.push(Copied { decoder, cache });
        }
        Ok(stack)
    }

    /// Layers that rows go through.
    pub(super) fn num_layers(&self, depth: Depth) -> usize {
        let copies = self.copies.iter().map(|copy| copy.decoder.layers().len());
        match depth {
            Depth::All => self.first_layers + copies.sum::<usize>(),
            Depth::First => self.first_layers,
        }
    }

    /// Positions that all of these layers hold.
    pub(super) fn len(&self, depth: Depth) -> usize {
        let copies = self.copies.iter().map(|copy| copy.cache.len());
        match depth {
            Depth::All => copies.fold(self.first.len(), usize::min),
            Depth::First => self.first.len(),
        }
    }

    /// Leaves `len` positions in these layers, or as many as all of them hold.
    pub(super) fn truncate(&mut self, len: usize, depth: Depth) {
        let len = len.min(self.len(depth));
        self.first.truncate(len);
        if depth == Depth::All {
            self.copies
                .iter_mut()
                .for_each(|copy| copy.cache.truncate(len));
        }
    }

    /// Runs layers on the next positions; returns what is behind them, `[token_ids.len(), hidden_size]`, or some numbers
    /// in its place.
    ///
    /// # Errors
    /// [`DeviceError::Forward`].
    pub(super) fn forward(
        &mut self,
        token_ids: &[u32],
        depth: Depth,
    ) -> Result<Vec<f32>, DeviceError> {
        if self.is_whole {
            self.first.extend(token_ids)?;
            return Ok(vec![0.5; token_ids.len() * self.hidden_size]);
        }
        let mut hidden_states = self.first.hidden_states(token_ids)?;
        if depth == Depth::All {
            for Copied { decoder, cache } in &mut self.copies {
                decoder.forward(decoder.layers(), &mut hidden_states, cache)?;
            }
        }
        Ok(hidden_states)
    }
}

/// What is behind the last layer: final norm, lm_head and a choice among its tokens.
pub(super) struct Output {
    decoder: Decoder,
    sampler: Sampler,
}

impl Output {
    /// # Errors
    /// [`DeviceError::Load`].
    pub(super) fn load(measuring: &Measuring) -> Result<Self, DeviceError> {
        let num_layers = measuring.weights.config().num_layers;
        let range = LayerRange::new(num_layers, num_layers);
        let sampler = Sampler::new(SamplingParams::default(), 0);
        Ok(Self {
            decoder: Decoder::load(&measuring.weights, range, measuring.held.dtype)?,
            sampler: sampler.expect("greedy sampling has no parameter out of its range"),
        })
    }

    /// The token after `hidden_states`, one row.
    ///
    /// # Errors
    /// [`DeviceError::Forward`].
    pub(super) fn token(&self, hidden_states: &[f32]) -> Result<u32, DeviceError> {
        let mut logits = self.decoder.logits(hidden_states)?;
        Ok(self.sampler.sample(&mut logits, 0).token_id)
    }
}
