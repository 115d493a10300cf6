//! Bits in bytes, the highest bit of a byte first; a row's last byte is filled up with zeros.

use crate::error::CodecError;

/// Bits of a window that are always read: what remains of 64 behind up to 7 bits of a byte.
pub(super) const WINDOW_BITS: u32 = 57;

pub(super) struct BitWriter<'a> {
    data: &'a mut Vec<u8>,
    /// From the highest bit on.
    pending: u64,
    pending_bits: u32,
}

impl<'a> BitWriter<'a> {
    pub(super) fn new(data: &'a mut Vec<u8>) -> Self {
        Self {
            data,
            pending: 0,
            pending_bits: 0,
        }
    }

    /// Appends the lowest `count` bits of `bits`, the others being 0; `count` is 1 to [`WINDOW_BITS`].
    pub(super) fn push(&mut self, bits: u64, count: u32) {
        debug_assert!((1..=WINDOW_BITS).contains(&count), "{count} bits at a time");
        if count > 32 {
            self.push(bits >> 32, count - 32);
            self.push(bits & u64::from(u32::MAX), 32);
            return;
        }
        // Fewer than 32 bits are pending.
        self.pending |= bits << (64 - count) >> self.pending_bits;
        self.pending_bits += count;
        if self.pending_bits >= 32 {
            let [a, b, c, d, ..] = self.pending.to_be_bytes();
            self.data.extend_from_slice(&[a, b, c, d]);
            self.pending <<= 32;
            self.pending_bits -= 32;
        }
    }

    pub(super) fn finish(self) {
        let bytes = self.pending_bits.div_ceil(8) as usize;
        self.data
            .extend_from_slice(&self.pending.to_be_bytes()[..bytes]);
    }
}

pub(super) struct BitReader<'a> {
    data: &'a [u8],
    position_bits: usize,
}

impl<'a> BitReader<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self {
            data,
            position_bits: 0,
        }
    }

    /// The next bits from the highest bit on, at least [`WINDOW_BITS`]; zeros behind the end.
    #[inline]
    pub(super) fn window(&self) -> u64 {
        let rest = self.data.get(self.position_bits / 8..).unwrap_or(&[]);
        let bytes = match rest.first_chunk() {
            Some(bytes) => *bytes,
            None => {
                let mut bytes = [0; 8];
                bytes[..rest.len()].copy_from_slice(rest);
                bytes
            }
        };
        u64::from_be_bytes(bytes) << (self.position_bits % 8)
    }

    #[inline]
    pub(super) fn skip(&mut self, count: u32) {
        self.position_bits += count as usize;
    }

    /// The bytes that were read; refuses an end before the last bit, and bits behind it that are not 0.
    pub(super) fn finish(self, row: usize) -> Result<usize, CodecError> {
        let bytes = self.position_bits.div_ceil(8);
        let Some(read) = self.data.get(..bytes) else {
            return Err(CodecError::MissingBytes {
                row,
                expected_bytes: bytes,
                got_bytes: self.data.len(),
            });
        };
        let used_bits = self.position_bits % 8;
        match read.last() {
            Some(last) if used_bits > 0 && last << used_bits != 0 => {
                Err(CodecError::Padding { row })
            }
            _ => Ok(bytes),
        }
    }
}
