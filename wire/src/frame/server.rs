//! What the tail may answer.

use super::check;
use crate::error::FrameError;
use crate::limits::Limits;
use crate::message::{
    DraftLogprobs, GoAway, Opened, Refusal, RefusalCode, StepResult, TokenLogprob,
};
use crate::prefix::PREFIX_BLOCK_POSITIONS;

const BLOCK_POSITIONS: u32 = 32;
const _: () = assert!(BLOCK_POSITIONS as usize == PREFIX_BLOCK_POSITIONS);

pub(super) fn check_opened(opened: &Opened, limits: &Limits) -> Result<(), FrameError> {
    check::protocol_version("Opened.protocol_version", opened.protocol_version)?;
    check::within("max_positions", limits.max_positions, opened.max_positions)?;
    check::at_least_one("Opened.max_positions", opened.max_positions)?;
    check::at_least_one("Opened.max_step_positions", opened.max_step_positions)?;
    let reused = opened.reused_positions;
    if !reused.is_multiple_of(BLOCK_POSITIONS) || reused >= opened.max_positions {
        let expected = format!(
            "a multiple of {BLOCK_POSITIONS} below {} positions",
            opened.max_positions
        );
        return Err(check::invalid("Opened.reused_positions", expected, reused));
    }
    Ok(())
}

pub(super) fn check_step_result(result: &StepResult, limits: &Limits) -> Result<(), FrameError> {
    check::within("max_positions", limits.max_positions, result.positions)?;
    check::at_least_one("StepResult.positions", result.positions)?;
    if result.passed_over && result.token_id.is_some() {
        let expected = "no token of a step that was passed over";
        return Err(check::invalid(
            "StepResult.token_id",
            expected,
            result.token_id.unwrap_or_default(),
        ));
    }
    let has_logprobs = result.logprob.is_some() || !result.top_logprobs.is_empty();
    if has_logprobs && result.token_id.is_none() {
        return Err(FrameError::Missing {
            part: "StepResult.token_id",
        });
    }
    if let Some(logprob) = result.logprob {
        check::finite("StepResult.logprob", logprob)?;
    }
    check_top_logprobs(&result.top_logprobs, limits)?;
    check_draft(result, limits)
}

fn check_draft(result: &StepResult, limits: &Limits) -> Result<(), FrameError> {
    let accepted = result.draft_accepted;
    check::within("max_draft_tokens", limits.max_draft_tokens, accepted)?;
    if accepted > 0 && result.token_id.is_none() {
        return Err(FrameError::Missing {
            part: "StepResult.token_id",
        });
    }
    let reports = &result.draft_logprobs;
    if !reports.is_empty() && reports.len() != accepted as usize {
        let expected = format!("none, or one for each of {accepted} accepted tokens");
        let got = reports.len();
        return Err(check::invalid("StepResult.draft_logprobs", expected, got));
    }
    for DraftLogprobs {
        logprob,
        top_logprobs,
    } in reports
    {
        check::finite("DraftLogprobs.logprob", *logprob)?;
        check_top_logprobs(top_logprobs, limits)?;
    }
    Ok(())
}

fn check_top_logprobs(entries: &[TokenLogprob], limits: &Limits) -> Result<(), FrameError> {
    check::within("max_top_logprobs", limits.max_top_logprobs, entries.len())?;
    for entry in entries {
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
