//! What can be wrong with a frame or with hidden states, and the refusal that tells the peer.

use crate::codec::Codec;
use crate::limits::Limits;
use crate::message::{Refusal, RefusalCode};

/// Why bytes are not a frame that may be acted on.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The frame is larger than `max_frame_bytes`; it was not looked into.
    #[error("the frame has {got_bytes} bytes; max_frame_bytes is {max_bytes}")]
    TooLarge {
        /// The limit.
        max_bytes: usize,
        /// The frame's size.
        got_bytes: usize,
    },
    /// The bytes are not protobuf of this schema.
    #[error("the frame is not a protobuf message of this protocol")]
    Malformed(#[source] prost::DecodeError),
    /// A part without which the frame has no meaning is not there.
    #[error("{part} is missing")]
    Missing {
        /// The path of the part in the schema.
        part: &'static str,
    },
    /// The content is beyond a named limit.
    #[error("{limit} is {max}, got {got}")]
    OverLimit {
        /// The field of [`Limits`].
        limit: &'static str,
        /// Its value.
        max: u64,
        /// What the frame carries.
        got: u64,
    },
    /// A value that another version of the protocol may know.
    #[error("{field} must be {expected}, got {got}")]
    Unsupported {
        /// The path of the field in the schema.
        field: &'static str,
        /// What this version knows.
        expected: String,
        /// What the frame carries.
        got: i64,
    },
    /// A value that no version gives a meaning.
    #[error("{field} must be {expected}, got {got}")]
    InvalidValue {
        /// The path of the field in the schema.
        field: &'static str,
        /// What is valid.
        expected: String,
        /// What the frame carries, shortened where it is long.
        got: String,
    },
    /// The codec, or the shape and size of the activations.
    #[error("the activations cannot be read")]
    Activations(#[from] CodecError),
}

impl FrameError {
    /// The code under which the peer is refused.
    pub fn refusal_code(&self) -> RefusalCode {
        match self {
            Self::TooLarge { .. } | Self::OverLimit { .. } => RefusalCode::OverLimit,
            Self::Unsupported { .. } => RefusalCode::Unsupported,
            Self::Malformed(_) | Self::Missing { .. } | Self::InvalidValue { .. } => {
                RefusalCode::Malformed
            }
            Self::Activations(source) => source.refusal_code(),
        }
    }
}

/// Why hidden states cannot be encoded, or activations not decoded. Rows, columns and groups are zero-based.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CodecError {
    /// The codec's name is not one of those that [`Codec`] reads.
    #[error(
        "unknown codec {got:?}; know f32, f16, bf16, int8, int4, tcq4 and tcq3, the integers also as int8:<group size>"
    )]
    UnknownName {
        /// The name.
        got: String,
    },
    /// The codec's kind is unspecified, or from a later version of the protocol.
    #[error("unknown codec kind {got}; know 1 to 7")]
    UnknownKind {
        /// The number in the message.
        got: i32,
    },
    /// The group size does not fit the codec.
    #[error("the group size of codec {codec} must be {expected}, got {got}")]
    GroupSize {
        /// The codec's name.
        codec: &'static str,
        /// The valid sizes.
        expected: &'static str,
        /// The size given.
        got: u32,
    },
    /// The activations carry no codec.
    #[error("Activations.codec is missing")]
    MissingCodec,
    /// The activations are in another codec than the session's.
    #[error("the session's codec is {expected}, the activations are in {got}")]
    CodecMismatch {
        /// The session's.
        expected: Codec,
        /// The activations'.
        got: Codec,
    },
    /// The rows are not as long as the model's hidden size.
    #[error("expected {expected} columns, got {got}")]
    ColumnsMismatch {
        /// The model's hidden size.
        expected: usize,
        /// The activations' columns.
        got: usize,
    },
    /// There is no row, no column, or the values do not fill whole rows.
    #[error("{values} values are not one or more whole rows of {columns} columns")]
    Shape {
        /// Number of values, or of rows times columns.
        values: u64,
        /// Number of columns.
        columns: u64,
    },
    /// The shape is beyond a named limit.
    #[error("{limit} is {max}, got {got}")]
    OverLimit {
        /// The field of [`Limits`], or what the format itself bounds.
        limit: &'static str,
        /// Its value.
        max: u64,
        /// The shape's.
        got: u64,
    },
    /// The data's size cannot be that of this codec and shape.
    #[error(
        "{rows} rows of {columns} columns in {codec} take {min_bytes} to {max_bytes} bytes, got {got_bytes}"
    )]
    DataBytes {
        /// The codec.
        codec: Codec,
        /// Declared rows.
        rows: u32,
        /// Declared columns.
        columns: u32,
        /// Least possible size.
        min_bytes: u64,
        /// Greatest possible size.
        max_bytes: u64,
        /// The data's size.
        got_bytes: u64,
    },
    /// The data ends within a row.
    #[error("row {row} needs {expected_bytes} more bytes, {got_bytes} are left")]
    MissingBytes {
        /// The row.
        row: usize,
        /// Bytes that its next part has.
        expected_bytes: usize,
        /// Bytes left.
        got_bytes: usize,
    },
    /// The data goes on after the last row.
    #[error("the rows end after {expected_bytes} bytes, got {got_bytes}")]
    TrailingBytes {
        /// Bytes that the rows have.
        expected_bytes: usize,
        /// The data's size.
        got_bytes: usize,
    },
    /// A value is NaN or infinite.
    #[error("row {row}, column {column} is not finite: {got}")]
    NotFinite {
        /// The value's row.
        row: usize,
        /// The value's column.
        column: usize,
        /// The value.
        got: f32,
    },
    /// A value is too large for the codec, which would have to falsify it.
    #[error("row {row}, column {column} is {got}; {codec} holds magnitudes to {max}")]
    OutOfRange {
        /// The codec.
        codec: Codec,
        /// The value's row.
        row: usize,
        /// The value's column.
        column: usize,
        /// The codec's greatest magnitude.
        max: f32,
        /// The value.
        got: f32,
    },
    /// A row lists more outliers than its length allows.
    #[error("row {row} lists {got} outliers; at most {max} are allowed")]
    OutlierCount {
        /// The row.
        row: usize,
        /// The most that a row of this length may list.
        max: usize,
        /// The list's length.
        got: usize,
    },
    /// The columns of a row's outliers do not rise, or leave the row.
    #[error("row {row} lists an outlier at column {got}; it must be in {min}..{columns}")]
    OutlierColumn {
        /// The row.
        row: usize,
        /// One more than the column before it in the list.
        min: usize,
        /// The row's length.
        columns: usize,
        /// The column.
        got: usize,
    },
    /// A group's scale is negative, not finite or too large, or its minimum not finite or too large.
    #[error("row {row}, group {group} has a {part} of {got}")]
    GroupHeader {
        /// The row.
        row: usize,
        /// The group within its row.
        group: usize,
        /// `scale` or `minimum`.
        part: &'static str,
        /// Its value.
        got: f32,
    },
    /// A quantised value that no encoder writes: -128 in int8, or a used half of int4's padding.
    #[error("row {row}, group {group} holds a code that the codec does not have")]
    GroupCode {
        /// The row.
        row: usize,
        /// The group within its row.
        group: usize,
    },
    /// Bits of tcq4 or tcq3 that are an integer beyond the largest.
    #[error("row {row}, column {column} holds a code that the codec does not have")]
    Code {
        /// The row.
        row: usize,
        /// The column.
        column: usize,
    },
    /// A row of tcq4 or tcq3 whose last byte is not filled up with zeros.
    #[error("the bits behind the last code of row {row} are not 0")]
    Padding {
        /// The row.
        row: usize,
    },
}

impl CodecError {
    /// The code under which the peer is refused.
    pub fn refusal_code(&self) -> RefusalCode {
        match self {
            Self::OverLimit { .. } => RefusalCode::OverLimit,
            Self::UnknownName { .. } | Self::UnknownKind { .. } => RefusalCode::Unsupported,
            _ => RefusalCode::Malformed,
        }
    }
}

impl Refusal {
    /// A refusal without a retry. A message beyond the default `max_text_bytes` is cut, so that the peer
    /// does not refuse the refusal.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        let mut message = message.into();
        let max_text_bytes = Limits::default().max_text_bytes;
        message.truncate(message.floor_char_boundary(max_text_bytes));
        Self {
            code: code.into(),
            message,
            retry_after_ms: None,
        }
    }

    /// Says after how long a later try can succeed.
    #[must_use]
    pub fn with_retry_after_ms(self, retry_after_ms: u32) -> Self {
        Self {
            retry_after_ms: Some(retry_after_ms),
            ..self
        }
    }
}

impl From<&FrameError> for Refusal {
    fn from(error: &FrameError) -> Self {
        let message = match error {
            FrameError::Malformed(source) => format!("{error}: {source}"),
            FrameError::Activations(source) => format!("{error}: {source}"),
            _ => error.to_string(),
        };
        Self::new(error.refusal_code(), message)
    }
}

impl From<&CodecError> for Refusal {
    fn from(error: &CodecError) -> Self {
        Self::new(error.refusal_code(), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_refusal_is_cut_between_characters() {
        let refusal = Refusal::new(RefusalCode::Internal, "€".repeat(2000));
        assert!(refusal.message.len() <= Limits::default().max_text_bytes);
        assert!(refusal.message.chars().all(|character| character == '€'));
    }

    #[test]
    fn a_refusal_names_the_innermost_cause() {
        let error = FrameError::from(CodecError::UnknownKind { got: 9 });
        let refusal = Refusal::from(&error);
        assert_eq!(refusal.code(), RefusalCode::Unsupported);
        assert!(
            refusal.message.contains("unknown codec kind 9"),
            "{}",
            refusal.message
        );
    }
}
