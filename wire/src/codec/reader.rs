//! Reads a payload front to back and says where bytes are missing or left over.

use crate::error::CodecError;

pub(super) struct Reader<'a> {
    data: &'a [u8],
    position_bytes: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self {
            data,
            position_bytes: 0,
        }
    }

    /// The next `bytes` bytes; `row` is for the error only.
    pub(super) fn take(&mut self, row: usize, bytes: usize) -> Result<&'a [u8], CodecError> {
        let rest = &self.data[self.position_bytes..];
        let missing = CodecError::MissingBytes {
            row,
            expected_bytes: bytes,
            got_bytes: rest.len(),
        };
        let taken = rest.get(..bytes).ok_or(missing)?;
        self.position_bytes += bytes;
        Ok(taken)
    }

    pub(super) fn take_array<const N: usize>(&mut self, row: usize) -> Result<[u8; N], CodecError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(row, N)?);
        Ok(array)
    }

    /// Refuses bytes that nothing has read.
    pub(super) fn finish(self) -> Result<(), CodecError> {
        let (expected_bytes, got_bytes) = (self.position_bytes, self.data.len());
        if expected_bytes == got_bytes {
            Ok(())
        } else {
            Err(CodecError::TrailingBytes {
                expected_bytes,
                got_bytes,
            })
        }
    }
}
