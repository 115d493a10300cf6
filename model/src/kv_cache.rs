//! Keys and values of the positions a session has passed, for the layers that are held here.
//!
//! The memory is taken once, for the capacity the session asked for. Keys of one head lie in tiles of
//! 16 positions, `[tile, head_dim, 16]`, so that attention computes 16 scores at a time; values lie
//! as `[position, head_dim]`.

use crate::config::ModelConfig;
use crate::layer_range::LayerRange;
use crate::simd::LANES;

/// The cache of one session over some layers.
pub struct KvCache {
    layers: LayerRange,
    len: usize,
    capacity: usize,
    num_kv_heads: usize,
    head_dim: usize,
    /// `[layer, kv_head, tile, head_dim, 16]`.
    keys: Vec<f32>,
    /// `[layer, kv_head, position, head_dim]`.
    values: Vec<f32>,
}

/// One head's keys and values in one layer.
#[derive(Clone, Copy)]
pub(crate) struct HeadView<'a> {
    /// `[tile, head_dim, 16]`.
    pub keys: &'a [f32],
    /// `[position, head_dim]`.
    pub values: &'a [f32],
}

impl KvCache {
    /// Room for `capacity` positions in `layers`.
    #[must_use]
    pub fn new(config: &ModelConfig, layers: LayerRange, capacity: usize) -> Self {
        let capacity = capacity.next_multiple_of(LANES);
        let len = layers.len() * config.kv_size() * capacity;
        Self {
            layers,
            len: 0,
            capacity,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            keys: vec![0.0; len],
            values: vec![0.0; len],
        }
    }

    /// Bytes that [`KvCache::new`] takes with these arguments.
    #[must_use]
    pub const fn bytes_for(config: &ModelConfig, layers: LayerRange, capacity: usize) -> usize {
        2 * size_of::<f32>() * layers.len() * config.kv_size() * capacity.next_multiple_of(LANES)
    }

    /// Bytes taken.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(self.keys.as_slice()) + size_of_val(self.values.as_slice())
    }

    /// Positions held.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// True where no position is held.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions there is room for.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Layers held.
    #[must_use]
    pub const fn layers(&self) -> LayerRange {
        self.layers
    }

    /// Counts `rows` positions as held, after every layer has written them.
    pub fn advance(&mut self, rows: usize) {
        assert!(
            self.len + rows <= self.capacity,
            "more positions than the cache has room for"
        );
        self.len += rows;
    }

    /// Forgets the positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Writes one position's keys and values, `[kv_heads, head_dim]` each.
    pub(crate) fn write(&mut self, layer: usize, position: usize, keys: &[f32], values: &[f32]) {
        for kv_head in 0..self.num_kv_heads {
            let start = self.start_of(layer, kv_head);
            let head = kv_head * self.head_dim..(kv_head + 1) * self.head_dim;
            let at = start + position * self.head_dim;
            self.values[at..at + self.head_dim].copy_from_slice(&values[head.clone()]);
            let tile = start + (position / LANES) * self.head_dim * LANES + position % LANES;
            let lanes = self.keys[tile..].iter_mut().step_by(LANES);
            lanes.zip(&keys[head]).for_each(|(to, key)| *to = *key);
        }
    }

    pub(crate) fn head(&self, layer: usize, kv_head: usize) -> HeadView<'_> {
        let start = self.start_of(layer, kv_head);
        let end = start + self.capacity * self.head_dim;
        HeadView {
            keys: &self.keys[start..end],
            values: &self.values[start..end],
        }
    }

    fn start_of(&self, layer: usize, kv_head: usize) -> usize {
        assert!(
            self.layers.contains(layer),
            "layer {layer} is not in the cache of {}",
            self.layers
        );
        ((layer - self.layers.start) * self.num_kv_heads + kv_head) * self.capacity * self.head_dim
    }
}
