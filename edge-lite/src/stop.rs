//! Stop strings in a stream of text pieces.

/// Looks for stop strings across the borders of pieces, and holds back what could become one.
#[derive(Debug)]
pub(crate) struct StopStrings {
    stops: Vec<String>,
    /// The longest suffix of the text so far that some stop string starts with; shorter than that string.
    held: String,
}

/// What is known after one more piece.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Passed {
    /// Text that no stop string can claim any more.
    pub(crate) text: String,
    /// A stop string came; `text` ends before it.
    pub(crate) stopped: bool,
}

impl StopStrings {
    pub(crate) fn new(stops: Vec<String>) -> Self {
        Self {
            stops,
            held: String::new(),
        }
    }

    /// Takes the next piece. Not to be called again after a stop.
    pub(crate) fn push(&mut self, piece: &str) -> Passed {
        self.held.push_str(piece);
        if let Some(start) = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()))
            .min()
        {
            self.held.truncate(start);
            return Passed {
                text: std::mem::take(&mut self.held),
                stopped: true,
            };
        }
        let held = self
            .held
            .split_off(self.held.len() - self.possible_start_bytes());
        Passed {
            text: std::mem::replace(&mut self.held, held),
            stopped: false,
        }
    }

    /// What was held back, when nothing follows.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Length of the longest suffix of `held` that is a proper prefix of a stop string.
    fn possible_start_bytes(&self) -> usize {
        let longest = |stop: &String| {
            let most = (stop.len() - 1).min(self.held.len());
            (1..=most)
                .rev()
                .find(|&bytes| stop.is_char_boundary(bytes) && self.held.ends_with(&stop[..bytes]))
                .unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text that comes out of `pieces`, and whether it ended at a stop string.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut stop = StopStrings::new(stops.iter().map(ToString::to_string).collect());
        let mut text = String::new();
        for piece in pieces {
            let passed = stop.push(piece);
            text.push_str(&passed.text);
            if passed.stopped {
                return (text, true);
            }
        }
        text.push_str(&stop.finish());
        (text, false)
    }

    #[test]
    fn a_stop_string_across_three_pieces_is_found() {
        assert_eq!(
            run(&["END"], &["abc E", "N", "D tail"]),
            ("abc ".to_owned(), true)
        );
    }

    #[test]
    fn the_earliest_of_two_stop_strings_wins() {
        assert_eq!(run(&["dd", "b"], &["abc", "dd"]), ("a".to_owned(), true));
    }

    #[test]
    fn a_false_start_is_given_out_again() {
        let mut stop = StopStrings::new(vec!["###".to_owned()]);
        assert_eq!(
            stop.push("a##"),
            Passed {
                text: "a".to_owned(),
                stopped: false
            }
        );
        assert_eq!(
            stop.push("b"),
            Passed {
                text: "##b".to_owned(),
                stopped: false
            }
        );
    }

    #[test]
    fn a_start_within_a_start_is_still_found() {
        assert_eq!(
            run(&["aab"], &["a", "a", "a", "b", "x"]),
            ("a".to_owned(), true)
        );
    }

    #[test]
    fn characters_of_several_bytes_are_not_cut() {
        assert_eq!(
            run(&["é!"], &["caf", "é", "?"]),
            ("café?".to_owned(), false)
        );
        assert_eq!(run(&["é!"], &["caf", "é", "!"]), ("caf".to_owned(), true));
    }

    #[test]
    fn without_stop_strings_nothing_is_held_back() {
        let mut stop = StopStrings::new(Vec::new());
        assert_eq!(
            stop.push("abc"),
            Passed {
                text: "abc".to_owned(),
                stopped: false
            }
        );
        assert_eq!(stop.finish(), "");
    }

    #[test]
    fn what_was_held_back_comes_at_the_end() {
        assert_eq!(run(&["END"], &["the EN"]), ("the EN".to_owned(), false));
    }
}
