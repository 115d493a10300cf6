//! AVX-512 with VNNI: one register a vector.

use std::arch::x86_64::*;

use super::{LANES, Simd, Work};

/// Witness of AVX-512 F, BW, VL, VNNI, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx512;

pub fn detected() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

/// Runs `work` on AVX-512.
///
/// # Safety
/// The machine must have what [`detected`] asks for.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub unsafe fn run<W: Work>(work: W) {
    work.run::<Avx512>();
}

// SAFETY of every block below: `Avx512` is only named by `run`, which is only called where the
// instructions were detected; loads and stores stay inside slices whose length is asserted.
impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    // vpdpbusd multiplies unsigned by signed bytes: signed weights are moved up by 128.
    const I8_BIAS: i32 = 128;

    #[inline(always)]
    fn load(values: &[f32]) -> Self::F {
        assert!(values.len() >= LANES);
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }

    #[inline(always)]
    fn load_f16(bytes: &[u8]) -> Self::F {
        assert!(bytes.len() >= 2 * LANES);
        // SAFETY: see above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(bytes.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16(bytes: &[u8]) -> Self::F {
        assert!(bytes.len() >= 2 * LANES);
        // SAFETY: see above.
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(bytes.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }

    #[inline(always)]
    fn store(vector: Self::F, out: &mut [f32]) {
        assert!(out.len() >= LANES);
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), vector) }
    }

    #[inline(always)]
    fn splat(value: f32) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn mul(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn add(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn max(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn abs(vector: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_abs_ps(vector) }
    }

    #[inline(always)]
    fn largest(vector: Self::F) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_max_ps(vector) }
    }

    #[inline(always)]
    fn bits(vector: Self::F) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_castps_si512(vector) }
    }

    #[inline(always)]
    fn add_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn sub_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_sub_epi32(a, b) }
    }

    #[inline(always)]
    fn sum_i(vector: Self::I) -> i32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_add_epi32(vector) }
    }

    #[inline(always)]
    fn store_low_bytes(vector: Self::I, out: &mut [i8]) {
        assert!(out.len() >= LANES);
        // SAFETY: see above.
        unsafe {
            _mm_storeu_si128(
                out.as_mut_ptr().cast::<__m128i>(),
                _mm512_cvtepi32_epi8(vector),
            );
        }
    }

    #[inline(always)]
    fn splat_i(value: i32) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    fn load_i(values: &[i32]) -> Self::I {
        assert!(values.len() >= LANES);
        // SAFETY: see above.
        unsafe { _mm512_loadu_si512(values.as_ptr().cast()) }
    }

    #[inline(always)]
    fn to_f(vector: Self::I) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(vector) }
    }

    #[inline(always)]
    fn load_b(bytes: &[u8]) -> Self::B {
        assert!(bytes.len() >= 4 * LANES);
        // SAFETY: see above.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store_b(vector: Self::B, out: &mut [i8]) {
        assert!(out.len() >= 4 * LANES);
        // SAFETY: see above.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), vector) }
    }

    #[inline(always)]
    fn sub_b(vector: Self::B, value: i8) -> Self::B {
        // SAFETY: see above.
        unsafe { _mm512_sub_epi8(vector, _mm512_set1_epi8(value)) }
    }

    #[inline(always)]
    fn low_nibbles(vector: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe { _mm512_and_si512(vector, _mm512_set1_epi8(0x0F)) }
    }

    #[inline(always)]
    fn high_nibbles(vector: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(vector), _mm512_set1_epi8(0x0F)) }
    }

    #[inline(always)]
    fn add_fifth_bit(vector: Self::B, bits: Self::B, shift: u32) -> Self::B {
        // SAFETY: see above.
        unsafe {
            let shifted = _mm512_srlv_epi32(bits, _mm512_set1_epi32(shift.cast_signed()));
            let four = _mm512_and_si512(shifted, _mm512_set1_epi32(0x0F));
            // Bit b of the four moves to bit 8 b: 1 + 2^7 + 2^14 + 2^21 makes four shifted copies.
            let spread = _mm512_mullo_epi32(four, _mm512_set1_epi32(0x0020_4081));
            let ones = _mm512_and_si512(spread, _mm512_set1_epi32(0x0101_0101));
            _mm512_or_si512(vector, _mm512_slli_epi32::<4>(ones))
        }
    }

    #[inline(always)]
    fn add_bit_pairs(vector: Self::B, pairs: Self::B, shift: u32) -> Self::B {
        // SAFETY: see above.
        unsafe {
            let moved = _mm512_srl_epi16(pairs, _mm_cvtsi32_si128(shift.cast_signed()));
            let two = _mm512_and_si512(moved, _mm512_set1_epi8(3));
            _mm512_or_si512(vector, _mm512_slli_epi16::<4>(two))
        }
    }

    #[inline(always)]
    fn bit_field(words: Self::B, shift: u32, mask: i32) -> Self::I {
        // SAFETY: see above.
        unsafe {
            let moved = _mm512_srl_epi32(words, _mm_cvtsi32_si128(shift.cast_signed()));
            _mm512_and_si512(moved, _mm512_set1_epi32(mask))
        }
    }

    #[inline(always)]
    fn prepare_i8(vector: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe { _mm512_xor_si512(vector, _mm512_set1_epi8(i8::MIN)) }
    }

    #[inline(always)]
    fn dot_u6(accumulator: Self::I, weights: Self::B, activations: [i8; 4]) -> Self::I {
        // SAFETY: see above.
        unsafe {
            let activations =
                _mm512_set1_epi32(i32::from_le_bytes(activations.map(i8::cast_unsigned)));
            _mm512_dpbusd_epi32(accumulator, weights, activations)
        }
    }

    #[inline(always)]
    fn dot_i8(accumulator: Self::I, weights: Self::B, activations: [i8; 4]) -> Self::I {
        Self::dot_u6(accumulator, weights, activations)
    }
}
