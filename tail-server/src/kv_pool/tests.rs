use super::*;

mod against_model;
mod parted;

const RETENTION: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

fn pool(total_blocks: usize) -> KvPool<&'static str> {
    KvPool::new(&one_part(total_blocks), RETENTION)
}

fn one_part(blocks: usize) -> [PoolPart; 1] {
    [PoolPart { layers: 0, blocks }]
}

fn blocks(ids: impl IntoIterator<Item = u32>) -> Vec<BlockId> {
    ids.into_iter().map(BlockId).collect()
}

fn counts(held: usize, promised: usize, kept: usize, free: usize) -> Counts {
    Counts {
        total: held + kept + free,
        held,
        promised,
        kept,
        free,
    }
}

/// A lease that has taken and kept one column of `layers` blocks per key.
fn written(
    pool: &mut KvPool<&'static str>,
    layers: usize,
    keys: &[&'static str],
    now: Instant,
) -> LeaseId {
    let Grant { lease, .. } = pool.reserve(layers, keys.len(), &[], now).unwrap();
    for (index, key) in keys.iter().enumerate() {
        pool.take_column(lease).unwrap();
        pool.keep(lease, index, key, now);
    }
    lease
}

/// How many leading columns of `keys` a session would reuse.
fn reusable(
    pool: &mut KvPool<&'static str>,
    layers: usize,
    keys: &[&'static str],
    now: Instant,
) -> usize {
    pool.expire(now);
    pool.known(layers, keys).len()
}

#[test]
fn a_new_pool_is_all_free() {
    assert_eq!(pool(12).counts(), counts(0, 0, 0, 12));
}

#[test]
fn a_reservation_takes_no_blocks_until_its_columns_are_taken() {
    let mut pool = pool(12);
    let Grant { lease, reused } = pool.reserve(3, 2, &[], Instant::now()).unwrap();
    assert!(reused.is_empty());
    assert_eq!(pool.counts(), counts(0, 6, 0, 12));
    assert_eq!(pool.take_column(lease), Some(blocks(0..3)));
    assert_eq!(pool.counts(), counts(3, 3, 0, 9));
    assert_eq!(pool.take_column(lease), Some(blocks(3..6)));
    assert_eq!(pool.counts(), counts(6, 0, 0, 6));
}

#[test]
fn a_lease_gets_no_more_columns_than_it_reserved_and_none_after_its_end() {
    let (mut pool, now) = (pool(12), Instant::now());
    let Grant { lease, .. } = pool.reserve(3, 1, &[], now).unwrap();
    assert!(pool.take_column(lease).is_some());
    assert_eq!(pool.take_column(lease), None);
    let Grant { lease, .. } = pool.reserve(3, 1, &[], now).unwrap();
    pool.release(lease, now);
    assert_eq!(pool.take_column(lease), None);
}

#[test]
fn a_session_larger_than_the_pool_is_not_told_to_try_again() {
    let (mut pool, now) = (pool(12), Instant::now());
    let refused = |needed_blocks| Shortage::NeverFits {
        needed_blocks,
        total_blocks: 12,
    };
    assert_eq!(pool.reserve(13, 1, &[], now).unwrap_err(), refused(13));
    assert_eq!(pool.reserve(5, 3, &[], now).unwrap_err(), refused(15));
    let overflowing = pool.reserve(2, usize::MAX, &[], now).unwrap_err();
    assert_eq!(overflowing, refused(usize::MAX));
    assert!(pool.reserve(4, 3, &[], now).is_ok());
}

#[test]
fn what_is_promised_is_not_promised_again() {
    let (mut pool, now) = (pool(12), Instant::now());
    pool.reserve(3, 2, &[], now).unwrap();
    let refused = pool.reserve(7, 1, &[], now).unwrap_err();
    assert_eq!(
        refused,
        Shortage::Full {
            needed_blocks: 7,
            free_blocks: 6,
            total_blocks: 12
        }
    );
    assert!(pool.reserve(6, 1, &[], now).is_ok());
}

#[test]
fn a_refused_session_changes_nothing() {
    let (mut pool, now) = (pool(6), Instant::now());
    let first = written(&mut pool, 2, &["a"], now);
    let second = written(&mut pool, 2, &["b"], now + SECOND);
    pool.release(first, now);
    pool.release(second, now + SECOND);
    let third = pool.reserve(2, 2, &[], now).unwrap().lease;
    let before = pool.counts();
    let refused = pool.reserve(2, 2, &["a"], now + 2 * SECOND);
    assert!(matches!(refused, Err(Shortage::Full { .. })));
    assert_eq!(pool.counts(), before);
    for _ in 0..2 {
        pool.take_column(third).unwrap();
    }
    assert_eq!(reusable(&mut pool, 2, &["a"], now), 0, "it was not used");
    assert_eq!(reusable(&mut pool, 2, &["b"], now), 1);
}

#[test]
fn a_released_lease_gives_back_what_it_held_and_what_it_was_promised_once() {
    let (mut pool, now) = (pool(12), Instant::now());
    let Grant { lease, .. } = pool.reserve(3, 2, &[], now).unwrap();
    pool.take_column(lease).unwrap();
    pool.reserve(3, 1, &[], now).unwrap();
    pool.release(lease, now);
    assert_eq!(pool.counts(), counts(0, 3, 0, 12));
    pool.release(lease, now);
    assert_eq!(pool.counts(), counts(0, 3, 0, 12));
}

#[test]
fn the_lowest_free_blocks_are_handed_out_first() {
    let (mut pool, now) = (pool(12), Instant::now());
    let leases = [(); 3].map(|()| {
        let Grant { lease, .. } = pool.reserve(2, 1, &[], now).unwrap();
        pool.take_column(lease).unwrap();
        lease
    });
    pool.release(leases[2], now);
    pool.release(leases[0], now);
    let Grant { lease, .. } = pool.reserve(5, 1, &[], now).unwrap();
    assert_eq!(pool.take_column(lease), Some(blocks([0, 1, 4, 5, 6])));
}

#[test]
fn a_kept_column_outlives_its_session_and_is_reused() {
    let (mut pool, now) = (pool(12), Instant::now());
    let lease = written(&mut pool, 3, &["a", "ab"], now);
    pool.release(lease, now);
    assert_eq!(pool.counts(), counts(0, 0, 6, 6));
    let Grant { lease, reused } = pool.reserve(3, 3, &["a", "ab"], now).unwrap();
    assert_eq!(reused, [blocks(0..3), blocks(3..6)]);
    assert_eq!(pool.counts(), counts(6, 3, 0, 6));
    assert_eq!(pool.take_column(lease), Some(blocks(6..9)));
    assert_eq!(pool.take_column(lease), None);
}

#[test]
fn a_column_that_is_still_held_is_shared_and_counted_once() {
    let (mut pool, now) = (pool(6), Instant::now());
    let first = written(&mut pool, 3, &["a"], now);
    let second = pool.reserve(3, 2, &["a"], now).unwrap();
    assert_eq!(second.reused, [blocks(0..3)]);
    assert_eq!(pool.counts(), counts(3, 3, 0, 3));
    pool.release(first, now);
    assert_eq!(pool.counts(), counts(3, 3, 0, 3));
    pool.release(second.lease, now);
    assert_eq!(pool.counts(), counts(0, 0, 3, 3));
}

#[test]
fn reuse_ends_at_the_first_unknown_key() {
    let (mut pool, now) = (pool(12), Instant::now());
    written(&mut pool, 1, &["a", "ab", "abc"], now);
    let Grant { reused, .. } = pool.reserve(1, 3, &["a", "ax", "abc"], now).unwrap();
    assert_eq!(reused, [blocks([0])]);
}

#[test]
fn no_more_columns_are_reused_than_are_offered_or_asked_for() {
    let (mut pool, now) = (pool(12), Instant::now());
    written(&mut pool, 1, &["a", "ab", "abc"], now);
    let offers_one = pool.reserve(1, 3, &["a"], now).unwrap();
    assert_eq!(offers_one.reused.len(), 1);
    let asks_for_two = pool.reserve(1, 2, &["a", "ab", "abc"], now).unwrap();
    assert_eq!(asks_for_two.reused.len(), 2);
    assert_eq!(pool.take_column(asks_for_two.lease), None);
}

#[test]
fn sessions_with_different_layers_share_nothing() {
    let (mut pool, now) = (pool(12), Instant::now());
    written(&mut pool, 2, &["a"], now);
    let Grant { reused, .. } = pool.reserve(3, 1, &["a"], now).unwrap();
    assert!(reused.is_empty());
}

#[test]
fn a_column_is_reused_at_its_own_index_only() {
    let (mut pool, now) = (pool(12), Instant::now());
    written(&mut pool, 2, &["a", "ab"], now);
    let twice = pool.reserve(2, 2, &["a", "a"], now).unwrap();
    assert_eq!(twice.reused, [blocks(0..2)]);
    let too_early = pool.reserve(2, 2, &["ab"], now).unwrap();
    assert!(too_early.reused.is_empty());
}

#[test]
fn a_key_stays_with_the_first_column_that_it_told() {
    let (mut pool, now) = (pool(12), Instant::now());
    let first = written(&mut pool, 2, &["a"], now);
    let second = written(&mut pool, 2, &["a"], now);
    pool.release(first, now);
    pool.release(second, now);
    assert_eq!(pool.counts(), counts(0, 0, 2, 10));
    let Grant { reused, .. } = pool.reserve(2, 1, &["a"], now).unwrap();
    assert_eq!(reused, [blocks(0..2)]);
}

#[test]
fn a_column_has_one_key_and_one_that_is_not_there_has_none() {
    let (mut pool, now) = (pool(12), Instant::now());
    let lease = written(&mut pool, 2, &["a"], now);
    pool.keep(lease, 0, "b", now);
    pool.keep(lease, 1, "c", now);
    assert_eq!(reusable(&mut pool, 2, &["a"], now), 1);
    pool.release(lease, now);
    pool.keep(lease, 0, "d", now);
    for key in ["b", "c", "d"] {
        assert_eq!(reusable(&mut pool, 2, &[key], now), 0, "{key}");
    }
    assert_eq!(pool.keys.len(), 1);
}

#[test]
fn a_column_without_a_key_is_freed_with_its_session() {
    let (mut pool, now) = (pool(12), Instant::now());
    let Grant { lease, .. } = pool.reserve(2, 2, &[], now).unwrap();
    pool.take_column(lease).unwrap();
    pool.take_column(lease).unwrap();
    pool.keep(lease, 0, "a", now);
    pool.release(lease, now);
    assert_eq!(pool.counts(), counts(0, 0, 2, 10));
}

#[test]
fn kept_columns_cost_a_reservation_nothing_and_give_way_to_it() {
    let (mut pool, now) = (pool(6), Instant::now());
    let lease = written(&mut pool, 2, &["a", "ab", "abc"], now);
    pool.release(lease, now);
    assert_eq!(pool.counts(), counts(0, 0, 6, 0));
    let Grant { lease, .. } = pool.reserve(6, 1, &[], now).unwrap();
    assert_eq!(pool.counts(), counts(0, 6, 6, 0));
    assert_eq!(pool.take_column(lease), Some(blocks(0..6)));
    assert_eq!(pool.counts(), counts(6, 0, 0, 0));
    assert!(pool.keys.is_empty() && pool.unheld.is_empty());
}

#[test]
fn kept_columns_that_become_held_must_fit_beside_what_is_promised() {
    let (mut pool, now) = (pool(6), Instant::now());
    let first = written(&mut pool, 2, &["a"], now);
    pool.release(first, now);
    let promised = pool.reserve(5, 1, &[], now).unwrap().lease;
    let refused = pool.reserve(2, 1, &["a"], now).unwrap_err();
    assert_eq!(
        refused,
        Shortage::Full {
            needed_blocks: 2,
            free_blocks: 1,
            total_blocks: 6
        }
    );
    assert!(pool.take_column(promised).is_some());
}

#[test]
fn columns_that_others_hold_need_no_room() {
    let (mut pool, now) = (pool(6), Instant::now());
    written(&mut pool, 2, &["a", "ab", "abc"], now);
    let Grant { reused, .. } = pool.reserve(2, 3, &["a", "ab", "abc"], now).unwrap();
    assert_eq!(reused.len(), 3);
    let refused = pool.reserve(2, 3, &["a", "ab", "abx"], now).unwrap_err();
    assert_eq!(
        refused,
        Shortage::Full {
            needed_blocks: 2,
            free_blocks: 0,
            total_blocks: 6
        }
    );
}

#[test]
fn nothing_is_evicted_while_enough_is_free() {
    let (mut pool, now) = (pool(6), Instant::now());
    let lease = written(&mut pool, 2, &["a"], now);
    pool.release(lease, now);
    let Grant { lease, .. } = pool.reserve(2, 3, &[], now).unwrap();
    for kept in [2, 2, 0] {
        pool.take_column(lease).unwrap();
        assert_eq!(pool.counts().kept, kept);
    }
}

#[test]
fn the_least_recently_used_column_is_evicted_first() {
    let (mut pool, now) = (pool(3), Instant::now());
    for (key, second) in [("a", 0), ("b", 1), ("c", 2)] {
        let lease = written(&mut pool, 1, &[key], now);
        pool.release(lease, now + second * SECOND);
    }
    let used_again = pool.reserve(1, 1, &["a"], now + 3 * SECOND).unwrap();
    pool.release(used_again.lease, now + 3 * SECOND);
    let Grant { lease, .. } = pool.reserve(1, 2, &[], now + 3 * SECOND).unwrap();
    pool.take_column(lease).unwrap();
    let known = |pool: &mut KvPool<_>| ["a", "b", "c"].map(|key| reusable(pool, 1, &[key], now));
    assert_eq!(known(&mut pool), [1, 0, 1]);
    pool.take_column(lease).unwrap();
    assert_eq!(known(&mut pool), [1, 0, 0]);
}

#[test]
fn of_a_prefix_the_deepest_column_is_evicted_first() {
    let (mut pool, now) = (pool(3), Instant::now());
    let lease = written(&mut pool, 1, &["a", "ab", "abc"], now);
    pool.release(lease, now);
    let Grant { lease, .. } = pool.reserve(1, 3, &[], now).unwrap();
    for left in [2, 1, 0] {
        pool.take_column(lease).unwrap();
        let known = reusable(&mut pool, 1, &["a", "ab", "abc"], now);
        assert_eq!(known, left);
    }
}

#[test]
fn a_column_that_cannot_be_reached_any_more_expires() {
    let (mut pool, now) = (pool(4), Instant::now());
    let first = written(&mut pool, 1, &["a"], now);
    // It wrote "a" itself, at the same time, so only its second column is kept.
    let second = written(&mut pool, 1, &["a", "ab"], now);
    pool.release(first, now);
    pool.release(second, now + SECOND);
    assert_eq!(reusable(&mut pool, 1, &["a", "ab"], now + SECOND), 2);
    pool.expire(now + RETENTION);
    assert_eq!(reusable(&mut pool, 1, &["a", "ab"], now + RETENTION), 0);
    assert_eq!(pool.counts(), counts(0, 0, 1, 3));
    pool.expire(now + RETENTION + SECOND);
    assert_eq!(pool.counts(), counts(0, 0, 0, 4));
}

#[test]
fn a_kept_column_expires_once_it_was_not_used_for_the_retention_time() {
    let (mut pool, now) = (pool(4), Instant::now());
    let lease = written(&mut pool, 1, &["a"], now);
    pool.release(lease, now);
    let used_again = now + RETENTION - SECOND;
    let Grant { lease, reused } = pool.reserve(1, 1, &["a"], used_again).unwrap();
    assert_eq!(reused.len(), 1);
    pool.release(lease, used_again);
    pool.expire(used_again + RETENTION - Duration::from_nanos(1));
    assert_eq!(pool.counts(), counts(0, 0, 1, 3));
    pool.expire(used_again + RETENTION);
    assert_eq!(pool.counts(), counts(0, 0, 0, 4));
    assert!(pool.keys.is_empty() && pool.columns.is_empty());
}

#[test]
fn what_is_overdue_is_not_reused_and_does_not_keep_its_key_from_others() {
    let (mut pool, now) = (pool(4), Instant::now());
    let lease = written(&mut pool, 1, &["a", "ab"], now);
    pool.release(lease, now);
    let late = now + RETENTION;
    let Grant { reused, .. } = pool.reserve(1, 1, &["a"], late).unwrap();
    assert!(reused.is_empty());

    let lease = written(&mut pool, 1, &["b"], late);
    pool.release(lease, late);
    let later = late + RETENTION;
    let Grant { lease, .. } = pool.reserve(1, 1, &[], late).unwrap();
    pool.take_column(lease).unwrap();
    pool.keep(lease, 0, "b", later);
    assert_eq!(reusable(&mut pool, 1, &["b"], later), 1);
}

#[test]
fn the_keys_of_held_columns_do_not_expire() {
    let (mut pool, now) = (pool(4), Instant::now());
    written(&mut pool, 1, &["a"], now);
    let much_later = now + 10 * RETENTION;
    pool.expire(much_later);
    let Grant { reused, .. } = pool.reserve(1, 1, &["a"], much_later).unwrap();
    assert_eq!(reused, [blocks([0])]);
}

#[test]
fn without_retention_nothing_is_kept() {
    let now = Instant::now();
    let mut pool = KvPool::new(&one_part(4), Duration::ZERO);
    let lease = written(&mut pool, 1, &["a"], now);
    let Grant { reused, .. } = pool.reserve(1, 1, &["a"], now).unwrap();
    assert!(reused.is_empty());
    pool.release(lease, now);
    assert_eq!(pool.counts(), counts(0, 1, 0, 4));
}

#[test]
fn a_session_without_layers_holds_nothing() {
    let (mut pool, now) = (pool(4), Instant::now());
    let Grant { lease, reused } = pool.reserve(0, usize::MAX, &["a"], now).unwrap();
    assert!(reused.is_empty());
    assert_eq!(pool.take_column(lease), None);
    pool.release(lease, now);
    assert_eq!(pool.counts(), counts(0, 0, 0, 4));
}

#[test]
fn an_empty_pool_refuses_everybody() {
    let refused = pool(0).reserve(1, 1, &[], Instant::now());
    assert!(matches!(refused, Err(Shortage::NeverFits { .. })));
}

#[test]
fn a_large_pool_costs_memory_for_what_was_used_only() {
    let mut pool = pool(1 << 30);
    let Grant { lease, .. } = pool.reserve(30, 1 << 20, &[], Instant::now()).unwrap();
    assert_eq!(pool.take_column(lease), Some(blocks(0..30)));
}
