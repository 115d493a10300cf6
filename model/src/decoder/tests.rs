//! Where blocks lie, and who shares them, changes no bit.

use std::path::Path;

use super::*;
use crate::kv_cache::store::{BLOCK_POSITIONS, BlockId};

/// Two models of the same sizes; the second has a sliding window of 16 positions.
const MODELS: [&str; 2] = ["llama", "mistral"];
const POSITIONS: usize = 3 * BLOCK_POSITIONS + 5;

fn decoder(name: &str) -> Decoder {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny");
    let weights = Weights::open(&folder.join(name)).unwrap();
    let layers = LayerRange::new(0, weights.config().num_layers);
    Decoder::load(&weights, layers, WeightDtype::Native).unwrap()
}

fn token_ids(positions: std::ops::Range<usize>, seed: usize) -> Vec<u32> {
    let ids = positions.map(|position| (position * 37 + seed) % 128);
    ids.map(|id| u32::try_from(id).unwrap()).collect()
}

/// A table whose columns take the ids that `next` gives.
fn table_of(decoder: &Decoder, columns: usize, mut next: impl FnMut() -> u32) -> KvTable {
    let mut table = KvTable::new(decoder.layers());
    for _ in 0..columns {
        let column: Vec<_> = (0..table.layers().len()).map(|_| BlockId(next())).collect();
        table.push_column(&column);
    }
    table
}

/// Runs all layers on `token_ids` and advances the table; `[token_ids.len(), hidden_size]`.
fn run(decoder: &Decoder, ids: &[u32], table: &mut KvTable, store: &mut KvStore) -> Vec<f32> {
    let mut hidden_states = decoder.embed(ids).unwrap();
    let rows = ids.len();
    for layer in decoder.layers().iter() {
        let segment = Segment { table, rows };
        decoder
            .forward_layer(layer, &mut hidden_states, &[segment], store)
            .unwrap();
    }
    table.advance(rows);
    hidden_states
}

/// The same in a cache of its own.
fn run_alone(decoder: &Decoder, ids: &[u32]) -> Vec<f32> {
    let mut hidden_states = decoder.embed(ids).unwrap();
    let mut cache = decoder.new_cache(ids.len());
    decoder
        .forward(decoder.layers(), &mut hidden_states, &mut cache)
        .unwrap();
    assert_eq!(cache.len(), ids.len());
    hidden_states
}

#[test]
fn scattered_blocks_give_the_bits_of_blocks_in_order() {
    for decoder in MODELS.map(decoder) {
        let ids = token_ids(0..POSITIONS, 5);
        let expected = run_alone(&decoder, &ids);
        let mut store = KvStore::new(decoder.config(), 101);
        // The powers of 44 modulo 101 are twenty different ids, far apart, forwards and backwards.
        let mut id = 1;
        let mut table = table_of(&decoder, 4, || {
            id = id * 44 % 101;
            id
        });
        let mut found = Vec::new();
        for ids in ids.chunks(29) {
            found.extend(run(&decoder, ids, &mut table, &mut store));
        }
        assert_eq!(found, expected);
    }
}

#[test]
fn tables_that_share_the_blocks_of_a_prefix_give_the_bits_of_separate_ones() {
    for decoder in MODELS.map(decoder) {
        let shared = 2 * BLOCK_POSITIONS;
        let prompts = [5, 6].map(|seed| {
            let mut ids = token_ids(0..shared, 1);
            ids.extend(token_ids(shared..POSITIONS, seed));
            ids
        });
        let mut store = KvStore::new(decoder.config(), 18);
        let mut ids = 0..18;
        let mut first = table_of(&decoder, 4, || ids.next().unwrap());
        let mut second = KvTable::new(decoder.layers());
        for column in 0..2 {
            let layers = decoder.layers().iter();
            let column: Vec<_> = layers.map(|layer| first.block(layer, column)).collect();
            second.push_column(&column);
        }
        for _ in 0..2 {
            let column: Vec<_> = ids.by_ref().take(3).map(BlockId).collect();
            second.push_column(&column);
        }
        run(&decoder, &prompts[0][..shared], &mut first, &mut store);
        second.advance(shared);

        // Both go on in one batch, and each reads what the first has written.
        let rest = prompts.each_ref().map(|prompt| &prompt[shared..]);
        let mut found = decoder.embed(&rest.concat()).unwrap();
        let segments = [(&first, rest[0]), (&second, rest[1])].map(|(table, rest)| Segment {
            table,
            rows: rest.len(),
        });
        for layer in decoder.layers().iter() {
            decoder
                .forward_layer(layer, &mut found, &segments, &mut store)
                .unwrap();
        }
        let hidden_size = decoder.config().hidden_size;
        let expected =
            prompts.map(|prompt| run_alone(&decoder, &prompt)[shared * hidden_size..].to_vec());
        assert_eq!(found, expected.concat());
    }
}

#[test]
fn writing_on_after_truncation_gives_the_bits_of_a_fresh_cache() {
    for decoder in MODELS.map(decoder) {
        let hidden_size = decoder.config().hidden_size;
        for kept in [0, 7, 16, 32, 45, 64] {
            let mut ids = token_ids(0..kept, 1);
            ids.extend(token_ids(kept..POSITIONS, 9));
            let mut cache = decoder.new_cache(POSITIONS);
            let forward = |ids: &[u32], cache: &mut KvCache| {
                let mut hidden_states = decoder.embed(ids).unwrap();
                decoder
                    .forward(decoder.layers(), &mut hidden_states, cache)
                    .unwrap();
                hidden_states
            };
            forward(&token_ids(0..POSITIONS, 1), &mut cache);
            cache.truncate(kept);
            let found = forward(&ids[kept..], &mut cache);
            assert_eq!(
                found,
                run_alone(&decoder, &ids)[kept * hidden_size..],
                "{kept}"
            );
        }
    }
}

#[test]
fn a_segment_that_does_not_fit_its_table_or_store_is_refused_before_anything_is_written() {
    let decoder = decoder("llama");
    let layers = decoder.layers();
    let mut store = KvStore::new(decoder.config(), 6);
    let refusal = |table: &KvTable, layer: usize, rows: usize, store: &mut KvStore| {
        let mut hidden_states = decoder.embed(&token_ids(0..rows, 1)).unwrap();
        let before = hidden_states.clone();
        let refused =
            decoder.forward_layer(layer, &mut hidden_states, &[Segment { table, rows }], store);
        assert_eq!(hidden_states, before);
        refused.unwrap_err()
    };
    let mut ids = 0..;
    let mut table = table_of(&decoder, 1, || ids.next().unwrap());
    table.advance(30);
    let full = ForwardError::CacheFull {
        len: 30,
        capacity: BLOCK_POSITIONS,
        rows: 3,
    };
    assert_eq!(refusal(&table, 0, 3, &mut store), full);

    let mut narrow = KvTable::new(LayerRange::new(1, 3));
    narrow.push_column(&[BlockId(0), BlockId(1)]);
    let loaded = narrow.layers();
    let layer = ForwardError::Layer { layer: 0, loaded };
    assert_eq!(refusal(&narrow, 0, 1, &mut store), layer);
    let loaded = layers;
    let layer = ForwardError::Layer { layer: 3, loaded };
    assert_eq!(refusal(&table, 3, 1, &mut store), layer);

    table.push_column(&[BlockId(3), BlockId(6), BlockId(5)]);
    let foreign = ForwardError::Block {
        block: BlockId(6),
        num_blocks: 6,
    };
    assert_eq!(refusal(&table, 1, 3, &mut store), foreign);
    // The other layers' blocks, and a foreign one that is not reached, are no fault.
    let mut hidden_states = decoder.embed(&[1, 2]).unwrap();
    let segment = Segment {
        table: &table,
        rows: 2,
    };
    decoder
        .forward_layer(1, &mut hidden_states, &[segment], &mut store)
        .unwrap();
}

#[test]
fn a_cache_takes_the_bytes_that_were_announced_for_whole_blocks() {
    let decoder = decoder("llama");
    let config = decoder.config();
    for (capacity, columns) in [(0, 0), (1, 1), (32, 1), (33, 2)] {
        let cache = decoder.new_cache(capacity);
        assert_eq!(cache.capacity(), columns * BLOCK_POSITIONS);
        assert_eq!(cache.bytes(), 3 * columns * KvStore::block_bytes(config));
        let announced = KvCache::bytes_for(config, decoder.layers(), capacity);
        assert_eq!(cache.bytes(), announced);
    }
    // Keys and values of 32 positions in 2 heads of 16, f32.
    assert_eq!(KvStore::block_bytes(config), 2 * 32 * 2 * 16 * 4);
}
