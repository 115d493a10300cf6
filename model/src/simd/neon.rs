//! NEON: four registers a vector. With `DOT`, dot products by SDOT; without, by widening products.
//!
//! Two instructions are written as assembly: the intrinsics for them are not stable.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{LANES, Simd, Work};

/// Witness of NEON, and of SDOT where `DOT` is set.
#[derive(Clone, Copy)]
pub struct Neon<const DOT: bool>;

pub fn detected() -> bool {
    std::arch::is_aarch64_feature_detected!("neon")
}

pub fn dot_detected() -> bool {
    detected() && std::arch::is_aarch64_feature_detected!("dotprod")
}

/// Runs `work` on NEON.
///
/// # Safety
/// The machine must have what [`detected`] asks for.
#[target_feature(enable = "neon")]
pub unsafe fn run<W: Work>(work: W) {
    work.run::<Neon<false>>();
}

/// Runs `work` on NEON with SDOT.
///
/// # Safety
/// The machine must have what [`dot_detected`] asks for.
#[target_feature(enable = "neon,dotprod")]
pub unsafe fn run_dot<W: Work>(work: W) {
    work.run::<Neon<true>>();
}

/// One operation on each of the four registers. Written out: a closure would be compiled without the
/// vector instructions.
macro_rules! each {
    ($i:ident => $operation:expr) => {
        // SAFETY: `Neon` is only named by `run` and `run_dot`, which are only called where the instructions
        // were detected; loads and stores stay inside slices whose length is asserted.
        unsafe {
            [
                {
                    const $i: usize = 0;
                    $operation
                },
                {
                    const $i: usize = 1;
                    $operation
                },
                {
                    const $i: usize = 2;
                    $operation
                },
                {
                    const $i: usize = 3;
                    $operation
                },
            ]
        }
    };
}

impl<const DOT: bool> Simd for Neon<DOT> {
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type B = [uint8x16_t; 4];
    const I8_BIAS: i32 = 0;

    #[inline(always)]
    fn load(values: &[f32]) -> Self::F {
        assert!(values.len() >= LANES);
        each!(I => vld1q_f32(values.as_ptr().add(4 * I)))
    }

    #[inline(always)]
    fn load_f16(bytes: &[u8]) -> Self::F {
        assert!(bytes.len() >= 2 * LANES);
        each!(I => f16_to_f32(vld1_u8(bytes.as_ptr().add(8 * I))))
    }

    #[inline(always)]
    fn load_bf16(bytes: &[u8]) -> Self::F {
        assert!(bytes.len() >= 2 * LANES);
        each!(I => {
            let halves = vreinterpret_u16_u8(vld1_u8(bytes.as_ptr().add(8 * I)));
            vreinterpretq_f32_u32(vshll_n_u16::<16>(halves))
        })
    }

    #[inline(always)]
    fn store(vector: Self::F, out: &mut [f32]) {
        assert!(out.len() >= LANES);
        each!(I => vst1q_f32(out.as_mut_ptr().add(4 * I), vector[I]));
    }

    #[inline(always)]
    fn splat(value: f32) -> Self::F {
        each!(I => vdupq_n_f32(value))
    }

    #[inline(always)]
    fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each!(I => vfmaq_f32(c[I], a[I], b[I]))
    }

    #[inline(always)]
    fn mul(a: Self::F, b: Self::F) -> Self::F {
        each!(I => vmulq_f32(a[I], b[I]))
    }

    #[inline(always)]
    fn add(a: Self::F, b: Self::F) -> Self::F {
        each!(I => vaddq_f32(a[I], b[I]))
    }

    #[inline(always)]
    fn max(a: Self::F, b: Self::F) -> Self::F {
        // As x86's maximum: the second where they cannot be compared.
        each!(I => vbslq_f32(vcgtq_f32(a[I], b[I]), a[I], b[I]))
    }

    #[inline(always)]
    fn abs(vector: Self::F) -> Self::F {
        each!(I => vabsq_f32(vector[I]))
    }

    #[inline(always)]
    fn largest(vector: Self::F) -> f32 {
        // SAFETY: as in `each`.
        unsafe {
            let low = vmaxq_f32(vector[0], vector[1]);
            vmaxvq_f32(vmaxq_f32(low, vmaxq_f32(vector[2], vector[3])))
        }
    }

    #[inline(always)]
    fn splat_i(value: i32) -> Self::I {
        each!(I => vdupq_n_s32(value))
    }

    #[inline(always)]
    fn load_i(values: &[i32]) -> Self::I {
        assert!(values.len() >= LANES);
        each!(I => vld1q_s32(values.as_ptr().add(4 * I)))
    }

    #[inline(always)]
    fn bits(vector: Self::F) -> Self::I {
        each!(I => vreinterpretq_s32_f32(vector[I]))
    }

    #[inline(always)]
    fn add_i(a: Self::I, b: Self::I) -> Self::I {
        each!(I => vaddq_s32(a[I], b[I]))
    }

    #[inline(always)]
    fn sub_i(a: Self::I, b: Self::I) -> Self::I {
        each!(I => vsubq_s32(a[I], b[I]))
    }

    #[inline(always)]
    fn sum_i(vector: Self::I) -> i32 {
        // SAFETY: as in `each`.
        unsafe {
            let low = vaddq_s32(vector[0], vector[1]);
            vaddvq_s32(vaddq_s32(low, vaddq_s32(vector[2], vector[3])))
        }
    }

    #[inline(always)]
    fn store_low_bytes(vector: Self::I, out: &mut [i8]) {
        assert!(out.len() >= LANES);
        // SAFETY: as in `each`.
        unsafe {
            let low = vcombine_s16(vmovn_s32(vector[0]), vmovn_s32(vector[1]));
            let high = vcombine_s16(vmovn_s32(vector[2]), vmovn_s32(vector[3]));
            vst1q_s8(
                out.as_mut_ptr(),
                vcombine_s8(vmovn_s16(low), vmovn_s16(high)),
            );
        }
    }

    #[inline(always)]
    fn to_f(vector: Self::I) -> Self::F {
        each!(I => vcvtq_f32_s32(vector[I]))
    }

    #[inline(always)]
    fn load_b(bytes: &[u8]) -> Self::B {
        assert!(bytes.len() >= 4 * LANES);
        each!(I => vld1q_u8(bytes.as_ptr().add(16 * I)))
    }

    #[inline(always)]
    fn store_b(vector: Self::B, out: &mut [i8]) {
        assert!(out.len() >= 4 * LANES);
        each!(I => vst1q_s8(out.as_mut_ptr().add(16 * I), vreinterpretq_s8_u8(vector[I])));
    }

    #[inline(always)]
    fn sub_b(vector: Self::B, value: i8) -> Self::B {
        each!(I => vsubq_u8(vector[I], vdupq_n_u8(value.cast_unsigned())))
    }

    #[inline(always)]
    fn low_nibbles(vector: Self::B) -> Self::B {
        each!(I => vandq_u8(vector[I], vdupq_n_u8(0x0F)))
    }

    #[inline(always)]
    fn high_nibbles(vector: Self::B) -> Self::B {
        each!(I => vshrq_n_u8::<4>(vector[I]))
    }

    #[inline(always)]
    fn add_fifth_bit(vector: Self::B, bits: Self::B, shift: u32) -> Self::B {
        each!(I => {
            let down = vdupq_n_s32(-shift.cast_signed());
            let shifted = vshlq_u32(vreinterpretq_u32_u8(bits[I]), down);
            let four = vandq_u32(shifted, vdupq_n_u32(0x0F));
            // Bit b of the four moves to bit 8 b: 1 + 2^7 + 2^14 + 2^21 makes four shifted copies.
            let spread = vmulq_u32(four, vdupq_n_u32(0x0020_4081));
            let ones = vandq_u32(spread, vdupq_n_u32(0x0101_0101));
            vorrq_u8(vector[I], vreinterpretq_u8_u32(vshlq_n_u32::<4>(ones)))
        })
    }

    #[inline(always)]
    fn add_bit_pairs(vector: Self::B, pairs: Self::B, shift: u32) -> Self::B {
        each!(I => {
            let down = vdupq_n_s8(-(shift.to_le_bytes()[0].cast_signed()));
            let two = vandq_u8(vshlq_u8(pairs[I], down), vdupq_n_u8(3));
            vorrq_u8(vector[I], vshlq_n_u8::<4>(two))
        })
    }

    #[inline(always)]
    fn bit_field(words: Self::B, shift: u32, mask: i32) -> Self::I {
        each!(I => {
            let down = vdupq_n_s32(-shift.cast_signed());
            let moved = vshlq_u32(vreinterpretq_u32_u8(words[I]), down);
            vandq_s32(vreinterpretq_s32_u32(moved), vdupq_n_s32(mask))
        })
    }

    #[inline(always)]
    fn prepare_i8(vector: Self::B) -> Self::B {
        vector
    }

    #[inline(always)]
    fn dot_u6(accumulator: Self::I, weights: Self::B, activations: [i8; 4]) -> Self::I {
        // Weights below 64 are the same signed.
        Self::dot_i8(accumulator, weights, activations)
    }

    #[inline(always)]
    fn dot_i8(accumulator: Self::I, weights: Self::B, activations: [i8; 4]) -> Self::I {
        let activations = i32::from_le_bytes(activations.map(i8::cast_unsigned));
        each!(I => {
            let activations = vreinterpretq_s8_s32(vdupq_n_s32(activations));
            let weights = vreinterpretq_s8_u8(weights[I]);
            if DOT {
                sdot(accumulator[I], weights, activations)
            } else {
                // Two products of at most 128 * 127 fit 16 bits.
                let low = vmull_s8(vget_low_s8(weights), vget_low_s8(activations));
                let high = vmull_high_s8(weights, activations);
                vpadalq_s16(accumulator[I], vpaddq_s16(low, high))
            }
        })
    }
}

#[inline(always)]
unsafe fn f16_to_f32(halves: uint8x8_t) -> float32x4_t {
    let floats: float32x4_t;
    // SAFETY: the caller has NEON.
    unsafe {
        asm!(
            "fcvtl {floats:v}.4s, {halves:v}.4h",
            floats = out(vreg) floats,
            halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    floats
}

#[inline(always)]
unsafe fn sdot(accumulator: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let mut sum = accumulator;
    // SAFETY: the caller has SDOT.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
