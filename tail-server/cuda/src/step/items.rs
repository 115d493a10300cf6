//! How attention's work is cut into items, of which a thread block computes one at a time.

use headway_model::LayerRange;

use super::{Bounds, Segment, word};
use crate::attention::Cut;

/// Words of an item, `struct Item` of `kernels/step.cuh`.
pub(super) const ITEM_WORDS: usize = 12;

/// Rows of a segment up to which it is no prompt: they are computed as decoding rows are.
const DRAFT_ROWS: usize = 32;

/// How much there is for the layers to do once the segments up to an entry layer have joined.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Joined {
    pub(crate) entry_layer: usize,
    pub(crate) rows: u32,
    pub(crate) items: u32,
    /// Items of the kernel for prompts.
    pub(crate) prompts: u32,
    /// Tiles of rows that have several items.
    pub(crate) merges: u32,
}

/// A step's items. Those of the segments that have joined up to a layer are the first ones.
#[derive(Default)]
pub(super) struct Items {
    pub(super) rows: Vec<[u32; ITEM_WORDS]>,
    pub(super) prompts: Vec<[u32; ITEM_WORDS]>,
    /// The first items of rows that have several.
    pub(super) merges: Vec<[u32; ITEM_WORDS]>,
    /// For each entry layer, in their order.
    pub(super) joined: Vec<Joined>,
}

impl Items {
    pub(super) const fn has_rows(&self) -> bool {
        !self.rows.is_empty()
    }

    pub(super) const fn has_prompts(&self) -> bool {
        !self.prompts.is_empty()
    }

    pub(super) const fn has_merges(&self) -> bool {
        !self.merges.is_empty()
    }

    /// Cuts rows and their positions into items. Within an entry layer the longest ones come first, so that the device
    /// ends with short ones.
    pub(super) fn cut(&mut self, bounds: &Bounds, segments: &[Segment<'_>]) {
        let Self {
            rows: items,
            prompts,
            merges,
            joined,
        } = self;
        items.clear();
        prompts.clear();
        merges.clear();
        joined.clear();
        let mut place = Place::default();
        for entering in segments.chunk_by(|a, b| a.entry_layer == b.entry_layer) {
            let (first_item, first_prompt) = (items.len(), prompts.len());
            for segment in entering {
                let Cut { prompt_rows, .. } = bounds.cut;
                if prompt_rows > 0 && !bounds.one_order && segment.rows > DRAFT_ROWS {
                    cut_prompt(prompts, bounds, segment, place);
                } else {
                    cut_rows(items, bounds, segment, &mut place);
                }
                place.row += segment.rows;
                place.table += segment.table_words(bounds.layers);
            }
            items[first_item..].sort_by_key(longest_first);
            let entered = items[first_item..].iter();
            merges.extend(entered.filter(|item| item[9] == 0 && item[10] > 1));
            prompts[first_prompt..].sort_by_key(longest_first);
            joined.push(Joined {
                entry_layer: entering[0].entry_layer,
                rows: word(place.row),
                items: word(items.len()),
                prompts: word(prompts.len()),
                merges: word(merges.len()),
            });
        }
    }
}

/// Where a segment's rows, its table and its partial results begin.
#[derive(Clone, Copy, Default)]
struct Place {
    row: usize,
    table: usize,
    slots: usize,
}

/// A tile of rows, `struct Item` of `kernels/step.cuh`, as far as all its items agree.
struct Tile<'a> {
    segment: &'a Segment<'a>,
    /// Of the table that is there for it.
    layers: LayerRange,
    place: Place,
    /// Within the segment.
    first: usize,
    rows: usize,
    items: usize,
}

impl Tile<'_> {
    /// Behind the last row's own position.
    fn end(&self) -> usize {
        self.segment.table.len() + self.first + self.rows
    }

    /// Item `index`, of positions `begin` to `end`.
    fn item(&self, index: usize, [begin, end]: [usize; 2]) -> [u32; ITEM_WORDS] {
        let table = self.segment.table;
        [
            self.place.row + self.first,
            self.rows,
            table.len() + self.first,
            begin,
            end,
            self.place.table,
            self.layers.len(),
            self.layers.start,
            self.place.slots,
            index,
            self.items,
            0,
        ]
        .map(word)
    }
}

/// A prompt's rows: as many an item as the kernel takes, whatever their positions.
fn cut_prompt(
    prompts: &mut Vec<[u32; ITEM_WORDS]>,
    bounds: &Bounds,
    segment: &Segment<'_>,
    place: Place,
) {
    let prompt_rows = bounds.cut.prompt_rows;
    let layers = segment.layers_in(bounds.layers);
    prompts.extend((0..segment.rows).step_by(prompt_rows).map(|first| {
        let tile = Tile {
            segment,
            layers,
            place,
            first,
            rows: prompt_rows.min(segment.rows - first),
            items: 1,
        };
        tile.item(0, [0, tile.end()])
    }));
}

/// Rows by the arithmetic of decoding: neighbours share items where they are cut in the same way.
fn cut_rows(
    items: &mut Vec<[u32; ITEM_WORDS]>,
    bounds: &Bounds,
    segment: &Segment<'_>,
    place: &mut Place,
) {
    let cut = bounds.cut;
    let layers = segment.layers_in(bounds.layers);
    // On CUDA cores a prompt's rows are work enough for the whole device.
    let is_cut = cut.prompt_rows > 0 || bounds.one_order || segment.rows <= DRAFT_ROWS;
    let pieces = |row: usize| match segment.table.len() + row + 1 {
        seen if is_cut => pieces(cut, seen),
        seen => (seen, 1),
    };
    let mut first = 0;
    while first < segment.rows {
        let (len, count) = pieces(first);
        let most = cut.tile_rows.min(segment.rows - first);
        let rows = (1..most)
            .find(|row| pieces(first + row) != (len, count))
            .unwrap_or(most);
        let tile = Tile {
            segment,
            layers,
            place: *place,
            first,
            rows,
            items: count,
        };
        for index in 0..count {
            let end = if index + 1 == count {
                tile.end()
            } else {
                (index + 1) * len
            };
            items.push(tile.item(index, [index * len, end]));
        }
        if count > 1 {
            place.slots += rows * count;
        }
        first += rows;
    }
}

/// How many positions the items have of a row that sees `seen` of them, and how many items there are. The last one has
/// from half as many to one and a half times as many. It depends on nothing else, so that a row's sums have the same
/// order in every step.
fn pieces(cut: Cut, seen: usize) -> (usize, usize) {
    let mut len = cut.item_positions;
    while seen > len * cut.row_items {
        len *= 2;
    }
    (len, ((seen + len / 2) / len).max(1))
}

fn longest_first(item: &[u32; ITEM_WORDS]) -> std::cmp::Reverse<u32> {
    std::cmp::Reverse(item[4] - item[3])
}

#[cfg(test)]
mod tests;
