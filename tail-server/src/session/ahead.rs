//! Steps that run ahead of the result before them, until that result says whether they are computed.
//!
//! A device that guesses the next token need not wait for it: it sends the guess's row as a step of its own, which stays
//! here until the token is sampled. It is then computed, or passed over where the token is another one. So the time in
//! which a device guesses and the round trip pass together, and a wrong guess costs the tail nothing.

use std::collections::VecDeque;

use headway_wire::message::Step;

use crate::admission::MAX_AHEAD_STEPS;

/// What waits, and what it waits for.
#[derive(Default)]
pub(super) struct Ahead {
    waiting: VecDeque<Step>,
    /// The token that the last result gave, and the position at which it stands; `None` after a step that sampled
    /// nothing, and once a step was passed over.
    given: Option<(u32, u32)>,
}

/// What becomes of a step.
pub(super) enum Verdict {
    Compute(Box<Step>),
    PassOver,
}

impl Ahead {
    /// True where no further step is to be read.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= MAX_AHEAD_STEPS as usize
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn wait(&mut self, step: Step) {
        self.waiting.push_back(step);
    }

    /// A result gave this token at this position.
    pub(super) fn given(&mut self, position: usize, token_id: Option<u32>) {
        let position = u32::try_from(position).unwrap_or(u32::MAX);
        self.given = token_id.map(|token_id| (position, token_id));
    }

    /// The oldest step that waits, once the result before it is there.
    pub(super) fn next(&mut self) -> Option<Verdict> {
        let step = self.waiting.pop_front()?;
        let is_right = self.given.is_some_and(|(position, token_id)| {
            step.position == position && step.first_guess == Some(token_id)
        });
        self.given = None;
        Some(if is_right {
            Verdict::Compute(Box::new(step))
        } else {
            Verdict::PassOver
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(position: u32, first_guess: u32) -> Step {
        Step {
            position,
            first_guess: Some(first_guess),
            ..Step::default()
        }
    }

    fn is_computed(ahead: &mut Ahead) -> bool {
        matches!(ahead.next(), Some(Verdict::Compute(_)))
    }

    #[test]
    fn a_step_is_computed_where_it_guessed_the_token_and_its_place() {
        for (given, is_right) in [((7, 5), true), ((7, 6), false), ((6, 5), false)] {
            let mut ahead = Ahead::default();
            ahead.wait(step(7, 5));
            ahead.given(given.0, Some(given.1));
            assert_eq!(is_computed(&mut ahead), is_right, "{given:?}");
            assert!(ahead.next().is_none());
        }
    }

    #[test]
    fn what_ran_ahead_of_a_step_that_was_passed_over_is_passed_over() {
        let mut ahead = Ahead::default();
        ahead.wait(step(7, 5));
        ahead.wait(step(8, 6));
        ahead.given(7, Some(4));
        assert!(!is_computed(&mut ahead));
        assert!(!is_computed(&mut ahead));
        // And one that comes late.
        ahead.wait(step(9, 6));
        assert!(!is_computed(&mut ahead));
    }

    #[test]
    fn no_more_steps_wait_than_were_granted() {
        let mut ahead = Ahead::default();
        for position in 0..MAX_AHEAD_STEPS {
            assert!(!ahead.is_full());
            ahead.wait(step(position, 0));
        }
        assert!(ahead.is_full());
    }
}
