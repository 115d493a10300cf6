//! Pools of several parts: the blocks of some layers on each of several devices.

use super::*;

/// Four blocks for the layers up to the last three, nine for these.
const PARTS: [PoolPart; 2] = [
    PoolPart {
        layers: 2,
        blocks: 4,
    },
    PoolPart {
        layers: 3,
        blocks: 9,
    },
];

fn pool() -> KvPool<&'static str> {
    KvPool::new(&PARTS, RETENTION)
}

#[test]
fn a_column_has_the_block_of_each_layer_from_the_layers_part() {
    let (mut pool, now) = (pool(), Instant::now());
    let all = pool.reserve(5, 1, &[], now).unwrap().lease;
    let last_two = pool.reserve(2, 1, &[], now).unwrap().lease;
    let last_four = pool.reserve(4, 1, &[], now).unwrap().lease;
    assert_eq!(pool.take_column(all), Some(blocks([0, 1, 4, 5, 6])));
    assert_eq!(pool.take_column(last_two), Some(blocks([7, 8])));
    assert_eq!(pool.take_column(last_four), Some(blocks([2, 9, 10, 11])));
    assert_eq!(pool.counts(), counts(11, 0, 0, 2));
    pool.release(all, now);
    let again = pool.reserve(5, 1, &[], now).unwrap().lease;
    assert_eq!(pool.take_column(again), Some(blocks([0, 1, 4, 5, 6])));
}

#[test]
fn a_session_is_refused_for_the_part_that_is_short() {
    let (mut pool, now) = (pool(), Instant::now());
    // Nine blocks are there for the last layers, and four for those before.
    let refused = pool.reserve(5, 3, &[], now).unwrap_err();
    let never = Shortage::NeverFits {
        needed_blocks: 6,
        total_blocks: 4,
    };
    assert_eq!(refused, never);
    pool.reserve(5, 2, &[], now).unwrap();
    let refused = pool.reserve(4, 1, &[], now).unwrap_err();
    let full = Shortage::Full {
        needed_blocks: 1,
        free_blocks: 0,
        total_blocks: 4,
    };
    assert_eq!(refused, full);
    // A session that enters behind the full part's layers needs nothing of it.
    pool.reserve(3, 1, &[], now).unwrap();
    let refused = pool.reserve(1, 1, &[], now).unwrap_err();
    let full = Shortage::Full {
        needed_blocks: 1,
        free_blocks: 0,
        total_blocks: 9,
    };
    assert_eq!(refused, full);
}

#[test]
fn columns_are_evicted_until_every_part_has_room() {
    let (mut pool, now) = (pool(), Instant::now());
    let early = written(&mut pool, 3, &["a"], now);
    pool.release(early, now);
    let late = written(&mut pool, 5, &["b", "bc"], now + SECOND);
    pool.release(late, now + SECOND);
    assert_eq!(pool.counts(), counts(0, 0, 13, 0));
    let lease = pool.reserve(4, 1, &[], now + SECOND).unwrap().lease;
    // The oldest column has blocks for the last layers alone; the next one is the deepest of those used last.
    assert_eq!(pool.take_column(lease), Some(blocks([2, 4, 5, 6])));
    assert_eq!(reusable(&mut pool, 5, &["b", "bc"], now + SECOND), 1);
}
