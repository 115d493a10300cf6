//! Chooses the rows of one engine step. Pure: what is ready comes in, the choice goes out, no clock.
//!
//! A step has a budget of rows (`step_tokens`). Decode rows, one position of a session that is answering,
//! come first, because somebody waits for each of them. Prompt chunks share what is left in equal parts, so
//! a long prompt is spread over many steps, a short one beside it is done early, and neither holds up
//! anybody's decode by more than one step.
//!
//! Invariants, each with a test:
//! - A step never has more rows than the budget, and never fewer than the budget where more rows are ready.
//! - Sessions take turns: with `n` sessions ready, every one is in some step out of `n`.
//! - While prompts wait, a quarter of the budget (at least one row) is theirs, however many sessions decode.

use crate::engine::SessionId;

#[cfg(test)]
mod tests;

/// What rows are for. A step mixes both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Positions of the prompt, or of a session that is being rebuilt.
    Prefill,
    /// The position of a token that was just sampled.
    Decode,
}

impl Phase {
    pub(crate) const ALL: [Self; 2] = [Self::Prefill, Self::Decode];

    /// The value of the metrics' `phase` label.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// The rows that a session could put into the next engine step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ready {
    pub(crate) session: SessionId,
    /// Index of the first layer that the rows pass.
    pub(crate) entry_layer: usize,
    /// How many rows wait; at least one.
    pub(crate) rows: usize,
    pub(crate) phase: Phase,
}

/// The rows that a session puts into the next engine step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) session: SessionId,
    pub(crate) entry_layer: usize,
    /// At least one.
    pub(crate) rows: usize,
}

/// Remembers only whose turn it is.
#[derive(Debug)]
pub(crate) struct Batcher {
    step_tokens: usize,
    /// The session served last, for each phase: the next turn starts behind it.
    last_decode: SessionId,
    last_prefill: SessionId,
}

impl Batcher {
    /// `step_tokens`: the most rows of one step; at least two, so that prompts and answers both get on.
    pub(crate) fn new(step_tokens: usize) -> Self {
        Self {
            step_tokens: step_tokens.max(2),
            last_decode: SessionId(0),
            last_prefill: SessionId(0),
        }
    }

    /// The next step: at most one chunk for each session, lowest entry layer first, so that the rows which
    /// are active at a layer are the first rows of the batch.
    pub(crate) fn plan(&mut self, ready: &[Ready]) -> Vec<Chunk> {
        let decode = in_turn(ready, Phase::Decode, self.last_decode);
        let prefill = in_turn(ready, Phase::Prefill, self.last_prefill);

        let reserved = if prefill.is_empty() {
            0
        } else {
            self.reserved_for_prefill(&prefill)
        };
        let decode_budget = self.step_tokens - reserved;
        let mut chunks = share(&decode, decode_budget);
        if let Some(last) = chunks.last() {
            self.last_decode = last.session;
        }

        let decode_rows: usize = chunks.iter().map(|chunk| chunk.rows).sum();
        let prefill_chunks = share(&prefill, self.step_tokens - decode_rows);
        if let Some(last) = prefill_chunks.last() {
            self.last_prefill = last.session;
        }
        chunks.extend(prefill_chunks);
        chunks.sort_by_key(|chunk| (chunk.entry_layer, chunk.session));
        chunks
    }

    fn reserved_for_prefill(&self, prefill: &[Ready]) -> usize {
        let wanted: usize = prefill.iter().map(|ready| ready.rows).sum();
        wanted.min((self.step_tokens / 4).max(1))
    }
}

/// The ready sessions of one phase, starting behind the one that was served last.
fn in_turn(ready: &[Ready], phase: Phase, last: SessionId) -> Vec<Ready> {
    let mut turn: Vec<Ready> = ready
        .iter()
        .copied()
        .filter(|ready| ready.phase == phase)
        .collect();
    // `false` sorts before `true`: sessions behind `last` come first, then it starts again from the lowest.
    turn.sort_by_key(|ready| (ready.session <= last, ready.session));
    turn
}

/// Shares `budget` rows among sessions: equal parts, and what a session does not need goes to the others.
/// Where there are more sessions than rows, the first ones in turn get one row each. The answer is in the
/// order of `turn`.
fn share(turn: &[Ready], budget: usize) -> Vec<Chunk> {
    let turn = &turn[..turn.len().min(budget)];
    let mut smallest_first: Vec<usize> = (0..turn.len()).collect();
    smallest_first.sort_by_key(|&index| turn[index].rows);

    let mut rows = vec![0; turn.len()];
    let mut rows_left = budget;
    for (served, &index) in smallest_first.iter().enumerate() {
        let equal_part = rows_left / (turn.len() - served);
        rows[index] = turn[index].rows.min(equal_part);
        rows_left -= rows[index];
    }
    turn.iter()
        .zip(rows)
        .map(|(ready, rows)| Chunk {
            session: ready.session,
            entry_layer: ready.entry_layer,
            rows,
        })
        .collect()
}
