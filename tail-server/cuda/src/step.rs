//! What the host says about a step: positions, tables, how attention is cut into items, and where what comes in lies.
//!
//! All of it but the hidden states, which have a way of their own, is one array of 32-bit words in pinned memory, which one
//! copy brings to the device.
//! `kernels/step.cuh` is the reader. The first words say where the parts begin; each part begins at a multiple of
//! four words.

use cudarc::driver::{CudaSlice, PinnedHostSlice};
use headway_model::{BLOCK_POSITIONS, LayerRange};

use crate::attention::Cut;
use crate::calls::{copy_up, pinned};
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::incoming::{Incoming, Place, TakenIn};

mod batch;
mod check;
mod items;

pub(crate) use self::batch::Batch;
use self::batch::blocks_in;
pub use self::batch::{Input, Segment};
pub(crate) use self::check::check;
pub(crate) use self::items::Joined;
use self::items::{ITEM_WORDS, Items};

const _: () = assert!(
    BLOCK_POSITIONS == 32,
    "kernels/step.cuh has the same number"
);

/// Words of the header, and of a row.
const HEADER_WORDS: usize = 12;
const PARTS: usize = 7;
const ROW_WORDS: usize = 8;
/// Words of what there is for a layer to do.
const LAYER_WORDS: usize = 8;

/// Marks a source as a token id.
const TOKEN_ID: u32 = 1 << 31;
/// The source of a row that the stage before has brought to its place.
const IN_PLACE: u32 = TOKEN_ID - 1;

/// What bounds a step.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    pub(crate) max_rows: usize,
    /// The number of the KV memory's first block.
    pub(crate) first_block: usize,
    /// Blocks of the KV memory.
    pub(crate) kv_blocks: usize,
    /// How attention is cut into items. There is memory for `max_rows` rows with `row_items` partial results each.
    pub(crate) cut: Cut,
    /// Prompts are cut as decoding rows are.
    pub(crate) one_order: bool,
    pub(crate) layers: LayerRange,
}

/// The words, on both sides, and what the launches must know of them.
pub(crate) struct Step {
    host: PinnedHostSlice<u32>,
    device: CudaSlice<u32>,
    incoming: Incoming,
    items: Items,
    rows: usize,
}

impl Step {
    /// For steps of at most `max_rows` rows; what the host says about a step may grow beyond the first room for it.
    pub(crate) fn new(gpu: &Gpu, max_rows: usize, hidden_size: usize) -> Result<Self, CudaError> {
        let words = (1 << 16) + max_rows * 64;
        Ok(Self {
            host: pinned(gpu.context(), words)?,
            device: gpu.zeros(words)?,
            incoming: Incoming::new(gpu, max_rows, hidden_size)?,
            items: Items::default(),
            rows: 0,
        })
    }

    /// Where the kernels find it.
    pub(crate) fn address(&self, gpu: &Gpu) -> u64 {
        gpu.address(&self.device)
    }

    /// Where the kernels find hidden states.
    pub(crate) fn incoming(&self, gpu: &Gpu) -> u64 {
        self.incoming.address(gpu)
    }

    /// See [`Tail::take_in`](crate::Tail::take_in).
    pub(crate) fn take_in(&mut self, hidden_states: &[f32]) -> Option<TakenIn> {
        self.incoming.take_in(hidden_states)
    }

    /// All rows of the step.
    pub(crate) const fn rows(&self) -> usize {
        self.rows
    }

    /// Some rows are not those of prompts.
    pub(crate) fn has_items(&self) -> bool {
        self.items.has_rows()
    }

    /// Some rows are those of prompts, for which there is a kernel of their own.
    pub(crate) fn has_prompts(&self) -> bool {
        self.items.has_prompts()
    }

    /// Some rows have several items.
    pub(crate) fn has_merges(&self) -> bool {
        self.items.has_merges()
    }

    /// For each entry layer, in their order.
    pub(crate) fn joined(&self) -> &[Joined] {
        &self.items.joined
    }

    /// Writes the step, which [`check`] has let through, and starts its copy. The last step's work must be done.
    pub(crate) fn upload(
        &mut self,
        gpu: &Gpu,
        bounds: &Bounds,
        batch: &Batch<'_>,
    ) -> Result<(), CudaError> {
        let Batch {
            segments, wanted, ..
        } = *batch;
        self.incoming.begin_step();
        self.items.cut(bounds, segments);
        self.rows = batch.rows();
        let parts = Parts::new(bounds, self, batch);
        if parts.words > self.host.len() {
            let words = parts.words.next_power_of_two();
            self.host = pinned(gpu.context(), words)?;
            self.device = gpu.zeros(words)?;
        }
        let words = &mut self.host.as_mut_slice()?[..parts.words];
        words[..PARTS].copy_from_slice(&parts.starts.map(word));
        words[PARTS] = word(self.rows);
        words[PARTS + 1] = word(wanted.len());
        write_rows(words, &parts, bounds, batch, &mut self.incoming)?;
        let [_, _, items_at, prompts_at, merges_at, wanted_at, layers_at] = parts.starts;
        write_layers(&mut words[layers_at..], bounds, &self.items.joined);
        for (at, items) in [
            (items_at, &self.items.rows),
            (prompts_at, &self.items.prompts),
            (merges_at, &self.items.merges),
        ] {
            let items = items.as_flattened();
            words[at..at + items.len()].copy_from_slice(items);
        }
        words[wanted_at..][..wanted.len()].copy_from_slice(wanted);
        copy_up(gpu.stream(), &self.host, &mut self.device, parts.words)?;
        self.incoming.arrive(gpu)
    }
}

/// Where the parts begin: rows, tables, items, prompts, merges, wanted rows, layers.
struct Parts {
    starts: [usize; PARTS],
    words: usize,
}

impl Parts {
    fn new(bounds: &Bounds, step: &Step, batch: &Batch<'_>) -> Self {
        let segments = batch.segments.iter();
        let tables: usize = segments
            .map(|segment| segment.table_words(bounds.layers))
            .sum();
        let lens = [
            step.rows * ROW_WORDS,
            tables,
            step.items.rows.len() * ITEM_WORDS,
            step.items.prompts.len() * ITEM_WORDS,
            step.items.merges.len() * ITEM_WORDS,
            batch.wanted.len(),
            (bounds.layers.len() + 1) * LAYER_WORDS,
        ];
        let mut words = HEADER_WORDS;
        let starts = lens.map(|len| {
            let start = words;
            words = (words + len).next_multiple_of(4);
            start
        });
        Self { starts, words }
    }
}

fn write_rows(
    words: &mut [u32],
    parts: &Parts,
    bounds: &Bounds,
    batch: &Batch<'_>,
    incoming: &mut Incoming,
) -> Result<(), CudaError> {
    let [rows_at, tables_at, ..] = parts.starts;
    let (mut row, mut table) = (0, 0);
    for (segment, is_handed) in batch.handed() {
        let place = match segment.input {
            Input::HiddenStates(values) if !is_handed => incoming.place(values, None)?,
            Input::TakenIn(values, first) if !is_handed => incoming.place(values, Some(first))?,
            _ => Place::Behind(0),
        };
        let held = segment.layers_in(bounds.layers);
        write_table(&mut words[tables_at + table..], bounds, segment);
        for index in 0..segment.rows {
            let source = match segment.input {
                _ if is_handed => IN_PLACE,
                Input::TokenIds(token_ids) => token_ids[index] | TOKEN_ID,
                Input::HiddenStates(_) | Input::TakenIn(..) => word(incoming.slot(place, index)),
            };
            words[rows_at + (row + index) * ROW_WORDS..][..ROW_WORDS].copy_from_slice(&[
                word(segment.table.len() + index),
                word(table),
                word(held.len()),
                word(held.start),
                source,
                0,
                0,
                0,
            ]);
        }
        row += segment.rows;
        table += segment.table_words(bounds.layers);
    }
    Ok(())
}

/// The segment's blocks in the stage's layers, `[column, layer]`, counted from the first one of its KV memory.
fn write_table(words: &mut [u32], bounds: &Bounds, segment: &Segment<'_>) {
    let first_block = word(bounds.first_block);
    let held = segment.layers_in(bounds.layers);
    if let Some(blocks) = segment.all_blocks(bounds.layers) {
        let to = words.iter_mut().zip(blocks);
        return to.for_each(|(to, block)| *to = block.0 - first_block);
    }
    for (to, column) in words
        .chunks_exact_mut(held.len().max(1))
        .zip(blocks_in(bounds.layers, segment))
    {
        let to = to.iter_mut();
        to.zip(column)
            .for_each(|(to, block)| *to = block.0 - first_block);
    }
}

/// For each layer of the tail, and for what follows them.
fn write_layers(words: &mut [u32], bounds: &Bounds, joined: &[Joined]) {
    let mut joining = joined.iter().peekable();
    let (mut now, mut before) = (Joined::default(), 0);
    let layers = bounds.layers.start..=bounds.layers.end;
    for (words, layer) in words.chunks_exact_mut(LAYER_WORDS).zip(layers) {
        while let Some(next) = joining.next_if(|next| next.entry_layer <= layer) {
            now = *next;
        }
        words.copy_from_slice(&[
            now.rows,
            now.items,
            now.prompts,
            before,
            now.merges,
            0,
            0,
            0,
        ]);
        before = now.rows;
    }
}

fn word(value: usize) -> u32 {
    u32::try_from(value).expect("rows, positions and tables of a step are far below 2^32")
}

#[cfg(test)]
mod tests {
    use headway_model::{BlockId, KvTable};

    use super::*;

    #[test]
    fn a_stages_table_has_its_layers_and_counts_from_its_first_block() {
        let mut table = KvTable::new(LayerRange::new(1, 5));
        for first in [30, 34, 38] {
            let column: Vec<BlockId> = (first..first + 4).map(BlockId).collect();
            table.push_column(&column);
        }
        table.advance(40);
        let segment = Segment {
            entry_layer: 2,
            rows: 3,
            input: Input::TokenIds(&[]),
            table: &table,
        };
        let bounds = Bounds {
            max_rows: 8,
            first_block: 20,
            kv_blocks: 30,
            cut: Cut {
                item_positions: 32,
                row_items: 4,
                tile_rows: 4,
                prompt_rows: 0,
            },
            one_order: false,
            layers: LayerRange::new(2, 4),
        };
        // The third column has none of the 43 positions.
        let mut words = [99; 6];
        assert_eq!(segment.table_words(bounds.layers), 4);
        write_table(&mut words, &bounds, &segment);
        assert_eq!(words, [11, 12, 15, 16, 99, 99]);
    }
}
