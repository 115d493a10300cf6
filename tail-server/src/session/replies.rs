//! What a session tells its device, in the wire's messages.

use std::time::Duration;

use headway_wire::message::{DraftLogprobs, GoAway, StepResult, TokenLogprob};

use crate::engine::{Drafter, StepOutput};
use crate::trace::{StepFacts, StepMoments};

/// Why sessions are asked to move: the tail goes.
pub(super) const LEAVING: &str = "this tail is leaving; rebuild the session on another one";
/// Why sessions are asked to move: the tail has more of them than its part.
pub(super) const SPREADING: &str =
    "this tail has more sessions than its part; rebuild the session on another one";

/// Asks a device to move before `deadline`.
pub(super) fn go_away(deadline: tokio::time::Instant, reason: &str) -> GoAway {
    let left = deadline.saturating_duration_since(tokio::time::Instant::now());
    GoAway {
        deadline_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
        reason: reason.to_owned(),
    }
}

/// The answer to a step of the device; to one that the tail has taken by itself, one for each token.
pub(super) fn step_results(mut output: StepOutput) -> Vec<StepResult> {
    if output.drafter == Drafter::Device || output.sampled.len() < 2 {
        return vec![step_result(output)];
    }
    let sampled = std::mem::take(&mut output.sampled);
    let before = output.positions - sampled.len();
    let each = sampled.into_iter().enumerate().map(|(index, sampled)| {
        let output = StepOutput {
            positions: before + index + 1,
            sampled: vec![sampled],
            // The first one tells what they took together.
            compute_us: std::mem::take(&mut output.compute_us),
            saved_us: std::mem::take(&mut output.saved_us),
            queue_us: std::mem::take(&mut output.queue_us),
            draft_saved_us: 0,
            ..output
        };
        step_result(output)
    });
    each.collect()
}

/// The answer to a step. `output.sampled`: the draft tokens that are right, and the token after them.
fn step_result(output: StepOutput) -> StepResult {
    // Bounded by the session's `max_positions` and the step's draft, which came as u32s.
    let wire = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let mut accepted = output.sampled;
    let token = accepted.pop();
    let draft_accepted = wire(accepted.len());
    let reports = accepted.into_iter().filter_map(|sampled| {
        Some(DraftLogprobs {
            logprob: sampled.logprob?,
            top_logprobs: token_logprobs(sampled.top_logprobs),
        })
    });
    let mut result = StepResult {
        positions: wire(output.positions),
        compute_us: output.compute_us,
        saved_us: output.saved_us,
        queue_us: output.queue_us,
        draft_accepted,
        draft_logprobs: reports.collect(),
        draft_saved_us: output.draft_saved_us,
        ..StepResult::default()
    };
    if let Some(sampled) = token {
        result.token_id = Some(sampled.token_id);
        result.logprob = sampled.logprob;
        result.top_logprobs = token_logprobs(sampled.top_logprobs);
    }
    result
}

/// The answer to a step that ran ahead of another token than the one that came.
pub(super) fn passed_over(positions: usize) -> StepResult {
    StepResult {
        // Bounded by the session's `max_positions`, which came as a u32.
        positions: u32::try_from(positions).unwrap_or(u32::MAX),
        passed_over: true,
        ..StepResult::default()
    }
}

/// What the trace tells of a step that is being answered; it is not sent yet.
pub(super) fn traced(output: &StepOutput) -> (StepMoments, StepFacts) {
    let moments = StepMoments {
        arrived: output.arrived,
        started: output.arrived + Duration::from_micros(output.queue_us),
        computed: output.computed,
        sent: output.computed,
    };
    let facts = StepFacts {
        rows: output.rows,
        phase: output.phase,
        sampled: !output.sampled.is_empty(),
        compute_us: output.compute_us,
        draft_accepted: output.sampled.len().saturating_sub(1),
    };
    (moments, facts)
}

fn token_logprobs(entries: Vec<(u32, f32)>) -> Vec<TokenLogprob> {
    entries
        .into_iter()
        .map(|(token_id, logprob)| TokenLogprob { token_id, logprob })
        .collect()
}
