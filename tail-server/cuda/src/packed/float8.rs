//! e4m3: a sign, four bits of exponent, three of fraction; the largest number is 448, and there is no infinity.

use super::{Format, PackedValues, RowValues};
use crate::products::Outputs;

const LARGEST: f32 = 448.0;
/// The smallest number with a leading 1.
const SMALLEST_NORMAL: f32 = 1.0 / 64.0;

/// Of f32 values, `[outputs, columns]`: each row's largest becomes 448.
pub(crate) fn pack(values: &[f32], shape: [usize; 2], kind: Outputs) -> PackedValues {
    let [_, columns] = shape;
    PackedValues::new(Format::Float8, shape, kind, |output, row| {
        quantize(&values[output * columns..][..columns], row);
    })
}

fn quantize(values: &[f32], row: &mut RowValues) {
    let largest = values
        .iter()
        .fold(0_f32, |most, value| most.max(value.abs()));
    // A row of numbers too small for a scale is a row of zeros.
    let scale = largest / LARGEST;
    row.scale = if scale.is_normal() { scale } else { 0.0 };
    for (code, value) in row.codes.iter_mut().zip(values) {
        *code = if row.scale > 0.0 {
            from_f32(value / row.scale)
        } else {
            0
        };
    }
}

/// The nearest number; of two, the even one. What is larger than the largest becomes that.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "at most 0x7E after the clamp to 448"
)]
pub(crate) fn from_f32(value: f32) -> u8 {
    let sign = (value.to_bits() >> 24) as u8 & 0x80;
    let size = value.abs().min(LARGEST);
    let code = if size < SMALLEST_NORMAL {
        (size * 512.0).round_ties_even() as u8
    } else {
        // Rounds to the three highest bits of the fraction, and moves the exponent's bias from 127 to 7.
        let bits = size.to_bits();
        let rounded = (bits + 0x7_FFFF + (bits >> 20 & 1)) >> 20;
        (rounded - (120 << 3)) as u8
    };
    sign | code
}

/// Exactly.
pub(crate) fn to_f32(code: u8) -> f32 {
    let (exponent, fraction) = (code >> 3 & 0xF, code & 7);
    let size = if exponent == 0 {
        f32::from(fraction) / 512.0
    } else {
        f32::from_bits((u32::from(exponent) + 120) << 23 | u32::from(fraction) << 20)
    };
    if code & 0x80 == 0 { size } else { -size }
}
