use proptest::prelude::*;

use super::*;

fn decode(session: u64, entry_layer: usize) -> Ready {
    Ready {
        session: SessionId(session),
        entry_layer,
        rows: 1,
        phase: Phase::Decode,
    }
}

fn prefill(session: u64, entry_layer: usize, rows: usize) -> Ready {
    Ready {
        session: SessionId(session),
        entry_layer,
        rows,
        phase: Phase::Prefill,
    }
}

fn rows_of(chunks: &[Chunk], session: u64) -> usize {
    chunks
        .iter()
        .filter(|chunk| chunk.session == SessionId(session))
        .map(|chunk| chunk.rows)
        .sum()
}

#[test]
fn nothing_ready_gives_an_empty_step() {
    assert_eq!(Batcher::new(16).plan(&[]), vec![]);
}

#[test]
fn a_long_prompt_stops_nobody_from_decoding() {
    let ready = [prefill(1, 4, 10_000), decode(2, 4), decode(3, 4)];
    let chunks = Batcher::new(16).plan(&ready);
    assert_eq!(rows_of(&chunks, 1), 14);
    assert_eq!(rows_of(&chunks, 2), 1);
    assert_eq!(rows_of(&chunks, 3), 1);
}

#[test]
fn many_decoding_sessions_leave_a_quarter_to_prompts() {
    let mut ready: Vec<Ready> = (1..=100).map(|session| decode(session, 0)).collect();
    ready.push(prefill(200, 0, 500));
    let chunks = Batcher::new(16).plan(&ready);
    assert_eq!(rows_of(&chunks, 200), 4);
    assert_eq!(chunks.len(), 13);
}

#[test]
fn a_short_prompt_is_done_in_the_first_step_beside_a_long_one() {
    let chunks = Batcher::new(64).plan(&[prefill(1, 0, 4000), prefill(2, 0, 10)]);
    assert_eq!(rows_of(&chunks, 2), 10);
    assert_eq!(rows_of(&chunks, 1), 54);
}

#[test]
fn chunks_are_ordered_by_entry_layer() {
    let chunks = Batcher::new(64).plan(&[
        decode(1, 9),
        prefill(2, 3, 5),
        decode(3, 0),
        prefill(4, 9, 5),
    ]);
    let layers: Vec<usize> = chunks.iter().map(|chunk| chunk.entry_layer).collect();
    assert_eq!(layers, [0, 3, 9, 9]);
}

#[test]
fn more_prompts_than_rows_take_turns() {
    let mut batcher = Batcher::new(2);
    let ready = [prefill(1, 0, 3), prefill(2, 0, 3), prefill(3, 0, 3)];
    let first = batcher.plan(&ready);
    let second = batcher.plan(&ready);
    assert_eq!(
        (rows_of(&first, 1), rows_of(&first, 2), rows_of(&first, 3)),
        (1, 1, 0)
    );
    assert_eq!(
        (
            rows_of(&second, 1),
            rows_of(&second, 2),
            rows_of(&second, 3)
        ),
        (1, 0, 1)
    );
}

fn any_ready() -> impl Strategy<Value = Vec<Ready>> {
    prop::collection::vec((0_usize..8, 1_usize..300, any::<bool>()), 0..40).prop_map(|sessions| {
        let of = |(index, (entry_layer, rows, is_decode)): (usize, (usize, usize, bool))| {
            let session = index as u64 + 1;
            if is_decode {
                decode(session, entry_layer)
            } else {
                prefill(session, entry_layer, rows)
            }
        };
        sessions.into_iter().enumerate().map(of).collect()
    })
}

proptest! {
    #[test]
    fn a_step_uses_the_budget_and_no_more(ready in any_ready(), step_tokens in 2_usize..200) {
        let chunks = Batcher::new(step_tokens).plan(&ready);
        let wanted: usize = ready.iter().map(|ready| ready.rows).sum();
        let planned: usize = chunks.iter().map(|chunk| chunk.rows).sum();
        prop_assert_eq!(planned, wanted.min(step_tokens));
        for chunk in &chunks {
            let of_session = ready.iter().find(|ready| ready.session == chunk.session);
            prop_assert!(of_session.is_some_and(|ready| (1..=ready.rows).contains(&chunk.rows)));
        }
    }

    #[test]
    fn every_session_has_its_turn(ready in any_ready(), step_tokens in 2_usize..50) {
        let mut batcher = Batcher::new(step_tokens);
        let mut waiting: Vec<SessionId> = ready.iter().map(|ready| ready.session).collect();
        // The same sessions stay ready all the time: nobody may be passed over for ever.
        for _ in 0..ready.len() {
            for chunk in batcher.plan(&ready) {
                waiting.retain(|&session| session != chunk.session);
            }
        }
        prop_assert!(waiting.is_empty(), "never served: {waiting:?}");
    }

    #[test]
    fn prompts_and_decodes_both_end(ready in any_ready(), step_tokens in 2_usize..50) {
        let mut batcher = Batcher::new(step_tokens);
        let mut left = ready.clone();
        let total: usize = ready.iter().map(|ready| ready.rows).sum();
        let mut steps = 0;
        while !left.is_empty() {
            for chunk in batcher.plan(&left) {
                if let Some(ready) = left.iter_mut().find(|ready| ready.session == chunk.session) {
                    ready.rows -= chunk.rows;
                }
            }
            left.retain(|ready| ready.rows > 0);
            steps += 1;
        }
        prop_assert!(steps <= total.div_ceil(step_tokens));
    }
}
