//! What one step may carry, and how far a tail may be told to run free.

use super::check;
use crate::codec;
use crate::error::FrameError;
use crate::limits::{Limits, MAX_STOP_TOKEN_IDS};
use crate::message::{FreeRun, Step, TokenIds, step};

pub(super) fn check(step: &Step, limits: &Limits) -> Result<(), FrameError> {
    let rows = match &step.input {
        None => return Err(FrameError::Missing { part: "Step.input" }),
        Some(step::Input::TokenIds(TokenIds { ids })) => {
            check::within("max_step_positions", limits.max_step_positions, ids.len())?;
            ids.len()
        }
        Some(step::Input::Activations(activations)) => {
            codec::check_shape(activations, limits)?;
            activations.rows as usize
        }
    };
    if rows == 0 {
        return Err(check::invalid("Step.input", "one or more positions", 0));
    }
    check::within(
        "max_positions",
        limits.max_positions,
        u64::from(step.position) + rows as u64,
    )?;
    check_history(step, rows)?;
    check_draft(step, rows, limits)?;
    check_first_guess(step, rows)
}

pub(super) fn check_free_run(free_run: &FreeRun, limits: &Limits) -> Result<(), FrameError> {
    let FreeRun {
        until_position,
        stop_token_ids,
    } = free_run;
    check::within("max_positions", limits.max_positions, *until_position)?;
    let stops = stop_token_ids.len();
    check::within("max_stop_token_ids", MAX_STOP_TOKEN_IDS, stops)
}

fn check_history(step: &Step, rows: usize) -> Result<(), FrameError> {
    let Some(history) = &step.history else {
        return Ok(());
    };
    if matches!(step.input, Some(step::Input::TokenIds(_))) {
        // Two lists of the same positions could differ.
        return Err(check::invalid(
            "Step.history",
            "absent beside token ids",
            history.ids.len(),
        ));
    }
    if history.ids.len() == rows {
        return Ok(());
    }
    let expected = format!("one token id for each of {rows} rows");
    Err(check::invalid("Step.history", expected, history.ids.len()))
}

fn check_draft(step: &Step, rows: usize, limits: &Limits) -> Result<(), FrameError> {
    let Some(TokenIds { ids: draft }) = &step.draft else {
        return Ok(());
    };
    check::within("max_draft_tokens", limits.max_draft_tokens, draft.len())?;
    let invalid = |expected: String, got: usize| Err(check::invalid("Step.draft", expected, got));
    if draft.is_empty() {
        return invalid("one token id or more, or absent".to_owned(), 0);
    }
    if draft.len() + 1 != rows {
        let expected = format!("one token id for each of {rows} rows but the first");
        return invalid(expected, draft.len());
    }
    if !step.sample {
        let expected = "Step.sample beside a draft";
        return Err(check::invalid("Step.sample", expected, false));
    }
    // The same tokens are said twice.
    let rows_say = match (&step.input, &step.history) {
        (Some(step::Input::TokenIds(TokenIds { ids })), _) | (_, Some(TokenIds { ids })) => ids,
        _ => return Ok(()),
    };
    match rows_say[1..]
        .iter()
        .zip(draft)
        .find(|(row, guess)| row != guess)
    {
        Some((row, guess)) => {
            let expected = format!("the token ids of its rows, {row}");
            Err(check::invalid("Step.draft", expected, guess))
        }
        None => Ok(()),
    }
}

fn check_first_guess(step: &Step, rows: usize) -> Result<(), FrameError> {
    let Some(first_guess) = step.first_guess else {
        return Ok(());
    };
    if !step.sample {
        let expected = "Step.sample beside a first guess";
        return Err(check::invalid("Step.sample", expected, false));
    }
    let guesses = step.draft.as_ref().map_or(0, |draft| draft.ids.len());
    if rows != 1 + guesses {
        let expected = format!("the token id of each of {rows} rows but the first");
        return Err(check::invalid("Step.draft", expected, guesses));
    }
    // The same token is said twice.
    let first = match (&step.input, &step.history) {
        (Some(step::Input::TokenIds(TokenIds { ids })), _) | (_, Some(TokenIds { ids })) => {
            ids.first()
        }
        _ => None,
    };
    match first {
        Some(first) if *first != first_guess => {
            let expected = format!("the token id of its row, {first}");
            Err(check::invalid("Step.first_guess", expected, first_guess))
        }
        _ => Ok(()),
    }
}
