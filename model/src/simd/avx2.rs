//! AVX2 with FMA and F16C: two registers a vector.

use std::arch::x86_64::*;

use super::{LANES, Simd, Work};

/// Witness of AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx2;

pub fn detected() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// Runs `work` on AVX2.
///
/// # Safety
/// The machine must have what [`detected`] asks for.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn run<W: Work>(work: W) {
    work.run::<Avx2>();
}

// SAFETY of every block below: `Avx2` is only named by `run`, which is only called where the
// instructions were detected; loads and stores stay inside slices whose length is asserted.
impl Simd for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type B = [__m256i; 2];
    const I8_BIAS: i32 = 0;

    #[inline(always)]
    fn load(values: &[f32]) -> Self::F {
        assert!(values.len() >= LANES);
        // SAFETY: see above.
        unsafe { [_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values.as_ptr().add(8))] }
    }

    #[inline(always)]
    fn load_f16(bytes: &[u8]) -> Self::F {
        assert!(bytes.len() >= 2 * LANES);
        // SAFETY: see above.
        [0, 1].map(|i| unsafe { _mm256_cvtph_ps(_mm_loadu_si128(bytes.as_ptr().cast::<__m128i>().add(i))) })
    }

    #[inline(always)]
    fn load_bf16(bytes: &[u8]) -> Self::F {
        assert!(bytes.len() >= 2 * LANES);
        // SAFETY: see above.
        [0, 1].map(|i| unsafe {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(bytes.as_ptr().cast::<__m128i>().add(i)));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        })
    }

    #[inline(always)]
    fn store(vector: Self::F, out: &mut [f32]) {
        assert!(out.len() >= LANES);
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), vector[0]);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), vector[1]);
        }
    }

    #[inline(always)]
    fn splat(value: f32) -> Self::F {
        // SAFETY: see above.
        [unsafe { _mm256_set1_ps(value) }; 2]
    }

    #[inline(always)]
    fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see above.
        [0, 1].map(|i| unsafe { _mm256_fmadd_ps(a[i], b[i], c[i]) })
    }

    #[inline(always)]
    fn mul(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        [0, 1].map(|i| unsafe { _mm256_mul_ps(a[i], b[i]) })
    }

    #[inline(always)]
    fn add(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        [0, 1].map(|i| unsafe { _mm256_add_ps(a[i], b[i]) })
    }

    #[inline(always)]
    fn max(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        [0, 1].map(|i| unsafe { _mm256_max_ps(a[i], b[i]) })
    }

    #[inline(always)]
    fn splat_i(value: i32) -> Self::I {
        // SAFETY: see above.
        [unsafe { _mm256_set1_epi32(value) }; 2]
    }

    #[inline(always)]
    fn to_f(vector: Self::I) -> Self::F {
        // SAFETY: see above.
        vector.map(|half| unsafe { _mm256_cvtepi32_ps(half) })
    }

    #[inline(always)]
    fn load_b(bytes: &[u8]) -> Self::B {
        assert!(bytes.len() >= 4 * LANES);
        // SAFETY: see above.
        [0, 1].map(|i| unsafe { _mm256_loadu_si256(bytes.as_ptr().cast::<__m256i>().add(i)) })
    }

    #[inline(always)]
    fn low_nibbles(vector: Self::B) -> Self::B {
        // SAFETY: see above.
        vector.map(|half| unsafe { _mm256_and_si256(half, _mm256_set1_epi8(0x0F)) })
    }

    #[inline(always)]
    fn high_nibbles(vector: Self::B) -> Self::B {
        // SAFETY: see above.
        vector.map(|half| unsafe {
            _mm256_and_si256(_mm256_srli_epi16::<4>(half), _mm256_set1_epi8(0x0F))
        })
    }

    #[inline(always)]
    fn add_fifth_bit(vector: Self::B, bits: Self::B, shift: u32) -> Self::B {
        // SAFETY: see above.
        [0, 1].map(|i| unsafe {
            let shifted = _mm256_srlv_epi32(bits[i], _mm256_set1_epi32(shift.cast_signed()));
            let four = _mm256_and_si256(shifted, _mm256_set1_epi32(0x0F));
            // Bit b of the four moves to bit 8 b: 1 + 2^7 + 2^14 + 2^21 makes four shifted copies.
            let spread = _mm256_mullo_epi32(four, _mm256_set1_epi32(0x0020_4081));
            let ones = _mm256_and_si256(spread, _mm256_set1_epi32(0x0101_0101));
            _mm256_or_si256(vector[i], _mm256_slli_epi32::<4>(ones))
        })
    }

    #[inline(always)]
    fn prepare_i8(vector: Self::B) -> Self::B {
        vector
    }

    #[inline(always)]
    fn dot_u5(accumulator: Self::I, weights: Self::B, activations: [i8; 4]) -> Self::I {
        // Two products of at most 31 * 128 fit 16 bits: vpmaddubsw does not saturate.
        // SAFETY: see above.
        [0, 1].map(|i| unsafe {
            let activations = _mm256_set1_epi32(i32::from_le_bytes(activations.map(i8::cast_unsigned)));
            let pairs = _mm256_maddubs_epi16(weights[i], activations);
            _mm256_add_epi32(accumulator[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        })
    }

    #[inline(always)]
    fn dot_i8(accumulator: Self::I, weights: Self::B, activations: [i8; 4]) -> Self::I {
        // |w| times a with w's sign: two products of at most 128 * 127 fit 16 bits.
        // SAFETY: see above.
        [0, 1].map(|i| unsafe {
            let activations = _mm256_set1_epi32(i32::from_le_bytes(activations.map(i8::cast_unsigned)));
            let signed = _mm256_sign_epi8(activations, weights[i]);
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights[i]), signed);
            _mm256_add_epi32(accumulator[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        })
    }
}
