//! Digests of what a session sends, offered to a tail that may hold it already.
//!
//! A tail that finds its keys and values by them says how far they go; the session then begins there. The digests
//! are over the very rows that would be sent, so an answer that builds on them is the one that would have come
//! without them.

use bytes::{Bytes, BytesMut};
use headway_wire::prefix::PREFIX_DIGEST_BYTES;
use headway_wire::{Codec, PREFIX_BLOCK_POSITIONS, PrefixHasher};

use crate::error::TailError;

/// Digests of a session's rows from position 0 on, one for each whole block. They grow with the rows: no row is
/// digested twice.
#[derive(Debug)]
pub(crate) struct PrefixDigests {
    hasher: PrefixHasher,
    rows: usize,
    /// [`PREFIX_DIGEST_BYTES`] for each block.
    digests: BytesMut,
}

impl PrefixDigests {
    /// Of a session with this split layer, whose rows are encoded with `codec`; no codec: they are token ids.
    pub(crate) fn new(split_layer: u32, codec: Option<Codec>) -> Self {
        Self {
            hasher: PrefixHasher::new(split_layer, codec),
            rows: 0,
            digests: BytesMut::new(),
        }
    }

    /// Takes the rows at `position` and after it. Those that were taken before are passed over: a row that is
    /// computed again has the same bits.
    pub(crate) fn extend<R: AsRef<[u8]>>(
        &mut self,
        position: usize,
        rows: impl IntoIterator<Item = R>,
    ) {
        assert!(position <= self.rows, "rows are digested without gaps");
        for row in rows.into_iter().skip(self.rows - position) {
            self.rows += 1;
            if let Some(digest) = self.hasher.push(row.as_ref()) {
                self.digests.extend_from_slice(&digest);
            }
        }
    }

    /// Takes token ids from position 0 on, as [`PrefixDigests::extend`] takes rows.
    pub(crate) fn extend_token_ids(&mut self, token_ids: &[u32]) {
        let rows = token_ids[self.rows.min(token_ids.len())..].iter();
        self.extend(self.rows, rows.map(|id| id.to_le_bytes()));
    }

    /// `Open.prefix_digests` for at most the first `positions` positions.
    pub(crate) fn offer(&self, positions: usize) -> Bytes {
        let bytes = positions / PREFIX_BLOCK_POSITIONS * PREFIX_DIGEST_BYTES;
        Bytes::copy_from_slice(&self.digests[..bytes.min(self.digests.len())])
    }
}

/// How many of `sequence_len` positions can be left out: whole blocks, within the wire's limit, and not the last
/// position, after which the tail samples.
pub(crate) fn offered_positions(sequence_len: usize, max_prefix_digests: u32) -> usize {
    let blocks = sequence_len.saturating_sub(1) / PREFIX_BLOCK_POSITIONS;
    blocks.min(max_prefix_digests as usize) * PREFIX_BLOCK_POSITIONS
}

/// Where a session's first step starts: `Opened.reused_positions`, which answers an offer of `offered_bytes` bytes
/// of digests.
///
/// # Errors
/// [`TailError::Protocol`] where it is more than what was offered. The frame's check has made sure that it is a
/// number of whole blocks.
pub(crate) fn first_position(
    offered_bytes: usize,
    reused_positions: u32,
) -> Result<usize, TailError> {
    let reused = reused_positions as usize;
    let offered = offered_bytes / PREFIX_DIGEST_BYTES * PREFIX_BLOCK_POSITIONS;
    if reused <= offered {
        return Ok(reused);
    }
    let reason = format!("it says that it reuses {reused} positions; {offered} were offered");
    Err(TailError::Protocol { reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_come_again_change_no_digest() {
        let rows: Vec<[u8; 4]> = (0..100_u32).map(u32::to_le_bytes).collect();
        let mut digests = PrefixDigests::new(2, Some(Codec::F32));
        digests.extend(0, &rows[..40]);
        digests.extend(20, &rows[20..70]);
        digests.extend(10, &rows[10..30]);
        digests.extend(70, &rows[70..]);
        let mut hasher = PrefixHasher::new(2, Some(Codec::F32));
        let expected: Vec<u8> = rows
            .iter()
            .filter_map(|row| hasher.push(row))
            .flatten()
            .collect();
        assert_eq!(expected.len(), 3 * PREFIX_DIGEST_BYTES);
        assert_eq!(digests.offer(1000), expected);
    }

    #[test]
    fn an_offer_has_whole_blocks_of_what_was_asked_for() {
        let mut digests = PrefixDigests::new(0, None);
        digests.extend_token_ids(&[5; 70]);
        digests.extend_token_ids(&[5; 50]);
        let bytes = [31, 32, 63, 64, 96].map(|positions| digests.offer(positions).len());
        assert_eq!(bytes, [0, 32, 32, 64, 64]);
        digests.extend_token_ids(&[5; 96]);
        assert_eq!(digests.offer(96).len(), 96);
    }

    #[test]
    fn the_last_position_is_never_left_out() {
        let offered = [0, 1, 32, 33, 64, 65].map(|len| offered_positions(len, 1000));
        assert_eq!(offered, [0, 0, 0, 32, 32, 64]);
        assert_eq!(offered_positions(1000, 3), 96);
    }

    #[test]
    fn a_tail_reuses_no_more_than_it_was_offered() {
        let offered_bytes = 2 * PREFIX_DIGEST_BYTES;
        for reused in [0, 32, 64] {
            let start = first_position(offered_bytes, reused).unwrap();
            assert_eq!(start, reused as usize);
        }
        for reused in [96, u32::MAX] {
            let error = first_position(offered_bytes, reused).unwrap_err();
            assert!(matches!(error, TailError::Protocol { .. }), "{error}");
        }
        assert!(first_position(0, 32).is_err());
    }
}
