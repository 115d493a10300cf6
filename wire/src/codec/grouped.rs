//! The integer codecs: groups of columns with a scale each, after the row's outliers.

use super::Codec;
use super::group::{self, Place};
use super::outliers::{self, OUTLIER_BYTES, Outliers};
use super::reader::Reader;
use crate::error::CodecError;

/// The largest magnitude held: leaves room above for `minimum + scale * code` to stay finite.
pub(super) const MAGNITUDE_MAX: f32 = f32::from_bits((127 + 120) << 23);

/// Bits of one code.
#[derive(Clone, Copy)]
pub(super) enum Width {
    Eight,
    Four,
}

impl Width {
    /// Scale, and for int4 the minimum.
    fn header_bytes(self) -> usize {
        match self {
            Self::Eight => 2,
            Self::Four => 4,
        }
    }

    fn codes_bytes(self, columns: usize) -> usize {
        match self {
            Self::Eight => columns,
            Self::Four => columns.div_ceil(2),
        }
    }

    fn codec(self, group_size: u16) -> Codec {
        match self {
            Self::Eight => Codec::Int8 { group_size },
            Self::Four => Codec::Int4 { group_size },
        }
    }
}

/// The least and the most bytes of one row.
pub(super) fn row_bytes(width: Width, group_size: u16, columns: usize) -> (usize, usize) {
    let group_size = usize::from(group_size).max(1);
    let (full_groups, rest) = (columns / group_size, columns % group_size);
    let group_bytes = |columns| width.header_bytes() + width.codes_bytes(columns);
    let rest_bytes = if rest == 0 { 0 } else { group_bytes(rest) };
    let min_bytes = full_groups
        .saturating_mul(group_bytes(group_size))
        .saturating_add(2 + rest_bytes);
    (
        min_bytes,
        min_bytes.saturating_add(outliers::max_count(columns) * OUTLIER_BYTES),
    )
}

pub(super) fn encode(
    width: Width,
    group_size: u16,
    hidden_states: &[f32],
    columns: u16,
) -> Result<Vec<u8>, CodecError> {
    let codec = width.codec(group_size);
    let columns = usize::from(columns);
    let rows = hidden_states.len() / columns;
    let mut data = Vec::with_capacity(codec.encoded_bytes_max(rows, columns));
    let mut outliers = Outliers::default();
    let mut masked = vec![0.0; columns];
    let mut codes = Vec::with_capacity(usize::from(group_size) + 1);
    for (row, values) in hidden_states.chunks_exact(columns).enumerate() {
        let magnitude_sum = check_row(codec, row, values)?;
        let chosen = outliers.choose(values, magnitude_sum);
        outliers::write(chosen, &mut data);
        masked.copy_from_slice(values);
        for (column, _) in chosen {
            // NaN loses every comparison and becomes the code 0, so an outlier moves no scale.
            masked[usize::from(*column)] = f32::NAN;
        }
        for group in masked.chunks(group_size.into()) {
            match width {
                Width::Eight => group::encode_int8(group, &mut data),
                Width::Four => group::encode_int4(group, &mut codes, &mut data),
            }
        }
    }
    Ok(data)
}

/// Decodes `rows` rows of `columns` columns; [`super::check_shape`] has bounded both by the data's size.
pub(super) fn decode(
    width: Width,
    group_size: u16,
    data: &[u8],
    rows: usize,
    columns: usize,
) -> Result<Vec<f32>, CodecError> {
    let mut reader = Reader::new(data);
    let mut outliers = Outliers::default();
    let mut hidden_states = vec![0.0; rows * columns];
    for (row, values) in hidden_states.chunks_exact_mut(columns).enumerate() {
        let listed = outliers.read(&mut reader, row, columns)?;
        for (group, values) in values.chunks_mut(group_size.into()).enumerate() {
            let codes_bytes = width.codes_bytes(values.len());
            let place = Place { row, group };
            match width {
                Width::Eight => {
                    let scale = reader.take_array(row)?;
                    group::decode_int8(place, scale, reader.take(row, codes_bytes)?, values)?;
                }
                Width::Four => {
                    let (scale, minimum) = (reader.take_array(row)?, reader.take_array(row)?);
                    group::decode_int4(
                        place,
                        (scale, minimum),
                        reader.take(row, codes_bytes)?,
                        values,
                    )?;
                }
            }
        }
        for (column, value) in listed {
            values[usize::from(*column)] = *value;
        }
    }
    reader.finish()?;
    Ok(hidden_states)
}

/// Refuses what the codec cannot hold; returns the sum of the magnitudes.
pub(super) fn check_row(codec: Codec, row: usize, values: &[f32]) -> Result<f64, CodecError> {
    // Eight independent sums: vector code, in an order that is the same on every machine.
    let mut sums = [0.0_f64; 8];
    let mut holds = true;
    let (chunks, rest) = values.as_chunks::<8>();
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(value.abs());
            holds &= value.abs() <= MAGNITUDE_MAX;
        }
    }
    for (sum, value) in sums.iter_mut().zip(rest) {
        *sum += f64::from(value.abs());
        holds &= value.abs() <= MAGNITUDE_MAX;
    }
    if holds {
        return Ok(sums.iter().sum());
    }
    // NaN fails the comparison above as well as every greater magnitude does.
    let first = values
        .iter()
        .enumerate()
        .find(|(_, value)| value.is_nan() || value.abs() > MAGNITUDE_MAX);
    let (column, got) = first.map_or((0, f32::NAN), |(column, value)| (column, *value));
    if got.is_finite() {
        Err(CodecError::OutOfRange {
            codec,
            row,
            column,
            max: MAGNITUDE_MAX,
            got,
        })
    } else {
        Err(CodecError::NotFinite { row, column, got })
    }
}
