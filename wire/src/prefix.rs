//! Digests of what a session sends, by which a tail finds keys and values that it holds already.
//!
//! A digest covers everything from position 0 to the end of a block of [`PREFIX_BLOCK_POSITIONS`] positions:
//!
//! ```text
//! digest[0] = SHA-256(start     ‖ rows of block 0)
//! digest[i] = SHA-256(digest[i-1] ‖ rows of block i)
//! start     = SHA-256("headway prefix 1\0" ‖ split layer, u32 ‖ codec kind, u32 ‖ group size, u32)
//! ```
//!
//! Numbers are little-endian. A row is the bytes of its encoded activations, or its token id as u32 where token
//! ids go up (codec kind and group size are 0 then).
//!
//! A session that begins with token ids beside head layers (`Opened.prefill_token_ids`) is digested as one with
//! split layer 0, and no further than its token ids go: the blocks of those are the same in both, and behind them the
//! tail lacks the keys and values of the layers below the split.
//!
//! The tail computes the digests of what it *receives*, and finds by them what it has computed from those very
//! bytes. So a reused prefix gives the same answer, bit for bit, as a prefix that was sent, whatever
//! quantisation or machine made the rows; and no device can put one content under the digest of another, as long
//! as the tail takes no offered digest on trust: it must find a block only behind the very block that it was
//! computed behind, and in the codec that it came in. Who offers a digest learns whether its own tenant has sent
//! that content before, and nothing of other tenants: the tail looks among the prefixes of one tenant only.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::codec::Codec;
use crate::message;

/// Positions that one digest covers more than the one before it.
pub const PREFIX_BLOCK_POSITIONS: usize = 32;

/// Bytes of a digest.
pub const PREFIX_DIGEST_BYTES: usize = 32;

/// SHA-256 over a session's rows from its first one on.
pub type PrefixDigest = [u8; PREFIX_DIGEST_BYTES];

/// Digests a session's rows as they come.
#[derive(Clone, Debug)]
pub struct PrefixHasher {
    block: Sha256,
    rows: usize,
}

impl PrefixHasher {
    /// Of a session with this `Open.split_layer` and `Open.codec`; no codec: token ids go up.
    #[must_use]
    pub fn new(split_layer: u32, codec: Option<Codec>) -> Self {
        let codec = codec.map(message::Codec::from).unwrap_or_default();
        let mut start = Sha256::new_with_prefix(b"headway prefix 1\0");
        start.update(split_layer.to_le_bytes());
        start.update(codec.kind.to_le_bytes());
        start.update(codec.group_size.to_le_bytes());
        Self {
            block: Sha256::new_with_prefix(start.finalize()),
            rows: 0,
        }
    }

    /// Takes the next position's row. Returns the digest of all rows so far where it completes a block.
    pub fn push(&mut self, row: &[u8]) -> Option<PrefixDigest> {
        self.block.update(row);
        self.rows += 1;
        if !self.rows.is_multiple_of(PREFIX_BLOCK_POSITIONS) {
            return None;
        }
        let digest: PrefixDigest = self.block.finalize_reset().into();
        self.block.update(digest);
        Some(digest)
    }

    /// Goes on behind a prefix that was not sent, because the tail holds it: `blocks` blocks, the last of which
    /// has this digest.
    pub fn skip_to(&mut self, blocks: usize, digest: &PrefixDigest) {
        self.block = Sha256::new_with_prefix(digest);
        self.rows = blocks * PREFIX_BLOCK_POSITIONS;
    }
}

/// The digests of an `Open.prefix_digests` whose form [`crate::frame`] has checked.
pub fn digests(bytes: &Bytes) -> impl ExactSizeIterator<Item = &PrefixDigest> {
    bytes.as_chunks().0.iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests_of(hasher: &mut PrefixHasher, rows: std::ops::Range<u32>) -> Vec<PrefixDigest> {
        rows.filter_map(|row| hasher.push(&row.to_le_bytes()))
            .collect()
    }

    #[test]
    fn each_block_has_a_digest_that_covers_all_before_it() {
        let mut hasher = PrefixHasher::new(3, Some(Codec::F32));
        let all = digests_of(&mut hasher, 0..100);
        assert_eq!(all.len(), 3);
        let mut other = PrefixHasher::new(3, Some(Codec::F32));
        assert_ne!(digests_of(&mut other, 1..97)[2], all[2]);
    }

    #[test]
    fn split_layer_and_codec_are_part_of_the_digest() {
        let first =
            |split_layer, codec| digests_of(&mut PrefixHasher::new(split_layer, codec), 0..32)[0];
        let codec = |group_size| Some(Codec::Int8 { group_size });
        let all = [
            first(0, None),
            first(1, None),
            first(1, Some(Codec::F32)),
            first(1, codec(32)),
            first(1, codec(64)),
        ];
        for (index, digest) in all.iter().enumerate() {
            assert!(!all[..index].contains(digest), "{index}");
        }
    }

    #[test]
    fn behind_a_prefix_that_was_not_sent_the_digests_go_on() {
        let mut whole = PrefixHasher::new(3, Some(Codec::F32));
        let all = digests_of(&mut whole, 0..96);
        let mut rest = PrefixHasher::new(3, Some(Codec::F32));
        rest.skip_to(2, &all[1]);
        assert_eq!(digests_of(&mut rest, 64..96), all[2..]);
    }

    #[test]
    fn the_formula_is_the_one_that_is_documented() {
        let mut hasher = PrefixHasher::new(7, Some(Codec::Int4 { group_size: 16 }));
        let all = digests_of(&mut hasher, 0..64);
        let mut bytes = b"headway prefix 1\0".to_vec();
        for number in [7_u32, 5, 16] {
            bytes.extend(number.to_le_bytes());
        }
        let mut digest = Sha256::digest(&bytes);
        for block in [0_u32..32, 32..64] {
            let mut bytes = digest.to_vec();
            block.for_each(|row| bytes.extend(row.to_le_bytes()));
            digest = Sha256::digest(&bytes);
        }
        assert_eq!(all[1], digest.as_slice());
    }
}
