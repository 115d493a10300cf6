//! Where the end of a sequence stood before.

/// Tokens that are compared at most: more say no more about what follows.
const MOST_MATCHED: usize = 16;

/// A place at which the sequence's last tokens stand, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// The index of the token behind it; before the sequence's end.
    pub next: usize,
    /// How many tokens are the same, at least one.
    pub matched: usize,
}

/// The longest match; of several the last one, whose surroundings are those of the answer. Goes through the sequence
/// once, which takes microseconds.
pub fn longest_match(sequence: &[u32]) -> Option<Match> {
    let mut best: Option<Match> = None;
    for next in (1..sequence.len()).rev() {
        let pairs = sequence[..next].iter().rev().zip(sequence.iter().rev());
        let matched = pairs.take(MOST_MATCHED).take_while(|(a, b)| a == b).count();
        if matched > best.map_or(0, |best| best.matched) {
            best = Some(Match { next, matched });
            if matched == MOST_MATCHED {
                break;
            }
        }
    }
    best
}

impl Match {
    /// The first `count` tokens that followed in `sequence`; behind its end, those that were taken before follow.
    #[must_use]
    pub fn following(self, sequence: &[u32], count: usize) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(count);
        for index in self.next..self.next + count {
            let known = sequence.get(index).copied();
            tokens.push(known.unwrap_or_else(|| tokens[index - sequence.len()]));
        }
        tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_match_wins_and_of_equals_the_last() {
        let longest = longest_match(&[1, 2, 3, 9, 7, 2, 3, 8, 3, 6, 1, 2, 3]);
        let expected = Match {
            next: 3,
            matched: 3,
        };
        assert_eq!(longest, Some(expected));
        let last = longest_match(&[4, 5, 4, 6, 4]);
        let expected = Match {
            next: 3,
            matched: 1,
        };
        assert_eq!(last, Some(expected));
    }

    #[test]
    fn tokens_that_are_new_match_nothing() {
        assert_eq!(longest_match(&[]), None);
        assert_eq!(longest_match(&[1]), None);
        assert_eq!(longest_match(&[1, 2, 3]), None);
    }

    #[test]
    fn what_followed_goes_on_beyond_the_end() {
        let sequence = [1, 2, 1, 2, 1, 2];
        let found = longest_match(&sequence).unwrap();
        assert_eq!(found.following(&sequence, 5), [1, 2, 1, 2, 1]);
    }

    #[test]
    fn a_run_of_one_token_matches_itself() {
        let run = longest_match(&[7; 40]);
        let expected = Match {
            next: 39,
            matched: MOST_MATCHED,
        };
        assert_eq!(run, Some(expected));
    }
}
