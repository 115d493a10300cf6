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

fn verify(session: u64, entry_layer: usize, rows: usize) -> Ready {
    Ready {
        session: SessionId(session),
        entry_layer,
        rows,
        phase: Phase::Verify,
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

fn sessions(chunks: &[Chunk]) -> Vec<u64> {
    chunks.iter().map(|chunk| chunk.session.0).collect()
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
        verify(3, 0, 4),
        prefill(4, 9, 5),
    ]);
    let layers: Vec<usize> = chunks.iter().map(|chunk| chunk.entry_layer).collect();
    assert_eq!(layers, [0, 3, 9, 9]);
}

#[test]
fn prompts_that_come_together_are_done_one_after_the_other() {
    let mut left: Vec<Ready> = (1..=4).map(|session| prefill(session, 0, 32)).collect();
    let mut batcher = Batcher::new(32);
    let mut done = Vec::new();
    for step in 1..=4 {
        for chunk in batcher.plan(&left) {
            let ready = left.iter_mut().find(|ready| ready.session == chunk.session);
            ready.unwrap().rows -= chunk.rows;
        }
        done.extend(
            left.extract_if(.., |ready| ready.rows == 0)
                .map(|ready| (step, ready.session.0)),
        );
    }
    assert_eq!(done, [(2, 1), (2, 2), (4, 3), (4, 4)]);
}

#[test]
fn a_long_prompt_has_half_of_the_rows_however_many_short_ones_come() {
    let mut batcher = Batcher::new(16);
    for step in 0..5 {
        let mut ready = vec![prefill(1, 0, 500)];
        ready.extend((0..20).map(|other| prefill(100 * (step + 1) + other, 0, 3)));
        let chunks = batcher.plan(&ready);
        assert_eq!(rows_of(&chunks, 1), 8);
        assert_eq!(chunks.len(), 4);
    }
}

#[test]
fn decodes_and_drafts_have_one_common_turn() {
    let mut batcher = Batcher::new(8);
    let ready = [
        verify(1, 0, 3),
        decode(2, 0),
        verify(3, 0, 4),
        decode(4, 0),
        verify(5, 0, 5),
    ];
    assert_eq!(sessions(&batcher.plan(&ready)), [1, 2, 3]);
    assert_eq!(sessions(&batcher.plan(&ready)), [4, 5]);
    // Who was in a step goes behind those who were not, in the old order.
    assert_eq!(sessions(&batcher.plan(&ready)), [1, 2, 3]);
}

#[test]
fn a_draft_that_does_not_fit_begins_the_next_step_and_nobody_overtakes_it() {
    let mut batcher = Batcher::new(8);
    let ready = [verify(1, 0, 5), verify(2, 0, 4), decode(3, 0)];
    assert_eq!(sessions(&batcher.plan(&ready)), [1]);
    // Session 1 has gone, and session 0 is new: it waits behind those who were there.
    let ready = [verify(0, 0, 5), verify(2, 0, 4), decode(3, 0)];
    assert_eq!(sessions(&batcher.plan(&ready)), [2, 3]);
    assert_eq!(sessions(&batcher.plan(&[verify(0, 0, 5)])), [0]);
}

#[test]
fn prompts_take_what_a_draft_that_does_not_fit_leaves() {
    let ready = [verify(1, 0, 7), verify(2, 0, 7), prefill(3, 0, 100)];
    let chunks = Batcher::new(16).plan(&ready);
    assert_eq!(rows_of(&chunks, 1), 7);
    assert_eq!(rows_of(&chunks, 2), 0);
    assert_eq!(rows_of(&chunks, 3), 9);
}

#[test]
fn the_longest_draft_fits_beside_prompts() {
    for step_tokens in 0..70 {
        let mut batcher = Batcher::new(step_tokens);
        let rows = batcher.max_whole_rows();
        assert!(rows >= 1);
        let chunks = batcher.plan(&[prefill(1, 0, 1000), verify(2, 0, rows)]);
        assert_eq!(rows_of(&chunks, 2), rows);
        assert_eq!(rows_of(&chunks, 1), step_tokens.max(2) - rows);
    }
    assert_eq!(Batcher::new(16).max_whole_rows(), 12);
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "an answer longer than 12 rows came past admission")]
fn a_draft_that_might_never_fit_is_a_bug_of_the_caller() {
    Batcher::new(16).plan(&[verify(1, 0, 13)]);
}

/// Up to 40 sessions, and a budget in which each of their answers fits.
fn any_ready(step_tokens: std::ops::Range<usize>) -> impl Strategy<Value = (usize, Vec<Ready>)> {
    let session = (0_usize..8, 1_usize..300, 0_usize..3);
    (step_tokens, prop::collection::vec(session, 0..40)).prop_map(|(step_tokens, sessions)| {
        let longest = Batcher::new(step_tokens).max_whole_rows();
        let of = |(index, (entry_layer, rows, phase)): (usize, (usize, usize, usize))| {
            let session = index as u64 + 1;
            match Phase::ALL[phase] {
                Phase::Prefill => prefill(session, entry_layer, rows),
                Phase::Decode => decode(session, entry_layer),
                Phase::Verify => verify(session, entry_layer, rows.min(longest)),
            }
        };
        (
            step_tokens,
            sessions.into_iter().enumerate().map(of).collect(),
        )
    })
}

fn count(ready: &[Ready], is_answer: bool) -> usize {
    let of_class = ready
        .iter()
        .filter(|ready| ready.phase.is_answer() == is_answer);
    of_class.count()
}

/// In how many steps an answer is served, if it becomes ready when all of `ready` are.
fn most_steps(ready: &[Ready]) -> usize {
    count(ready, true)
}

proptest! {
    #[test]
    fn a_step_keeps_the_budget_and_cuts_no_answer((step_tokens, ready) in any_ready(2..200)) {
        let chunks = Batcher::new(step_tokens).plan(&ready);
        let planned: usize = chunks.iter().map(|chunk| chunk.rows).sum();
        prop_assert!(planned <= step_tokens);
        prop_assert_eq!(chunks.is_empty(), ready.is_empty());
        for chunk in &chunks {
            let of_session = ready.iter().find(|ready| ready.session == chunk.session);
            let ready = of_session.expect("only sessions that are ready are planned");
            prop_assert!((1..=ready.rows).contains(&chunk.rows));
            prop_assert!(!ready.phase.is_answer() || chunk.rows == ready.rows);
        }
    }

    #[test]
    fn a_step_is_full_or_has_everything_or_the_next_answer_does_not_fit(
        (step_tokens, ready) in any_ready(2..200), steps in 1_usize..5,
    ) {
        let mut batcher = Batcher::new(step_tokens);
        for _ in 0..steps {
            let line = batcher.answers.clone();
            let chunks = batcher.plan(&ready);
            let planned: usize = chunks.iter().map(|chunk| chunk.rows).sum();
            let wanted: usize = ready.iter().map(|ready| ready.rows).sum();
            if planned == wanted.min(step_tokens) {
                continue;
            }
            let answers: Vec<Ready> =
                ready.iter().copied().filter(|ready| ready.phase.is_answer()).collect();
            let served = |answer: &Ready| chunks.iter().any(|chunk| chunk.session == answer.session);
            let next = in_turn(&line, &answers).into_iter().find(|answer| !served(answer));
            prop_assert!(next.is_some_and(|next| planned + next.rows > step_tokens));
        }
    }

    #[test]
    fn decodes_and_prompts_alone_use_the_whole_budget((step_tokens, ready) in any_ready(2..200)) {
        let ready: Vec<Ready> =
            ready.into_iter().filter(|ready| ready.phase != Phase::Verify).collect();
        let wanted: usize = ready.iter().map(|ready| ready.rows).sum();
        let chunks = Batcher::new(step_tokens).plan(&ready);
        let planned: usize = chunks.iter().map(|chunk| chunk.rows).sum();
        prop_assert_eq!(planned, wanted.min(step_tokens));
    }

    #[test]
    fn waiting_prompts_have_their_quarter((step_tokens, ready) in any_ready(2..200), steps in 1_usize..5) {
        let mut batcher = Batcher::new(step_tokens);
        let prompts: Vec<&Ready> = ready.iter().filter(|ready| ready.phase == Phase::Prefill).collect();
        let wanted: usize = prompts.iter().map(|ready| ready.rows).sum();
        for _ in 0..steps {
            let chunks = batcher.plan(&ready);
            let planned: usize = prompts.iter().map(|ready| rows_of(&chunks, ready.session.0)).sum();
            prop_assert!(planned >= wanted.min((step_tokens / 4).max(1)));
        }
    }

    #[test]
    fn every_answer_has_its_turn_again_and_again((step_tokens, ready) in any_ready(2..50)) {
        let mut batcher = Batcher::new(step_tokens);
        let mut steps_waited = vec![0; ready.len()];
        // The same sessions stay ready all the time: nobody may be passed over for ever.
        for _ in 0..4 * ready.len() {
            let chunks = batcher.plan(&ready);
            for (waited, session) in steps_waited.iter_mut().zip(&ready) {
                *waited += 1;
                let is_answer = session.phase.is_answer();
                prop_assert!(!is_answer || *waited <= most_steps(&ready));
                if rows_of(&chunks, session.session.0) > 0 {
                    *waited = 0;
                }
            }
        }
    }

    #[test]
    fn nobody_who_comes_later_delays_an_answer(
        (step_tokens, ready) in any_ready(2..50),
        comings_and_goings in prop::collection::vec(prop::collection::vec(any::<bool>(), 40), 1..60),
        newest_joins in any::<bool>(),
    ) {
        let Some(target) = ready.first().copied().filter(|ready| ready.phase.is_answer()) else {
            return Ok(());
        };
        let mut batcher = Batcher::new(step_tokens);
        // One step in which the line gets some order before the target joins it.
        batcher.plan(&ready[1..]);
        let mut waited = 0;
        let mut bound = None;
        for (step, present) in comings_and_goings.iter().enumerate() {
            let mut now = vec![target];
            let others = ready[1..].iter().zip(present).filter(|(_, present)| **present);
            now.extend(others.map(|(ready, _)| *ready));
            if newest_joins {
                let longest = batcher.max_whole_rows();
                now.push(verify(1000 + step as u64, 0, longest));
            }
            let bound = *bound.get_or_insert_with(|| most_steps(&now));
            waited += 1;
            prop_assert!(waited <= bound);
            if rows_of(&batcher.plan(&now), target.session.0) > 0 {
                break;
            }
        }
    }

    #[test]
    fn nobody_who_comes_later_delays_a_prompt(
        step_tokens in 2_usize..50,
        rows in prop::collection::vec(1_usize..60, 1..12),
        later_rows in prop::collection::vec(1_usize..60, 0..4),
        answers in 0_u64..60,
    ) {
        let mut batcher = Batcher::new(step_tokens);
        let half = (batcher.prompt_rows() / 2).max(1);
        let bound: usize = rows.iter().map(|rows| rows.div_ceil(half)).sum();
        let mut waiting: Vec<Ready> =
            (1_u64..).zip(&rows).map(|(session, rows)| prefill(session, 0, *rows)).collect();
        let last = SessionId(rows.len() as u64);
        let mut steps = 0;
        while waiting.iter().any(|ready| ready.session == last) {
            // New ones in each step, and more answers than fit.
            let mut ready = waiting.clone();
            let new = 1000 * (steps as u64 + 1);
            ready.extend((new..).zip(&later_rows).map(|(session, rows)| prefill(session, 0, *rows)));
            ready.extend((0..answers).map(|answer| decode(1_000_000 + answer, 0)));
            for chunk in batcher.plan(&ready) {
                if let Some(ready) = waiting.iter_mut().find(|ready| ready.session == chunk.session) {
                    ready.rows -= chunk.rows;
                }
            }
            waiting.retain(|ready| ready.rows > 0);
            steps += 1;
            prop_assert!(steps <= bound);
        }
    }

    #[test]
    fn prompts_and_answers_all_end((step_tokens, ready) in any_ready(2..50)) {
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
        // Of two steps that follow each other, the second has the answer that did not fit into the first.
        prop_assert!(steps <= 2 * (total / (step_tokens + 1)) + 1);
    }
}
