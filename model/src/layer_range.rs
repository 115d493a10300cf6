//! Half-open ranges of decoder layers.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Decoder layers `[start, end)`, zero-based.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LayerRange {
    /// First layer of the range.
    pub start: usize,
    /// One past the last layer of the range.
    pub end: usize,
}

impl LayerRange {
    /// Layers `[start, end)`.
    #[must_use]
    pub const fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    /// Number of layers.
    #[must_use]
    pub const fn len(self) -> usize {
        self.end.saturating_sub(self.start)
    }

    /// True where the range holds no layer.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.end <= self.start
    }

    /// True where `layer` lies in the range.
    #[must_use]
    pub const fn contains(self, layer: usize) -> bool {
        self.start <= layer && layer < self.end
    }

    /// The layers in order.
    #[must_use]
    pub const fn iter(self) -> Range<usize> {
        self.start..self.end
    }
}

impl fmt::Display for LayerRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.start, self.end)
    }
}
