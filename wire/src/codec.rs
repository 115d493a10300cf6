//! How hidden states become bytes: `[rows, columns]` f32, row-major, in one of seven codecs.
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
//! `tcq4`, `tcq3`: a row is a scale and `columns` codes.
//!
//! | bytes | what |
//! |---|---|
//! | 2 | bf16 scale, ≥ 0 |
//! | the rest | codes, from the highest bit of a byte on; the last byte is filled up with zeros |
//!
//! A code is an integer, and the value is `scale * integer`. Which integers a code can be depends on a state from 0
//! to 3, 0 before the first column: even ones in the states 0 and 1, odd ones in 2 and 3. With `b` for bit 1 of the
//! integer in two's complement, the state after it is `state / 2 + 2 * (b xor state mod 2)`. How an integer becomes
//! bits is in `trellis/prefix_code.rs`, where the two codecs differ. A row takes at most 6 bits a value behind its
//! scale.
//!
//! The encoder takes the scale as a part of the mean magnitude of the values that are no outliers: a sixth, which
//! makes 4.2 bits a value of a language model's hidden states, or a third for 3.2. Outliers need no list, a large
//! integer has a long code. No decoded value is further from its own than two scales.
//!
//! Invariant: a row stands alone. Its bytes depend on its values and the codec only, never on the rows
//! beside it, so that a replay in other chunks gives the tail the same hidden states.

mod float;
mod group;
mod grouped;
mod naming;
mod outliers;
mod reader;
#[cfg(test)]
mod tests;
mod trellis;

use crate::error::CodecError;
use crate::limits::Limits;
use crate::message::Activations;

use self::grouped::Width;
use self::trellis::Rate;

/// The group size of `int8` and `int4` where none is named.
pub const DEFAULT_GROUP_SIZE: u16 = 32;

/// How hidden states are written. Reads and prints as `f32`, `f16`, `bf16`, `int8`, `int4`, `tcq4`, `tcq3`, and
/// with a group size other than [`DEFAULT_GROUP_SIZE`] as `int8:64`.
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
    /// About 4.2 bits a value: integers on a trellis in a prefix code, and a scale for each row.
    Tcq4,
    /// As [`Codec::Tcq4`] with about 3.2 bits a value.
    Tcq3,
}

impl Codec {
    /// Whether decoding gives back the very values that were encoded.
    pub fn is_lossless(self) -> bool {
        self == Self::F32
    }

    /// The most bytes that `rows` rows of `columns` columns take; exact but for `int8` and `int4`, whose
    /// rows have between 0 and max(1, `columns` / 64) outliers of 6 bytes, and for `tcq4` and `tcq3`, whose rows
    /// have 3 to 6 and 2 to 6 bits a value.
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
            Self::Tcq4 => trellis::row_bytes(Rate::Four, columns),
            Self::Tcq3 => trellis::row_bytes(Rate::Three, columns),
        }
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
        Codec::Tcq4 => trellis::encode(Rate::Four, hidden_states, columns)?,
        Codec::Tcq3 => trellis::encode(Rate::Three, hidden_states, columns)?,
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
/// most 16 bytes for each byte of data.
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
        Codec::Tcq4 => trellis::decode(Rate::Four, &activations.data, rows, columns),
        Codec::Tcq3 => trellis::decode(Rate::Three, &activations.data, rows, columns),
    }
}

/// The bytes of each row, in order, of activations that [`decode`] has accepted.
pub fn encoded_rows(activations: &Activations, codec: Codec) -> impl Iterator<Item = &[u8]> {
    let columns = activations.columns as usize;
    let mut rest: &[u8] = &activations.data;
    std::iter::from_fn(move || {
        let (row, behind) = rest.split_at_checked(first_row_bytes(codec, rest, columns)?)?;
        rest = behind;
        (!row.is_empty()).then_some(row)
    })
}

/// Bytes of the first row of `data`; `None` behind the last one.
fn first_row_bytes(codec: Codec, data: &[u8], columns: usize) -> Option<usize> {
    let (min_bytes, _) = codec.row_bytes(columns);
    match codec {
        Codec::F32 | Codec::F16 | Codec::Bf16 => Some(min_bytes),
        Codec::Int8 { .. } | Codec::Int4 { .. } => {
            let outliers = u16::from_le_bytes(*data.first_chunk()?);
            Some(min_bytes + usize::from(outliers) * outliers::OUTLIER_BYTES)
        }
        Codec::Tcq4 => trellis::first_row_bytes(Rate::Four, data, columns),
        Codec::Tcq3 => trellis::first_row_bytes(Rate::Three, data, columns),
    }
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
