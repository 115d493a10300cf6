use headway_model::{BlockId, KvTable, LayerRange};

use super::*;
use crate::step::Input;

const LAYERS: usize = 4;

fn table(entry_layer: usize, [held, rows]: [usize; 2]) -> KvTable {
    let layers = LayerRange::new(entry_layer, LAYERS);
    let mut table = KvTable::new(layers);
    for _ in 0..KvTable::columns_for(held + rows) {
        table.push_column(&vec![BlockId(0); layers.len()]);
    }
    table.advance(held);
    table
}

/// The items of sessions, each with entry layer, positions held and rows.
fn cut(sessions: &[[usize; 3]], cut: Cut, one_order: bool) -> Items {
    let tables: Vec<KvTable> = sessions
        .iter()
        .map(|&[entry_layer, held, rows]| table(entry_layer, [held, rows]))
        .collect();
    let segments: Vec<Segment<'_>> = tables
        .iter()
        .zip(sessions)
        .map(|(table, &[entry_layer, _, rows])| Segment {
            entry_layer,
            rows,
            input: Input::HiddenStates(&[]),
            table,
        })
        .collect();
    let bounds = Bounds {
        max_rows: 4096,
        first_block: 0,
        kv_blocks: 1,
        cut,
        one_order,
        layers: LayerRange::new(0, LAYERS),
    };
    let mut items = Items::default();
    items.cut(&bounds, &segments);
    items
}

const CUT: Cut = Cut {
    item_positions: 128,
    row_items: 16,
    tile_rows: 4,
    prompt_rows: 32,
};

/// The positions `[begin, end)` of each item of row `row`, as far as the row sees them.
fn pieces_of(items: &[[u32; ITEM_WORDS]], row: u32) -> Vec<[u32; 2]> {
    let mut pieces: Vec<[u32; 2]> = items
        .iter()
        .filter(|item| (item[0]..item[0] + item[1]).contains(&row))
        .map(|item| [item[3], item[4].min(item[2] + row - item[0] + 1)])
        .collect();
    pieces.sort_unstable();
    pieces
}

#[test]
fn every_row_sees_each_of_its_positions_once() {
    let sessions = [
        [0, 0, 1],
        [0, 511, 16],
        [0, 180, 20],
        [1, 5000, 3],
        [3, 0, 40],
        [3, 77, 100],
    ];
    for (cut_as, one_order) in [(CUT, false), (CUT, true)] {
        let items = cut(&sessions, cut_as, one_order);
        let mut row = 0;
        for [_, held, rows] in sessions {
            let list = if rows > DRAFT_ROWS && !one_order {
                &items.prompts
            } else {
                &items.rows
            };
            for position in held..held + rows {
                let pieces = pieces_of(list, row);
                assert!(pieces.len() <= cut_as.row_items);
                let ends = pieces.iter().map(|piece| piece[1]);
                let begins = pieces.iter().skip(1).map(|piece| piece[0]);
                assert_eq!(
                    ends.collect::<Vec<_>>(),
                    begins.chain([word(position + 1)]).collect::<Vec<_>>()
                );
                row += 1;
            }
        }
    }
}

#[test]
fn a_row_is_cut_in_the_same_way_in_every_step() {
    let together = cut(&[[0, 300, 2], [0, 700, 9], [2, 4000, 16]], CUT, false);
    for (row, held) in [(2, 700), (7, 705), (11, 4000), (26, 4015)] {
        let alone = cut(&[[0, held, 1]], CUT, false);
        assert_eq!(
            pieces_of(&together.rows, row),
            pieces_of(&alone.rows, 0),
            "position {held}"
        );
        let prompt = cut(&[[0, held - 100, 101]], CUT, true);
        assert_eq!(pieces_of(&prompt.rows, 100), pieces_of(&alone.rows, 0));
    }
}

#[test]
fn partial_results_have_places_of_their_own() {
    let items = cut(&[[0, 511, 16], [0, 5000, 3], [1, 200, 1]], CUT, false);
    let mut places: Vec<u32> = items
        .rows
        .iter()
        .filter(|item| item[10] > 1)
        .flat_map(|item| (0..item[1]).map(|row| item[8] + item[9] * item[1] + row))
        .collect();
    let count = places.len();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), count);
    let all_rows = 20;
    assert!(
        places
            .iter()
            .all(|&place| (place as usize) < all_rows * CUT.row_items)
    );
}

#[test]
fn what_has_joined_comes_first_and_the_longest_before_the_others() {
    let items = cut(
        &[[0, 100, 1], [0, 900, 1], [2, 3000, 40], [2, 2000, 1]],
        CUT,
        false,
    );
    let joined: Vec<[u32; 3]> = items
        .joined
        .iter()
        .map(|joined| [joined.rows, joined.items, joined.prompts])
        .collect();
    assert_eq!(joined.len(), 2);
    let [first, all] = [joined[0], joined[1]];
    assert_eq!((first[0], first[2]), (2, 0));
    assert_eq!((all[0], all[2]), (43, 2));
    assert_eq!(all[1] as usize, items.rows.len());
    let lens = |range: std::ops::Range<u32>| {
        let of = &items.rows[range.start as usize..range.end as usize];
        of.iter().map(|item| item[4] - item[3]).collect::<Vec<_>>()
    };
    for lens in [lens(0..first[1]), lens(first[1]..all[1])] {
        assert!(lens.is_sorted_by(|a, b| a >= b), "{lens:?}");
    }
    assert!(
        items.rows[..first[1] as usize]
            .iter()
            .all(|item| item[0] < 2)
    );
}
