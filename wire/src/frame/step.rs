//! What one step may carry.

use super::check;
use crate::codec;
use crate::error::FrameError;
use crate::limits::Limits;
use crate::message::{Step, TokenIds, step};

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
    check_history(step, rows)
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
