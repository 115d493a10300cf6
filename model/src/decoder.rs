//! Consecutive layers of a model, ready to run, with the embedding and the lm_head where they belong.

use std::sync::Arc;

use crate::block::Block;
use crate::config::ModelConfig;
use crate::error::{ForwardError, LoadError};
use crate::kv_cache::KvCache;
use crate::kv_cache::store::KvStore;
use crate::kv_cache::table::KvTable;
use crate::layer_range::LayerRange;
use crate::linear::Linear;
use crate::norm::RmsNorm;
use crate::quantization::Quantization;
use crate::rope::Rope;
use crate::weights::{StoreAs, WeightDtype, Weights, names};

/// Layers `[start, end)`; the embedding where `start` is 0, final norm and lm_head where `end` is `L`.
pub struct Decoder {
    config: ModelConfig,
    layers: LayerRange,
    blocks: Vec<Block>,
    rope: Rope,
    embedding: Option<Arc<Linear>>,
    output: Option<(RmsNorm, Arc<Linear>)>,
}

/// Rows of one session in a batch. The first stands at position `table.len()`.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Where the session's keys and values lie. The columns it writes are in no other table.
    pub table: &'a KvTable,
    /// Number of consecutive positions.
    pub rows: usize,
}

impl Decoder {
    /// Loads `layers`, and nothing else of the model.
    ///
    /// # Errors
    /// [`LoadError`] where the range does not fit the model, or a tensor is missing or misshapen.
    pub fn load(
        weights: &Weights,
        layers: LayerRange,
        dtype: WeightDtype,
    ) -> Result<Self, LoadError> {
        Self::load_as(weights, layers, StoreAs::Dtype(dtype))
    }

    /// Loads `layers` the way a device does that asked for `quantization`.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load_quantized(
        weights: &Weights,
        layers: LayerRange,
        quantization: Quantization,
    ) -> Result<Self, LoadError> {
        Self::load_as(weights, layers, StoreAs::Quantized(quantization))
    }

    fn load_as(
        weights: &Weights,
        layers: LayerRange,
        store_as: StoreAs,
    ) -> Result<Self, LoadError> {
        let config = weights.config().clone();
        if layers.start > layers.end || layers.end > config.num_layers {
            return Err(LoadError::LayerRange {
                range: layers,
                num_layers: config.num_layers,
            });
        }
        let vocabulary = |name: &str| {
            let tensor = weights.read(name, &[config.vocab_size, config.hidden_size])?;
            Linear::new(vec![tensor], None, store_as).map(Arc::new)
        };
        // The largest matrices first: one is repacked while nothing else is in memory yet.
        let embedding = if layers.start == 0 {
            Some(vocabulary(names::EMBEDDING)?)
        } else {
            None
        };
        let output = if layers.end == config.num_layers {
            let norm = RmsNorm::new(
                weights.read_vector(names::OUTPUT_NORM, config.hidden_size)?,
                config.rms_norm_eps,
            );
            let lm_head = match &embedding {
                Some(embedding) if config.tied_embeddings => Arc::clone(embedding),
                _ if config.tied_embeddings => vocabulary(names::EMBEDDING)?,
                _ => vocabulary(names::LM_HEAD)?,
            };
            Some((norm, lm_head))
        } else {
            None
        };
        let blocks = layers
            .iter()
            .map(|layer| Block::load(weights, layer, store_as))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            rope: Rope::new(&config),
            config,
            layers,
            blocks,
            embedding,
            output,
        })
    }

    /// Sizes and choices of the model.
    #[must_use]
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Layers held.
    #[must_use]
    pub const fn layers(&self) -> LayerRange {
        self.layers
    }

    /// Bytes the weights take in memory; a tied matrix counts once.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        let blocks: usize = self.blocks.iter().map(Block::bytes).sum();
        let embedding = self.embedding.as_ref().map_or(0, |matrix| matrix.bytes());
        let output = self.output.as_ref().map_or(0, |(norm, matrix)| {
            let shared = self
                .embedding
                .as_ref()
                .is_some_and(|embedding| Arc::ptr_eq(embedding, matrix));
            norm.bytes() + if shared { 0 } else { matrix.bytes() }
        });
        blocks + embedding + output
    }

    /// An empty cache for the layers held.
    #[must_use]
    pub fn new_cache(&self, capacity: usize) -> KvCache {
        KvCache::new(&self.config, self.layers, capacity)
    }

    /// Looks token ids up. Returns `[token_ids.len(), hidden_size]`.
    ///
    /// # Errors
    /// [`ForwardError::TokenId`] for an id outside the vocabulary, [`ForwardError::Layer`] where the
    /// embedding is not loaded.
    pub fn embed(&self, token_ids: &[u32]) -> Result<Vec<f32>, ForwardError> {
        let embedding = self.embedding.as_ref().ok_or(ForwardError::Layer {
            layer: 0,
            loaded: self.layers,
        })?;
        let hidden_size = self.config.hidden_size;
        let mut hidden_states = vec![0.0; token_ids.len() * hidden_size];
        for (token_id, row) in token_ids
            .iter()
            .zip(hidden_states.chunks_exact_mut(hidden_size))
        {
            let vocab_size = self.config.vocab_size;
            let index = *token_id as usize;
            if index >= vocab_size {
                return Err(ForwardError::TokenId {
                    token_id: *token_id,
                    vocab_size,
                });
            }
            embedding.row(index, row);
        }
        Ok(hidden_states)
    }

    /// Runs one layer on rows of several sessions, in place, and writes their keys and values to the
    /// store, which is one of this model; the tables do not advance.
    /// `hidden_states`: `[sum of the segments' rows, hidden_size]`.
    ///
    /// # Errors
    /// [`ForwardError`] where the layer is not loaded or not in a table, the sizes do not fit, or a table
    /// names a block that the store does not have.
    pub fn forward_layer(
        &self,
        layer: usize,
        hidden_states: &mut [f32],
        segments: &[Segment<'_>],
        store: &mut KvStore,
    ) -> Result<(), ForwardError> {
        assert!(
            store.is_for(&self.config),
            "a store has blocks of one model's sizes"
        );
        if !self.layers.contains(layer) {
            return Err(ForwardError::Layer {
                layer,
                loaded: self.layers,
            });
        }
        let rows = segments.iter().map(|segment| segment.rows).sum();
        self.check_rows(hidden_states, rows)?;
        for segment in segments {
            check_room(segment, &self.config)?;
            check_blocks(segment, layer, store)?;
        }
        if rows > 0 {
            let block = &self.blocks[layer - self.layers.start];
            block.forward(hidden_states, segments, store, &self.rope);
        }
        Ok(())
    }

    /// Runs `layers` on rows of one session, in place, and advances its cache.
    /// `hidden_states`: `[rows, hidden_size]`.
    ///
    /// # Errors
    /// [`ForwardError`] where a layer is not loaded, or the sizes do not fit.
    pub fn forward(
        &self,
        layers: LayerRange,
        hidden_states: &mut [f32],
        cache: &mut KvCache,
    ) -> Result<(), ForwardError> {
        let rows = hidden_states.len() / self.config.hidden_size;
        let (table, store) = cache.parts();
        for layer in layers.iter() {
            self.forward_layer(layer, hidden_states, &[Segment { table, rows }], store)?;
        }
        if !layers.is_empty() {
            table.advance(rows);
        }
        Ok(())
    }

    /// Final norm and lm_head. `hidden_states`: `[rows, hidden_size]`. Returns `[rows, vocab_size]`.
    ///
    /// # Errors
    /// [`ForwardError::Layer`] where the last layer is not among those held, [`ForwardError::Shape`]
    /// for a partial row.
    pub fn logits(&self, hidden_states: &[f32]) -> Result<Vec<f32>, ForwardError> {
        let last = ForwardError::Layer {
            layer: self.config.num_layers,
            loaded: self.layers,
        };
        let (norm, lm_head) = self.output.as_ref().ok_or(last)?;
        let rows = hidden_states.len() / self.config.hidden_size;
        self.check_rows(hidden_states, rows)?;
        let mut normed = vec![0.0; hidden_states.len()];
        norm.forward(hidden_states, &mut normed);
        let mut logits = vec![0.0; rows * self.config.vocab_size];
        lm_head.forward(&normed, rows, &mut logits);
        Ok(logits)
    }

    fn check_rows(&self, hidden_states: &[f32], rows: usize) -> Result<(), ForwardError> {
        let columns = self.config.hidden_size;
        if hidden_states.len() != rows * columns {
            return Err(ForwardError::Shape {
                found: hidden_states.len(),
                rows,
                columns,
            });
        }
        Ok(())
    }
}

/// Room in the table, and in the positions that the model knows.
fn check_room(segment: &Segment<'_>, config: &ModelConfig) -> Result<(), ForwardError> {
    let (len, rows) = (segment.table.len(), segment.rows);
    // A table's capacity is a number of whole blocks, past the model's last position.
    let capacity = segment.table.capacity().min(config.max_positions);
    if len + rows > capacity {
        return Err(ForwardError::CacheFull {
            len,
            capacity,
            rows,
        });
    }
    Ok(())
}

/// The layer is in the table, and its blocks that hold the segment's positions are in the store.
fn check_blocks(segment: &Segment<'_>, layer: usize, store: &KvStore) -> Result<(), ForwardError> {
    let Segment { table, rows } = *segment;
    if !table.layers().contains(layer) {
        return Err(ForwardError::Layer {
            layer,
            loaded: table.layers(),
        });
    }
    let num_blocks = store.num_blocks();
    let foreign = (0..KvTable::columns_for(table.len() + rows))
        .map(|column| table.block(layer, column))
        .find(|block| block.index() >= num_blocks);
    match foreign {
        Some(block) => Err(ForwardError::Block { block, num_blocks }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
