//! The activations that a session has made, kept to send them again.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use headway_wire::message::Activations;
use headway_wire::{Codec, codec};

use crate::rows::wire_u32;

/// Encoded rows from one position on, without gaps, within a bound.
///
/// What comes after the bound was reached is not kept: those rows are computed again. The first rows are
/// kept rather than the last ones, because the rows after them can be computed again from the KV cache
/// that this device still has.
#[derive(Debug)]
pub(crate) struct ReplayBuffer {
    codec: Codec,
    /// The first position that is kept.
    start: usize,
    steps: Vec<Recorded>,
    max_bytes: usize,
    bytes: usize,
    is_full: bool,
}

/// Rows as they were made, in one go.
#[derive(Debug)]
struct Recorded {
    position: usize,
    activations: Activations,
}

impl Recorded {
    /// One past the last position.
    fn end(&self) -> usize {
        self.position + self.activations.rows as usize
    }

    /// The bytes of the positions in `range` that are here. The integer codecs' rows have no fixed size: where a
    /// cut goes between two of them is found by passing over those before it.
    fn bytes_of(&self, range: &Range<usize>, codec: Codec) -> Bytes {
        let Self {
            position,
            activations,
        } = self;
        let skipped = range.start.saturating_sub(*position);
        let taken = range.end.min(self.end()) - position - skipped;
        if taken == activations.rows as usize {
            return activations.data.clone();
        }
        let mut sizes = codec::encoded_rows(activations, codec).map(<[u8]>::len);
        let start: usize = sizes.by_ref().take(skipped).sum();
        let end = start + sizes.take(taken).sum::<usize>();
        activations.data.slice(start..end)
    }
}

/// What keeping one step costs beside its data.
const STEP_OVERHEAD_BYTES: usize = size_of::<Recorded>();

impl ReplayBuffer {
    /// For rows from position `start` on that are encoded with `codec`.
    pub(crate) fn new(codec: Codec, start: usize, max_bytes: usize) -> Self {
        Self {
            codec,
            start,
            steps: Vec::new(),
            max_bytes,
            bytes: 0,
            is_full: false,
        }
    }

    /// Keeps the rows from `position` on, if they continue what is kept and fit.
    pub(crate) fn record(&mut self, position: usize, activations: &Activations) {
        if self.is_full || position != self.end() {
            return;
        }
        if !self.has_room(activations.data.len()) {
            self.is_full = true;
            return;
        }
        self.bytes += activations.data.len() + STEP_OVERHEAD_BYTES;
        self.steps.push(Recorded {
            position,
            activations: activations.clone(),
        });
    }

    /// True where a step of `data_bytes` would be kept.
    pub(crate) fn has_room(&self, data_bytes: usize) -> bool {
        let bytes = self
            .bytes
            .saturating_add(data_bytes)
            .saturating_add(STEP_OVERHEAD_BYTES);
        !self.is_full && bytes <= self.max_bytes
    }

    /// One past the last position kept.
    pub(crate) fn end(&self) -> usize {
        self.steps.last().map_or(self.start, Recorded::end)
    }

    /// The rows from `position` on, at most `max_rows`; `None` where that one is not kept.
    ///
    /// Steps are cut and joined, because rows follow each other without gaps in every codec. What was made in one
    /// step and goes up in one is not copied.
    pub(crate) fn rows_from(&self, position: usize, max_rows: usize) -> Option<Activations> {
        if position < self.start {
            return None;
        }
        let range = position..self.end().min(position.saturating_add(max_rows));
        let first = self.steps.partition_point(|step| step.end() <= position);
        let pieces: Vec<Bytes> = self.steps[first..]
            .iter()
            .take_while(|step| step.position < range.end)
            .map(|step| step.bytes_of(&range, self.codec))
            .collect();
        let data = match pieces.as_slice() {
            [] => return None,
            [one] => one.clone(),
            pieces => {
                let mut data = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
                pieces
                    .iter()
                    .for_each(|piece| data.extend_from_slice(piece));
                data.freeze()
            }
        };
        Some(Activations {
            rows: wire_u32(range.len()),
            data,
            ..self.steps[first].activations.clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One column: four bytes a row.
    fn rows(byte: u8, count: usize) -> Activations {
        Activations {
            codec: Some(Codec::F32.into()),
            rows: wire_u32(count),
            columns: 1,
            data: vec![byte; count * 4].into(),
        }
    }

    fn buffer(max_bytes: usize) -> ReplayBuffer {
        ReplayBuffer::new(Codec::F32, 0, max_bytes)
    }

    #[test]
    fn steps_are_joined_up_to_the_most_rows_of_a_step() {
        let mut replay = buffer(1 << 20);
        replay.record(0, &rows(1, 3));
        replay.record(3, &rows(2, 1));
        replay.record(4, &rows(3, 1));
        let joined = replay.rows_from(0, 4).unwrap();
        assert_eq!(
            (joined.rows, &joined.data[..]),
            (4, &[[1_u8; 12].as_slice(), &[2; 4]].concat()[..])
        );
        assert_eq!(replay.rows_from(4, 4).unwrap(), rows(3, 1));
        assert_eq!(replay.rows_from(5, 4), None);
    }

    #[test]
    fn what_lies_before_its_first_position_is_not_kept() {
        let mut replay = ReplayBuffer::new(Codec::F32, 7, 1 << 20);
        replay.record(0, &rows(0, 7));
        assert_eq!(replay.rows_from(0, 7), None);
        replay.record(7, &rows(1, 2));
        assert_eq!(replay.rows_from(6, 2), None);
        assert_eq!(replay.rows_from(7, 2), Some(rows(1, 2)));
        assert_eq!(replay.end(), 9);
    }

    #[test]
    fn beyond_its_bound_it_keeps_the_first_rows_and_no_more_bytes() {
        let max_bytes = 2 * (40 + STEP_OVERHEAD_BYTES);
        let mut replay = buffer(max_bytes);
        assert!(replay.has_room(max_bytes - STEP_OVERHEAD_BYTES));
        for step in 0..5 {
            replay.record(step * 10, &rows(0, 10));
        }
        assert_eq!(replay.end(), 20);
        assert!(replay.bytes <= max_bytes);
        // A step that would fit again leaves no gap.
        replay.record(50, &rows(0, 1));
        assert_eq!(replay.end(), 20);
        assert_eq!(replay.rows_from(20, 10), None);
        assert!(!replay.has_room(0));
    }

    #[test]
    fn rows_of_any_size_are_cut_anywhere() {
        // Large values here and there are outliers, which make a row longer.
        let columns = 128;
        let value = |row: usize, column: usize| {
            if column < row % 3 {
                1e4
            } else {
                (row + column) as f32
            }
        };
        let values = |range: Range<usize>| -> Vec<f32> {
            range
                .flat_map(|row| (0..columns).map(move |column| value(row, column)))
                .collect()
        };
        for codec in [
            Codec::F32,
            Codec::Bf16,
            Codec::Int8 { group_size: 32 },
            Codec::Int4 { group_size: 32 },
            Codec::Tcq4,
        ] {
            let encoded =
                |range: Range<usize>| codec::encode(codec, &values(range), columns).unwrap();
            let mut replay = ReplayBuffer::new(codec, 0, 1 << 20);
            replay.record(0, &encoded(0..50));
            replay.record(50, &encoded(50..51));
            replay.record(51, &encoded(51..90));
            for range in [0..50, 0..90, 3..17, 32..64, 49..52, 50..51, 60..90] {
                let cut = replay.rows_from(range.start, range.len()).unwrap();
                assert_eq!(cut, encoded(range.clone()), "{codec} {range:?}");
            }
        }
    }

    #[test]
    fn rows_recorded_twice_are_kept_once() {
        let mut replay = buffer(1 << 20);
        replay.record(0, &rows(0, 2));
        replay.record(0, &rows(0, 2));
        assert_eq!(replay.end(), 2);
    }
}
