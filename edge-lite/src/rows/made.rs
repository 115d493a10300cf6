//! A step that was made and not yet sent.

use std::time::Duration;

use headway_wire::message::{TokenIds, step};

use crate::drafting::Draft;
use crate::head_layers::HeadRows;

/// A step that only lacks whether it samples.
pub(crate) struct Made {
    pub(crate) position: usize,
    pub(crate) token_ids: Vec<u32>,
    pub(super) input: step::Input,
    /// The guesses among its tokens, which are the last ones.
    pub(crate) draft: Draft,
    /// All of its tokens are guesses.
    pub(crate) is_ahead: bool,
    /// What guesses and layers took here.
    pub(crate) compute: Duration,
}

impl Made {
    /// One past the step's last position.
    pub(crate) fn end(&self) -> usize {
        self.position + self.token_ids.len()
    }

    /// Positions of the sequence in it that go up as token ids.
    pub(crate) const fn token_id_positions(&self) -> usize {
        match self.input {
            step::Input::TokenIds(_) => self.token_ids.len() - self.draft.guesses.len(),
            step::Input::Activations(_) => 0,
        }
    }

    /// Rows that are token ids.
    pub(super) fn of_token_ids(position: usize, token_ids: Vec<u32>, draft: Draft) -> Self {
        let ids = token_ids.clone();
        Self {
            is_ahead: draft.guesses.len() == token_ids.len(),
            position,
            token_ids,
            input: step::Input::TokenIds(TokenIds { ids }),
            draft,
            compute: Duration::ZERO,
        }
    }

    /// What head layers made.
    pub(super) fn of_rows(
        position: usize,
        token_ids: Vec<u32>,
        rows: HeadRows,
        draft: Draft,
    ) -> Self {
        let HeadRows {
            activations,
            compute,
        } = rows;
        Self {
            is_ahead: draft.guesses.len() == token_ids.len(),
            position,
            token_ids,
            input: step::Input::Activations(activations),
            draft,
            compute,
        }
    }
}
