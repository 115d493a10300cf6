//! Guesses of the next tokens, which the tail verifies in one step: several tokens for one round trip.
//!
//! A guess stands where it is the very token that the tail samples at its place, so that guesses change when tokens
//! come, and never which (Leviathan et al. 2023, with the tail's own draws in place of a comparison of two
//! distributions). What a wrong guess costs is the time and the bytes of its row.

mod length;
mod lookup;

use std::time::Duration;

use self::length::DraftLength;
use self::lookup::{Match, longest_match};

/// Where guesses come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drafting {
    /// Nowhere: each token takes a round trip.
    Off,
    /// What followed the last tokens where they stood before, in the prompt or in the answer (prompt lookup decoding).
    /// How many tokens are guessed follows from how often such guesses were right and from what a row costs here.
    #[default]
    PromptLookup,
}

impl std::str::FromStr for Drafting {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "off" => Ok(Self::Off),
            "lookup" => Ok(Self::PromptLookup),
            _ => Err(format!("{name} is no way to draft; expected off or lookup")),
        }
    }
}

/// Guesses of the tokens after a sequence, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Draft {
    pub(crate) token_ids: Vec<u32>,
    /// Tokens on which the guess is founded.
    matched: usize,
}

/// Guesses for one generation, and learns from what becomes of them.
#[derive(Debug)]
pub(crate) struct Drafter {
    length: DraftLength,
    /// What would have been guessed, and the tokens it was founded on, where a step without guesses was the better one.
    unsent: Option<(u32, usize)>,
}

impl Drafter {
    /// `None` where nothing is to be guessed.
    pub(crate) fn new(drafting: Drafting) -> Option<Self> {
        match drafting {
            Drafting::Off => None,
            Drafting::PromptLookup => Some(Self {
                length: DraftLength::default(),
                unsent: None,
            }),
        }
    }

    /// The tokens after `sequence`, at most `most`; `None` where a step without guesses is the faster one.
    pub(crate) fn guess(&mut self, sequence: &[u32], most: usize) -> Option<Draft> {
        self.unsent = None;
        let Match { next, matched } = longest_match(sequence)?;
        let tokens = self.length.best(matched, most);
        if tokens == 0 {
            self.unsent = Some((sequence[next], matched));
            return None;
        }
        let mut token_ids: Vec<u32> = Vec::with_capacity(tokens);
        for index in next..next + tokens {
            // Behind the end of the sequence, what was guessed follows.
            let known = sequence.get(index).copied();
            token_ids.push(known.unwrap_or_else(|| token_ids[index - sequence.len()]));
        }
        Some(Draft { token_ids, matched })
    }

    /// The token after the sequence is `token_id`, and nothing was guessed. Whether the guess would have been right
    /// costs nothing to know, and says when guesses are worth something again.
    pub(crate) fn sampled(&mut self, token_id: u32) {
        if let Some((guess, matched)) = self.unsent.take() {
            let is_right = guess == token_id;
            self.length
                .verified(matched, usize::from(is_right), !is_right);
        }
    }

    /// The first `accepted` tokens of `draft` were right.
    pub(crate) fn verified(&mut self, draft: &Draft, accepted: usize) {
        let is_wrong = accepted < draft.token_ids.len();
        self.length.verified(draft.matched, accepted, is_wrong);
    }

    /// A step of `rows` rows took `time`, from the first row's computation to the result.
    pub(crate) fn took(&mut self, rows: usize, time: Duration) {
        self.length.took(rows, time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafter() -> Drafter {
        Drafter::new(Drafting::PromptLookup).unwrap()
    }

    #[test]
    fn what_followed_the_last_tokens_before_is_guessed() {
        let sequence = [5, 6, 7, 8, 9, 1, 5, 6, 7];
        let draft = drafter().guess(&sequence, 3).unwrap();
        assert_eq!(draft.token_ids, [8, 9, 1]);
    }

    #[test]
    fn a_period_goes_on_beyond_the_end() {
        let draft = drafter().guess(&[1, 2, 1, 2, 1, 2], 5).unwrap();
        assert!(draft.token_ids.len() >= 3, "{draft:?}");
        assert_eq!(draft.token_ids, [1, 2, 1, 2, 1][..draft.token_ids.len()]);
    }

    #[test]
    fn nothing_is_guessed_where_nothing_stood_before_or_nothing_may_be() {
        assert_eq!(drafter().guess(&[1, 2, 3, 4], 8), None);
        assert_eq!(drafter().guess(&[1, 2, 1, 2], 0), None);
        assert_eq!(drafter().guess(&[], 8), None);
        assert!(Drafter::new(Drafting::Off).is_none());
    }

    #[test]
    fn guesses_that_are_always_wrong_end_until_they_would_be_right() {
        let mut drafter = drafter();
        let sequence = [1, 2, 3, 1, 2, 3];
        drafter.took(1, Duration::from_millis(50));
        let mut guessed = 0;
        while let Some(draft) = drafter.guess(&sequence, 8) {
            drafter.verified(&draft, 0);
            drafter.took(1 + draft.token_ids.len(), Duration::from_millis(60));
            guessed += 1;
            assert!(guessed < 100, "it learns");
        }
        assert!(guessed > 0);
        for _ in 0..100 {
            if drafter.guess(&sequence, 8).is_some() {
                return;
            }
            drafter.sampled(1);
        }
        panic!("what would have been right is noticed");
    }
}
