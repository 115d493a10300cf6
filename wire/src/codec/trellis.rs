//! The trellis codecs: one scale a row, integers on a four-state trellis, and a prefix code for them.
//!
//! Trellis-coded quantisation (Marcellin and Fischer, 1990; with entropy coding as in Joshi, Crump and Fischer,
//! 1995): a state allows either the even or the odd integers, so a code costs the bits of a grid twice as coarse as
//! the one that the path through the states can reach. That is worth about 0.9 dB, and the prefix code about 3 dB,
//! over four bits for each value of a normal distribution.

mod bits;
mod prefix_code;
mod search;

use half::bf16;

use super::Codec;
use super::group::{self, Place};
use super::grouped;
use super::outliers;
use crate::error::CodecError;

use self::bits::{BitReader, BitWriter, WINDOW_BITS};
use self::prefix_code::PrefixCode;

/// Bytes of the scale.
const SCALE_BYTES: usize = 2;
/// No row takes more bits a value; the encoder coarsens the scale of one that would.
const MAX_VALUE_BITS: usize = 6;
/// The largest magnitude is at most this many scales, so that every integer is exact in f32.
const MAX_STEPS: f32 = (1 << 20) as f32;

/// How fine the scale is, and the prefix code that fits it.
#[derive(Clone, Copy)]
pub(super) enum Rate {
    /// About 4.2 bits a value.
    Four,
    /// About 3.2 bits a value.
    Three,
}

impl Rate {
    fn codec(self) -> Codec {
        match self {
            Self::Four => Codec::Tcq4,
            Self::Three => Codec::Tcq3,
        }
    }

    /// The scale, as a part of the typical magnitude of a row's values.
    fn fineness(self) -> f64 {
        match self {
            Self::Four => 6.0,
            Self::Three => 3.0,
        }
    }

    fn code(self) -> &'static PrefixCode {
        match self {
            Self::Four => &prefix_code::FOUR,
            Self::Three => &prefix_code::THREE,
        }
    }
}

/// The least and the most bytes of one row.
pub(super) fn row_bytes(rate: Rate, columns: usize) -> (usize, usize) {
    let of = |value_bits: usize| {
        let code_bytes = columns.saturating_mul(value_bits).div_ceil(8);
        code_bytes.saturating_add(SCALE_BYTES)
    };
    (of(rate.code().min_bits()), of(MAX_VALUE_BITS))
}

pub(super) fn encode(
    rate: Rate,
    hidden_states: &[f32],
    columns: u16,
) -> Result<Vec<u8>, CodecError> {
    let columns = usize::from(columns);
    let (_, max_bytes) = row_bytes(rate, columns);
    let mut data = Vec::with_capacity(hidden_states.len() / columns * max_bytes);
    let mut search = search::Search::default();
    for (row, values) in hidden_states.chunks_exact(columns).enumerate() {
        let magnitude_sum = grouped::check_row(rate.codec(), row, values)?;
        let mut scale = scale(rate, values, magnitude_sum);
        let start = data.len();
        loop {
            data.extend(scale.to_le_bytes());
            write_codes(
                search.nearest(values, group::divisor(scale)),
                rate.code(),
                &mut data,
            );
            if data.len() - start <= max_bytes {
                break;
            }
            // Few rows come here: those with values of very different size beyond the typical ones' scale. It ends,
            // because integers of magnitude 3 and less take fewer bits than are allowed, and no scale passes the
            // largest magnitude before that.
            data.truncate(start);
            scale = bf16::from_f32(scale.to_f32() * 2.0);
        }
    }
    Ok(data)
}

/// Decodes `rows` rows of `columns` columns; [`super::check_shape`] has bounded both by the data's size.
pub(super) fn decode(
    rate: Rate,
    data: &[u8],
    rows: usize,
    columns: usize,
) -> Result<Vec<f32>, CodecError> {
    let mut hidden_states = vec![0.0; rows * columns];
    let mut rest = data;
    for (row, values) in hidden_states.chunks_exact_mut(columns).enumerate() {
        let (scale, codes) = rest.split_first_chunk().ok_or(CodecError::MissingBytes {
            row,
            expected_bytes: SCALE_BYTES,
            got_bytes: rest.len(),
        })?;
        let scale = group::checked_scale(Place { row, group: 0 }, *scale)?;
        let mut slots = values.iter_mut();
        let code_bytes = read_codes(codes, rate.code(), row, columns, |integer| {
            if let Some(slot) = slots.next() {
                *slot = scale * integer as f32;
            }
        })?;
        if let Some(column) = values.iter().position(|value| !value.is_finite()) {
            let got = values[column];
            return Err(CodecError::NotFinite { row, column, got });
        }
        rest = &codes[code_bytes..];
    }
    if rest.is_empty() {
        Ok(hidden_states)
    } else {
        Err(CodecError::TrailingBytes {
            expected_bytes: data.len() - rest.len(),
            got_bytes: data.len(),
        })
    }
}

/// Bytes of the first row of `data`, which [`decode`] has accepted.
pub(super) fn first_row_bytes(rate: Rate, data: &[u8], columns: usize) -> Option<usize> {
    let codes = data.get(SCALE_BYTES..)?;
    let code_bytes = read_codes(codes, rate.code(), 0, columns, |_| {}).ok()?;
    Some(SCALE_BYTES + code_bytes)
}

/// A part of the mean magnitude of the values that are no outliers; finer where that is possible for all values.
fn scale(rate: Rate, values: &[f32], magnitude_sum: f64) -> bf16 {
    let typical = outliers::typical_magnitude(values, magnitude_sum);
    let largest = values
        .iter()
        .fold(0.0_f32, |largest, value| largest.max(value.abs()));
    #[allow(
        clippy::cast_possible_truncation,
        reason = "rounds; at most the largest magnitude"
    )]
    let wanted = (typical / rate.fineness()) as f32;
    group::rounded_up(wanted.max(largest / MAX_STEPS))
}

/// The state behind `integer`: bit 1 of the integer chooses between two. States 0 and 1 allow even integers, 2 and
/// 3 odd ones.
const fn next_state(state: u8, integer: i32) -> u8 {
    let branch = (integer >> 1 & 1) as u8;
    state >> 1 | (branch ^ (state & 1)) << 1
}

fn write_codes(integers: &[i32], code: &PrefixCode, data: &mut Vec<u8>) {
    let mut writer = BitWriter::new(data);
    for integer in integers {
        let (bits, count) = code.bits_of(*integer);
        writer.push(bits, count);
    }
    writer.finish();
}

/// Reads the codes of one row and returns their bytes.
fn read_codes(
    codes: &[u8],
    code: &PrefixCode,
    row: usize,
    columns: usize,
    mut take: impl FnMut(i32),
) -> Result<usize, CodecError> {
    let mut reader = BitReader::new(codes);
    let (mut state, mut column) = (0, 0);
    while column < columns {
        // Short codes are read from one window as long as it surely has another one.
        let window = reader.window();
        let mut used = 0;
        while column < columns && used <= WINDOW_BITS - prefix_code::LOOKUP_BITS {
            let Some((integer, bits, next)) = code.short(window << used, state) else {
                break;
            };
            take(integer);
            (state, used, column) = (next, used + bits, column + 1);
        }
        reader.skip(used);
        if used == 0 {
            let (integer, bits, next) = code
                .escaped(window, state)
                .ok_or(CodecError::Code { row, column })?;
            reader.skip(bits);
            take(integer);
            (state, column) = (next, column + 1);
        }
    }
    reader.finish(row)
}
