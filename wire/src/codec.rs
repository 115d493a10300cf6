//! How hidden states become bytes: `[rows, columns]` f32, row-major, in one of five codecs.
//!
//! All numbers are little-endian. Rows follow each other without gaps.
//!
//! `f32`, `f16`, `bf16`: a row is `columns` values. f32 is exact; the other two round to nearest, ties to
//! even, and refuse values that would round to infinity.
//!
//! `int8`, `int4`: a row is its outliers, then its groups.
//!
//! | bytes | what |
//! |---|---|
//! | 2 | u16, number of outliers: 0 to max(1, `columns` / 64) |
//! | 6 each | u16 column, strictly rising; f32 value, restored exactly |
//! | then per group of `group_size` columns (the row's last may be shorter): | |
//! | 2 | bf16 scale, ≥ 0 |
//! | 2, int4 only | bf16 minimum |
//! | 1 each (int8) | i8 code -127 to 127: the value is `scale * code` |
//! | ½ each (int4) | u4 code 0 to 15, the lower column in the low half: the value is `minimum + scale * code`; an odd group's last high half is 0 |
//!
//! An outlier's own code is 0 and means nothing. Scales are bf16 and not f16: with f32's exponent no group
//! is too large or too small for its scale, and rounding the scale up costs less than 1 % of the step.
//! Magnitudes to 2^120 are held, larger ones refused.
//!
//! Which values are outliers is the encoder's choice. This one takes those above eight times the mean
//! magnitude of the row's other values (about 6.4 standard deviations of a normal distribution), the largest
//! first, ties to the lower column.
//!
//! Invariant: a row stands alone. Its bytes depend on its values and the codec only, never on the rows
//! beside it, so that a replay in other chunks gives the tail the same hidden states.

mod float;
mod group;
mod grouped;
mod outliers;
mod reader;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use crate::error::CodecError;
use crate::limits::Limits;
use crate::message::{self, Activations, CodecKind};

use self::grouped::Width;

/// The group size of `int8` and `int4` where none is named.
pub const DEFAULT_GROUP_SIZE: u16 = 32;

/// How hidden states are written. Reads and prints as `f32`, `f16`, `bf16`, `int8`, `int4`, and with a group
/// size other than [`DEFAULT_GROUP_SIZE`] as `int8:64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// 32 bits a value; the only codec that loses nothing.
    F32,
    /// 16 bits a value, magnitudes to 65504.
    F16,
    /// 16 bits a value, f32's range and 8 significant bits.
    Bf16,
    /// 8 bits a value, symmetric, and a scale for each group.
    Int8 {
        /// Columns that share one scale; not 0.
        group_size: u16,
    },
    /// 4 bits a value, and a scale and a minimum for each group.
    Int4 {
        /// Columns that share one scale; not 0.
        group_size: u16,
    },
}

impl Codec {
    /// Whether decoding gives back the very values that were encoded.
    pub fn is_lossless(self) -> bool {
        self == Self::F32
    }

    /// The most bytes that `rows` rows of `columns` columns take; exact but for `int8` and `int4`, whose
    /// rows have between 0 and max(1, `columns` / 64) outliers of 6 bytes.
    pub fn encoded_bytes_max(self, rows: usize, columns: usize) -> usize {
        rows.saturating_mul(self.row_bytes(columns).1)
    }

    /// The least and the most bytes of one row.
    fn row_bytes(self, columns: usize) -> (usize, usize) {
        let fixed = |value_bytes: usize| {
            let row_bytes = columns.saturating_mul(value_bytes);
            (row_bytes, row_bytes)
        };
        match self {
            Self::F32 => fixed(4),
            Self::F16 | Self::Bf16 => fixed(2),
            Self::Int8 { group_size } => grouped::row_bytes(Width::Eight, group_size, columns),
            Self::Int4 { group_size } => grouped::row_bytes(Width::Four, group_size, columns),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 { .. } => "int8",
            Self::Int4 { .. } => "int4",
        }
    }

    /// Refuses the group size 0, which the type allows.
    fn checked(self) -> Result<Self, CodecError> {
        match self {
            Self::Int8 { group_size: 0 } | Self::Int4 { group_size: 0 } => {
                Err(CodecError::GroupSize {
                    codec: self.name(),
                    expected: GROUP_SIZES,
                    got: 0,
                })
            }
            _ => Ok(self),
        }
    }
}

const GROUP_SIZES: &str = "1 to 65535";

impl fmt::Display for Codec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Int8 { group_size } | Self::Int4 { group_size }
                if group_size != DEFAULT_GROUP_SIZE =>
            {
                write!(formatter, "{}:{group_size}", self.name())
            }
            _ => formatter.write_str(self.name()),
        }
    }
}

impl FromStr for Codec {
    type Err = CodecError;

    fn from_str(text: &str) -> Result<Self, CodecError> {
        let unknown = || CodecError::UnknownName {
            got: text.chars().take(32).collect(),
        };
        let (name, group_size) = match text.split_once(':') {
            Some((name, digits)) => (name, Some(digits.parse::<u16>().map_err(|_| unknown())?)),
            None => (text, None),
        };
        match (name, group_size) {
            ("f32", None) => Ok(Self::F32),
            ("f16", None) => Ok(Self::F16),
            ("bf16", None) => Ok(Self::Bf16),
            ("int8", _) => Self::Int8 {
                group_size: group_size.unwrap_or(DEFAULT_GROUP_SIZE),
            }
            .checked(),
            ("int4", _) => Self::Int4 {
                group_size: group_size.unwrap_or(DEFAULT_GROUP_SIZE),
            }
            .checked(),
            _ => Err(unknown()),
        }
    }
}

impl From<Codec> for message::Codec {
    fn from(codec: Codec) -> Self {
        let (kind, group_size) = match codec {
            Codec::F32 => (CodecKind::F32, 0),
            Codec::F16 => (CodecKind::F16, 0),
            Codec::Bf16 => (CodecKind::Bf16, 0),
            Codec::Int8 { group_size } => (CodecKind::Int8, group_size),
            Codec::Int4 { group_size } => (CodecKind::Int4, group_size),
        };
        Self {
            kind: kind.into(),
            group_size: group_size.into(),
        }
    }
}

impl TryFrom<message::Codec> for Codec {
    type Error = CodecError;

    fn try_from(codec: message::Codec) -> Result<Self, CodecError> {
        let unknown = CodecError::UnknownKind { got: codec.kind };
        let kind = CodecKind::try_from(codec.kind).map_err(|_| unknown.clone())?;
        let grouped = |name| {
            u16::try_from(codec.group_size).map_err(|_| CodecError::GroupSize {
                codec: name,
                expected: GROUP_SIZES,
                got: codec.group_size,
            })
        };
        let ungrouped = match kind {
            CodecKind::Unspecified => return Err(unknown),
            CodecKind::Int8 => {
                return Self::Int8 {
                    group_size: grouped("int8")?,
                }
                .checked();
            }
            CodecKind::Int4 => {
                return Self::Int4 {
                    group_size: grouped("int4")?,
                }
                .checked();
            }
            CodecKind::F32 => Self::F32,
            CodecKind::F16 => Self::F16,
            CodecKind::Bf16 => Self::Bf16,
        };
        if codec.group_size != 0 {
            let (codec, got) = (ungrouped.name(), codec.group_size);
            return Err(CodecError::GroupSize {
                codec,
                expected: "0",
                got,
            });
        }
        Ok(ungrouped)
    }
}

/// Encodes `hidden_states`, `[rows, columns]` row-major.
///
/// # Errors
/// [`CodecError::Shape`] where the values are not one or more whole rows, [`CodecError::OverLimit`] beyond
/// 65535 columns, [`CodecError::GroupSize`] for a group size of 0; [`CodecError::NotFinite`] and
/// [`CodecError::OutOfRange`] name the first value that the codec cannot hold.
pub fn encode(
    codec: Codec,
    hidden_states: &[f32],
    columns: usize,
) -> Result<Activations, CodecError> {
    let codec = codec.checked()?;
    let not_rows = CodecError::Shape {
        values: hidden_states.len() as u64,
        columns: columns as u64,
    };
    if columns == 0 || hidden_states.is_empty() || !hidden_states.len().is_multiple_of(columns) {
        return Err(not_rows);
    }
    let rows = u32::try_from(hidden_states.len() / columns).map_err(|_| not_rows)?;
    let columns = u16::try_from(columns).map_err(|_| CodecError::OverLimit {
        limit: "columns",
        max: u16::MAX.into(),
        got: columns as u64,
    })?;
    let data = match codec {
        Codec::F32 => float::encode_f32(hidden_states, columns.into())?,
        Codec::F16 => float::encode_f16(hidden_states, columns.into())?,
        Codec::Bf16 => float::encode_bf16(hidden_states, columns.into())?,
        Codec::Int8 { group_size } => {
            grouped::encode(Width::Eight, group_size, hidden_states, columns)?
        }
        Codec::Int4 { group_size } => {
            grouped::encode(Width::Four, group_size, hidden_states, columns)?
        }
    };
    Ok(Activations {
        codec: Some(codec.into()),
        rows,
        columns: columns.into(),
        data: data.into(),
    })
}

/// Decodes activations of a session whose codec is `expected` and whose model has `expected_columns` columns.
/// Returns `[rows, columns]`, row-major, f32; every value is finite.
///
/// Takes memory only after the shape has been found within `limits` and the data's size possible for it: at
/// most eight bytes for each byte of data.
///
/// # Errors
/// Any [`CodecError`] that names what the data should have been and what it is.
pub fn decode(
    activations: &Activations,
    expected: Codec,
    expected_columns: usize,
    limits: &Limits,
) -> Result<Vec<f32>, CodecError> {
    let codec = check_shape(activations, limits)?;
    if codec != expected {
        return Err(CodecError::CodecMismatch {
            expected,
            got: codec,
        });
    }
    let (rows, columns) = (activations.rows as usize, activations.columns as usize);
    if columns != expected_columns {
        return Err(CodecError::ColumnsMismatch {
            expected: expected_columns,
            got: columns,
        });
    }
    match codec {
        Codec::F32 => float::decode_f32(&activations.data, columns),
        Codec::F16 => float::decode_f16(&activations.data, columns),
        Codec::Bf16 => float::decode_bf16(&activations.data, columns),
        Codec::Int8 { group_size } => {
            grouped::decode(Width::Eight, group_size, &activations.data, rows, columns)
        }
        Codec::Int4 { group_size } => {
            grouped::decode(Width::Four, group_size, &activations.data, rows, columns)
        }
    }
}

/// The bytes of each row, in order, of activations that [`decode`] has accepted.
pub fn encoded_rows(activations: &Activations, codec: Codec) -> impl Iterator<Item = &[u8]> {
    let (row_bytes, outlier_bytes) = match codec {
        Codec::F32 | Codec::F16 | Codec::Bf16 => {
            (codec.row_bytes(activations.columns as usize).0, 0)
        }
        Codec::Int8 { .. } | Codec::Int4 { .. } => (
            codec.row_bytes(activations.columns as usize).0,
            outliers::OUTLIER_BYTES,
        ),
    };
    let mut rest: &[u8] = &activations.data;
    std::iter::from_fn(move || {
        let outliers = match (outlier_bytes, rest.first_chunk()) {
            (0, _) | (_, None) => 0,
            (_, Some(count)) => usize::from(u16::from_le_bytes(*count)),
        };
        let (row, behind) = rest.split_at_checked(row_bytes + outliers * outlier_bytes)?;
        rest = behind;
        (!row.is_empty()).then_some(row)
    })
}

/// Checks codec and shape against the limits, and the data's size against both. Reads no data, takes no memory.
pub(crate) fn check_shape(activations: &Activations, limits: &Limits) -> Result<Codec, CodecError> {
    let codec = Codec::try_from(activations.codec.ok_or(CodecError::MissingCodec)?)?;
    let Activations { rows, columns, .. } = *activations;
    let within = |limit, max: u32, got: u32| {
        let error = CodecError::OverLimit {
            limit,
            max: max.into(),
            got: got.into(),
        };
        if got > max { Err(error) } else { Ok(()) }
    };
    within("max_step_positions", limits.max_step_positions, rows)?;
    within(
        "max_columns",
        limits.max_columns.min(u16::MAX.into()),
        columns,
    )?;
    if rows == 0 || columns == 0 {
        return Err(CodecError::Shape {
            values: u64::from(rows) * u64::from(columns),
            columns: columns.into(),
        });
    }
    let (row_min, row_max) = codec.row_bytes(columns as usize);
    let min_bytes = u64::from(rows).saturating_mul(row_min as u64);
    let max_bytes = u64::from(rows).saturating_mul(row_max as u64);
    let got_bytes = activations.data.len() as u64;
    if !(min_bytes..=max_bytes).contains(&got_bytes) {
        return Err(CodecError::DataBytes {
            codec,
            rows,
            columns,
            min_bytes,
            max_bytes,
            got_bytes,
        });
    }
    Ok(codec)
}

/// Refuses the first value that is not finite. One pass without branches while all is well.
fn check_finite(values: &[f32], columns: usize) -> Result<(), CodecError> {
    if values
        .iter()
        .fold(true, |finite, value| finite & value.is_finite())
    {
        return Ok(());
    }
    match values.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(CodecError::NotFinite {
            row: at / columns,
            column: at % columns,
            got: values[at],
        }),
        None => Ok(()),
    }
}
