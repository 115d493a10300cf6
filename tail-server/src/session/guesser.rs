//! The tail's own guesses, while it goes on by itself: what followed the same tokens before, verified in the step of the last
//! token's row. They make an answer faster and never another one, and nobody is credited with what they save.

use std::time::Instant;

use headway_model::drafting::length::{DraftLength, Source, class_of_match};
use headway_model::drafting::lookup::longest_match;

/// Guesses for one session, and learns from what becomes of them.
pub(super) struct Guesser {
    /// Of the positions from `first` on: what is held, and in the end what is being computed.
    token_ids: Vec<u32>,
    /// Positions before it were there when the session was opened, and nobody told what they are.
    first: usize,
    length: DraftLength,
    /// Behind the row that is being computed.
    made: Option<Made>,
}

/// Guesses that are being verified, of which there may be none.
struct Made {
    class: usize,
    /// Those that were sent, and in the end one that would have been next: whether it is right costs nothing to know.
    token_ids: Vec<u32>,
    sent: usize,
    began: Instant,
}

impl Guesser {
    /// For a session whose first rows stand at the position `first`.
    pub(super) fn new(first: usize) -> Self {
        Self {
            token_ids: Vec::new(),
            first,
            length: DraftLength::default(),
            made: None,
        }
    }

    /// Rows of these tokens are being computed, the first of them at `position`.
    pub(super) fn taken(&mut self, position: usize, token_ids: &[u32]) {
        self.token_ids.truncate(position.saturating_sub(self.first));
        self.token_ids.extend(token_ids);
    }

    /// What to guess behind the row of `token_id` at `position`: at most `most` tokens, none of `stops` among them.
    pub(super) fn guess(
        &mut self,
        position: usize,
        token_id: u32,
        most: usize,
        stops: &[u32],
        now: Instant,
    ) -> Vec<u32> {
        self.taken(position, &[token_id]);
        let found = longest_match(&self.token_ids);
        let class = class_of_match(found.map_or(0, |found| found.matched));
        let token_ids = found.map_or_else(Vec::new, |found| {
            let best = self.length.best(class, most);
            found.following(&self.token_ids, best + 1)
        });
        // The last one is only to be compared.
        let guesses = token_ids
            .split_last()
            .map_or(&[][..], |(_, guesses)| guesses);
        let goes_on = guesses.iter().take_while(|id| !stops.contains(id));
        let guesses: Vec<u32> = goes_on.copied().collect();
        let sent = guesses.len();
        self.made = Some(Made {
            class,
            token_ids,
            sent,
            began: now,
        });
        guesses
    }

    /// `sampled` was sampled behind the last row that was known and each right guess; so many positions are held.
    pub(super) fn answered(
        &mut self,
        positions: usize,
        sampled: impl Iterator<Item = u32>,
        now: Instant,
    ) {
        self.token_ids
            .truncate(positions.saturating_sub(self.first));
        let Some(made) = self.made.take() else {
            return;
        };
        self.length
            .took(made.sent, now.saturating_duration_since(made.began));
        for (guess, token_id) in made.token_ids.into_iter().zip(sampled) {
            self.length
                .seen(Source::Lookup, made.class, guess == token_id);
            if guess != token_id {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MOST: usize = 8;

    /// A guesser that has seen a text twice up to its beginning, at the position `first`; and where its last token stands.
    fn seen(first: usize) -> (Guesser, usize) {
        let mut guesser = Guesser::new(first);
        guesser.taken(first, &[5, 6, 7, 8, 9, 2, 1, 5, 6]);
        guesser.answered(first + 9, [7].into_iter(), Instant::now());
        (guesser, first + 9)
    }

    #[test]
    fn what_followed_before_is_guessed_up_to_a_token_that_stops() {
        for first in [0, 64] {
            let (mut guesser, position) = seen(first);
            let guesses = guesser.guess(position, 7, MOST, &[2], Instant::now());
            assert!(
                !guesses.is_empty() && [8, 9].starts_with(&guesses),
                "{guesses:?}"
            );
            let (mut guesser, position) = seen(first);
            assert!(
                guesser
                    .guess(position, 7, MOST, &[8], Instant::now())
                    .is_empty()
            );
            let (mut guesser, position) = seen(first);
            assert!(
                guesser
                    .guess(position, 7, 0, &[], Instant::now())
                    .is_empty()
            );
            let (mut guesser, position) = seen(first);
            assert!(
                guesser
                    .guess(position, 40, MOST, &[], Instant::now())
                    .is_empty()
            );
        }
    }

    #[test]
    fn a_wrong_guess_leaves_what_is_held() {
        let (mut guesser, position) = seen(0);
        let mut rows = vec![7];
        rows.extend(guesser.guess(position, 7, MOST, &[], Instant::now()));
        guesser.taken(position, &rows);
        guesser.answered(position + 1, [30].into_iter(), Instant::now());
        assert_eq!(guesser.token_ids, [5, 6, 7, 8, 9, 2, 1, 5, 6, 7]);
    }

    #[test]
    fn guesses_end_where_they_are_always_wrong_and_begin_where_they_would_be_right() {
        let mut guesser = Guesser::new(0);
        let mut now = Instant::now();
        let mut guesses_at = |guesser: &mut Guesser, round: usize, are_right: bool| {
            let position = 6 * round;
            guesser.taken(position, &[1, 2, 3, 4, 5]);
            guesser.answered(position + 5, [1].into_iter(), now);
            let guesses = guesser.guess(position + 5, 1, MOST, &[], now);
            now += Duration::from_millis(10 + 5 * guesses.len() as u64);
            let next = if are_right { 1 } else { 99 };
            guesser.answered(position + 6, [next].into_iter(), now);
            guesses.len()
        };
        guesses_at(&mut guesser, 0, false);
        let ended = (1..100).find(|round| guesses_at(&mut guesser, *round, false) == 0);
        assert!(ended.is_some_and(|round| round > 1), "{ended:?}");
        let begun = (100..300).find(|round| guesses_at(&mut guesser, *round, true) > 0);
        assert!(begun.is_some());
    }
}
