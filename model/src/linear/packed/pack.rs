//! Where the bits of a file's blocks go in a tile; see [`Format`] for the tile.

use half::f16;

use super::format::Format;
use crate::linear::activations::GROUP;
use crate::simd::LANES;

/// Copies a block of the file, whose bytes are those of a tile, to row `lane` of a tile: d, m, fifth bits,
/// values.
fn copy_small(format: Format, block: &[u8], tile: &mut [u8], lane: usize) {
    let (head, values) = block.split_at(block.len() - format.value_bytes());
    let (factors, high) = head.split_at(head.len() - format.high_bytes());
    let mut copy = |at: usize, bytes: &[u8]| tile[at..at + bytes.len()].copy_from_slice(bytes);
    for (j, word) in values.as_chunks::<4>().0.iter().enumerate() {
        copy(64 * j + 4 * lane, word);
    }
    copy(LANES * format.value_bytes() + high.len() * lane, high);
    for (j, factor) in factors.as_chunks::<2>().0.iter().enumerate() {
        copy(format.factors_at() + 2 * (LANES * j + lane), factor);
    }
}

/// Puts a block of the file into row `lane` of a zeroed tile.
pub fn pack(format: Format, block: &[u8], tile: &mut [u8], lane: usize) {
    match (format.groups, format.bits) {
        (1, _) => copy_small(format, block, tile, lane),
        (_, 6) => Superblock::from_q6_k(block).write(format, tile, lane),
        _ => Superblock::from_q4_k_or_q5_k(format, block).write(format, tile, lane),
    }
}

/// The weights of row `lane` of a tile. `out`: `[format.columns()]`.
pub fn dequantize(format: Format, tile: &[u8], lane: usize, out: &mut [f32]) {
    let bits = |(at, shift): (usize, usize), mask: u8| (tile[at] >> shift) & mask;
    let factor = |j: usize| {
        let at = format.factors_at() + 2 * (LANES * j + lane);
        f16::from_le_bytes([tile[at], tile[at + 1]]).to_f32()
    };
    let six_bits = |index: usize| {
        let low = bits(low_field_at(format, index, lane), 0xF);
        f32::from(low | (bits(high_field_at(format, index, lane), 3) << 4))
    };
    for (group, out) in out.chunks_exact_mut(GROUP).enumerate() {
        for (column, out) in out.iter_mut().enumerate() {
            let low = bits(
                value_at(format, group, column, lane),
                if format.bits == 8 { 0xFF } else { 0xF },
            );
            let high = match format.bits {
                5 => bits(high_at(format, group, column, lane), 1) << 4,
                6 => bits(high_at(format, group, column, lane), 3) << 4,
                _ => 0,
            };
            let value = match format.bits {
                8 => i16::from(low.cast_signed()),
                _ => i16::from(low | high),
            };
            let scale = match (format.groups, format.bits) {
                (1, _) => 1.0,
                (_, 6) => {
                    let at = byte_field_at(format, 2 * group + column / 16, lane);
                    f32::from(tile[at]) - 128.0
                }
                _ => six_bits(group),
            };
            let min = match (format.groups, format.has_min) {
                (_, false) => 0.0,
                (1, _) => factor(1),
                _ => factor(1) * six_bits(8 + group),
            };
            let value = f32::from(value - i16::from(format.offset));
            *out = factor(0) * scale * value + min;
        }
    }
}

/// Byte and shift of a value's low four bits, or of an 8-bit value.
const fn value_at(format: Format, group: usize, column: usize, lane: usize) -> (usize, usize) {
    let start = LANES * group * format.group_bytes();
    let (column, shift) = match format.bits {
        8 => (column, 0),
        _ => (column % 16, column / 16 * 4),
    };
    (start + 64 * (column / 4) + 4 * lane + column % 4, shift)
}

/// Byte and shift of a value's bits above the fourth.
const fn high_at(format: Format, group: usize, column: usize, lane: usize) -> (usize, usize) {
    let start = LANES * (group * format.group_bytes() + format.value_bytes()) + 4 * lane;
    match format.bits {
        5 => (start + column / 8, column % 8),
        _ => (start + 64 * (column / 16) + column % 4, column / 4 % 4 * 2),
    }
}

/// Byte and shift of the low four bits of a 6-bit field.
const fn low_field_at(format: Format, index: usize, lane: usize) -> (usize, usize) {
    let at = format.fields_at() + 64 * (index / 8) + 4 * lane + index % 8 / 2;
    (at, index % 2 * 4)
}

/// Byte and shift of the high two bits of a 6-bit field.
const fn high_field_at(format: Format, index: usize, lane: usize) -> (usize, usize) {
    let at = format.fields_at() + 128 + 4 * lane + index / 4;
    (at, index % 4 * 2)
}

/// Byte of an 8-bit field.
const fn byte_field_at(format: Format, index: usize, lane: usize) -> usize {
    format.fields_at() + 64 * (index / 4) + 4 * lane + index % 4
}

/// One row's superblock, taken apart.
struct Superblock {
    /// Unsigned, `[group][column]`.
    values: [[u8; GROUP]; 8],
    /// 6-bit scales and minima, or 8-bit scales.
    fields: [u8; 16],
    /// Little-endian halves `d` and `m`.
    factors: [[u8; 2]; 2],
}

impl Superblock {
    const ZERO: Self = Self {
        values: [[0; GROUP]; 8],
        fields: [0; 16],
        factors: [[0; 2]; 2],
    };

    /// d, m, 12 bytes of scales and minima, fifth bits, nibbles. A minimum is subtracted: `m` is negated.
    fn from_q4_k_or_q5_k(format: Format, block: &[u8]) -> Self {
        let mut this = Self::ZERO;
        let (factors, rest) = block.split_at(4);
        let (packed, rest) = rest.split_at(12);
        let (high, nibbles) = rest.split_at(rest.len() - 128);
        this.factors = [[factors[0], factors[1]], [factors[2], factors[3] ^ 0x80]];
        for i in 0..4 {
            // The first four of each have their six bits together; the last four borrow the upper two.
            this.fields[i] = packed[i] & 0x3F;
            this.fields[8 + i] = packed[4 + i] & 0x3F;
            this.fields[4 + i] = (packed[8 + i] & 0x0F) | ((packed[i] >> 6) << 4);
            this.fields[12 + i] = (packed[8 + i] >> 4) | ((packed[4 + i] >> 6) << 4);
        }
        for (group, values) in this.values.iter_mut().enumerate() {
            for (column, value) in values.iter_mut().enumerate() {
                let byte = nibbles[group / 2 * 32 + column];
                *value = if group % 2 == 0 {
                    byte & 0x0F
                } else {
                    byte >> 4
                };
                if format.bits == 5 {
                    *value |= ((high[column] >> group) & 1) << 4;
                }
            }
        }
        this
    }

    /// Nibbles, pairs of upper bits, 16 signed scales, d.
    fn from_q6_k(block: &[u8]) -> Self {
        let mut this = Self::ZERO;
        let (nibbles, rest) = block.split_at(128);
        let (pairs, rest) = rest.split_at(64);
        let (scales, factor) = rest.split_at(16);
        this.factors[0] = [factor[0], factor[1]];
        for (field, scale) in this.fields.iter_mut().zip(scales) {
            *field = scale ^ 0x80;
        }
        for (group, values) in this.values.iter_mut().enumerate() {
            // 128 columns have 64 bytes of nibbles and 32 of pairs.
            let (half, quarter) = (group / 4, group % 4);
            for (column, value) in values.iter_mut().enumerate() {
                let byte = nibbles[64 * half + 32 * (quarter % 2) + column];
                let low = if quarter < 2 { byte & 0x0F } else { byte >> 4 };
                let pair = (pairs[32 * half + column] >> (2 * quarter)) & 3;
                *value = low | (pair << 4);
            }
        }
        this
    }

    fn write(&self, format: Format, tile: &mut [u8], lane: usize) {
        let mut add = |(at, shift): (usize, usize), bits: u8| tile[at] |= bits << shift;
        for (group, values) in self.values.iter().enumerate() {
            for (column, value) in values.iter().enumerate() {
                add(value_at(format, group, column, lane), value & 0xF);
                if format.bits > 4 {
                    add(high_at(format, group, column, lane), value >> 4);
                }
            }
        }
        for (index, field) in self.fields.into_iter().enumerate() {
            if format.bits == 6 {
                add((byte_field_at(format, index, lane), 0), field);
            } else {
                add(low_field_at(format, index, lane), field & 0xF);
                add(high_field_at(format, index, lane), field >> 4);
            }
        }
        let factors = if format.has_min { 2 } else { 1 };
        for (j, factor) in self.factors[..factors].iter().enumerate() {
            let at = format.factors_at() + 2 * (LANES * j + lane);
            tile[at..at + 2].copy_from_slice(factor);
        }
    }
}
