//! Plain Rust: the reference for the others, and the fallback on other processors.

use half::{bf16, f16};

use super::{LANES, Simd};

/// Arrays, left to the compiler's vectoriser.
#[derive(Clone, Copy)]
pub struct Portable;

fn words(bytes: &[u8]) -> [u16; LANES] {
    std::array::from_fn(|i| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]))
}

impl Simd for Portable {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type B = [u8; 4 * LANES];
    const I8_BIAS: i32 = 0;

    #[inline(always)]
    fn load(values: &[f32]) -> Self::F {
        std::array::from_fn(|i| values[i])
    }

    #[inline(always)]
    fn load_f16(bytes: &[u8]) -> Self::F {
        words(bytes).map(|bits| f16::from_bits(bits).to_f32())
    }

    #[inline(always)]
    fn load_bf16(bytes: &[u8]) -> Self::F {
        words(bytes).map(|bits| bf16::from_bits(bits).to_f32())
    }

    #[inline(always)]
    fn store(vector: Self::F, out: &mut [f32]) {
        out[..LANES].copy_from_slice(&vector);
    }

    #[inline(always)]
    fn splat(value: f32) -> Self::F {
        [value; LANES]
    }

    #[inline(always)]
    fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn mul(a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn add(a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn max(a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn abs(vector: Self::F) -> Self::F {
        vector.map(f32::abs)
    }

    #[inline(always)]
    fn largest(vector: Self::F) -> f32 {
        let mut lanes = vector;
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                if lanes[i + width] >= lanes[i] {
                    lanes[i] = lanes[i + width];
                }
            }
            width /= 2;
        }
        lanes[0]
    }

    #[inline(always)]
    fn bits(vector: Self::F) -> Self::I {
        vector.map(|value| value.to_bits().cast_signed())
    }

    #[inline(always)]
    fn add_i(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }

    #[inline(always)]
    fn sub_i(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i].wrapping_sub(b[i]))
    }

    #[inline(always)]
    fn sum_i(vector: Self::I) -> i32 {
        vector.into_iter().fold(0, i32::wrapping_add)
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low byte is wanted")]
    fn store_low_bytes(vector: Self::I, out: &mut [i8]) {
        for (out, value) in out[..LANES].iter_mut().zip(vector) {
            *out = value as i8;
        }
    }

    #[inline(always)]
    fn splat_i(value: i32) -> Self::I {
        [value; LANES]
    }

    #[inline(always)]
    fn load_i(values: &[i32]) -> Self::I {
        std::array::from_fn(|i| values[i])
    }

    #[inline(always)]
    #[expect(
        clippy::cast_precision_loss,
        reason = "sums of 32 products of bytes fit f32 exactly"
    )]
    fn to_f(vector: Self::I) -> Self::F {
        vector.map(|value| value as f32)
    }

    #[inline(always)]
    fn load_b(bytes: &[u8]) -> Self::B {
        std::array::from_fn(|i| bytes[i])
    }

    #[inline(always)]
    fn store_b(vector: Self::B, out: &mut [i8]) {
        for (out, byte) in out[..4 * LANES].iter_mut().zip(vector) {
            *out = byte.cast_signed();
        }
    }

    #[inline(always)]
    fn sub_b(vector: Self::B, value: i8) -> Self::B {
        vector.map(|byte| byte.wrapping_sub(value.cast_unsigned()))
    }

    #[inline(always)]
    fn low_nibbles(vector: Self::B) -> Self::B {
        vector.map(|byte| byte & 0x0F)
    }

    #[inline(always)]
    fn high_nibbles(vector: Self::B) -> Self::B {
        vector.map(|byte| byte >> 4)
    }

    #[inline(always)]
    fn add_fifth_bit(vector: Self::B, bits: Self::B, shift: u32) -> Self::B {
        std::array::from_fn(|i| {
            let lane = 4 * (i / 4);
            let mask =
                u32::from_le_bytes([bits[lane], bits[lane + 1], bits[lane + 2], bits[lane + 3]]);
            let bit = (mask >> (shift as usize + i % 4)) & 1;
            vector[i] | if bit == 1 { 16 } else { 0 }
        })
    }

    #[inline(always)]
    fn add_bit_pairs(vector: Self::B, pairs: Self::B, shift: u32) -> Self::B {
        std::array::from_fn(|i| vector[i] | (((pairs[i] >> shift) & 3) << 4))
    }

    #[inline(always)]
    fn bit_field(words: Self::B, shift: u32, mask: i32) -> Self::I {
        let words = words.as_chunks::<4>().0;
        std::array::from_fn(|lane| {
            let moved = u32::from_le_bytes(words[lane]) >> shift;
            moved.cast_signed() & mask
        })
    }

    #[inline(always)]
    fn prepare_i8(vector: Self::B) -> Self::B {
        vector
    }

    #[inline(always)]
    fn dot_u6(accumulator: Self::I, weights: Self::B, activations: [i8; 4]) -> Self::I {
        std::array::from_fn(|lane| {
            (0..4).fold(accumulator[lane], |sum, b| {
                sum + i32::from(weights[4 * lane + b]) * i32::from(activations[b])
            })
        })
    }

    #[inline(always)]
    fn dot_i8(accumulator: Self::I, weights: Self::B, activations: [i8; 4]) -> Self::I {
        std::array::from_fn(|lane| {
            (0..4).fold(accumulator[lane], |sum, b| {
                sum + i32::from(weights[4 * lane + b].cast_signed()) * i32::from(activations[b])
            })
        })
    }
}
