//! GGUF's blocks as codes, scales and minima. The blocks are those of llama.cpp's `ggml-quants`, from which the names
//! of their parts come.

use half::f16;
use headway_model::Quantization;

use super::{Format, PackedValues, RowValues};
use crate::products::Outputs;

/// Columns of a block, and of a superblock.
const BLOCK: usize = 32;
const SUPERBLOCK: usize = 256;

/// Rows of blocks, as a file has them.
pub(crate) struct BlockRows {
    pub(crate) quantization: Quantization,
    pub(crate) outputs: usize,
    pub(crate) blocks: Vec<u8>,
}

/// Several matrices of blocks, one below the other.
pub(crate) fn pack(parts: &[BlockRows], columns: usize, kind: Outputs) -> PackedValues {
    let outputs = parts.iter().map(|part| part.outputs).sum();
    let format = format(parts.iter().map(|part| part.quantization));
    PackedValues::new(format, [outputs, columns], kind, |mut output, row| {
        for part in parts {
            if output < part.outputs {
                let row_bytes = part.blocks.len() / part.outputs;
                let blocks = &part.blocks[output * row_bytes..][..row_bytes];
                return decode(part.quantization, blocks, row);
            }
            output -= part.outputs;
        }
    })
}

/// The smallest format that holds all of them.
pub(crate) fn format(quantizations: impl Iterator<Item = Quantization>) -> Format {
    let mut format = Format::Four32;
    for quantization in quantizations {
        format = match quantization {
            Quantization::Q4_0 | Quantization::Q4_1 | Quantization::Q4K => format,
            // Its groups have 16 columns.
            Quantization::Q6K => return Format::Eight16,
            _ => Format::Eight32,
        };
    }
    format
}

/// One row. Codes are not negative; groups of 32 columns are given as two of 16 where the row has those.
fn decode(quantization: Quantization, blocks: &[u8], row: &mut RowValues) {
    match quantization {
        Quantization::None => {}
        Quantization::Q8_0 => each(blocks, 34, row, |block, row, first| {
            for (code, q) in row.codes[first..].iter_mut().zip(&block[2..]) {
                // From two's complement to what is above -128.
                *code = q ^ 0x80;
            }
            let scale = half(block, 0);
            group(row, first, scale, 128.0 * scale);
        }),
        Quantization::Q5_1 => each(blocks, 24, row, |block, row, first| {
            five_bits(&block[8..], word(block, 4), &mut row.codes[first..]);
            group(row, first, half(block, 0), -half(block, 2));
        }),
        Quantization::Q5_0 => each(blocks, 22, row, |block, row, first| {
            five_bits(&block[6..], word(block, 2), &mut row.codes[first..]);
            group(row, first, half(block, 0), 16.0 * half(block, 0));
        }),
        Quantization::Q4_1 => each(blocks, 20, row, |block, row, first| {
            five_bits(&block[4..], 0, &mut row.codes[first..]);
            group(row, first, half(block, 0), -half(block, 2));
        }),
        Quantization::Q4_0 => each(blocks, 18, row, |block, row, first| {
            five_bits(&block[2..], 0, &mut row.codes[first..]);
            group(row, first, half(block, 0), 8.0 * half(block, 0));
        }),
        Quantization::Q4K => each_superblock(blocks, 144, row, |block, row, first| {
            scales_and_minima(block, row, first);
            with_high_bits(&block[16..], &[], &mut row.codes[first..]);
        }),
        Quantization::Q5K => each_superblock(blocks, 176, row, |block, row, first| {
            scales_and_minima(block, row, first);
            with_high_bits(&block[48..], &block[16..48], &mut row.codes[first..]);
        }),
        Quantization::Q6K => each_superblock(blocks, 210, row, six_bits),
    }
}

fn each(
    blocks: &[u8],
    bytes: usize,
    row: &mut RowValues,
    decode: impl Fn(&[u8], &mut RowValues, usize),
) {
    for (block, first) in blocks.chunks_exact(bytes).zip((0..).step_by(BLOCK)) {
        decode(block, row, first);
    }
}

fn each_superblock(
    blocks: &[u8],
    bytes: usize,
    row: &mut RowValues,
    decode: impl Fn(&[u8], &mut RowValues, usize),
) {
    for (block, first) in blocks.chunks_exact(bytes).zip((0..).step_by(SUPERBLOCK)) {
        decode(block, row, first);
    }
}

/// Writes down what 32 columns from `first` on share.
fn group(row: &mut RowValues, first: usize, scale: f32, minimum: f32) {
    let groups = &mut row.groups[first / row.group..][..BLOCK / row.group];
    groups.fill([scale, minimum]);
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// 32 columns: the lower four bits of each byte, then the upper ones. `fifth`: a bit for each column.
fn five_bits(qs: &[u8], fifth: u32, codes: &mut [u8]) {
    for (column, code) in codes.iter_mut().take(BLOCK).enumerate() {
        let four = qs[column % 16] >> (column / 16 * 4) & 0xF;
        *code = four | u8::from(fifth >> column & 1 == 1) << 4;
    }
}

/// Of 256 columns: eight scales and eight minima, of six bits each, in twelve bytes behind what they are multiplied by.
fn scales_and_minima(block: &[u8], row: &mut RowValues, first: usize) {
    let (d, d_min) = (half(block, 0), half(block, 2));
    let packed = &block[4..16];
    for index in 0..8 {
        let (scale, minimum) = if index < 4 {
            (packed[index] & 63, packed[index + 4] & 63)
        } else {
            (
                packed[index + 4] & 0xF | packed[index - 4] >> 6 << 4,
                packed[index + 4] >> 4 | packed[index] >> 6 << 4,
            )
        };
        let minimum = d_min * f32::from(minimum);
        group(row, first + index * BLOCK, d * f32::from(scale), minimum);
    }
}

/// 256 columns: of each 64, the lower four bits of 32 bytes, then the upper ones. `high`: a fifth bit, of the columns
/// 32 i to 32 i + 31 in bits i of 32 bytes.
fn with_high_bits(qs: &[u8], high: &[u8], codes: &mut [u8]) {
    for (column, code) in codes.iter_mut().take(SUPERBLOCK).enumerate() {
        let byte = qs[column / 64 * 32 + column % 32];
        let fifth = high
            .get(column % 32)
            .map_or(0, |bits| bits >> (column / 32) & 1);
        *code = byte >> (column % 64 / 32 * 4) & 0xF | fifth << 4;
    }
}

/// 256 columns in groups of 16: of each 128, four bits in 64 bytes, and two higher ones in 32 bytes.
fn six_bits(block: &[u8], row: &mut RowValues, first: usize) {
    assert_eq!(
        row.group, 16,
        "the format was chosen for groups of 16 columns"
    );
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half(block, 208);
    let codes = &mut row.codes[first..][..SUPERBLOCK];
    for (column, code) in codes.iter_mut().enumerate() {
        let (half, within) = (column / 128, column % 128);
        let four = low[half * 64 + within % 64] >> (within / 64 * 4) & 0xF;
        let two = high[half * 32 + within % 32] >> (within / 32 * 2) & 3;
        *code = four | two << 4;
    }
    for (to, scale) in row.groups[first / 16..].iter_mut().zip(scales) {
        let scale = d * f32::from(scale.cast_signed());
        *to = [scale, 32.0 * scale];
    }
}
