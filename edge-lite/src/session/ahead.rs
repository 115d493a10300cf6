//! What was sent beyond the tokens that are known.

use std::collections::VecDeque;

use crate::drafting::{Draft, Drafter, Guess};

/// Guesses of the tokens behind a sequence, whose rows were sent.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    guesses: VecDeque<Guess>,
    /// Of what stands behind them.
    unsent: Option<Guess>,
    /// Nothing further is worth to be guessed, before something is known.
    is_over: bool,
    /// What is being made builds on a guess that was wrong.
    is_broken: bool,
}

impl Ahead {
    /// Tokens behind the sequence.
    pub(super) fn token_ids(&self) -> impl Iterator<Item = u32> {
        self.guesses.iter().map(|guess| guess.token_id)
    }

    pub(super) fn len(&self) -> usize {
        self.guesses.len()
    }

    /// How likely all of them are right.
    pub(super) fn alive(&self, drafter: &Drafter) -> f64 {
        let guesses = self.guesses.iter();
        guesses.map(|guess| drafter.probability(guess)).product()
    }

    /// The rows of these were sent.
    pub(super) fn sent(&mut self, guesses: impl IntoIterator<Item = Guess>) {
        self.guesses.extend(guesses);
    }

    /// Nothing is guessed behind what was sent, but this would have been.
    pub(super) fn end(&mut self, draft: &Draft) {
        self.unsent = draft.unsent;
    }

    /// Guesses end here until something is known.
    pub(super) fn pause(&mut self) {
        self.is_over = true;
    }

    pub(super) const fn is_over(&self) -> bool {
        self.is_over
    }

    /// What is being made from now on builds on what was sent.
    pub(super) const fn start(&mut self) {
        self.is_broken = false;
    }

    /// True where what is being made builds on a guess that was wrong.
    pub(super) const fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// The sequence goes on with this token.
    pub(super) fn push(&mut self, token_id: u32, drafter: &mut Drafter) {
        self.is_over = false;
        let is_sent = !self.guesses.is_empty();
        let Some(guess) = self.guesses.pop_front().or_else(|| self.unsent.take()) else {
            return;
        };
        drafter.seen(&guess, token_id);
        if is_sent && guess.token_id != token_id {
            *self = Self {
                is_broken: true,
                ..Self::default()
            };
        }
    }
}
