use std::sync::Arc;

use headway_wire::message::Sampling;
use tokio::sync::Semaphore;

use super::*;
use crate::admission::tests::{admission, admission_without_token_upload, open};

fn checker(split_layer: u32, sampling: Sampling) -> StepChecker {
    let admission = admission(0);
    let mut open = open(&admission, split_layer);
    open.sampling = Some(sampling);
    let admitted = admission
        .admit(&open)
        .unwrap_or_else(|error| panic!("{error}"));
    StepChecker::new(&admitted, &admission, 0)
}

fn with_penalty() -> Sampling {
    Sampling {
        presence_penalty: 1.0,
        ..Sampling::default()
    }
}

fn token_ids(position: u32, ids: &[u32]) -> Step {
    let input = Some(step::Input::TokenIds(TokenIds { ids: ids.to_vec() }));
    Step {
        position,
        input,
        ..Step::default()
    }
}

fn activations(position: u32, rows: usize, columns: usize) -> Step {
    let values = vec![0.5; rows * columns];
    let activations = codec::encode(Codec::F32, &values, columns).unwrap();
    Step {
        position,
        input: Some(step::Input::Activations(activations)),
        ..Step::default()
    }
}

fn check(checker: &mut StepChecker, step: Step) -> Result<StepRequest, StepError> {
    let memory = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    checker.check(step, Instant::now(), memory)
}

fn refused(checker: &mut StepChecker, step: Step) -> StepError {
    match check(checker, step) {
        Ok(_) => panic!("accepted"),
        Err(error) => error,
    }
}

#[test]
fn steps_follow_each_other_without_gaps() {
    let mut checker = checker(4, Sampling::default());
    assert!(check(&mut checker, activations(0, 8, 64)).is_ok());
    assert!(check(&mut checker, activations(8, 2, 64)).is_ok());
    let error = refused(&mut checker, activations(9, 1, 64));
    assert!(matches!(
        error,
        StepError::Position {
            expected: 10,
            got: 9
        }
    ));
}

#[test]
fn positions_of_the_prompt_are_prefill_and_later_ones_decode() {
    let mut checker = checker(4, Sampling::default());
    let prompt =
        check(&mut checker, activations(0, 10, 64)).unwrap_or_else(|error| panic!("{error}"));
    let answer =
        check(&mut checker, activations(10, 1, 64)).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        (prompt.phase, answer.phase),
        (Phase::Prefill, Phase::Decode)
    );
}

#[test]
fn a_step_beyond_the_session_is_refused() {
    let mut checker = checker(4, Sampling::default());
    let error = refused(&mut checker, activations(0, 101, 64));
    assert!(matches!(
        error,
        StepError::BeyondSession { max: 100, got: 101 }
    ));
}

#[test]
fn activations_of_another_width_are_refused() {
    let error = refused(&mut checker(4, Sampling::default()), activations(0, 1, 32));
    assert!(matches!(
        error,
        StepError::Activations(CodecError::ColumnsMismatch {
            expected: 64,
            got: 32
        })
    ));
}

#[test]
fn token_ids_and_activations_are_not_mixed_up() {
    let error = refused(&mut checker(4, Sampling::default()), token_ids(0, &[1]));
    assert!(matches!(
        error,
        StepError::Input {
            expected: "activations",
            got: "token ids",
            ..
        }
    ));
    let error = refused(&mut checker(0, Sampling::default()), activations(0, 1, 64));
    assert!(matches!(
        error,
        StepError::Input {
            expected: "token ids",
            got: "activations",
            ..
        }
    ));
}

#[test]
fn a_token_id_outside_the_vocabulary_is_refused() {
    let error = refused(
        &mut checker(0, Sampling::default()),
        token_ids(0, &[99, 100]),
    );
    assert!(matches!(
        error,
        StepError::TokenId {
            vocab_size: 100,
            got: 100
        }
    ));
}

#[test]
fn penalties_need_the_history_of_activations() {
    let mut checker = checker(4, with_penalty());
    assert!(matches!(
        refused(&mut checker, activations(0, 2, 64)),
        StepError::HistoryMissing
    ));
    let history = Some(TokenIds { ids: vec![3, 4] });
    let request = check(
        &mut checker,
        Step {
            history,
            ..activations(0, 2, 64)
        },
    );
    assert!(request.is_ok_and(|request| request.history == [3, 4]));
}

#[test]
fn penalties_take_the_token_ids_as_history() {
    let request = check(&mut checker(0, with_penalty()), token_ids(0, &[7, 8]));
    assert!(request.is_ok_and(|request| request.history == [7, 8]));
}

#[test]
fn a_refused_step_does_not_count_as_received() {
    let mut checker = checker(0, Sampling::default());
    refused(&mut checker, token_ids(0, &[100]));
    assert!(check(&mut checker, token_ids(0, &[1])).is_ok());
}

fn draft(position: u32, ids: &[u32]) -> Step {
    Step {
        sample: true,
        draft: Some(TokenIds {
            ids: ids[1..].to_vec(),
        }),
        ..token_ids(position, ids)
    }
}

#[test]
fn after_a_draft_the_result_says_where_the_next_step_starts() {
    let mut checker = checker(0, Sampling::default());
    assert!(check(&mut checker, token_ids(0, &[1, 2])).is_ok());
    let request = check(&mut checker, draft(2, &[3, 4, 5]));
    let request = request.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((request.draft, request.phase), (vec![4, 5], Phase::Verify));
    let error = refused(&mut checker, token_ids(5, &[6]));
    assert!(matches!(error, StepError::DraftUnanswered { position: 2 }));
    // The result of the step before it says nothing of the draft.
    checker.answered(2);
    let error = refused(&mut checker, token_ids(5, &[6]));
    assert!(matches!(error, StepError::DraftUnanswered { position: 2 }));
    // One of two guesses was right.
    checker.answered(4);
    assert!(matches!(
        refused(&mut checker, token_ids(5, &[6])),
        StepError::Position {
            expected: 4,
            got: 5
        }
    ));
    assert!(check(&mut checker, token_ids(4, &[6])).is_ok());
}

#[test]
fn several_rows_behind_the_prompt_are_prefill() {
    let mut checker = checker(4, Sampling::default());
    assert!(check(&mut checker, activations(0, 10, 64)).is_ok());
    let more = check(&mut checker, activations(10, 2, 64));
    assert!(more.is_ok_and(|request| request.phase == Phase::Prefill));
}

#[test]
fn a_draft_outside_the_vocabulary_is_refused() {
    let error = refused(&mut checker(0, Sampling::default()), draft(0, &[1, 100]));
    assert!(matches!(error, StepError::TokenId { got: 100, .. }));
}

#[test]
fn where_token_ids_may_not_leave_the_device_neither_may_guesses() {
    let admission = admission_without_token_upload();
    let admitted = admission
        .admit(&open(&admission, 4))
        .unwrap_or_else(|error| panic!("{error}"));
    let mut checker = StepChecker::new(&admitted, &admission, 0);
    let step = Step {
        sample: true,
        draft: Some(TokenIds { ids: vec![5] }),
        ..activations(0, 2, 64)
    };
    assert!(matches!(
        refused(&mut checker, step),
        StepError::DraftUpload
    ));
}

/// A session that keeps its prefix, or takes part of one.
fn keeping(split_layer: u32, reused_blocks: usize, prefix: &[PrefixDigest]) -> StepChecker {
    let admission = admission(0);
    let open = headway_wire::message::Open {
        keep_prefix: true,
        prompt_tokens: 100,
        prefix_digests: prefix.concat().into(),
        ..open(&admission, split_layer)
    };
    let admitted = admission
        .admit(&open)
        .unwrap_or_else(|error| panic!("{error}"));
    StepChecker::new(&admitted, &admission, reused_blocks * 32)
}

fn digests(checker: &mut StepChecker, step: Step) -> Vec<PrefixDigest> {
    check(checker, step)
        .unwrap_or_else(|error| panic!("{error}"))
        .digests
}

#[test]
fn digests_are_those_of_the_rows_however_they_are_cut() {
    let ids: Vec<u32> = (0..70).collect();
    let mut hasher = PrefixHasher::new(0, None);
    let expected: Vec<PrefixDigest> = ids
        .iter()
        .filter_map(|id| hasher.push(&id.to_le_bytes()))
        .collect();
    let mut whole = keeping(0, 0, &[]);
    assert_eq!(digests(&mut whole, token_ids(0, &ids)), expected);
    let mut cut = keeping(0, 0, &[]);
    assert!(digests(&mut cut, token_ids(0, &ids[..20])).is_empty());
    assert_eq!(
        digests(&mut cut, token_ids(20, &ids[20..40])),
        expected[..1]
    );
    assert_eq!(digests(&mut cut, token_ids(40, &ids[40..])), expected[1..]);
    let mut rest = keeping(0, 1, &expected);
    assert_eq!(digests(&mut rest, token_ids(32, &ids[32..])), expected[1..]);
    let mut of_activations = keeping(4, 0, &[]);
    assert_eq!(
        digests(&mut of_activations, activations(0, 70, 64)).len(),
        2
    );
}

#[test]
fn guesses_are_part_of_a_digest_once_they_are_accepted() {
    let ids: Vec<u32> = (0..32).collect();
    let mut plain = keeping(0, 0, &[]);
    let expected = digests(&mut plain, token_ids(0, &ids));
    let mut drafted = keeping(0, 0, &[]);
    assert!(digests(&mut drafted, token_ids(0, &ids[..29])).is_empty());
    // Of 29, 30, 99 the first two stand: 29 is known, 30 is right, 99 is wrong.
    assert!(digests(&mut drafted, draft(29, &[29, 30, 99])).is_empty());
    drafted.answered(31);
    assert_eq!(digests(&mut drafted, token_ids(31, &ids[31..])), expected);
}

/// A session with head layers that begins with token ids, and keeps its prefix.
fn beginning_with_token_ids() -> StepChecker {
    let admission = admission(0);
    let open = headway_wire::message::Open {
        keep_prefix: true,
        prefill_token_ids: true,
        ..open(&admission, 4)
    };
    let admitted = admission
        .admit(&open)
        .unwrap_or_else(|error| panic!("{error}"));
    StepChecker::new(&admitted, &admission, 0)
}

#[test]
fn token_ids_come_before_the_first_activations_and_not_after() {
    let mut checker = beginning_with_token_ids();
    assert!(check(&mut checker, token_ids(0, &[1, 2, 3])).is_ok());
    assert!(check(&mut checker, token_ids(3, &[4])).is_ok());
    assert!(check(&mut checker, activations(4, 2, 64)).is_ok());
    assert!(matches!(
        refused(&mut checker, token_ids(6, &[5])),
        StepError::Input {
            split_layer: 4,
            expected: "activations",
            got: "token ids"
        }
    ));
}

#[test]
fn of_two_kinds_of_rows_only_token_ids_are_digested() {
    let ids: Vec<u32> = (0..40).collect();
    let mut plain = keeping(0, 0, &[]);
    let expected = digests(&mut plain, token_ids(0, &ids));
    let mut mixed = beginning_with_token_ids();
    assert_eq!(digests(&mut mixed, token_ids(0, &ids)), expected);
    assert!(digests(&mut mixed, activations(40, 60, 64)).is_empty());
}
