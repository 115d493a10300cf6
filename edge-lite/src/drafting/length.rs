//! How many tokens to guess.
//!
//! Let a guess be right with probability `pᵢ` where those before it are, a step of one row take `t`, and each further row
//! `b`. A step with `n` guesses gives `1 + p₁ + p₁p₂ + … + p₁⋯pₙ` tokens (the right ones, and the one that the tail samples
//! after them) in `t + n·b`. Guesses are added as long as that is more tokens a second; none where it never is.
//!
//! The probabilities are learned for each class of guesses and forgotten slowly, because a text changes; `t` and `b` are
//! running means of what steps took here, over whatever link and tail there is.

use std::time::Duration;

/// Guesses of a step at most. Behind so many, few are right even where each is with 0.95.
const MOST: usize = 32;
/// What a further row costs before it is known, in steps of one row.
const USUAL_ROW_COST: f64 = 1.0 / 16.0;
/// What remains of a count when a draft is verified.
const REMAINS: f64 = 0.97;
/// The weight of a new time in the running means.
const NEW: f64 = 0.2;
/// What remains of a model's steps with each further one.
const STEPS_REMAIN: f64 = 0.9;
/// How many steps the expectation of a model's rate counts for, beside those that were taken.
const EXPECTED_STEPS: f64 = 2.0;
/// Classes of each source.
const CLASSES: usize = 6;

/// Where guesses come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
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
pub(super) fn class_of_match(matched: usize) -> usize {
    let found = MATCHES.iter().position(|(least, _)| matched >= *least);
    found.unwrap_or(CLASSES - 1)
}

/// The class of a guess that a model gives this probability.
pub(super) fn class_of_confidence(probability: f32) -> usize {
    let found = CONFIDENCES
        .iter()
        .position(|(least, _)| probability >= *least);
    found.unwrap_or(CLASSES - 1)
}

/// What is known about guesses and times.
#[derive(Clone, Debug)]
pub(super) struct DraftLength {
    lookup: Known,
    model: Known,
    /// Seconds of a step of one row.
    one_row: Option<f64>,
    /// Tokens and seconds of the steps whose guesses were a model's.
    model_steps: (f64, f64),
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

impl Default for DraftLength {
    fn default() -> Self {
        let known = |right: [f64; CLASSES]| Known {
            classes: right.map(|right| Count { right, all: 2.0 }),
            further_row: None,
        };
        Self {
            lookup: known(MATCHES.map(|(_, right)| right)),
            model: known(CONFIDENCES.map(|(_, right)| right)),
            one_row: None,
            model_steps: (0.0, 0.0),
        }
    }
}

/// A step whose guesses are added one by one.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    probabilities: [f64; CLASSES],
    /// Of a further row, in steps of one row.
    row_cost: f64,
    left: usize,
    tokens: f64,
    right_so_far: f64,
    cost: f64,
}

impl Budget {
    /// Tokens a second, where a step without guesses gives 1.
    pub(super) fn rate(&self) -> f64 {
        self.tokens / self.cost
    }

    /// True where no guess can be added.
    pub(crate) const fn is_spent(&self) -> bool {
        self.left == 0
    }

    /// Adds a guess of `class` where that makes the step better; false where it does not.
    pub(crate) fn add(&mut self, class: usize) -> bool {
        let right_so_far = self.right_so_far * self.probabilities[class];
        let (tokens, cost) = (self.tokens + right_so_far, self.cost + self.row_cost);
        if self.is_spent() || tokens / cost <= self.rate() {
            return false;
        }
        self.left -= 1;
        (self.tokens, self.right_so_far, self.cost) = (tokens, right_so_far, cost);
        true
    }
}

impl DraftLength {
    /// A step without guesses yet, which takes `most` of them.
    pub(super) fn budget(&self, source: Source, most: usize) -> Budget {
        let known = self.known(source);
        let row_cost = match (self.one_row, known.further_row) {
            (Some(one), Some(further)) if one > 0.0 => further / one,
            _ => USUAL_ROW_COST,
        };
        Budget {
            probabilities: known.classes.map(|Count { right, all }| right / all),
            row_cost,
            left: most.min(MOST),
            tokens: 1.0,
            right_so_far: 1.0,
            cost: 1.0,
        }
    }

    /// The best number of guesses of one class, at most `most`, and the rate it gives.
    pub(super) fn best(&self, source: Source, class: usize, most: usize) -> (usize, f64) {
        let mut budget = self.budget(source, most);
        let mut guesses = 0;
        while budget.add(class) {
            guesses += 1;
        }
        (guesses, budget.rate())
    }

    /// The rate of a model's steps: what is expected where each guess is as good as they are in the mean, and soon what
    /// such steps gave, because a model's guesses are no better where it is sure of many and wrong with the first.
    pub(super) fn model_rate(&self, most: usize) -> f64 {
        let sum = |of: fn(&Count) -> f64| self.model.classes.iter().map(of).sum::<f64>();
        let mean = sum(|count| count.right) / sum(|count| count.all);
        let mut budget = self.budget(Source::Model, most);
        budget.probabilities = [mean; CLASSES];
        while budget.add(0) {}
        let Some(one_row) = self.one_row.filter(|seconds| *seconds > 0.0) else {
            return budget.rate();
        };
        let (tokens, seconds) = self.model_steps;
        (EXPECTED_STEPS * budget.rate() + tokens) / (EXPECTED_STEPS + seconds / one_row)
    }

    /// Of guesses of these classes, one after the other, the first `right` were right and then one was wrong, where there
    /// is one more. What came after that one says nothing.
    pub(super) fn verified(&mut self, source: Source, classes: &[usize], right: usize) {
        let known = self.known_mut(source);
        let mut seen = [Count {
            right: 0.0,
            all: 0.0,
        }; CLASSES];
        for (index, class) in classes.iter().enumerate().take(right + 1) {
            seen[*class].all += 1.0;
            seen[*class].right += f64::from(u8::from(index < right));
        }
        for (count, seen) in known.classes.iter_mut().zip(seen) {
            if seen.all > 0.0 {
                count.right = count.right * REMAINS + seen.right;
                count.all = count.all * REMAINS + seen.all;
            }
        }
    }

    /// A step with `guesses` of a source, of which `right` were, took `time`; `None` without guesses.
    pub(super) fn took(&mut self, guesses: Option<(Source, usize)>, right: usize, time: Duration) {
        let seconds = time.as_secs_f64();
        match (guesses, self.one_row) {
            (None | Some((_, 0)), _) => self.one_row = Some(mean(self.one_row, seconds)),
            (Some((source, guesses)), Some(one)) => {
                let each = ((seconds - one) / float(guesses)).max(0.0);
                let known = self.known_mut(source);
                known.further_row = Some(mean(known.further_row, each));
            }
            (Some(_), None) => {}
        }
        if let Some((Source::Model, _)) = guesses {
            let (tokens, sum) = &mut self.model_steps;
            *tokens = *tokens * STEPS_REMAIN + 1.0 + float(right);
            *sum = *sum * STEPS_REMAIN + seconds;
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

    const SOURCES: [Source; 2] = [Source::Lookup, Source::Model];
    const CLASS: usize = 1;

    fn milliseconds(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// After many drafts of ten guesses, of which `right` were right.
    fn learned(source: Source, right: usize, one_row: u64, eleven_rows: u64) -> DraftLength {
        let mut length = DraftLength::default();
        for _ in 0..100 {
            length.took(None, 0, milliseconds(one_row));
            length.took(Some((source, 10)), right, milliseconds(eleven_rows));
            length.verified(source, &[CLASS; 10], right);
        }
        length
    }

    fn best(length: &DraftLength, source: Source, most: usize) -> usize {
        length.best(source, CLASS, most).0
    }

    #[test]
    fn the_slower_the_round_trip_the_longer_the_draft() {
        for source in SOURCES {
            let near = best(&learned(source, 3, 20, 120), source, 100);
            let far = best(&learned(source, 3, 120, 220), source, 100);
            assert!(0 < near && near < far, "{near} {far}");
        }
    }

    #[test]
    fn drafts_are_as_long_as_guesses_are_right() {
        for source in SOURCES {
            let often = best(&learned(source, 9, 50, 100), source, 100);
            let seldom = best(&learned(source, 1, 50, 100), source, 100);
            assert!(seldom < often, "{seldom} {often}");
            let always = learned(source, 10, 50, 51);
            assert_eq!(best(&always, source, 100), MOST);
            assert_eq!(best(&always, source, 4), 4);
        }
    }

    #[test]
    fn rows_that_cost_as_much_as_steps_are_not_guessed() {
        for source in SOURCES {
            assert_eq!(best(&learned(source, 5, 10, 110), source, 100), 0);
        }
    }

    #[test]
    fn the_best_number_gives_the_most_tokens_a_second() {
        let length = learned(Source::Lookup, 4, 40, 80);
        let Count { right, all } = length.lookup.classes[CLASS];
        let probability = right / all;
        let rate = |guesses: i32| {
            let tokens: f64 = (0..=guesses).map(|power| probability.powi(power)).sum();
            tokens / f64::from(40 + 4 * guesses)
        };
        let expected = (0..=32).max_by(|a, b| rate(*a).total_cmp(&rate(*b)));
        let found = best(&length, Source::Lookup, 32);
        assert_eq!(i32::try_from(found).ok(), expected);
    }

    #[test]
    fn classes_and_sources_are_learned_apart() {
        let mut length = DraftLength::default();
        let (weak, strong) = (class_of_match(1), class_of_match(9));
        for _ in 0..50 {
            length.verified(Source::Lookup, &[weak], 0);
        }
        assert_eq!(length.best(Source::Lookup, weak, 8).0, 0);
        assert!(length.best(Source::Lookup, strong, 8).0 > 0);
        assert!(length.model_rate(8) > 1.0);
        for class in 0..CLASSES {
            for _ in 0..200 {
                length.verified(Source::Model, &[class], 0);
            }
        }
        assert!(length.model_rate(8) <= 1.0);
    }

    #[test]
    fn a_model_is_worth_what_its_steps_gave() {
        let mut length = DraftLength::default();
        length.took(None, 0, milliseconds(50));
        let expected = length.model_rate(8);
        let steps = |length: &mut DraftLength, right: usize| {
            for _ in 0..50 {
                length.took(Some((Source::Model, 4)), right, milliseconds(75));
            }
            length.model_rate(8)
        };
        let poor = steps(&mut length, 0);
        assert!(poor < 1.0 && poor < expected, "{poor} {expected}");
        let good = steps(&mut length, 4);
        assert!(
            (2.5..=3.5).contains(&good),
            "five tokens in 1.5 steps' time: {good}"
        );
    }

    #[test]
    fn a_guess_that_is_unlikely_ends_a_draft() {
        let mut length = DraftLength::default();
        let (sure, unsure) = (class_of_confidence(0.99), class_of_confidence(0.01));
        for _ in 0..50 {
            length.verified(Source::Model, &[sure, sure, unsure], 2);
        }
        let mut budget = length.budget(Source::Model, 8);
        assert!(budget.add(sure) && budget.add(sure));
        assert!(!budget.add(unsure));
        assert!(budget.add(sure), "what was refused cost nothing");
    }
}
