//! A session whose tail goes on by itself: each token that it samples is the next row, until the device's word ends.
//!
//! Where no layers run on the device, what it would send for a token is the very id that it has just been told. So it says
//! once how far the tail may go, and tokens cost it no round trip.

use std::time::Instant;

use headway_model::sampler::Sampled;
use headway_wire::message::{FreeRun, Step, TokenIds, step};

use super::guesser::Guesser;

/// How far the tail may go, and where it is.
#[derive(Default)]
pub(super) struct FreeRunning {
    granted: FreeRun,
    /// The position and the token whose row is next; `None` while a step is computed, and after one that sampled nothing.
    next: Option<(u32, u32)>,
    /// `None` where the tail guesses nothing, or the session's rows are not known here.
    guesser: Option<Guesser>,
}

impl FreeRunning {
    /// With guesses of the tail's own.
    pub(super) fn guessing(guesser: Guesser) -> Self {
        Self {
            guesser: Some(guesser),
            ..Self::default()
        }
    }

    /// What the device says now takes the place of what it said before.
    pub(super) fn set(&mut self, granted: FreeRun) {
        self.granted = granted;
    }

    /// A step is being computed.
    pub(super) fn taken(&mut self, step: &Step) {
        self.next = None;
        if let Some((guesser, step::Input::TokenIds(token_ids))) =
            self.guesser.as_mut().zip(step.input.as_ref())
        {
            guesser.taken(step.position as usize, &token_ids.ids);
        }
    }

    /// A result gave these tokens, the last of them at the position `positions`.
    pub(super) fn given(&mut self, positions: usize, sampled: &[Sampled], now: Instant) {
        let token_ids = sampled.iter().map(|sampled| sampled.token_id);
        if let Some(guesser) = &mut self.guesser {
            guesser.answered(positions, token_ids, now);
        }
        // Bounded by the session's `max_positions`, which came as a u32.
        let position = u32::try_from(positions).unwrap_or(u32::MAX);
        self.next = sampled.last().map(|sampled| (position, sampled.token_id));
    }

    /// The step of the token that was sampled last, where it may be taken, with at most `most` guesses behind it.
    pub(super) fn next_step(&mut self, most: usize, now: Instant) -> Option<Step> {
        let FreeRun {
            until_position,
            stop_token_ids,
        } = &self.granted;
        let (position, token_id) = self.next?;
        if position >= *until_position || stop_token_ids.contains(&token_id) {
            return None;
        }
        // Each guess is a row, too.
        let most = most.min((until_position - position - 1) as usize);
        let guesses = self.guesser.as_mut().map_or_else(Vec::new, |guesser| {
            guesser.guess(position as usize, token_id, most, stop_token_ids, now)
        });
        let ids = [&[token_id], &guesses[..]].concat();
        Some(Step {
            position,
            input: Some(step::Input::TokenIds(TokenIds { ids })),
            sample: true,
            draft: (!guesses.is_empty()).then_some(TokenIds { ids: guesses }),
            ..Step::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(until_position: u32) -> FreeRunning {
        let mut running = FreeRunning::default();
        running.set(FreeRun {
            until_position,
            stop_token_ids: vec![2],
        });
        running
    }

    fn given(running: &mut FreeRunning, positions: usize, token_ids: &[u32]) {
        let sampled = |token_id: &u32| Sampled {
            token_id: *token_id,
            logprob: None,
            top_logprobs: Vec::new(),
        };
        let sampled: Vec<Sampled> = token_ids.iter().map(sampled).collect();
        running.given(positions, &sampled, Instant::now());
    }

    fn next(running: &mut FreeRunning) -> Option<(u32, u32)> {
        let step = running.next_step(8, Instant::now())?;
        let Some(step::Input::TokenIds(TokenIds { ids })) = step.input else {
            return None;
        };
        assert!(step.sample);
        Some((step.position, ids[0]))
    }

    #[test]
    fn each_token_is_the_next_row_until_the_position_that_was_said() {
        let mut running = running(8);
        assert_eq!(next(&mut running), None, "nothing was sampled yet");
        given(&mut running, 6, &[9]);
        assert_eq!(next(&mut running), Some((6, 9)));
        running.taken(&Step::default());
        assert_eq!(next(&mut running), None, "it is being computed");
        given(&mut running, 7, &[4]);
        assert_eq!(next(&mut running), Some((7, 4)));
        given(&mut running, 8, &[5]);
        assert_eq!(next(&mut running), None);
        running.set(FreeRun {
            until_position: 9,
            stop_token_ids: Vec::new(),
        });
        assert_eq!(
            next(&mut running),
            Some((8, 5)),
            "a later word goes on from there"
        );
    }

    #[test]
    fn guesses_are_rows_that_the_device_has_allowed() {
        let mut running = FreeRunning::guessing(Guesser::new(0));
        let text = [5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6];
        running.taken(&Step {
            input: Some(step::Input::TokenIds(TokenIds { ids: text.to_vec() })),
            ..Step::default()
        });
        given(&mut running, 12, &[7]);
        for (until_position, expected) in [(14, &[8][..]), (15, &[8, 9]), (13, &[])] {
            running.set(FreeRun {
                until_position,
                stop_token_ids: vec![2],
            });
            let step = running.next_step(8, Instant::now()).unwrap();
            let Some(step::Input::TokenIds(TokenIds { ids })) = step.input else {
                panic!("token ids");
            };
            assert_eq!(ids, [&[7], expected].concat());
            let draft = step.draft.map_or_else(Vec::new, |draft| draft.ids);
            assert_eq!(draft, expected);
        }
    }

    #[test]
    fn a_token_that_stops_is_no_row() {
        let mut running = running(8);
        given(&mut running, 6, &[2]);
        assert_eq!(next(&mut running), None);
    }

    #[test]
    fn without_a_word_the_tail_waits() {
        let mut running = FreeRunning::default();
        given(&mut running, 6, &[9]);
        assert_eq!(next(&mut running), None);
    }
}
