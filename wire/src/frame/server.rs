//! What the tail may answer.

use super::check;
use crate::error::FrameError;
use crate::limits::Limits;
use crate::message::{GoAway, Opened, Refusal, RefusalCode, StepResult};

pub(super) fn check_opened(opened: &Opened, limits: &Limits) -> Result<(), FrameError> {
    check::protocol_version("Opened.protocol_version", opened.protocol_version)?;
    check::within("max_positions", limits.max_positions, opened.max_positions)?;
    check::at_least_one("Opened.max_positions", opened.max_positions)?;
    check::at_least_one("Opened.max_step_positions", opened.max_step_positions)
}

pub(super) fn check_step_result(result: &StepResult, limits: &Limits) -> Result<(), FrameError> {
    check::within("max_positions", limits.max_positions, result.positions)?;
    check::at_least_one("StepResult.positions", result.positions)?;
    check::within(
        "max_top_logprobs",
        limits.max_top_logprobs,
        result.top_logprobs.len(),
    )?;
    let has_logprobs = result.logprob.is_some() || !result.top_logprobs.is_empty();
    if has_logprobs && result.token_id.is_none() {
        return Err(FrameError::Missing {
            part: "StepResult.token_id",
        });
    }
    if let Some(logprob) = result.logprob {
        check::finite("StepResult.logprob", logprob)?;
    }
    for entry in &result.top_logprobs {
        check::finite("TokenLogprob.logprob", entry.logprob)?;
    }
    Ok(())
}

pub(super) fn check_refusal(refusal: &Refusal, limits: &Limits) -> Result<(), FrameError> {
    match RefusalCode::try_from(refusal.code) {
        Ok(RefusalCode::Unspecified) => {
            return Err(FrameError::Missing {
                part: "Refusal.code",
            });
        }
        Ok(_) => {}
        Err(_) => {
            let (expected, got) = ("1 to 8".to_owned(), refusal.code.into());
            return Err(FrameError::Unsupported {
                field: "Refusal.code",
                expected,
                got,
            });
        }
    }
    check::text_bytes("max_text_bytes", limits.max_text_bytes, &refusal.message)
}

pub(super) fn check_go_away(go_away: &GoAway, limits: &Limits) -> Result<(), FrameError> {
    check::text_bytes("max_text_bytes", limits.max_text_bytes, &go_away.reason)
}
