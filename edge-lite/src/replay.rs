//! The activations that a session has sent, kept to send them again.

use bytes::{Bytes, BytesMut};

/// Encoded rows from position 0 on, without gaps, within a bound.
///
/// What comes after the bound was reached is not kept: those rows are computed again. The first rows are
/// kept rather than the last ones, because the rows after them can be computed again from the KV cache
/// that this device still has.
#[derive(Debug)]
pub(crate) struct ReplayBuffer {
    steps: Vec<Recorded>,
    max_bytes: usize,
    bytes: usize,
    is_full: bool,
}

#[derive(Debug)]
struct Recorded {
    position: usize,
    rows: usize,
    data: Bytes,
}

/// What keeping one step costs beside its data.
const STEP_OVERHEAD_BYTES: usize = size_of::<Recorded>();

impl ReplayBuffer {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self {
            steps: Vec::new(),
            max_bytes,
            bytes: 0,
            is_full: false,
        }
    }

    /// Keeps `rows` rows from `position` on, if they continue what is kept and fit.
    pub(crate) fn record(&mut self, position: usize, rows: usize, data: &Bytes) {
        if self.is_full || position != self.len() {
            return;
        }
        let bytes = self
            .bytes
            .saturating_add(data.len())
            .saturating_add(STEP_OVERHEAD_BYTES);
        if bytes > self.max_bytes {
            self.is_full = true;
            return;
        }
        self.bytes = bytes;
        self.steps.push(Recorded {
            position,
            rows,
            data: data.clone(),
        });
    }

    /// Forgets every step that goes beyond `position`.
    pub(crate) fn truncate(&mut self, position: usize) {
        while let Some(step) = self
            .steps
            .pop_if(|step| step.position + step.rows > position)
        {
            self.bytes -= step.data.len() + STEP_OVERHEAD_BYTES;
            self.is_full = false;
        }
    }

    /// Number of positions kept.
    pub(crate) fn len(&self) -> usize {
        self.steps
            .last()
            .map_or(0, |step| step.position + step.rows)
    }

    /// Rows from `position` on, at most `max_rows`: their number and their bytes.
    ///
    /// Whole steps are joined, because rows follow each other without gaps in every codec; they are not
    /// cut, because the integer codecs' rows have no fixed size. `None` where no step starts at `position`,
    /// or only a longer one.
    pub(crate) fn rows_from(&self, position: usize, max_rows: usize) -> Option<(usize, Bytes)> {
        let first = self
            .steps
            .binary_search_by_key(&position, |step| step.position)
            .ok()?;
        let mut rows = 0;
        let joined: Vec<&Recorded> = self.steps[first..]
            .iter()
            .take_while(|step| {
                rows += step.rows;
                rows <= max_rows
            })
            .collect();
        let rows = joined.iter().map(|step| step.rows).sum();
        match joined.as_slice() {
            [] => None,
            [one] => Some((rows, one.data.clone())),
            steps => {
                let mut data =
                    BytesMut::with_capacity(steps.iter().map(|step| step.data.len()).sum());
                steps
                    .iter()
                    .for_each(|step| data.extend_from_slice(&step.data));
                Some((rows, data.freeze()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(byte: u8, count: usize) -> Bytes {
        vec![byte; count * 4].into()
    }

    #[test]
    fn steps_are_joined_up_to_the_most_rows_of_a_step() {
        let mut replay = ReplayBuffer::new(1 << 20);
        replay.record(0, 3, &rows(1, 3));
        replay.record(3, 1, &rows(2, 1));
        replay.record(4, 1, &rows(3, 1));
        let (count, data) = replay.rows_from(0, 4).unwrap();
        assert_eq!(
            (count, &data[..]),
            (4, &[[1_u8; 12].as_slice(), &[2; 4]].concat()[..])
        );
        assert_eq!(replay.rows_from(4, 4).unwrap(), (1, rows(3, 1)));
    }

    #[test]
    fn beyond_its_bound_it_keeps_the_first_rows_and_no_more_bytes() {
        let max_bytes = 2 * (40 + STEP_OVERHEAD_BYTES);
        let mut replay = ReplayBuffer::new(max_bytes);
        for step in 0..5 {
            replay.record(step * 10, 10, &rows(0, 10));
        }
        assert_eq!(replay.len(), 20);
        assert!(replay.bytes <= max_bytes);
        // A step that would fit again leaves no gap.
        replay.record(50, 1, &rows(0, 1));
        assert_eq!(replay.len(), 20);
        assert_eq!(replay.rows_from(20, 10), None);
    }

    #[test]
    fn a_step_longer_than_the_tail_takes_is_not_cut() {
        let mut replay = ReplayBuffer::new(1 << 20);
        replay.record(0, 8, &rows(0, 8));
        assert_eq!(replay.rows_from(0, 4), None);
    }

    #[test]
    fn truncated_steps_can_be_recorded_anew() {
        let mut replay = ReplayBuffer::new(1 << 20);
        replay.record(0, 8, &rows(1, 8));
        replay.record(8, 8, &rows(1, 8));
        replay.truncate(12);
        assert_eq!(replay.len(), 8);
        replay.record(8, 4, &rows(2, 4));
        assert_eq!(replay.rows_from(8, 4).unwrap(), (4, rows(2, 4)));
    }

    #[test]
    fn rows_recorded_twice_are_kept_once() {
        let mut replay = ReplayBuffer::new(1 << 20);
        replay.record(0, 2, &rows(0, 2));
        replay.record(0, 2, &rows(0, 2));
        assert_eq!(replay.len(), 2);
    }
}
