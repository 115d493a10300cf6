//! How long a session's tokens take, from what asked for them to their leaving. Pure: moments come in.

use std::time::Instant;

use crate::metrics::TokenTime;

/// Tells a session's first token from the later ones.
pub(super) struct TokenTimes {
    opened: Instant,
    is_resumed: bool,
    has_sent: bool,
}

impl TokenTimes {
    /// `opened`: when the session's Open arrived. `is_resumed`: it goes on with an answer that another tail
    /// began, so its first token here is not the first of the answer.
    pub(super) fn new(opened: Instant, is_resumed: bool) -> Self {
        Self {
            opened,
            is_resumed,
            has_sent: false,
        }
    }

    /// What `tokens` tokens, at least one, are measured as whose step arrived at `arrived` and that were sent at
    /// `sent`; `None` for the first one of a session that was moved, whose time is that of the rebuilding.
    pub(super) fn sent(
        &mut self,
        tokens: usize,
        arrived: Instant,
        sent: Instant,
    ) -> Option<TokenTime> {
        let is_first = !std::mem::replace(&mut self.has_sent, true);
        match (is_first, self.is_resumed) {
            (true, true) => None,
            (true, false) => Some(TokenTime::First(
                sent.saturating_duration_since(self.opened),
            )),
            (false, _) => Some(TokenTime::Later {
                took: sent.saturating_duration_since(arrived),
                tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Two tokens: steps that arrive 1 s and 2 s after the Open and take 100 ms each.
    fn times(is_resumed: bool) -> [Option<TokenTime>; 2] {
        let opened = Instant::now();
        let mut times = TokenTimes::new(opened, is_resumed);
        [1000, 2000].map(|ms| {
            let arrived = opened + Duration::from_millis(ms);
            times.sent(1, arrived, arrived + Duration::from_millis(100))
        })
    }

    #[test]
    fn the_first_token_counts_from_the_open_and_later_ones_from_their_step() {
        let first = TokenTime::First(Duration::from_millis(1100));
        let later = TokenTime::Later {
            took: Duration::from_millis(100),
            tokens: 1,
        };
        assert_eq!(times(false), [Some(first), Some(later)]);
    }

    #[test]
    fn the_rebuilding_of_a_moved_session_is_not_a_first_token() {
        let later = TokenTime::Later {
            took: Duration::from_millis(100),
            tokens: 1,
        };
        assert_eq!(times(true), [None, Some(later)]);
    }
}
