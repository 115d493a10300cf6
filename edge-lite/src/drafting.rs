//! Guesses of the next tokens, which the tail verifies in one step: several tokens for one round trip.
//!
//! A guess stands where it is the very token that the tail samples at its place, so that guesses change when tokens
//! come, and never which (Leviathan et al. 2023, with the tail's own draws in place of a comparison of two
//! distributions). What a wrong guess costs is the time and the bytes of its row.

mod length;
mod lookup;
mod model;

use std::time::Duration;

use self::length::{DraftLength, Source, class_of_confidence, class_of_match};
use self::lookup::{Match, longest_match};

pub(crate) use self::length::Budget;
pub(crate) use self::model::{DraftModel, DraftPass, Guess};

/// Where guesses come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drafting {
    /// Nowhere: each token takes a round trip.
    Off,
    /// What followed the last tokens where they stood before, in the prompt or in the answer (prompt lookup decoding).
    /// How many tokens are guessed follows from how often such guesses were right and from what a row costs here.
    PromptLookup,
    /// The early exit or the companion model that the client was given. How many tokens are guessed follows from how sure
    /// it is of them, how often it was right when it was as sure, and what a row costs here.
    Model,
    /// For each step whichever of the two is expected to give more tokens a second; lookup alone where there is no model.
    #[default]
    Auto,
}

impl std::str::FromStr for Drafting {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "off" => Ok(Self::Off),
            "lookup" => Ok(Self::PromptLookup),
            "model" => Ok(Self::Model),
            "auto" => Ok(Self::Auto),
            _ => Err(format!(
                "{name} is no way to draft; expected off, lookup, model or auto"
            )),
        }
    }
}

/// Where a model has not paid, it is asked once in so many steps, in case that the text has changed.
const ASK_EVERY: u32 = 8;

/// Guesses of the tokens after a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Draft {
    pub(crate) token_ids: Vec<u32>,
    source: Source,
    /// Of each guess.
    classes: Vec<usize>,
    /// What would have been guessed next, and its class, where a shorter step was the better one. Whether it is right
    /// costs nothing to know where it turns out, and says when guesses are worth something again.
    unsent: Option<(u32, usize)>,
}

impl Draft {
    /// A model's draft that has no guess yet.
    pub(crate) const fn of_model() -> Self {
        Self {
            token_ids: Vec::new(),
            source: Source::Model,
            classes: Vec::new(),
            unsent: None,
        }
    }

    /// Adds a model's guess where that makes the step better; false where it does not.
    pub(crate) fn add(&mut self, guess: Guess, budget: &mut Budget) -> bool {
        let class = class_of_confidence(guess.probability);
        if !budget.add(class) {
            self.unsent = Some((guess.token_id, class));
            return false;
        }
        self.token_ids.push(guess.token_id);
        self.classes.push(class);
        true
    }
}

/// What to do about the next tokens.
#[derive(Debug)]
pub(crate) enum Guessing {
    /// Send these guesses.
    Guessed(Draft),
    /// Ask the model, as long as the budget takes its guesses.
    AskModel(Budget),
}

/// Guesses for one generation, and learns from what becomes of them.
#[derive(Debug)]
pub(crate) struct Drafter {
    by_lookup: bool,
    by_model: bool,
    length: DraftLength,
    steps: u32,
}

impl Drafter {
    /// `None` where nothing is to be guessed. `has_model`: there is one to ask.
    pub(crate) fn new(drafting: Drafting, has_model: bool) -> Option<Self> {
        let by_lookup = matches!(drafting, Drafting::PromptLookup | Drafting::Auto);
        let by_model = has_model && matches!(drafting, Drafting::Model | Drafting::Auto);
        (by_lookup || by_model).then(|| Self {
            by_lookup,
            by_model,
            length: DraftLength::default(),
            steps: 0,
        })
    }

    /// How to guess the tokens after `sequence`, at most `most`; `None` where nothing is to be guessed.
    pub(crate) fn guess(&mut self, sequence: &[u32], most: usize) -> Option<Guessing> {
        if most == 0 {
            return None;
        }
        self.steps = self.steps.wrapping_add(1);
        let found = longest_match(sequence).filter(|_| self.by_lookup);
        let (tokens, lookup_rate) = found.map_or((0, 1.0), |found| {
            let class = class_of_match(found.matched);
            self.length.best(Source::Lookup, class, most)
        });
        if self.by_model {
            let model_rate = self.length.model_rate(most);
            let is_asked =
                model_rate > lookup_rate || (tokens == 0 && self.steps.is_multiple_of(ASK_EVERY));
            if is_asked {
                return Some(Guessing::AskModel(self.length.budget(Source::Model, most)));
            }
        }
        found.map(|found| Guessing::Guessed(looked_up(sequence, found, tokens)))
    }

    /// Of the tokens of `draft` the first `accepted` are right, and `token_id` follows them.
    pub(crate) fn verified(&mut self, draft: &Draft, accepted: usize, token_id: u32) {
        let mut classes = draft.classes.clone();
        let mut right = accepted;
        if let Some((guess, class)) = draft.unsent
            && accepted == draft.token_ids.len()
        {
            classes.push(class);
            right += usize::from(guess == token_id);
        }
        self.length.verified(draft.source, &classes, right);
    }

    /// A step with `draft`, of which `accepted` tokens are right, took `time`, from the first row's computation to the
    /// result.
    pub(crate) fn took(&mut self, draft: Option<&Draft>, accepted: usize, time: Duration) {
        let guesses = draft.map(|draft| (draft.source, draft.token_ids.len()));
        self.length.took(guesses, accepted, time);
    }
}

/// The `tokens` tokens that followed the match.
fn looked_up(sequence: &[u32], found: Match, tokens: usize) -> Draft {
    let Match { next, matched } = found;
    let mut token_ids: Vec<u32> = Vec::with_capacity(tokens + 1);
    for index in next..=next + tokens {
        // Behind the end of the sequence, what was guessed follows.
        let known = sequence.get(index).copied();
        token_ids.push(known.unwrap_or_else(|| token_ids[index - sequence.len()]));
    }
    let class = class_of_match(matched);
    let unsent = token_ids.pop().map(|token_id| (token_id, class));
    Draft {
        classes: vec![class; token_ids.len()],
        token_ids,
        source: Source::Lookup,
        unsent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: Drafting = Drafting::Model;

    fn lookup() -> Drafter {
        Drafter::new(Drafting::PromptLookup, false).unwrap()
    }

    fn looked_up(drafter: &mut Drafter, sequence: &[u32], most: usize) -> Option<Draft> {
        match drafter.guess(sequence, most)? {
            Guessing::Guessed(draft) => Some(draft),
            Guessing::AskModel(_) => panic!("there is no model"),
        }
    }

    #[test]
    fn what_followed_the_last_tokens_before_is_guessed() {
        let sequence = [5, 6, 7, 8, 9, 1, 5, 6, 7];
        let draft = looked_up(&mut lookup(), &sequence, 3).unwrap();
        assert_eq!(draft.token_ids, [8, 9, 1]);
    }

    #[test]
    fn a_period_goes_on_beyond_the_end() {
        let draft = looked_up(&mut lookup(), &[1, 2, 1, 2, 1, 2], 5).unwrap();
        assert!(draft.token_ids.len() >= 3, "{draft:?}");
        assert_eq!(draft.token_ids, [1, 2, 1, 2, 1][..draft.token_ids.len()]);
    }

    #[test]
    fn nothing_is_guessed_where_nothing_stood_before_or_nothing_may_be() {
        assert_eq!(looked_up(&mut lookup(), &[1, 2, 3, 4], 8), None);
        assert_eq!(looked_up(&mut lookup(), &[1, 2, 1, 2], 0), None);
        assert_eq!(looked_up(&mut lookup(), &[], 8), None);
        assert!(Drafter::new(Drafting::Off, true).is_none());
        assert!(Drafter::new(MODEL, false).is_none());
    }

    #[test]
    fn guesses_that_are_always_wrong_end_until_they_would_be_right() {
        let mut drafter = lookup();
        let sequence = [1, 2, 3, 1, 2, 3];
        drafter.took(None, 0, Duration::from_millis(50));
        let guess = |drafter: &mut Drafter, right: bool| {
            let draft = looked_up(drafter, &sequence, 8).unwrap();
            let guesses = draft.token_ids.len();
            let accepted = if right { guesses } else { 0 };
            drafter.verified(&draft, accepted, if right { 1 } else { 9 });
            drafter.took(Some(&draft), accepted, Duration::from_millis(60));
            guesses
        };
        let ended = (0..100).position(|_| guess(&mut drafter, false) == 0);
        assert!(ended.is_some_and(|steps| steps > 0), "it learns");
        let begun = (0..100).position(|_| guess(&mut drafter, true) > 0);
        assert!(begun.is_some(), "what would have been right is noticed");
    }

    #[test]
    fn a_model_is_asked_where_it_is_expected_to_give_more() {
        let mut drafter = Drafter::new(Drafting::Auto, true).unwrap();
        let unlike = [1, 2, 3, 4];
        let asked = |drafter: &mut Drafter, sequence: &[u32]| {
            matches!(drafter.guess(sequence, 8), Some(Guessing::AskModel(_)))
        };
        assert!(asked(&mut drafter, &unlike));
        let period = [1, 2, 3].repeat(10);
        assert!(!asked(&mut drafter, &period), "a long match is better");
        // A model that is never right is not asked any more, but now and then.
        for _ in 0..400 {
            let Some(Guessing::AskModel(mut budget)) = drafter.guess(&unlike, 8) else {
                continue;
            };
            let mut draft = Draft::of_model();
            for probability in [0.99, 0.9, 0.7, 0.5, 0.3, 0.1] {
                let token_id = 7;
                draft.add(
                    Guess {
                        token_id,
                        probability,
                    },
                    &mut budget,
                );
            }
            drafter.verified(&draft, 0, 9);
        }
        let times = (0..64).filter(|_| asked(&mut drafter, &unlike)).count();
        assert!((1..=16).contains(&times), "{times} of 64");
    }

    #[test]
    fn a_models_draft_ends_with_the_guess_that_is_not_worth_its_row() {
        let length = DraftLength::default();
        let mut budget = length.budget(Source::Model, 2);
        let mut draft = Draft::of_model();
        let guess = |token_id, probability| Guess {
            token_id,
            probability,
        };
        assert!(draft.add(guess(5, 0.99), &mut budget));
        assert!(draft.add(guess(6, 0.99), &mut budget));
        assert!(budget.is_spent());
        assert!(!draft.add(guess(7, 0.99), &mut budget));
        assert_eq!(draft.token_ids, [5, 6]);
        assert_eq!(draft.unsent, Some((7, class_of_confidence(0.99))));
    }
}
