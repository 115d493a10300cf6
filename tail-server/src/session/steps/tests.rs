use std::sync::Arc;

use headway_wire::message::Sampling;
use tokio::sync::Semaphore;

use super::*;
use crate::admission::tests::{admission, open};

fn checker(split_layer: u32, sampling: Sampling) -> StepChecker {
    let admission = admission(0);
    let mut open = open(&admission, split_layer);
    open.sampling = Some(sampling);
    let admitted = admission
        .admit(&open)
        .unwrap_or_else(|error| panic!("{error}"));
    StepChecker::new(&admitted, &admission)
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
