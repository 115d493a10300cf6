//! A step's rows, as they are asked for.

use headway_model::{BlockId, KvTable, LayerRange};

use crate::incoming::TakenIn;

/// Rows of one session in a step; the first stands at position `table.len()`.
#[derive(Clone, Copy)]
pub struct Segment<'a> {
    /// First layer the rows pass.
    pub entry_layer: usize,
    /// Number of consecutive positions; at least one.
    pub rows: usize,
    /// What the rows are made of.
    pub input: Input<'a>,
    /// Blocks of the layers from `entry_layer` to the last one, with room for the rows. It may have more layers than
    /// the tail.
    pub table: &'a KvTable,
}

impl Segment<'_> {
    /// Columns up to the last row's.
    pub(super) const fn columns(&self) -> usize {
        KvTable::columns_for(self.table.len() + self.rows)
    }

    /// Layers of the table that are among `layers`.
    pub(super) fn layers_in(&self, layers: LayerRange) -> LayerRange {
        let held = self.table.layers();
        LayerRange::new(held.start.max(layers.start), held.end.min(layers.end))
    }

    /// The blocks up to the last row's, where the table has no other layers than these.
    pub(super) fn all_blocks(&self, layers: LayerRange) -> Option<&[BlockId]> {
        let all = self.table.layers();
        (self.layers_in(layers) == all).then(|| &self.table.blocks()[..self.columns() * all.len()])
    }

    /// Words of the table's part that has these layers, `[column, layer]`.
    pub(super) fn table_words(&self, layers: LayerRange) -> usize {
        self.columns() * self.layers_in(layers).len()
    }
}

/// A step's rows, as a stage of the model sees them.
#[derive(Clone, Copy)]
pub(crate) struct Batch<'a> {
    /// In order of their entry layers, all of which are the stage's.
    pub(crate) segments: &'a [Segment<'a>],
    /// Rows whose logits are wanted.
    pub(crate) wanted: &'a [u32],
    /// Rows that the stage before has brought to the residual stream: the first ones, whole segments of the stage's
    /// first layer. Their input is not looked at.
    pub(crate) handed_rows: usize,
}

impl<'a> Batch<'a> {
    /// Rows that all come from the host.
    pub(crate) const fn new(segments: &'a [Segment<'a>], wanted: &'a [u32]) -> Self {
        Self {
            segments,
            wanted,
            handed_rows: 0,
        }
    }
}

impl Batch<'_> {
    /// All rows.
    pub(crate) fn rows(&self) -> usize {
        self.segments.iter().map(|segment| segment.rows).sum()
    }

    /// The segments, and whether their rows are handed over.
    pub(super) fn handed(&self) -> impl Iterator<Item = (&Segment<'_>, bool)> {
        let mut row = 0;
        self.segments.iter().map(move |segment| {
            let is_handed = row < self.handed_rows;
            row += segment.rows;
            (segment, is_handed)
        })
    }
}

/// What rows are made of.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// One for each row.
    TokenIds(&'a [u32]),
    /// `[rows, hidden_size]`.
    HiddenStates(&'a [f32]),
    /// The same, where [`Tail::take_in`](crate::Tail::take_in) has taken them in. They may not be there any more.
    TakenIn(&'a [f32], TakenIn),
}

/// The segment's blocks in `layers`, column by column up to the last row's.
pub(super) fn blocks_in<'a>(
    layers: LayerRange,
    segment: &Segment<'a>,
) -> impl Iterator<Item = &'a [BlockId]> + use<'a> {
    let (all, held) = (segment.table.layers(), segment.layers_in(layers));
    let skipped = held.start - all.start;
    let columns = segment.table.blocks().chunks_exact(all.len().max(1));
    let columns = columns.take(segment.columns());
    columns.map(move |column| &column[skipped..skipped + held.len()])
}
