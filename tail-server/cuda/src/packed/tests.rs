use headway_model::Quantization;

use super::blocks::BlockRows;
use super::*;

/// Numbers that look random, the same in every run.
fn numbers(count: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(i16::from_ne_bytes([
            (state >> 16).to_le_bytes()[0],
            (state >> 24).to_le_bytes()[0],
        ])) / 32_768.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

const QUANTIZATIONS: [Quantization; 8] = [
    Quantization::Q8_0,
    Quantization::Q6K,
    Quantization::Q5_1,
    Quantization::Q5_0,
    Quantization::Q5K,
    Quantization::Q4_1,
    Quantization::Q4_0,
    Quantization::Q4K,
];

#[test]
fn e4m3_numbers_are_themselves_and_others_become_the_nearest() {
    let codes = (0..0x7F_u8).chain(0x80..0xFF);
    for code in codes {
        assert_eq!(float8::from_f32(float8::to_f32(code)), code);
    }
    let nearest = |value: f32| {
        let distance = |code: &u8| (float8::to_f32(*code) - value.abs()).abs();
        let order = |a: &u8, b: &u8| {
            let by_distance = distance(a).total_cmp(&distance(b));
            // Of two, the even one.
            by_distance.then((a % 2).cmp(&(b % 2)))
        };
        let code = (0..0x7F_u8).min_by(order).unwrap();
        code | if value.is_sign_negative() { 0x80 } else { 0 }
    };
    for scale in [0.01, 0.1, 1.0, 30.0, 448.0, 2000.0] {
        for value in numbers(2000) {
            let value = value * scale;
            assert_eq!(float8::from_f32(value), nearest(value), "{value}");
        }
    }
    for between in 0..0x7E_u8 {
        let middle = f32::midpoint(float8::to_f32(between), float8::to_f32(between + 1));
        assert_eq!(float8::from_f32(middle), nearest(middle), "{middle}");
    }
}

#[test]
fn rows_of_float8_are_off_by_a_sixteenth_at_most() {
    let shape = [37, 100];
    let mut values = numbers(37 * 100);
    values[..100].fill(0.0);
    values[100..200].iter_mut().for_each(|value| *value *= 1e-6);
    let got = float8::pack(&values, shape, Outputs::Plain).widened(false);
    for (got, values) in got.chunks(100).zip(values.chunks(100)) {
        let largest = values
            .iter()
            .fold(0_f32, |most, value| most.max(value.abs()));
        for (got, value) in got.iter().zip(values) {
            let allowed = (value.abs() / 16.0).max(largest / 448.0 / 1024.0) * 1.0001;
            assert!((got - value).abs() <= allowed, "{got} for {value}");
        }
    }
}

#[test]
fn packed_blocks_are_the_values_of_the_file() {
    for quantization in QUANTIZATIONS {
        for (kind, [outputs, columns]) in [
            (Outputs::Plain, [150, 512]),
            (Outputs::Gated, [2 * 72, 256]),
        ] {
            let values = numbers(outputs * columns);
            let (quantization, blocks) = quantization.quantize(&values, columns).unwrap();
            let expected = quantization.dequantize(&blocks).unwrap();
            let rows = BlockRows {
                quantization,
                outputs,
                blocks,
            };
            let packed = blocks::pack(&[rows], columns, kind);
            let is_exact = !matches!(
                quantization,
                Quantization::Q6K | Quantization::Q5K | Quantization::Q4K
            );
            for (got, expected) in packed.widened(false).iter().zip(&expected) {
                let rounded = bf16::from_f32(*expected).to_f32();
                // Where blocks have superblocks, their scales are rounded to f16: bf16 may be the next one.
                let allowed = if is_exact { 0.0 } else { 1.0 / 128.0 };
                assert!(
                    (got - rounded).abs() <= allowed,
                    "{quantization}: {got} for {rounded}"
                );
            }
        }
    }
}

#[test]
fn superblocks_lose_less_than_bf16_does() {
    for quantization in [Quantization::Q6K, Quantization::Q5K, Quantization::Q4K] {
        let values = numbers(128 * 256);
        let (quantization, blocks) = quantization.quantize(&values, 256).unwrap();
        let expected = quantization.dequantize(&blocks).unwrap();
        let rows = BlockRows {
            quantization,
            outputs: 128,
            blocks,
        };
        let packed = blocks::pack(&[rows], 256, Outputs::Plain);
        let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
        let all = packed.widened(false);
        let got = squares(&mut all.iter().zip(&expected).map(|(a, b)| a - b));
        let of_bf16 = |value: &f32| bf16::from_f32(*value).to_f32() - value;
        let rounded = squares(&mut expected.iter().map(of_bf16));
        assert!(
            got < 1.3 * rounded,
            "{quantization}: {got} beside {rounded}"
        );
    }
}

#[test]
fn parts_of_several_quantizations_become_one_matrix() {
    let columns = 256;
    let mut expected = Vec::new();
    let mut parts = Vec::new();
    for (quantization, outputs) in [(Quantization::Q4K, 96), (Quantization::Q6K, 40)] {
        let values = numbers(outputs * columns);
        let (quantization, blocks) = quantization.quantize(&values, columns).unwrap();
        expected.extend(quantization.dequantize(&blocks).unwrap());
        parts.push(BlockRows {
            quantization,
            outputs,
            blocks,
        });
    }
    let packed = blocks::pack(&parts, columns, Outputs::Plain);
    assert_eq!(packed.format, Format::Eight16);
    for (got, expected) in packed.widened(false).iter().zip(&expected) {
        assert!((got - expected).abs() <= 1.0 / 128.0);
    }
}

#[test]
fn every_output_has_one_row_of_a_tile() {
    for (kind, outputs) in [
        (Outputs::Plain, 1),
        (Outputs::Plain, 300),
        (Outputs::Gated, 2 * 96),
        (Outputs::Gated, 2 * 13),
    ] {
        let mut found = vec![0; outputs];
        for tile in 0..tiles(outputs, kind) {
            let rows = (0..TILE).filter_map(|row| output_of(tile, row, outputs, kind));
            rows.for_each(|output| found[output] += 1);
        }
        assert!(found.iter().all(|count| *count == 1), "{kind:?} {outputs}");
    }
}

/// Of a warp's lane and 64 columns of a chunk: four times 16 columns, four registers of two values, as
/// `kernels/packed.cuh` finds them.
fn fragments(format: Format, chunk: &[u8], [warp, lane, step]: [usize; 3]) -> [[[f32; 2]; 4]; 4] {
    let word = |at: usize| u32::from_le_bytes(chunk[at..at + 4].try_into().unwrap());
    let values = warp * format.warp_bytes() + lane * 16;
    let scales = 8 * format.warp_bytes() + warp * format.warp_scale_bytes() + lane / 4 * 16;
    let group = |at: usize| {
        let [scale, minimum] = [0, 2].map(|half| {
            f16::from_le_bytes(chunk[at + half..at + half + 2].try_into().unwrap()).to_f32()
        });
        (scale, minimum)
    };
    let line = |(scale, minimum): (f32, f32), unit: f32, bits: u32| {
        let slope = scale * unit;
        f32::from_bits(bits | 0x3F80_0000).mul_add(slope, -(slope + minimum))
    };
    let mut out = [[[0.0; 2]; 4]; 4];
    for (k, registers) in out.iter_mut().enumerate() {
        for (register, pair) in registers.iter_mut().enumerate() {
            // Registers 1 and 3 are of row r + 8, 2 and 3 of the columns 8 to 15.
            let (row, right) = (register % 2, register / 2);
            for (i, value) in pair.iter_mut().enumerate() {
                let code = right * 2 + i;
                *value = match format {
                    Format::Four32 => {
                        let word = word(values + 512 * step + 4 * k);
                        let at = group(scales + 128 * step + k / 2 * 8 + row * 4);
                        let shifted = |left: i32| {
                            let word = u64::from(word) << 32;
                            u32::try_from(
                                (if left < 0 {
                                    word >> -left
                                } else {
                                    word << left
                                }) >> 32
                                    & 0xFFFF_FFFF,
                            )
                            .unwrap()
                        };
                        match (row, code) {
                            (0, 0) => line(at, 128.0, shifted(16) & 0xF_0000),
                            (0, 1) => line(at, 2048.0, shifted(8) & 0xF000),
                            (0, 2) => line(at, 128.0, shifted(8) & 0xF_0000),
                            (0, _) => line(at, 2048.0, word & 0xF000),
                            (_, 0) => line(at, 128.0, word & 0xF_0000),
                            (_, 1) => line(at, 2048.0, shifted(-8) & 0xF000),
                            (_, 2) => line(at, 128.0, shifted(-8) & 0xF_0000),
                            (_, _) => line(at, 2048.0, shifted(-16) & 0xF000),
                        }
                    }
                    eight => {
                        let at = values + 512 * (2 * step + k / 2) + k % 2 * 8 + row * 4;
                        let byte = word(at) >> (8 * code) & 0xFF;
                        let groups = match eight {
                            Format::Eight16 => scales + 128 * (2 * step + k / 2) + k % 2 * 8,
                            _ => scales + 128 * step + k / 2 * 8,
                        };
                        match eight {
                            Format::Float8 => float8::to_f32(u8::try_from(byte).unwrap()),
                            _ => line(group(groups + row * 4), 32_768.0, byte << 8),
                        }
                    }
                };
            }
        }
    }
    out
}

#[test]
fn lanes_find_their_fragments_where_wgmma_wants_them() {
    for format in Format::ALL {
        let shape = [TILE, format.chunk_columns()];
        let end = if format.bits() == 8 { 127 } else { 16 };
        let packed = PackedValues::new(format, shape, Outputs::Plain, |output, row| {
            for (column, code) in row.codes.iter_mut().enumerate() {
                *code = u8::try_from((output * 31 + column * 17 + column / 16) % end).unwrap();
            }
            for (group, numbers) in (0_u8..).zip(&mut row.groups) {
                let row = f32::from(u8::try_from(output).unwrap());
                *numbers = [row + 1.0, 4.0 * row + f32::from(group)];
            }
        });
        let expected = packed.widened(false);
        for warp in 0..8 {
            for lane in 0..32 {
                for step in 0..format.chunk_columns() / 64 {
                    let found = fragments(format, &packed.chunks, [warp, lane, step]);
                    for (k, registers) in found.iter().enumerate() {
                        for (register, pair) in registers.iter().enumerate() {
                            let row = warp * 16 + lane / 4 + register % 2 * 8;
                            for (i, value) in pair.iter().enumerate() {
                                let column = lane % 4 * 2 + register / 2 * 8 + i;
                                let column = step * 64 + k * 16 + column;
                                let got = bf16::from_f32(*value).to_f32() * packed.row_scales[row];
                                let at = row * format.chunk_columns() + column;
                                assert!(
                                    (got - expected[at]).abs() <= expected[at].abs() / 200.0,
                                    "{format:?} row {row} column {column}: {got}, not {}",
                                    expected[at]
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn chunks_are_as_large_as_the_kernels_have_them() {
    let sizes = Format::ALL.map(|format| (format.chunk_columns(), format.chunk_bytes()));
    assert_eq!(
        sizes,
        [(128, 16_384), (128, 18_432), (128, 20_480), (256, 20_480)]
    );
}

#[test]
fn ragged_matrices_keep_every_value() {
    for [outputs, columns] in [[1, 8], [129, 136], [100, 96], [300, 72]] {
        let values: Vec<f32> = numbers(outputs * columns);
        let packed = float8::pack(&values, [outputs, columns], Outputs::Plain);
        let got = packed.widened(false);
        assert_eq!(got.len(), values.len());
        for (got, value) in got.iter().zip(&values) {
            assert!((got - value).abs() <= value.abs() / 16.0 + 1e-5);
        }
    }
}

#[test]
fn repeated_chunks_are_numbers() {
    for format in Format::ALL {
        let packed = PackedValues::repeated(format, [200, 300], Outputs::Plain);
        let values = packed.widened(false);
        assert!(values.iter().all(|value| value.is_finite()));
        assert!(values.iter().any(|value| *value != 0.0));
    }
}
