//! Chooses the rows of one engine step. Pure: what is ready comes in, the choice goes out, no clock.
//!
//! A step has a budget of rows (`step_tokens`). Answers come first, because somebody waits for each of them:
//! a decode row, or the rows of a draft, which are verified together. An answer is *whole*: all its rows go
//! into one step or none does, because the guesses of a draft are judged by the logits of one step. Prompt
//! chunks take what is left, so a long prompt is spread over many steps and holds up nobody's answer by more
//! than one.
//!
//! Answers stand in a line. Whoever becomes ready joins behind everybody, and whoever was in a step goes behind
//! those who were not. A step takes answers from the front until the next one does not fit; it stops there and
//! looks no further, so that the next step begins with that one: small answers do not pass a large one by.
//!
//! Prompts stand in a line too, and keep their place until they are done. Half of what a step has for them goes
//! to the first in line, the other half to those with the fewest rows left. So prompts that come together are
//! done one after the other and not all at the end, a short one beside a long one is done early, and the long
//! one is never put off by short ones.
//!
//! Invariants, each with a test:
//! - A step never has more rows than the budget, and is never empty where something is ready.
//! - An answer is never cut.
//! - A step has fewer rows than the budget in two cases only: it has every row that is ready, or the answer
//!   next in line has more rows than the step has left. Decode rows and prompts alone always fill it.
//! - While prompts wait, a quarter of the budget (at least one row) is theirs, however many answers wait.
//! - Nobody starves, whoever comes and goes meanwhile. An answer that became ready as one of `n` is in one of
//!   the next `n` steps. A prompt is done after at most the sum of `⌈rows / h⌉` steps over itself and those
//!   that stood before it, with `h` half of the quarter (at least one row).

use std::collections::BTreeMap;

use crate::engine::SessionId;

#[cfg(test)]
mod tests;

/// What rows are for. A step mixes all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Positions of the prompt, or of a session that is being rebuilt.
    Prefill,
    /// The position of a token that was just sampled.
    Decode,
    /// A draft: the position of the last known token, and those of the guesses behind it.
    Verify,
}

impl Phase {
    pub(crate) const ALL: [Self; 3] = [Self::Prefill, Self::Decode, Self::Verify];

    /// The value of the metrics' `phase` label.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Verify => "verify",
        }
    }

    /// Whether somebody waits for these rows, all of which go into one step.
    const fn is_answer(self) -> bool {
        match self {
            Self::Prefill => false,
            Self::Decode | Self::Verify => true,
        }
    }
}

/// The rows that a session could put into the next engine step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ready {
    pub(crate) session: SessionId,
    /// Index of the first layer that the rows pass.
    pub(crate) entry_layer: usize,
    /// How many rows wait; at least one, and of an answer at most [`Batcher::max_whole_rows`].
    pub(crate) rows: usize,
    pub(crate) phase: Phase,
}

/// The rows that a session puts into the next engine step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) session: SessionId,
    pub(crate) entry_layer: usize,
    /// At least one; of an answer all that wait.
    pub(crate) rows: usize,
}

/// Remembers only whose turn it is.
#[derive(Debug)]
pub(crate) struct Batcher {
    step_tokens: usize,
    /// Whose answers were ready at the last step, those whom it did not serve first.
    answers: Vec<SessionId>,
    /// Whose prompts were ready at the last step, in the order in which they became so.
    prompts: Vec<SessionId>,
}

impl Batcher {
    /// `step_tokens`: the most rows of one step; at least two, so that prompts and answers both get on.
    pub(crate) fn new(step_tokens: usize) -> Self {
        Self {
            step_tokens: step_tokens.max(2),
            answers: Vec::new(),
            prompts: Vec::new(),
        }
    }

    /// The most rows of an answer that fits into an empty step also where prompts wait. A longer draft is
    /// refused before it comes here: it might never have its turn.
    pub(crate) fn max_whole_rows(&self) -> usize {
        self.step_tokens - self.prompt_rows()
    }

    /// The quarter of the budget that no answer takes from waiting prompts.
    fn prompt_rows(&self) -> usize {
        (self.step_tokens / 4).max(1)
    }

    /// The next step: at most one chunk for each session, lowest entry layer first, so that the rows which
    /// are active at a layer are the first rows of the batch.
    pub(crate) fn plan(&mut self, ready: &[Ready]) -> Vec<Chunk> {
        let (answers, prompts): (Vec<Ready>, Vec<Ready>) =
            ready.iter().partition(|ready| ready.phase.is_answer());
        debug_assert!(
            answers
                .iter()
                .all(|answer| answer.rows <= self.max_whole_rows()),
            "an answer longer than {} rows came past admission",
            self.max_whole_rows()
        );
        let answers = in_turn(&self.answers, &answers);
        let prompts = in_turn(&self.prompts, &prompts);

        let prompt_rows_wanted: usize = prompts.iter().map(|prompt| prompt.rows).sum();
        let reserved = prompt_rows_wanted.min(self.prompt_rows());
        let mut chunks = take_whole(&answers, self.step_tokens - reserved);
        self.answers = next_line(&answers, chunks.len());

        let answer_rows: usize = chunks.iter().map(|chunk| chunk.rows).sum();
        chunks.extend(take_prompts(&prompts, self.step_tokens - answer_rows));
        self.prompts = prompts.iter().map(|prompt| prompt.session).collect();
        chunks.sort_by_key(|chunk| (chunk.entry_layer, chunk.session));
        chunks
    }
}

/// Those who are ready in the order of `line`, and behind them those who are new.
fn in_turn(line: &[SessionId], ready: &[Ready]) -> Vec<Ready> {
    let mut by_session: BTreeMap<SessionId, Ready> =
        ready.iter().map(|ready| (ready.session, *ready)).collect();
    let mut turn: Vec<Ready> = line
        .iter()
        .filter_map(|session| by_session.remove(session))
        .collect();
    turn.extend(by_session.into_values());
    turn
}

/// The line after a step that served the first `served` of `turn`.
fn next_line(turn: &[Ready], served: usize) -> Vec<SessionId> {
    let (served, waiting) = turn.split_at(served);
    let behind_each_other = waiting.iter().chain(served);
    behind_each_other.map(|ready| ready.session).collect()
}

/// All rows of the first ones in turn, up to the first whose rows do not fit into what is left of `budget`.
fn take_whole(turn: &[Ready], budget: usize) -> Vec<Chunk> {
    let mut rows_left = budget;
    turn.iter()
        .map_while(|ready| {
            rows_left = rows_left.checked_sub(ready.rows)?;
            Some(chunk(ready, ready.rows))
        })
        .collect()
}

/// Half of `budget` to the first in turn, the rest to those with the fewest rows, and what they leave to the
/// first again.
fn take_prompts(turn: &[Ready], budget: usize) -> Vec<Chunk> {
    let Some((first, others)) = turn.split_first() else {
        return Vec::new();
    };
    let mut rows_left = budget;
    let mut take = |wanted: usize| {
        let rows = wanted.min(rows_left);
        rows_left -= rows;
        rows
    };
    let mut first_rows = take(first.rows.min(budget.div_ceil(2)));
    let mut shortest_first: Vec<&Ready> = others.iter().collect();
    // Stable: among equals, the one that has waited longer.
    shortest_first.sort_by_key(|ready| ready.rows);
    let mut chunks: Vec<Chunk> = shortest_first
        .into_iter()
        .map(|ready| chunk(ready, take(ready.rows)))
        .collect();
    first_rows += take(first.rows - first_rows);
    chunks.push(chunk(first, first_rows));
    chunks.retain(|chunk| chunk.rows > 0);
    chunks
}

fn chunk(ready: &Ready, rows: usize) -> Chunk {
    Chunk {
        session: ready.session,
        entry_layer: ready.entry_layer,
        rows,
    }
}
