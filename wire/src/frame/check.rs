//! The checks that frames share. Each names the field and says what is valid and what came.

use std::ops::RangeInclusive;

use crate::PROTOCOL_VERSION;
use crate::error::FrameError;

/// Bytes of a peer's text that an error repeats.
const QUOTED_BYTES: usize = 96;

pub(super) fn protocol_version(field: &'static str, got: u32) -> Result<(), FrameError> {
    if got == PROTOCOL_VERSION {
        return Ok(());
    }
    let expected = PROTOCOL_VERSION.to_string();
    Err(FrameError::Unsupported {
        field,
        expected,
        got: got.into(),
    })
}

pub(super) fn within(
    limit: &'static str,
    max: u32,
    got: impl TryInto<u64>,
) -> Result<(), FrameError> {
    let got = got.try_into().unwrap_or(u64::MAX);
    if got <= max.into() {
        Ok(())
    } else {
        Err(FrameError::OverLimit {
            limit,
            max: max.into(),
            got,
        })
    }
}

pub(super) fn text_bytes(
    limit: &'static str,
    max_bytes: usize,
    text: &str,
) -> Result<(), FrameError> {
    if text.len() <= max_bytes {
        return Ok(());
    }
    Err(FrameError::OverLimit {
        limit,
        max: max_bytes as u64,
        got: text.len() as u64,
    })
}

/// What a trace header may carry: bytes that can go into an HTTP header and a log line as they are.
pub(super) fn printable(field: &'static str, text: &str) -> Result<(), FrameError> {
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Ok(());
    }
    Err(invalid(field, "printable ASCII", quoted(text)))
}

pub(super) fn at_least_one(field: &'static str, got: u32) -> Result<(), FrameError> {
    if got > 0 {
        Ok(())
    } else {
        Err(invalid(field, "at least 1", got))
    }
}

pub(super) fn in_range(
    field: &'static str,
    valid: RangeInclusive<f32>,
    got: f32,
) -> Result<(), FrameError> {
    // NaN is in no range.
    if valid.contains(&got) {
        return Ok(());
    }
    Err(invalid(
        field,
        format!("in {} to {}", valid.start(), valid.end()),
        got,
    ))
}

pub(super) fn finite(field: &'static str, got: f32) -> Result<(), FrameError> {
    if got.is_finite() {
        Ok(())
    } else {
        Err(invalid(field, "finite", got))
    }
}

pub(super) fn invalid(
    field: &'static str,
    expected: impl Into<String>,
    got: impl ToString,
) -> FrameError {
    FrameError::InvalidValue {
        field,
        expected: expected.into(),
        got: got.to_string(),
    }
}

/// A peer's text for an error message: escaped and not longer than a line.
pub(super) fn quoted(text: &str) -> String {
    let end = text.floor_char_boundary(QUOTED_BYTES);
    let more = if end < text.len() { "…" } else { "" };
    format!("{:?}{more}", &text[..end])
}
