//! How many tokens to guess.
//!
//! Behind the row of the last token a step may carry guesses that cost next to nothing to make (lookup). Let one be right
//! with probability `pᵢ` where those before it are, a step of one row take `t`, and each further row `b`. A step with `n`
//! guesses gives `1 + p₁ + p₁p₂ + … + p₁⋯pₙ` tokens (the right ones, and the one that the tail samples after them) in
//! `t + n·b`. Guesses are added as long as that is more tokens a second; none where it never is.
//!
//! Steps that run ahead are made while a result is waited for, and cost time only where they are wrong: what is being made
//! then must be finished first, half a row in the mean. So guesses are made as long as all of them together are right with
//! probability `b / 2t` or more.
//!
//! The probabilities are learned for each class of guesses and forgotten slowly, because a text changes; `t` and `b` are
//! running means of what steps took here, over whatever link and tail there is.

use std::time::Duration;

/// Guesses of a step at most. Behind so many, few are right even where each is with 0.95.
const MOST: usize = 32;
/// What a further row costs before it is known, in steps of one row.
const USUAL_ROW_COST: f64 = 1.0 / 16.0;
/// Guesses that are made ahead are right with this probability, or a larger one.
const LEAST_ALIVE: std::ops::RangeInclusive<f64> = 0.03..=0.5;
/// Rows that a model makes at most for one step ahead.
const MOST_TOGETHER: usize = 4;
/// What remains of a count with each guess that is verified.
const REMAINS: f64 = 0.98;
/// The weight of a new time in the running means.
const NEW: f64 = 0.2;
/// Classes of each source.
const CLASSES: usize = 6;

/// Where guesses come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A place where the same tokens stood before; classes by their number.
    Lookup,
    /// A model on this device; classes by its own probability of the guess.
    Model,
}

/// Matches of at least so many tokens, and how many of two guesses are taken for right before any was verified.
const MATCHES: [(usize, f64); CLASSES] =
    [(8, 1.8), (4, 1.7), (3, 1.5), (2, 1.2), (1, 0.7), (0, 0.0)];
/// The same for a model's probability of its guess.
const CONFIDENCES: [(f32, f64); CLASSES] = [
    (0.95, 1.9),
    (0.8, 1.6),
    (0.6, 1.3),
    (0.4, 0.9),
    (0.2, 0.6),
    (0.0, 0.3),
];

/// The class of a guess founded on a match of `matched` tokens.
pub fn class_of_match(matched: usize) -> usize {
    let found = MATCHES.iter().position(|(least, _)| matched >= *least);
    found.unwrap_or(CLASSES - 1)
}

/// The class of a guess that a model gives this probability.
pub fn class_of_confidence(probability: f32) -> usize {
    let found = CONFIDENCES
        .iter()
        .position(|(least, _)| probability >= *least);
    found.unwrap_or(CLASSES - 1)
}

/// What is known about guesses and times.
#[derive(Clone, Debug)]
pub struct DraftLength {
    lookup: Known,
    model: Known,
    /// Of the model's guesses of all classes.
    model_guesses: Count,
    /// Seconds of a step of one row.
    one_row: Option<f64>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    classes: [Count; CLASSES],
    /// Seconds of each further row.
    further_row: Option<f64>,
}

#[derive(Clone, Copy, Debug)]
struct Count {
    right: f64,
    all: f64,
}

impl Count {
    fn probability(self) -> f64 {
        self.right / self.all
    }

    fn add(&mut self, is_right: bool) {
        self.right = self.right * REMAINS + f64::from(u8::from(is_right));
        self.all = self.all * REMAINS + 1.0;
    }
}

impl Default for DraftLength {
    fn default() -> Self {
        let known = |right: [f64; CLASSES]| Known {
            classes: right.map(|right| Count { right, all: 2.0 }),
            further_row: None,
        };
        Self {
            lookup: known(MATCHES.map(|(_, right)| right)),
            model: known(CONFIDENCES.map(|(_, right)| right)),
            model_guesses: Count {
                right: 1.0,
                all: 2.0,
            },
            one_row: None,
        }
    }
}

/// Guesses ahead, which are made as long as all of them may be right.
#[derive(Clone, Debug)]
pub struct Outlook {
    probabilities: [f64; CLASSES],
    /// How likely all guesses so far are right, those included that were sent before.
    alive: f64,
    least: f64,
    left: usize,
}

impl Outlook {
    /// Adds a guess of `class` where it is worth to be made; false where it is not.
    pub fn add(&mut self, class: usize) -> bool {
        let alive = self.alive * self.probabilities[class];
        if self.is_full() || alive < self.least {
            return false;
        }
        self.left -= 1;
        self.alive = alive;
        true
    }

    /// True where the step takes no further guess.
    pub const fn is_full(&self) -> bool {
        self.left == 0
    }
}

impl DraftLength {
    /// How likely a guess is right where those before it are.
    pub fn probability(&self, source: Source, class: usize) -> f64 {
        self.known(source).classes[class].probability()
    }

    /// The same of a model's guesses in the mean.
    pub fn model_probability(&self) -> f64 {
        self.model_guesses.probability()
    }

    /// The best number of guesses by lookup behind the row of the last token, at most `most`.
    pub fn best(&self, class: usize, most: usize) -> usize {
        self.best_step(class, most).0
    }

    /// Tokens a second of a step with that number of guesses; `step`: what one of one row takes, where none was measured.
    pub fn tokens_a_second(&self, class: usize, most: usize, step: Duration) -> f64 {
        let (_, tokens, cost) = self.best_step(class, most);
        let one_row = self.one_row.unwrap_or(step.as_secs_f64());
        tokens / (cost * one_row.max(1e-6))
    }

    /// The best number of guesses, the tokens that a step with them gives, and its time in steps of one row.
    fn best_step(&self, class: usize, most: usize) -> (usize, f64, f64) {
        let (row_cost, probability) = (
            self.row_cost(Source::Lookup),
            self.probability(Source::Lookup, class),
        );
        let (mut guesses, mut tokens, mut cost, mut alive) = (0, 1.0, 1.0, 1.0);
        while guesses < most.min(MOST) {
            alive *= probability;
            let (more, dearer) = (tokens + alive, cost + row_cost);
            if more / dearer <= tokens / cost {
                break;
            }
            (guesses, tokens, cost) = (guesses + 1, more, dearer);
        }
        (guesses, tokens, cost)
    }

    /// For at most `most` guesses of a step that runs ahead, where those that were sent before are all right with
    /// probability `alive`.
    pub fn outlook(&self, source: Source, alive: f64, most: usize) -> Outlook {
        let known = self.known(source);
        let least = self.row_cost(source) / 2.0;
        Outlook {
            probabilities: known.classes.map(Count::probability),
            alive,
            least: least.clamp(*LEAST_ALIVE.start(), *LEAST_ALIVE.end()),
            left: most.min(MOST),
        }
    }

    /// Rows of a model that go together in a step ahead, so that no more than `max_steps` are on their way where the rows
    /// of a whole round trip are.
    pub fn rows_together(&self, max_steps: usize) -> usize {
        let in_round_trip = 1.0 / self.row_cost(Source::Model).max(1e-3);
        let rows = (in_round_trip / float(max_steps.max(1))).ceil();
        (1..MOST_TOGETHER)
            .find(|together| float(*together) >= rows)
            .unwrap_or(MOST_TOGETHER)
    }

    /// A guess was right or not, and all before it were.
    pub fn seen(&mut self, source: Source, class: usize, is_right: bool) {
        self.known_mut(source).classes[class].add(is_right);
        if source == Source::Model {
            self.model_guesses.add(is_right);
        }
    }

    /// A step of the last token's row with `guesses` by lookup behind it took `time`.
    pub fn took(&mut self, guesses: usize, time: Duration) {
        let seconds = time.as_secs_f64();
        match (guesses, self.one_row) {
            (0, _) => self.one_row = Some(mean(self.one_row, seconds)),
            (_, Some(one)) => {
                let each = ((seconds - one) / float(guesses)).max(0.0);
                self.lookup.further_row = Some(mean(self.lookup.further_row, each));
            }
            (_, None) => {}
        }
    }

    /// To guess `rows` tokens and run the layers on them took `time`.
    pub fn made(&mut self, source: Source, rows: usize, time: Duration) {
        let each = time.as_secs_f64() / float(rows.max(1));
        let known = self.known_mut(source);
        known.further_row = Some(mean(known.further_row, each));
    }

    /// What a further row takes, in steps of one row.
    fn row_cost(&self, source: Source) -> f64 {
        match (self.one_row, self.known(source).further_row) {
            (Some(one), Some(further)) if one > 0.0 => further / one,
            _ => USUAL_ROW_COST,
        }
    }

    const fn known(&self, source: Source) -> &Known {
        match source {
            Source::Lookup => &self.lookup,
            Source::Model => &self.model,
        }
    }

    const fn known_mut(&mut self, source: Source) -> &mut Known {
        match source {
            Source::Lookup => &mut self.lookup,
            Source::Model => &mut self.model,
        }
    }
}

fn mean(so_far: Option<f64>, new: f64) -> f64 {
    so_far.map_or(new, |mean| mean + NEW * (new - mean))
}

#[expect(clippy::cast_precision_loss, reason = "guesses of a step")]
const fn float(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASS: usize = 1;

    fn milliseconds(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// After many drafts of ten guesses, of which `right` were right.
    fn learned(right: usize, one_row: u64, eleven_rows: u64) -> DraftLength {
        let mut length = DraftLength::default();
        for _ in 0..100 {
            length.took(0, milliseconds(one_row));
            length.took(10, milliseconds(eleven_rows));
            for index in 0..=right.min(9) {
                length.seen(Source::Lookup, CLASS, index < right);
            }
        }
        length
    }

    #[test]
    fn the_slower_the_round_trip_the_longer_the_draft() {
        let near = learned(3, 20, 120).best(CLASS, 100);
        let far = learned(3, 120, 220).best(CLASS, 100);
        assert!(0 < near && near < far, "{near} {far}");
    }

    #[test]
    fn drafts_are_as_long_as_guesses_are_right() {
        let often = learned(9, 50, 100).best(CLASS, 100);
        let seldom = learned(1, 50, 100).best(CLASS, 100);
        assert!(seldom < often, "{seldom} {often}");
        let always = learned(10, 50, 51);
        assert_eq!(always.best(CLASS, 100), MOST);
        assert_eq!(always.best(CLASS, 4), 4);
    }

    #[test]
    fn rows_that_cost_as_much_as_steps_are_not_guessed() {
        assert_eq!(learned(5, 10, 110).best(CLASS, 100), 0);
    }

    #[test]
    fn the_best_number_gives_the_most_tokens_a_second() {
        let length = learned(4, 40, 80);
        let probability = length.probability(Source::Lookup, CLASS);
        let rate = |guesses: i32| {
            let tokens: f64 = (0..=guesses).map(|power| probability.powi(power)).sum();
            tokens / f64::from(40 + 4 * guesses)
        };
        let expected = (0..=32).max_by(|a, b| rate(*a).total_cmp(&rate(*b)));
        let found = length.best(CLASS, 32);
        assert_eq!(i32::try_from(found).ok(), expected);
    }

    #[test]
    fn classes_and_sources_are_learned_apart() {
        let mut length = DraftLength::default();
        let (weak, strong) = (class_of_match(1), class_of_match(9));
        for _ in 0..100 {
            length.seen(Source::Lookup, weak, false);
        }
        assert_eq!(length.best(weak, 8), 0);
        assert!(length.best(strong, 8) > 0);
        assert!(length.model_probability() > 0.3);
        for class in 0..CLASSES {
            for _ in 0..300 {
                length.seen(Source::Model, class, false);
            }
        }
        assert!(length.model_probability() < 0.05);
    }

    #[test]
    fn guesses_run_ahead_as_long_as_all_may_be_right() {
        let mut length = DraftLength::default();
        let (sure, unsure) = (class_of_confidence(0.99), class_of_confidence(0.01));
        for _ in 0..300 {
            length.seen(Source::Model, sure, true);
            length.seen(Source::Model, unsure, false);
        }
        let mut outlook = length.outlook(Source::Model, 1.0, 3);
        assert!(outlook.add(sure));
        assert!(!outlook.add(unsure));
        assert!(outlook.add(sure), "what was refused cost nothing");
        assert!(outlook.add(sure) && outlook.is_full() && !outlook.add(sure));
        assert!(!length.outlook(Source::Model, 0.01, 3).add(sure));
    }

    #[test]
    fn the_dearer_a_row_the_surer_a_guess_must_be() {
        let uncertain = class_of_confidence(0.3);
        let is_made = |row: u64, one_row: u64| {
            let mut length = DraftLength::default();
            length.took(0, milliseconds(one_row));
            length.made(Source::Model, 4, milliseconds(4 * row));
            length.outlook(Source::Model, 0.4, 8).add(uncertain)
        };
        assert!(is_made(5, 60));
        assert!(!is_made(10, 15));
    }

    #[test]
    fn the_rows_of_a_round_trip_go_in_as_many_steps_as_there_may_be() {
        let together = |one_row: u64| {
            let mut length = DraftLength::default();
            length.took(0, milliseconds(one_row));
            length.made(Source::Model, 1, milliseconds(5));
            length.rows_together(10)
        };
        assert_eq!((together(15), together(100), together(1000)), (1, 2, 4));
    }
}
