use super::*;
use crate::auth::CredentialSource;

const LAYERS: LayerRange = LayerRange::new(2, 6);
/// Blocks of one column of a session with these layers.
const COLUMN: usize = 4;

fn capacity(max_sessions: usize, total_blocks: usize) -> Capacity {
    let limits = KvLimits {
        parts: one_part(total_blocks),
        block_bytes: 10,
        prefix_retention: Duration::from_secs(60),
    };
    Capacity::new(max_sessions, limits, Arc::new(Metrics::new().unwrap()))
}

/// Of all layers.
fn one_part(blocks: usize) -> Vec<PoolPart> {
    vec![PoolPart { layers: 0, blocks }]
}

fn tenant(name: &str) -> Tenant {
    Tenant::named(CredentialSource::Key, name).unwrap()
}

fn request<'a>(tenant: &'a Tenant, positions: usize, prefix: &'a [PrefixDigest]) -> KvRequest<'a> {
    KvRequest {
        tenant,
        codec: None,
        layers: LAYERS,
        positions,
        prefix,
        keeps_prefix: true,
    }
}

#[track_caller]
fn reserve(capacity: &Capacity, positions: usize) -> SessionRoom {
    let anybody = Tenant::anonymous();
    let request = request(&anybody, positions, &[]);
    let reserved = capacity.reserve(&request, Instant::now());
    reserved.unwrap_or_else(|error| panic!("{error}"))
}

fn refused(capacity: &Capacity, positions: usize) -> CapacityError {
    let anybody = Tenant::anonymous();
    let request = request(&anybody, positions, &[]);
    match capacity.reserve(&request, Instant::now()) {
        Ok(_) => panic!("there was room"),
        Err(error) => error,
    }
}

#[test]
fn a_full_tail_refuses_with_retry_after() {
    let capacity = capacity(1, 100);
    let _held = reserve(&capacity, 10);
    let error = refused(&capacity, 10);
    assert!(error.may_pass());
    assert!(matches!(
        error,
        CapacityError::Sessions {
            max_sessions: 1,
            retry_after_ms: 1..
        }
    ));
    // The place that was looked for is not taken.
    assert_eq!(capacity.metrics.kv_bytes.get(), 10 * COLUMN as i64);
}

#[test]
fn blocks_are_promised_for_whole_columns_and_never_twice() {
    let capacity = capacity(10, 5 * COLUMN);
    let _held = reserve(&capacity, 65);
    let error = refused(&capacity, 65);
    assert!(matches!(
        error,
        CapacityError::KvCache {
            needed_bytes: 120,
            free_bytes: 80,
            max_bytes: 200,
            ..
        }
    ));
    reserve(&capacity, 64);
}

#[test]
fn dropped_room_is_given_back_and_those_who_wait_hear_of_it() {
    let capacity = capacity(1, COLUMN);
    let room = reserve(&capacity, 32);
    let released = capacity.released();
    drop(room);
    assert!(futures_util::FutureExt::now_or_never(released).is_some());
    assert_eq!(capacity.metrics.kv_bytes.get(), 0);
    assert_eq!(capacity.metrics.sessions.get(), 0);
    reserve(&capacity, 32);
}

#[test]
fn a_session_larger_than_the_tail_is_not_told_to_try_again() {
    let capacity = capacity(1, COLUMN);
    let _held = reserve(&capacity, 1);
    let error = refused(&capacity, 33);
    assert!(!error.may_pass());
    assert_eq!(
        error,
        CapacityError::NeverFits {
            needed_bytes: 80,
            max_bytes: 40
        }
    );
}

#[test]
fn a_session_grows_into_what_it_was_promised_and_no_further() {
    let capacity = capacity(1, 10 * COLUMN);
    let mut room = reserve(&capacity, 40);
    for rows in [1, 31, 30] {
        room.grow(rows).unwrap();
        room.table_mut().advance(rows);
    }
    assert_eq!(room.table().columns(), 2);
    let error = room.grow(3).unwrap_err().to_string();
    assert!(
        error.contains("64 positions") && error.contains("3 more"),
        "{error}"
    );
}

/// Fills `digests.len()` columns of a new session of `tenant` and ends it.
fn leave_prefix(capacity: &Capacity, tenant: &Tenant, digests: &[PrefixDigest]) {
    let positions = digests.len() * 32 + 1;
    let mut room = capacity
        .reserve(&request(tenant, positions, &[]), Instant::now())
        .unwrap_or_else(|error| panic!("{error}"));
    room.note_digests(digests.to_vec());
    room.grow(positions).unwrap();
    room.table_mut().advance(positions);
    room.keep_full_columns(Instant::now());
}

fn reused(capacity: &Capacity, request: &KvRequest<'_>) -> usize {
    let room = capacity.reserve(request, Instant::now());
    room.unwrap_or_else(|error| panic!("{error}"))
        .reused_positions()
}

#[test]
fn a_tenant_finds_its_own_prefix_and_no_other_tenant_does() {
    let capacity = capacity(4, 100);
    let (ours, theirs) = (tenant("ours"), tenant("theirs"));
    let digests = [[1; 32], [2; 32], [3; 32]];
    leave_prefix(&capacity, &ours, &digests);
    assert_eq!(reused(&capacity, &request(&ours, 97, &digests)), 96);
    assert_eq!(reused(&capacity, &request(&theirs, 97, &digests)), 0);
    assert_eq!(
        reused(&capacity, &request(&Tenant::anonymous(), 97, &digests)),
        0
    );
    // As far as they are the same, and from the start only.
    assert_eq!(
        reused(&capacity, &request(&ours, 97, &[[1; 32], [9; 32], [3; 32]])),
        32
    );
    assert_eq!(reused(&capacity, &request(&ours, 97, &digests[1..])), 0);
}

#[test]
fn the_keys_of_one_tenant_and_the_certificates_of_another_of_the_same_name_are_apart() {
    let capacity = capacity(4, 100);
    let digests = [[1; 32]];
    leave_prefix(&capacity, &tenant("a"), &digests);
    let other = Tenant::named(CredentialSource::Certificate, "a").unwrap();
    assert_eq!(reused(&capacity, &request(&other, 33, &digests)), 0);
}

#[test]
fn digests_of_two_prompts_are_not_one_prefix_and_those_of_a_codec_are_for_that_codec() {
    let capacity = capacity(8, 100);
    let ours = tenant("ours");
    leave_prefix(&capacity, &ours, &[[1; 32], [2; 32]]);
    leave_prefix(&capacity, &ours, &[[3; 32], [4; 32]]);
    assert_eq!(
        reused(&capacity, &request(&ours, 97, &[[1; 32], [4; 32]])),
        32
    );
    let as_f16 = KvRequest {
        codec: Some(Codec::F16),
        ..request(&ours, 97, &[[1; 32], [2; 32]])
    };
    assert_eq!(reused(&capacity, &as_f16), 0);
}

#[test]
fn what_is_computed_behind_a_reused_prefix_is_found_behind_it() {
    let capacity = capacity(8, 100);
    let ours = tenant("ours");
    leave_prefix(&capacity, &ours, &[[1; 32]]);
    let reusing = request(&ours, 65, &[[1; 32]]);
    let mut room = capacity
        .reserve(&reusing, Instant::now())
        .unwrap_or_else(|error| panic!("{error}"));
    room.note_digests(vec![[2; 32]]);
    room.grow(32).unwrap();
    room.table_mut().advance(32);
    room.keep_full_columns(Instant::now());
    drop(room);
    assert_eq!(
        reused(&capacity, &request(&ours, 97, &[[1; 32], [2; 32]])),
        64
    );
}

#[test]
fn another_entry_layer_finds_nothing() {
    let capacity = capacity(4, 100);
    let ours = tenant("ours");
    leave_prefix(&capacity, &ours, &[[1; 32]]);
    let deeper = KvRequest {
        layers: LayerRange::new(3, 6),
        ..request(&ours, 33, &[[1; 32]])
    };
    assert_eq!(reused(&capacity, &deeper), 0);
}

#[test]
fn a_session_that_keeps_nothing_leaves_nothing() {
    let capacity = capacity(4, 100);
    let ours = tenant("ours");
    let request = KvRequest {
        keeps_prefix: false,
        ..request(&ours, 33, &[])
    };
    let mut room = capacity
        .reserve(&request, Instant::now())
        .unwrap_or_else(|error| panic!("{error}"));
    room.note_digests(vec![[1; 32]]);
    room.grow(33).unwrap();
    room.table_mut().advance(33);
    room.keep_full_columns(Instant::now());
    drop(room);
    let text = capacity.metrics.render().unwrap();
    assert!(
        text.contains("headway_tail_kv_blocks{state=\"free\"} 100"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn prefixes_that_nobody_uses_are_forgotten() {
    let limits = KvLimits {
        parts: one_part(100),
        block_bytes: 10,
        prefix_retention: Duration::from_nanos(1),
    };
    let capacity = Capacity::new(4, limits, Arc::new(Metrics::new().unwrap()));
    leave_prefix(&capacity, &tenant("ours"), &[[1; 32]]);
    let kept = "headway_tail_kv_blocks{state=\"kept\"} 4";
    assert!(capacity.metrics.render().unwrap().contains(kept));
    let forgetting = tokio::spawn(capacity.clone().forget_old_prefixes());
    tokio::time::sleep(2 * EXPIRY_INTERVAL).await;
    let free = "headway_tail_kv_blocks{state=\"free\"} 100";
    assert!(capacity.metrics.render().unwrap().contains(free));
    forgetting.abort();
}

#[test]
fn a_full_queue_of_prompts_refuses_with_retry_after_until_one_is_computed() {
    let metrics = Arc::new(Metrics::new().unwrap());
    let queue = PromptQueue::new(1, Arc::clone(&metrics));
    let place = queue.enter().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(metrics.queued_prompts.get(), 1);
    assert!(matches!(
        queue.enter().err(),
        Some(CapacityError::Queue {
            max_queue: 1,
            retry_after_ms: 1..
        })
    ));
    drop(place);
    assert_eq!(metrics.queued_prompts.get(), 0);
    assert!(queue.enter().is_ok());
}
