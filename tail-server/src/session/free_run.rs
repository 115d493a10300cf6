//! A session whose tail goes on by itself: each token that it samples is the next row, until the device's word ends.
//!
//! Where no layers run on the device, what it would send for a token is the very id that it has just been told. So it says
//! once how far the tail may go, and tokens cost it no round trip.

use headway_wire::message::{FreeRun, Step, TokenIds, step};

/// How far the tail may go, and where it is.
#[derive(Default)]
pub(super) struct FreeRunning {
    granted: FreeRun,
    /// The position and the token whose row is next; `None` while a step is computed, and after one that sampled nothing.
    next: Option<(u32, u32)>,
}

impl FreeRunning {
    /// What the device says now takes the place of what it said before.
    pub(super) fn set(&mut self, granted: FreeRun) {
        self.granted = granted;
    }

    /// A step is being computed.
    pub(super) fn taken(&mut self) {
        self.next = None;
    }

    /// A result gave this token at this position.
    pub(super) fn given(&mut self, position: usize, token_id: Option<u32>) {
        // Bounded by the session's `max_positions`, which came as a u32.
        let position = u32::try_from(position).unwrap_or(u32::MAX);
        self.next = token_id.map(|token_id| (position, token_id));
    }

    /// The step of the token that was sampled last, where it may be taken.
    pub(super) fn next_step(&self) -> Option<Step> {
        let FreeRun {
            until_position,
            stop_token_ids,
        } = &self.granted;
        let (position, token_id) = self.next?;
        let goes_on = position < *until_position && !stop_token_ids.contains(&token_id);
        goes_on.then(|| Step {
            position,
            input: Some(step::Input::TokenIds(TokenIds {
                ids: vec![token_id],
            })),
            sample: true,
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

    fn next(running: &FreeRunning) -> Option<(u32, u32)> {
        let step = running.next_step()?;
        let Some(step::Input::TokenIds(TokenIds { ids })) = step.input else {
            return None;
        };
        assert!(step.sample);
        Some((step.position, ids[0]))
    }

    #[test]
    fn each_token_is_the_next_row_until_the_position_that_was_said() {
        let mut running = running(8);
        assert_eq!(next(&running), None, "nothing was sampled yet");
        running.given(6, Some(9));
        assert_eq!(next(&running), Some((6, 9)));
        running.taken();
        assert_eq!(next(&running), None, "it is being computed");
        running.given(7, Some(4));
        assert_eq!(next(&running), Some((7, 4)));
        running.given(8, Some(5));
        assert_eq!(next(&running), None);
        running.set(FreeRun {
            until_position: 9,
            stop_token_ids: Vec::new(),
        });
        assert_eq!(
            next(&running),
            Some((8, 5)),
            "a later word goes on from there"
        );
    }

    #[test]
    fn a_token_that_stops_is_no_row() {
        let mut running = running(8);
        running.given(6, Some(2));
        assert_eq!(next(&running), None);
    }

    #[test]
    fn without_a_word_the_tail_waits() {
        let mut running = FreeRunning::default();
        running.given(6, Some(9));
        assert_eq!(next(&running), None);
    }
}
