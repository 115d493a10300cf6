//! A tail that goes on by itself, where no layers run here.
//!
//! What this device would send for a token is the id that it has just been told. So the tail is told how far it may go,
//! and tokens cost no round trip. It is told so for a little while at a time where guesses may turn out to be faster, and
//! for the whole answer where there are none.

use std::time::{Duration, Instant};

use super::Session;
use crate::error::Error;

/// For so long, and two round trips, the tail may go on before it hears from this device again: so short that guesses
/// begin soon where a text begins to repeat itself. Half of it is left when it hears the next word.
const GRANTED: Duration = Duration::from_millis(40);
/// Tokens that are granted before their pace is known.
const FIRST_GRANTED: usize = 16;
/// The weight of a new time in the running mean.
const NEW: f64 = 0.1;

/// The time between the tokens of a tail that goes on by itself.
#[derive(Debug, Default)]
pub(super) struct Pace {
    last: Option<Instant>,
    seconds: Option<f64>,
}

impl Pace {
    /// A token came.
    pub(super) fn token(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            let seconds = (now - last).as_secs_f64();
            let mean = self.seconds.unwrap_or(seconds);
            self.seconds = Some(mean + (seconds - mean) * NEW);
        }
    }

    /// The next token comes after something else than a step.
    pub(super) fn lost(&mut self) {
        self.last = None;
    }

    fn mean(&self) -> Option<Duration> {
        self.seconds.map(Duration::from_secs_f64)
    }

    /// Tokens that the tail may have ahead of it, so that it never waits for a word that is on its way.
    fn granted(&self, round_trip: Duration) -> usize {
        let ahead = GRANTED + 2 * round_trip;
        let tokens = self.seconds.map(|seconds| ahead.as_secs_f64() / seconds);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a small positive number"
        )]
        tokens.map_or(FIRST_GRANTED, |tokens| tokens.clamp(4.0, 1024.0) as usize)
    }
}

impl Session<'_> {
    /// Tells the tail how far it may go by itself, at most to position `most_rows`, where that is faster than guesses.
    pub(super) async fn run_free(&mut self, most_rows: usize) -> Result<(), Error> {
        let Some(connection) = &mut self.connection else {
            return Ok(());
        };
        let (sent, end) = (connection.sent(), self.sequence.len());
        let is_possible = self.config.free_running
            && connection.opened.free_running
            && connection.go_away.is_none()
            && !self.rows.is_started()
            // How much of a draft stands is not known before its result.
            && (sent <= end || connection.unanswered_free() > 0);
        // All of the prompt was sent, and of the answer all but the last token.
        let is_up_to_date = sent + 1 >= end && sent >= self.plan.prompt.len();
        if !is_possible || !is_up_to_date || sent >= most_rows {
            return Ok(());
        }
        let mut until = most_rows;
        let drafter = self.drafter.as_ref();
        if let Some(drafter) = drafter.filter(|_| !connection.opened.tail_drafts) {
            self.ahead.end(&drafter.would_guess(&self.sequence));
            let round_trip = connection.round_trip();
            let granted = self.pace.granted(round_trip);
            if sent.saturating_sub(end) > granted / 2 {
                return Ok(());
            }
            let most = connection.opened.max_draft_tokens as usize;
            let most = most.min(most_rows.saturating_sub(end));
            let pace = self.pace.mean();
            let is_faster = pace.is_some_and(|pace| {
                drafter.is_faster(&self.sequence, most, round_trip + pace, pace)
            });
            if is_faster {
                return Ok(());
            }
            until = most_rows.min(end + granted);
        }
        let stops = if self.plan.ignore_end_of_turn {
            Vec::new()
        } else {
            self.config.vocabulary.eos_token_ids().to_vec()
        };
        if connection.unanswered_free() == 0 {
            self.pace.lost();
        }
        connection.run_free(until, stops).await?;
        Ok(())
    }
}
