//! Steps of a session on its present connection: made, sent, answered.

use std::time::Instant;

use headway_model::sampler::Sampled;

use super::messages::sampled;
use super::{Session, SessionConfig, max_chunk_rows};
use crate::connection::{Answered, Connection};
use crate::error::{Error, TailError};
use crate::rows::Made;

/// Steps on their way at a time. Two keep the uplink busy while the tail computes; more let it queue.
pub(crate) const MAX_UNANSWERED_STEPS: usize = 4;

impl Session<'_> {
    /// Sends what the tail lacks of the sequence, and waits for the tokens after it. Rows are made while earlier ones are
    /// on their way; those of guesses run ahead of the tokens, as far as position `most_rows`.
    pub(super) async fn step_to_tokens(&mut self, most_rows: usize) -> Result<Vec<Sampled>, Error> {
        enum Happened {
            Made(Made),
            Answered(Answered),
        }
        loop {
            self.run_free(most_rows).await?;
            self.start_rows(most_rows);
            let Some(connection) = &mut self.connection else {
                return Err(TailError::Closed.into());
            };
            let may_send =
                connection.unanswered() - connection.unanswered_ahead() < MAX_UNANSWERED_STEPS;
            let happened = tokio::select! {
                made = self.rows.next(), if may_send => Happened::Made(made?),
                answered = connection.next_result() => Happened::Answered(answered?),
            };
            match happened {
                Happened::Made(made) => self.send(made).await?,
                Happened::Answered(answered) => {
                    if let Some(tokens) = self.take_answer(answered)? {
                        return Ok(tokens);
                    }
                }
            }
        }
    }

    /// Starts what is to be made next, where nothing is started.
    fn start_rows(&mut self, most_rows: usize) {
        let Some(connection) = self.connection.as_ref() else {
            return;
        };
        if self.rows.is_started() || connection.unanswered_free() > 0 {
            return;
        }
        let (sent, end) = (connection.sent(), self.sequence.len());
        let max_rows = max_step_rows(self.config, connection);
        let max_guesses = (connection.opened.max_draft_tokens as usize).min(max_rows - 1);
        // What goes up as token ids has no guesses behind it: those would be hidden states on another tail.
        let drafter = self.drafter.as_ref();
        let drafter = drafter.filter(|_| !self.rows.takes_token_ids(end - 1));
        if sent < end {
            let most = max_guesses.min(most_rows.saturating_sub(end));
            // Those that are passed over are none that the tail computes.
            let is_first = connection.unanswered() == connection.unanswered_ahead();
            let is_last_row = sent + 1 == end && is_first;
            let draft = drafter
                .filter(|_| is_last_row && most > 0)
                .map(|drafter| drafter.draft(&self.sequence, most))
                .unwrap_or_default();
            if is_last_row {
                self.begun = Some((Instant::now(), draft.guesses.len()));
            }
            if draft.guesses.is_empty() {
                self.ahead.end(&draft);
                self.rows.start(&self.sequence, sent, max_rows);
            } else {
                self.rows.start_draft(&self.sequence, draft);
            }
            return;
        }
        let max_steps = connection.opened.max_ahead_steps as usize;
        let has_room = connection.unanswered_ahead() < max_steps && connection.go_away.is_none();
        let goes_on = !self.ahead.is_over() && !self.ends_with_guesses();
        let Some(drafter) = drafter.filter(|_| has_room && goes_on) else {
            return;
        };
        debug_assert_eq!(sent, end + self.ahead.len(), "rows are sent without gaps");
        let sequence: Vec<u32> = self
            .sequence
            .iter()
            .copied()
            .chain(self.ahead.token_ids())
            .collect();
        let most = (max_guesses + 1).min(most_rows.saturating_sub(sent));
        let alive = self.ahead.alive(drafter);
        match drafter.ahead(&sequence, alive, most, max_steps) {
            Some(guessing) => {
                self.ahead.start();
                self.rows.start_ahead(sequence, guessing);
            }
            None => self.ahead.pause(),
        }
    }

    /// True where the last guess that was sent is the end of the turn.
    fn ends_with_guesses(&self) -> bool {
        let vocabulary = &self.config.vocabulary;
        let last = self.ahead.token_ids().last();
        !self.plan.ignore_end_of_turn && last.is_some_and(|last| vocabulary.ends_turn(last))
    }

    /// Sends what was made, if it is still what follows.
    async fn send(&mut self, made: Made) -> Result<(), Error> {
        let Some(connection) = &mut self.connection else {
            return Err(TailError::Closed.into());
        };
        let (start, step_end, end) = (made.position, made.end(), self.sequence.len());
        let mut guesses = made.draft.guesses.clone();
        if made.is_ahead {
            if let Some(drafter) = &mut self.drafter {
                drafter.made(&made.draft, made.compute);
            }
            if self.ahead.is_broken() {
                return Ok(());
            }
            let Some(first) = guesses.first().copied() else {
                self.ahead.end(&made.draft);
                self.ahead.pause();
                return Ok(());
            };
            if let Some(token_id) = self.sequence.get(start) {
                // It has come meanwhile.
                if let Some(drafter) = &mut self.drafter {
                    drafter.seen(&first, *token_id);
                }
                if *token_id != first.token_id {
                    return Ok(());
                }
                guesses.remove(0);
                self.begun = None;
            }
        }
        self.ahead.end(&made.draft);
        let runs_ahead = made.is_ahead && start >= end;
        let replayed = self.sent_before.min(step_end).saturating_sub(start);
        self.totals.replayed_positions += replayed as u64;
        self.totals.token_id_positions += made.token_id_positions() as u64;
        let step = self.rows.step(made, step_end >= end, runs_ahead);
        self.totals.token_steps += u64::from(step.sample && !runs_ahead);
        connection.send_step(step, step_end).await?;
        self.ahead.sent(guesses);
        // Guesses are nothing that another tail would have to be sent again.
        self.sent_before = self.sent_before.max(step_end.min(end));
        Ok(())
    }

    /// The tokens of a result, where it has some.
    fn take_answer(&mut self, answered: Answered) -> Result<Option<Vec<Sampled>>, Error> {
        let Answered {
            result,
            sample,
            ran_ahead,
            guesses,
            is_free,
        } = answered;
        // Those that nobody has answered when the answer ends do not count.
        self.totals.draft_tokens += guesses as u64 + u64::from(ran_ahead);
        if result.passed_over {
            self.rows.passed_over();
            return Ok(None);
        }
        self.totals.tail_compute_us += result.compute_us;
        self.totals.tail_saved_us += result.saved_us;
        self.totals.tail_queue_us += result.queue_us;
        self.totals.tail_draft_saved_us += result.draft_saved_us;
        if !sample {
            return Ok(None);
        }
        let right = u64::from(result.draft_accepted) + u64::from(ran_ahead);
        self.totals.accepted_draft_tokens += right;
        if is_free {
            self.pace.token(Instant::now());
            self.sent_before = self.sent_before.max(result.positions as usize);
        }
        if ran_ahead || guesses > 0 {
            self.rows.verified(result.draft_accepted as usize);
            self.sent_before = self.sent_before.max(result.positions as usize);
        }
        if let Some((drafter, (began, guesses))) = self.drafter.as_mut().zip(self.begun.take()) {
            drafter.took(guesses, began.elapsed());
        }
        Ok(Some(sampled(result, self.ahead.token_ids())?))
    }

    /// The sequence goes on with this token.
    pub(crate) fn push(&mut self, token_id: u32) {
        self.sequence.push(token_id);
        let Some(drafter) = &mut self.drafter else {
            return;
        };
        self.ahead.push(token_id, drafter);
        if self.ahead.is_broken() {
            self.rows.stop_ahead();
        }
    }
}

/// Rows of one step: those made at a time, within the tail's limit.
fn max_step_rows(config: &SessionConfig, connection: &Connection) -> usize {
    let granted = connection.opened.max_step_positions as usize;
    max_chunk_rows(config).min(granted).max(1)
}
