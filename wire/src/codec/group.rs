//! One group of columns in `int8` and in `int4`: its scale and its codes.
//!
//! The scale is rounded up and the minimum down, so that every code is in range; the codes are then taken
//! from the rounded values, so only half a step is lost. NaN marks an outlier: no scale sees it.

use half::bf16;

use super::grouped::MAGNITUDE_MAX;
use crate::error::CodecError;

/// Where a group stands, for errors.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) row: usize,
    pub(super) group: usize,
}

/// Writes scale and codes. The error is at most 1/250 of the group's largest magnitude, or 2^-133.
pub(super) fn encode_int8(group: &[f32], data: &mut Vec<u8>) {
    let (least, greatest) = least_and_greatest(group);
    let scale = rounded_up(greatest.max(-least).max(0.0) / 127.0);
    data.extend(scale.to_le_bytes());
    let divisor = divisor(scale);
    #[allow(
        clippy::cast_possible_truncation,
        reason = "the scale bounds the quotient by 127; by way of i32, because vector code has that cast"
    )]
    data.extend(
        group
            .iter()
            .map(|value| ((value / divisor).round_ties_even() as i32 as i8).cast_unsigned()),
    );
}

/// Writes scale, minimum and codes. The error is at most 1/29 of (the group's range + 1/128 of its largest
/// magnitude), or 2^-133. `codes` is working memory.
pub(super) fn encode_int4(group: &[f32], codes: &mut Vec<u8>, data: &mut Vec<u8>) {
    let (least, greatest) = least_and_greatest(group);
    let minimum = if least.is_finite() {
        rounded_down(least)
    } else {
        bf16::ZERO
    };
    let base = minimum.to_f32();
    let scale = rounded_up((greatest - base).max(0.0) / 15.0);
    data.extend(scale.to_le_bytes());
    data.extend(minimum.to_le_bytes());
    let divisor = divisor(scale);
    codes.clear();
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped; NaN becomes 0"
    )]
    codes.extend(
        group
            .iter()
            .map(|value| (((value - base) / divisor).round_ties_even() as i32).clamp(0, 15) as u8),
    );
    if codes.len() % 2 == 1 {
        codes.push(0);
    }
    let (pairs, _) = codes.as_chunks::<2>();
    data.extend(pairs.iter().map(|[low, high]| low | high << 4));
}

pub(super) fn decode_int8(
    place: Place,
    scale: [u8; 2],
    codes: &[u8],
    values: &mut [f32],
) -> Result<(), CodecError> {
    let scale = checked_scale(place, scale)?;
    let mut has_other = false;
    for (value, code) in values.iter_mut().zip(codes) {
        let code = code.cast_signed();
        has_other |= code == i8::MIN;
        *value = scale * f32::from(code);
    }
    no_other_code(place, has_other)
}

/// `header`: the scale, then the minimum.
pub(super) fn decode_int4(
    place: Place,
    header: ([u8; 2], [u8; 2]),
    codes: &[u8],
    values: &mut [f32],
) -> Result<(), CodecError> {
    let scale = checked_scale(place, header.0)?;
    let minimum = bf16::from_le_bytes(header.1).to_f32();
    if minimum.is_nan() || minimum.abs() > MAGNITUDE_MAX {
        let Place { row, group } = place;
        return Err(CodecError::GroupHeader {
            row,
            group,
            part: "minimum",
            got: minimum,
        });
    }
    let value_of = |code: u8| minimum + scale * f32::from(code);
    let (pairs, odd) = values.as_chunks_mut::<2>();
    for (pair, code) in pairs.iter_mut().zip(codes) {
        *pair = [value_of(code & 15), value_of(code >> 4)];
    }
    match (odd, codes.last()) {
        ([last], Some(code)) => {
            *last = value_of(code & 15);
            no_other_code(place, code >> 4 != 0)
        }
        _ => Ok(()),
    }
}

/// Refuses what would decode to an infinity, and a scale that turns the codes around.
pub(super) fn checked_scale(place: Place, scale: [u8; 2]) -> Result<f32, CodecError> {
    let scale = bf16::from_le_bytes(scale).to_f32();
    if scale.is_sign_positive() && scale <= MAGNITUDE_MAX {
        return Ok(scale);
    }
    Err(CodecError::GroupHeader {
        row: place.row,
        group: place.group,
        part: "scale",
        got: scale,
    })
}

fn no_other_code(place: Place, has_other: bool) -> Result<(), CodecError> {
    let Place { row, group } = place;
    if has_other {
        Err(CodecError::GroupCode { row, group })
    } else {
        Ok(())
    }
}

/// Ignores NaN. (infinity, -infinity) where there is nothing else.
fn least_and_greatest(group: &[f32]) -> (f32, f32) {
    let smaller = |a: f32, b: f32| if b < a { b } else { a };
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut least = [f32::INFINITY; 8];
    let mut greatest = [f32::NEG_INFINITY; 8];
    let (chunks, rest) = group.as_chunks::<8>();
    for chunk in chunks {
        for lane in 0..8 {
            least[lane] = smaller(least[lane], chunk[lane]);
            greatest[lane] = larger(greatest[lane], chunk[lane]);
        }
    }
    let least = rest
        .iter()
        .chain(&least)
        .copied()
        .fold(f32::INFINITY, smaller);
    let greatest = rest
        .iter()
        .chain(&greatest)
        .copied()
        .fold(f32::NEG_INFINITY, larger);
    (least, greatest)
}

/// Where all values are equal, every code is 0 whatever it is divided by, except by 0.
pub(super) fn divisor(scale: bf16) -> f32 {
    if scale == bf16::ZERO {
        1.0
    } else {
        scale.to_f32()
    }
}

/// The least bf16 not below `value`, which is not negative.
pub(super) fn rounded_up(value: f32) -> bf16 {
    away_from_zero(value)
}

/// The greatest bf16 not above `value`.
fn rounded_down(value: f32) -> bf16 {
    if value < 0.0 {
        away_from_zero(value)
    } else {
        toward_zero(value)
    }
}

fn away_from_zero(value: f32) -> bf16 {
    let truncated = toward_zero(value);
    if truncated.to_f32() == value {
        truncated
    } else {
        bf16::from_bits(truncated.to_bits() + 1)
    }
}

/// bf16 is the upper half of an f32.
fn toward_zero(value: f32) -> bf16 {
    let [_, _, low, high] = value.to_le_bytes();
    bf16::from_le_bytes([low, high])
}
