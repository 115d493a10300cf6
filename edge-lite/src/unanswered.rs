//! Steps on their way to a tail, and whether its results are answers to them.

use std::collections::VecDeque;

use headway_wire::message::{Step, StepResult};

use crate::connection::protocol;
use crate::error::TailError;
use crate::rows::wire_u32;

/// Steps that were sent on a connection and not yet answered.
#[derive(Default)]
pub(crate) struct UnansweredSteps {
    steps: VecDeque<Unanswered>,
    /// A guess was wrong: the steps that ran ahead of it will be passed over, and the tail holds so many positions until
    /// then.
    passing_over: Option<usize>,
    /// Positions that the tail held from the start, and those sent to it; guesses that were wrong are not among them.
    pub(crate) sent: usize,
}

/// A step that was sent and not yet answered.
struct Unanswered {
    end: usize,
    sample: bool,
    /// Of the rows, the last ones that are guesses.
    guesses: usize,
    /// The token of the first row, where the step runs ahead of the result before it.
    first_guess: Option<u32>,
    /// The tail takes it by itself.
    is_free: bool,
}

/// A result and what it answers.
pub(crate) struct Answered {
    pub(crate) result: StepResult,
    pub(crate) sample: bool,
    /// The step ran ahead of the result before it.
    pub(crate) ran_ahead: bool,
    /// Guesses behind its first row.
    pub(crate) guesses: usize,
    /// The tail took the step by itself.
    pub(crate) is_free: bool,
}

impl UnansweredSteps {
    pub(crate) fn len(&self) -> usize {
        self.steps.len()
    }

    /// Those that run ahead of the result before them.
    pub(crate) fn ahead(&self) -> usize {
        let ahead = self.steps.iter();
        ahead.filter(|step| step.first_guess.is_some()).count()
    }

    /// A step is sent whose last position is `end - 1`, guesses included.
    pub(crate) fn push(&mut self, step: &Step, end: usize) {
        self.steps.push_back(Unanswered {
            end,
            sample: step.sample,
            guesses: step.draft.as_ref().map_or(0, |draft| draft.ids.len()),
            first_guess: step.first_guess,
            is_free: false,
        });
        self.sent = end;
    }

    /// Those that the tail takes by itself; all of them are the last ones.
    pub(crate) fn free(&self) -> usize {
        let newest = self.steps.iter().rev();
        newest.take_while(|step| step.is_free).count()
    }

    /// The tail goes on by itself until it holds `until` positions.
    pub(crate) fn run_free(&mut self, until: usize) {
        for end in self.sent + 1..=until {
            self.steps.push_back(Unanswered {
                end,
                sample: true,
                guesses: 0,
                first_guess: None,
                is_free: true,
            });
        }
        self.sent = self.sent.max(until);
    }

    /// What `result` answers.
    ///
    /// # Errors
    /// [`TailError::Protocol`] where it is no answer to the oldest step.
    pub(crate) fn answered(&mut self, result: StepResult) -> Result<Answered, TailError> {
        let Some(step) = self.steps.pop_front() else {
            return Err(protocol("a result came without a step"));
        };
        let Unanswered {
            end,
            sample,
            guesses,
            first_guess,
            is_free,
        } = step;
        if first_guess.is_none() {
            self.passing_over = None;
        }
        if result.passed_over != self.passing_over.is_some() {
            return Err(protocol(
                "a step was passed over that was guessed right, or one was not that was guessed wrong",
            ));
        }
        let right = result.draft_accepted as usize;
        if right > guesses {
            let reason = format!("{right} guesses are right of a step with {guesses}");
            return Err(TailError::Protocol { reason });
        }
        let end = self.passing_over.unwrap_or(end - (guesses - right));
        if result.positions != wire_u32(end) {
            let reason = format!(
                "a result is for {} positions; expected {end}",
                result.positions
            );
            return Err(TailError::Protocol { reason });
        }
        if !result.passed_over {
            if sample && result.token_id.is_none() {
                return Err(protocol("a step asked for a token and got none"));
            }
            self.settle(end, right == guesses, result.token_id);
        }
        Ok(Answered {
            sample,
            ran_ahead: first_guess.is_some(),
            guesses,
            is_free,
            result,
        })
    }

    /// The tail holds `end` positions. What runs ahead goes on where all guesses before it were right and its own first
    /// one is `token_id`.
    fn settle(&mut self, end: usize, are_right: bool, token_id: Option<u32>) {
        let next = self.steps.front().map(|step| step.first_guess);
        match next {
            Some(Some(first_guess)) if !are_right || token_id != Some(first_guess) => {
                self.passing_over = Some(end);
                self.sent = end;
            }
            // No step was sent behind the guesses.
            None => self.sent = end,
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use headway_wire::message::TokenIds;

    use super::*;

    fn step(draft: &[u32], first_guess: Option<u32>) -> Step {
        let ids = draft.to_vec();
        Step {
            sample: true,
            draft: (!draft.is_empty()).then_some(TokenIds { ids }),
            first_guess,
            ..Step::default()
        }
    }

    fn result(positions: u32, token_id: u32, draft_accepted: u32) -> StepResult {
        StepResult {
            positions,
            token_id: Some(token_id),
            draft_accepted,
            ..StepResult::default()
        }
    }

    fn passed_over(positions: u32) -> StepResult {
        StepResult {
            positions,
            passed_over: true,
            ..StepResult::default()
        }
    }

    /// Behind ten positions: one with two guesses, and two steps that run ahead of it.
    fn three() -> UnansweredSteps {
        let mut steps = UnansweredSteps::default();
        steps.push(&step(&[1, 2], None), 13);
        steps.push(&step(&[4], Some(3)), 15);
        steps.push(&step(&[], Some(5)), 16);
        steps
    }

    #[test]
    fn steps_that_were_guessed_right_are_answered_in_order() {
        let mut steps = three();
        assert_eq!((steps.len(), steps.ahead(), steps.sent), (3, 2, 16));
        steps.answered(result(13, 3, 2)).unwrap();
        steps.answered(result(15, 5, 1)).unwrap();
        assert!(steps.answered(result(16, 9, 0)).unwrap().ran_ahead);
        assert_eq!((steps.len(), steps.sent), (0, 16));
    }

    #[test]
    fn what_ran_ahead_of_a_wrong_guess_is_passed_over_and_the_next_step_is_not() {
        for first in [result(11, 7, 0), result(13, 4, 2)] {
            let mut steps = three();
            let end = first.positions;
            steps.answered(first).unwrap();
            assert_eq!(steps.sent, end as usize);
            steps.push(&step(&[], None), end as usize + 1);
            steps.answered(passed_over(end)).unwrap();
            steps.answered(passed_over(end)).unwrap();
            steps.answered(result(end + 1, 8, 0)).unwrap();
            assert_eq!(steps.sent, end as usize + 1);
        }
    }

    #[test]
    fn a_tail_that_passes_over_what_was_right_is_not_believed() {
        let mut steps = three();
        steps.answered(result(13, 3, 2)).unwrap();
        assert!(steps.answered(passed_over(13)).is_err());
        let mut steps = three();
        steps.answered(result(11, 7, 0)).unwrap();
        assert!(steps.answered(result(13, 8, 0)).is_err());
        assert!(three().answered(passed_over(10)).is_err());
    }

    #[test]
    fn a_tail_that_runs_free_answers_each_position_once() {
        let mut steps = UnansweredSteps::default();
        steps.push(&step(&[], None), 10);
        steps.run_free(12);
        assert_eq!((steps.len(), steps.free(), steps.sent), (3, 2, 12));
        assert!(!steps.answered(result(10, 5, 0)).unwrap().is_free);
        steps.run_free(11);
        assert_eq!((steps.free(), steps.sent), (2, 12), "nothing is taken back");
        assert!(steps.answered(result(11, 5, 0)).unwrap().is_free);
        assert!(steps.answered(result(11, 5, 0)).is_err());
    }

    #[test]
    fn a_result_is_for_the_positions_that_were_sent() {
        assert!(three().answered(result(12, 3, 2)).is_err());
        assert!(three().answered(result(16, 3, 5)).is_err());
        assert!(
            UnansweredSteps::default()
                .answered(result(1, 1, 0))
                .is_err()
        );
    }
}
