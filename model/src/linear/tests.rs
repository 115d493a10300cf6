//! Products with every type of weights.

use super::*;
use crate::weights::WeightDtype;
use crate::weights::{dequantize, from_floats};
use candle_core::quantized::GgmlDType;

/// Numbers that look random and are the same in every run.
pub(super) fn noise(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        f32::from(i16::from_le_bytes([
            state.to_le_bytes()[1],
            state.to_le_bytes()[2],
        ])) / 32_768.0
    };
    (0..len).map(|_| next()).collect()
}

pub(super) fn tensor(dtype: GgmlDType, outputs: usize, columns: usize) -> RawTensor {
    let data = from_floats(&noise(outputs * columns, 7), dtype);
    RawTensor {
        name: "w".to_owned(),
        dtype,
        shape: vec![outputs, columns],
        data,
    }
}

fn linear(tensors: Vec<RawTensor>) -> Linear {
    Linear::new(tensors, None, StoreAs::Dtype(WeightDtype::Native)).unwrap()
}

fn forward(linear: &Linear, x: &[f32], rows: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows * linear.outputs()];
    linear.forward(x, rows, &mut out);
    out
}

const TYPES: [GgmlDType; 13] = [
    GgmlDType::F32,
    GgmlDType::F16,
    GgmlDType::BF16,
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q2K,
    GgmlDType::Q3K,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];

#[test]
fn every_type_agrees_with_the_dequantised_product() {
    let (outputs, columns, rows) = (40, 512, 5);
    for dtype in TYPES {
        let tensor = tensor(dtype, outputs, columns);
        let weights = dequantize(&tensor).unwrap();
        let x = noise(rows * columns, 3);
        let found = forward(&linear(vec![tensor]), &x, rows);
        // Activations are rounded to 8 bits for quantised weights: 1/254 of the largest of a group each.
        let dense = matches!(dtype, GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16);
        let tolerance = if dense { 1e-4 } else { 0.15 };
        for (row, found) in found.chunks(outputs).enumerate() {
            for (output, found) in found.iter().enumerate() {
                let weights = &weights[output * columns..(output + 1) * columns];
                let expected: f64 = x[row * columns..]
                    .iter()
                    .zip(weights)
                    .map(|(x, w)| f64::from(*x) * f64::from(*w))
                    .sum();
                let error = (f64::from(*found) - expected).abs();
                assert!(
                    error < tolerance,
                    "{dtype:?} row {row} output {output}: {found} against {expected}"
                );
            }
        }
    }
}

#[test]
fn a_row_gets_the_same_bits_alone_and_in_any_batch() {
    let (outputs, columns) = (48, 256);
    for dtype in TYPES {
        let linear = linear(vec![tensor(dtype, outputs, columns)]);
        let x = noise(23 * columns, 5);
        let together = forward(&linear, &x, 23);
        for rows in [1, 2, 3, 7, 9] {
            for start in [0, 4, 14] {
                let part = forward(&linear, &x[start * columns..(start + rows) * columns], rows);
                let expected = &together[start * outputs..(start + rows) * outputs];
                assert!(
                    part.iter()
                        .zip(expected)
                        .all(|(a, b)| a.to_bits() == b.to_bits()),
                    "{dtype:?}: rows {start}.. of {rows}"
                );
            }
        }
    }
}

#[test]
fn threads_do_not_change_the_bits() {
    let linear = linear(vec![tensor(GgmlDType::Q4_1, 160, 96)]);
    let x = noise(11 * 96, 9);
    let with = |threads| {
        crate::threads::set_threads(threads);
        forward(&linear, &x, 11)
    };
    let (one, three) = (with(1), with(3));
    assert_eq!(one, three);
}

#[test]
fn stacked_matrices_of_different_types_fill_their_own_columns() {
    let (a, b) = (
        tensor(GgmlDType::Q4_0, 24, 64),
        tensor(GgmlDType::Q8_0, 40, 64),
    );
    let x = noise(3 * 64, 2);
    let stacked = forward(&linear(vec![a.clone(), a.clone(), b.clone()]), &x, 3);
    let (alone_a, alone_b) = (
        forward(&linear(vec![a]), &x, 3),
        forward(&linear(vec![b]), &x, 3),
    );
    for row in 0..3 {
        let stacked = &stacked[row * 88..(row + 1) * 88];
        assert_eq!(stacked[..24], alone_a[row * 24..(row + 1) * 24]);
        assert_eq!(stacked[24..48], alone_a[row * 24..(row + 1) * 24]);
        assert_eq!(stacked[48..], alone_b[row * 40..(row + 1) * 40]);
    }
}

#[test]
fn a_row_of_weights_is_the_dequantised_row() {
    for dtype in TYPES {
        let tensor = tensor(dtype, 19, 512);
        let expected = dequantize(&tensor).unwrap();
        let linear = linear(vec![tensor]);
        for index in [0, 5, 16, 18] {
            let mut row = vec![0.0; 512];
            linear.row(index, &mut row);
            assert_eq!(
                row,
                expected[index * 512..(index + 1) * 512],
                "{dtype:?} row {index}"
            );
        }
    }
}

#[test]
fn packing_keeps_the_size_of_the_file() {
    for dtype in TYPES {
        let tensor = tensor(dtype, 32, 256);
        let bytes = tensor.data.len();
        assert_eq!(linear(vec![tensor]).bytes(), bytes, "{dtype:?}");
    }
}

#[test]
fn the_bias_is_added_to_every_row() {
    let tensor = tensor(GgmlDType::F32, 16, 32);
    let x = noise(2 * 32, 2);
    let plain = forward(&linear(vec![tensor.clone()]), &x, 2);
    let with_bias = Linear::new(
        vec![tensor],
        Some(noise(16, 1)),
        StoreAs::Dtype(WeightDtype::Native),
    )
    .unwrap();
    let found = forward(&with_bias, &x, 2);
    for (index, (found, plain)) in found.iter().zip(plain).enumerate() {
        assert_eq!(*found, plain + noise(16, 1)[index % 16]);
    }
}
