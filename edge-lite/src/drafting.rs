//! Guesses of the next tokens, so that several come in one round trip.
//!
//! A guess stands where it is the very token that the tail samples at its place, so that guesses change when tokens
//! come, and never which (Leviathan et al. 2023, with the tail's own draws in place of a comparison of two
//! distributions). What followed the same tokens before is sent behind the last token's row and verified in its step;
//! what is guessed while a result is on its way runs ahead of that in steps of its own.

mod model;

use std::time::Duration;

use headway_model::drafting::length::{DraftLength, Source, class_of_confidence, class_of_match};
use headway_model::drafting::lookup::{Match, longest_match};

pub(crate) use self::model::{DraftModel, DraftPass};
pub(crate) use headway_model::drafting::length::Outlook;

/// Where guesses come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drafting {
    /// Nowhere: each token takes a round trip.
    Off,
    /// What followed the last tokens where they stood before, in the prompt or in the answer (prompt lookup decoding).
    /// How many tokens are guessed follows from how often such guesses were right and from what a row costs here.
    PromptLookup,
    /// The early exit or the companion model that the client was given, while a result is on its way. How many tokens are
    /// guessed follows from how sure it is of them, and how often it was right when it was as sure.
    Model,
    /// At each place whichever of the two is right more often; lookup alone where there is no model.
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

/// Rows by lookup of one step ahead: they are made in one go, which cannot be stopped where they turn out wrong.
const MOST_LOOKED_UP_AHEAD: usize = 8;

/// A guess, and what is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Guess {
    pub(crate) token_id: u32,
    source: Source,
    class: usize,
}

impl Guess {
    /// A model's guess, to which it gives this probability.
    pub(crate) fn of_model(token_id: u32, probability: f32) -> Self {
        Self {
            token_id,
            source: Source::Model,
            class: class_of_confidence(probability),
        }
    }
}

/// Guesses of the tokens after a sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Draft {
    pub(crate) guesses: Vec<Guess>,
    /// What would have been guessed next, where a shorter step was the better one. Whether it is right costs nothing to
    /// know where it turns out, and says when guesses are worth something again.
    pub(crate) unsent: Option<Guess>,
}

impl Draft {
    /// Adds a guess ahead where it is worth to be made; false where it is not.
    pub(crate) fn add(&mut self, guess: Guess, outlook: &mut Outlook) -> bool {
        let is_added = outlook.add(guess.class);
        if is_added {
            self.guesses.push(guess);
        } else {
            self.unsent = Some(guess);
        }
        is_added
    }

    pub(crate) fn token_ids(&self) -> Vec<u32> {
        self.guesses.iter().map(|guess| guess.token_id).collect()
    }
}

/// How the tokens are guessed that a step ahead brings.
#[derive(Debug)]
pub(crate) enum Guessing {
    /// These are they.
    Guessed(Draft),
    /// Ask the model, as long as they may be right.
    AskModel(Outlook),
}

/// Guesses for one generation, and learns from what becomes of them.
#[derive(Debug)]
pub(crate) struct Drafter {
    by_lookup: bool,
    by_model: bool,
    length: DraftLength,
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
        })
    }

    /// What to send behind the row of `sequence`'s last token, at most `most` guesses. A model's take their time and run
    /// ahead instead.
    pub(crate) fn draft(&self, sequence: &[u32], most: usize) -> Draft {
        match self.found(sequence) {
            Some(found) => {
                let tokens = self.length.best(class_of_match(found.matched), most);
                looked_up(sequence, found, tokens)
            }
            None => Draft::default(),
        }
    }

    /// What would be guessed by lookup behind `sequence`; what becomes of it says when guesses are worth something.
    pub(crate) fn would_guess(&self, sequence: &[u32]) -> Draft {
        self.found(sequence)
            .map_or_else(Draft::default, |found| looked_up(sequence, found, 0))
    }

    /// True where a step with at most `most` guesses behind the row of `sequence`'s last token gives more tokens a second
    /// than one in each `pace`; `step`: what a step of one row takes, where none was measured.
    pub(crate) fn is_faster(
        &self,
        sequence: &[u32],
        most: usize,
        step: Duration,
        pace: Duration,
    ) -> bool {
        self.found(sequence).is_some_and(|found| {
            let class = class_of_match(found.matched);
            let tokens = self.length.tokens_a_second(class, most, step);
            tokens * pace.as_secs_f64() > 1.0
        })
    }

    /// How to guess what runs ahead of `sequence`, whose last tokens are guesses that are all right with probability
    /// `alive`; in at most `most` guesses and `max_steps` steps on their way.
    pub(crate) fn ahead(
        &self,
        sequence: &[u32],
        alive: f64,
        most: usize,
        max_steps: usize,
    ) -> Option<Guessing> {
        if let Some(found) = self.found(sequence) {
            let class = class_of_match(found.matched);
            let most = most.min(MOST_LOOKED_UP_AHEAD);
            let mut outlook = self.length.outlook(Source::Lookup, alive, most);
            let tokens = (0..most).take_while(|_| outlook.add(class)).count();
            return (tokens > 0).then(|| Guessing::Guessed(looked_up(sequence, found, tokens)));
        }
        let most = most.min(self.length.rows_together(max_steps));
        let outlook = || self.length.outlook(Source::Model, alive, most);
        (self.by_model && most > 0).then(|| Guessing::AskModel(outlook()))
    }

    /// Where the end of `sequence` stood before, if what followed there is the better guess.
    fn found(&self, sequence: &[u32]) -> Option<Match> {
        let found = longest_match(sequence).filter(|_| self.by_lookup)?;
        let class = class_of_match(found.matched);
        let is_better = !self.by_model
            || self.length.probability(Source::Lookup, class) >= self.length.model_probability();
        is_better.then_some(found)
    }

    /// How likely a guess is right where those before it are.
    pub(crate) fn probability(&self, guess: &Guess) -> f64 {
        self.length.probability(guess.source, guess.class)
    }

    /// The token in the place of `guess` is this one, and all guesses before it were right.
    pub(crate) fn seen(&mut self, guess: &Guess, token_id: u32) {
        let is_right = guess.token_id == token_id;
        self.length.seen(guess.source, guess.class, is_right);
    }

    /// A step of the last token's row with `guesses` behind it took `time`, from the row's computation to the result.
    pub(crate) fn took(&mut self, guesses: usize, time: Duration) {
        self.length.took(guesses, time);
    }

    /// To guess what is ahead and to run the layers on it took `time`.
    pub(crate) fn made(&mut self, draft: &Draft, time: Duration) {
        if let Some(guess) = draft.guesses.first() {
            self.length.made(guess.source, draft.guesses.len(), time);
        }
    }
}

/// The `tokens` tokens that followed the match.
fn looked_up(sequence: &[u32], found: Match, tokens: usize) -> Draft {
    let guess = |token_id| Guess {
        token_id,
        source: Source::Lookup,
        class: class_of_match(found.matched),
    };
    let following = found.following(sequence, tokens + 1).into_iter();
    let mut guesses: Vec<Guess> = following.map(guess).collect();
    let unsent = guesses.pop();
    Draft { guesses, unsent }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: Drafting = Drafting::Model;

    fn lookup() -> Drafter {
        Drafter::new(Drafting::PromptLookup, false).unwrap()
    }

    #[test]
    fn what_followed_the_last_tokens_before_is_guessed() {
        let sequence = [5, 6, 7, 8, 9, 1, 5, 6, 7];
        let draft = lookup().draft(&sequence, 3);
        assert_eq!(draft.token_ids(), [8, 9, 1]);
    }

    #[test]
    fn a_period_goes_on_beyond_the_end() {
        let token_ids = lookup().draft(&[1, 2, 1, 2, 1, 2], 5).token_ids();
        assert!(token_ids.len() >= 3, "{token_ids:?}");
        assert_eq!(token_ids, [1, 2, 1, 2, 1][..token_ids.len()]);
    }

    #[test]
    fn nothing_is_guessed_where_nothing_stood_before_or_nothing_may_be() {
        assert_eq!(lookup().draft(&[1, 2, 3, 4], 8), Draft::default());
        assert!(lookup().draft(&[1, 2, 1, 2], 0).guesses.is_empty());
        assert_eq!(lookup().draft(&[], 8), Draft::default());
        assert!(lookup().ahead(&[1, 2, 1, 2], 1.0, 0, 4).is_none());
        assert!(Drafter::new(Drafting::Off, true).is_none());
        assert!(Drafter::new(MODEL, false).is_none());
    }

    #[test]
    fn guesses_that_are_always_wrong_end_until_they_would_be_right() {
        let mut drafter = lookup();
        let sequence = [1, 2, 3, 1, 2, 3];
        drafter.took(0, Duration::from_millis(50));
        let guess = |drafter: &mut Drafter, right: bool| {
            let draft = drafter.draft(&sequence, 8);
            let first = draft.guesses.first().or(draft.unsent.as_ref()).unwrap();
            drafter.seen(first, if right { first.token_id } else { 9 });
            drafter.took(draft.guesses.len(), Duration::from_millis(60));
            draft.guesses.len()
        };
        let ended = (0..100).position(|_| guess(&mut drafter, false) == 0);
        assert!(ended.is_some_and(|steps| steps > 0), "it learns");
        let begun = (0..200).position(|_| guess(&mut drafter, true) > 0);
        assert!(begun.is_some(), "what would have been right is noticed");
    }

    #[test]
    fn a_model_is_asked_where_it_is_right_more_often() {
        let mut drafter = Drafter::new(Drafting::Auto, true).unwrap();
        let asked = |drafter: &Drafter, sequence: &[u32]| {
            let guessing = drafter.ahead(sequence, 1.0, 8, 4);
            matches!(guessing, Some(Guessing::AskModel(_)))
        };
        assert!(asked(&drafter, &[1, 2, 3, 4]));
        assert_eq!(drafter.draft(&[1, 2, 3, 4], 8), Draft::default());
        let period = [1, 2, 3].repeat(10);
        assert!(!asked(&drafter, &period), "a long match is better");
        assert!(!drafter.draft(&period, 8).guesses.is_empty());
        let weak = [5, 1, 2, 5];
        assert!(asked(&drafter, &weak));
        for _ in 0..300 {
            let guess = Guess::of_model(7, 0.5);
            drafter.seen(&guess, 8);
        }
        let wrong = Guess::of_model(7, 0.5);
        assert!(drafter.probability(&wrong) < 0.05);
    }

    #[test]
    fn a_models_draft_ends_with_the_guess_that_is_not_worth_its_row() {
        let length = DraftLength::default();
        let mut outlook = length.outlook(Source::Model, 1.0, 3);
        let mut draft = Draft::default();
        assert!(draft.add(Guess::of_model(5, 0.99), &mut outlook));
        assert!(draft.add(Guess::of_model(6, 0.99), &mut outlook));
        let mut doubtful = length.outlook(Source::Model, 0.05, 3);
        let unlikely = Guess::of_model(7, 0.01);
        assert!(!draft.add(unlikely, &mut doubtful));
        assert_eq!(draft.token_ids(), [5, 6]);
        assert_eq!(draft.unsent, Some(unlikely));
    }
}
