//! How many tokens to guess.
//!
//! Let a guess be right with probability `p`, independently of those before it, a step of one row take `t`, and each
//! further row `b`. A step with `n` guesses gives `1 + p + p² + … + pⁿ` tokens (the right ones, and the one that the
//! tail samples after them) in `t + n·b`. The `n` with the most tokens a second is taken; 0 where that is none.
//!
//! `p` is learned for each length of the match that a guess is founded on, and forgets slowly, because a text changes;
//! `t` and `b` are running means of what steps took here, over whatever link and tail there is.

use std::time::Duration;

/// Guesses of a step at most. Behind so many, few are right even where each is with 0.95.
const MOST: usize = 32;
/// What a further row costs before it is known, in steps of one row.
const USUAL_ROW_COST: f64 = 1.0 / 16.0;
/// What remains of a count when a draft is verified.
const REMAINS: f64 = 0.97;
/// The weight of a new time in the running means.
const NEW: f64 = 0.2;

/// Matches of at least so many tokens, and how many of two guesses are taken for right before any was verified.
const CLASSES: [(usize, f64); 5] = [(8, 1.8), (4, 1.7), (3, 1.5), (2, 1.2), (1, 0.7)];

/// What is known about guesses and times.
#[derive(Clone, Debug)]
pub(super) struct DraftLength {
    classes: [Count; CLASSES.len()],
    /// Seconds of a step of one row.
    one_row: Option<f64>,
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
        Self {
            classes: CLASSES.map(|(_, right)| Count { right, all: 2.0 }),
            one_row: None,
            further_row: None,
        }
    }
}

impl DraftLength {
    /// The best number of guesses founded on a match of `matched` tokens, at most `most`.
    pub(super) fn best(&self, matched: usize, most: usize) -> usize {
        let Count { right, all } = self.classes[class(matched)];
        let probability = right / all;
        let row_cost = match (self.one_row, self.further_row) {
            (Some(one), Some(further)) if one > 0.0 => further / one,
            _ => USUAL_ROW_COST,
        };
        let (mut best, mut best_rate) = (0, 1.0);
        let (mut tokens, mut right_so_far, mut cost) = (1.0, 1.0, 1.0);
        for guesses in 1..=most.min(MOST) {
            right_so_far *= probability;
            tokens += right_so_far;
            cost += row_cost;
            if tokens / cost > best_rate {
                (best, best_rate) = (guesses, tokens / cost);
            }
        }
        best
    }

    /// Of a draft's guesses `right` were right, and then one was wrong, where `is_wrong`. What came after that one
    /// says nothing.
    pub(super) fn verified(&mut self, matched: usize, right: usize, is_wrong: bool) {
        let count = &mut self.classes[class(matched)];
        let right = float(right);
        count.right = count.right * REMAINS + right;
        count.all = count.all * REMAINS + right + if is_wrong { 1.0 } else { 0.0 };
    }

    pub(super) fn took(&mut self, rows: usize, time: Duration) {
        let seconds = time.as_secs_f64();
        if rows == 1 {
            self.one_row = Some(mean(self.one_row, seconds));
        } else if let Some(one) = self.one_row {
            let each = ((seconds - one) / float(rows - 1)).max(0.0);
            self.further_row = Some(mean(self.further_row, each));
        }
    }
}

fn mean(so_far: Option<f64>, new: f64) -> f64 {
    so_far.map_or(new, |mean| mean + NEW * (new - mean))
}

fn class(matched: usize) -> usize {
    let found = CLASSES.iter().position(|(least, _)| matched >= *least);
    found.unwrap_or(CLASSES.len() - 1)
}

#[expect(clippy::cast_precision_loss, reason = "rows of a step")]
const fn float(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// After many drafts of ten guesses, of which `right` were right.
    fn learned(right: usize, one_row: u64, eleven_rows: u64) -> DraftLength {
        let mut length = DraftLength::default();
        for _ in 0..100 {
            length.took(1, milliseconds(one_row));
            length.took(11, milliseconds(eleven_rows));
            length.verified(5, right, right < 10);
        }
        length
    }

    #[test]
    fn the_slower_the_round_trip_the_longer_the_draft() {
        let near = learned(3, 20, 120).best(5, 100);
        let far = learned(3, 120, 220).best(5, 100);
        assert!(0 < near && near < far, "{near} {far}");
    }

    #[test]
    fn drafts_are_as_long_as_guesses_are_right() {
        let often = learned(9, 50, 100).best(5, 100);
        let seldom = learned(1, 50, 100).best(5, 100);
        assert!(seldom < often, "{seldom} {often}");
        assert_eq!(learned(10, 50, 51).best(5, 100), MOST);
        assert_eq!(learned(10, 50, 51).best(5, 4), 4);
    }

    #[test]
    fn rows_that_cost_as_much_as_steps_are_not_guessed() {
        assert_eq!(learned(5, 10, 110).best(5, 100), 0);
    }

    #[test]
    fn the_best_number_gives_the_most_tokens_a_second() {
        let length = learned(4, 40, 80);
        let Count { right, all } = length.classes[class(5)];
        let probability = right / all;
        let rate = |guesses: i32| {
            let tokens: f64 = (0..=guesses).map(|power| probability.powi(power)).sum();
            tokens / f64::from(40 + 4 * guesses)
        };
        let best = (0..=32).max_by(|a, b| rate(*a).total_cmp(&rate(*b)));
        assert_eq!(i32::try_from(length.best(5, 32)).ok(), best);
    }

    #[test]
    fn matches_of_other_lengths_are_learned_apart() {
        let mut length = DraftLength::default();
        for _ in 0..50 {
            length.verified(1, 0, true);
        }
        assert_eq!(length.best(1, 8), 0);
        assert!(length.best(9, 8) > 0);
    }
}
