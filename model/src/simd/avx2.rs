//! AVX2 with FMA and F16C: two registers a vector.

use std::arch::x86_64::*;

use super::{LANES, Simd, Work};

/// Witness of AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx2;

pub fn detected() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

/// Runs `work` on AVX2.
///
/// # Safety
/// The machine must have what [`detected`] asks for.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn run<W: Work>(work: W) {
    work.run::<Avx2>();
}

// Both halves are written out: a closure would be compiled without the vector instructions.
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
        unsafe {
            [
                _mm256_loadu_ps(values.as_ptr()),
                _mm256_loadu_ps(values.as_ptr().add(8)),
            ]
        }
    }

    #[inline(always)]
    fn load_f16(bytes: &[u8]) -> Self::F {
        assert!(bytes.len() >= 2 * LANES);
        // SAFETY: see above.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(bytes.as_ptr().cast::<__m128i>())),
                _mm256_cvtph_ps(_mm_loadu_si128(bytes.as_ptr().cast::<__m128i>().add(1))),
            ]
        }
    }

    #[inline(always)]
    fn load_bf16(bytes: &[u8]) -> Self::F {
        assert!(bytes.len() >= 2 * LANES);
        // SAFETY: see above.
        unsafe {
            [
                half::bf16_to_f32(bytes.as_ptr()),
                half::bf16_to_f32(bytes.as_ptr().add(LANES)),
            ]
        }
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
        unsafe {
            [
                _mm256_fmadd_ps(a[0], b[0], c[0]),
                _mm256_fmadd_ps(a[1], b[1], c[1]),
            ]
        }
    }

    #[inline(always)]
    fn mul(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn add(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn max(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn abs(vector: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            [
                _mm256_andnot_ps(sign, vector[0]),
                _mm256_andnot_ps(sign, vector[1]),
            ]
        }
    }

    #[inline(always)]
    fn largest(vector: Self::F) -> f32 {
        // SAFETY: see above.
        unsafe {
            let eight = _mm256_max_ps(vector[0], vector[1]);
            let four = _mm_max_ps(
                _mm256_castps256_ps128(eight),
                _mm256_extractf128_ps::<1>(eight),
            );
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            let one = _mm_max_ss(two, _mm_movehdup_ps(two));
            _mm_cvtss_f32(one)
        }
    }

    #[inline(always)]
    fn bits(vector: Self::F) -> Self::I {
        // SAFETY: see above.
        unsafe {
            [
                _mm256_castps_si256(vector[0]),
                _mm256_castps_si256(vector[1]),
            ]
        }
    }

    #[inline(always)]
    fn add_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
    }

    #[inline(always)]
    fn sub_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])] }
    }

    #[inline(always)]
    fn sum_i(vector: Self::I) -> i32 {
        // SAFETY: see above.
        unsafe {
            let eight = _mm256_add_epi32(vector[0], vector[1]);
            let four = _mm_add_epi32(
                _mm256_castsi256_si128(eight),
                _mm256_extracti128_si256::<1>(eight),
            );
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b00_00_11_10>(four));
            let one = _mm_add_epi32(two, _mm_shuffle_epi32::<0b00_00_00_01>(two));
            _mm_cvtsi128_si32(one)
        }
    }

    #[inline(always)]
    fn store_low_bytes(vector: Self::I, out: &mut [i8]) {
        assert!(out.len() >= LANES);
        let mut lanes = [0_i32; LANES];
        // SAFETY: see above.
        unsafe {
            let to = lanes.as_mut_ptr().cast::<__m256i>();
            _mm256_storeu_si256(to, vector[0]);
            _mm256_storeu_si256(to.add(1), vector[1]);
        }
        for (out, lane) in out.iter_mut().zip(lanes) {
            *out = lane.to_le_bytes()[0].cast_signed();
        }
    }

    #[inline(always)]
    fn splat_i(value: i32) -> Self::I {
        // SAFETY: see above.
        [unsafe { _mm256_set1_epi32(value) }; 2]
    }

    #[inline(always)]
    fn load_i(values: &[i32]) -> Self::I {
        assert!(values.len() >= LANES);
        // SAFETY: see above.
        unsafe {
            let values = values.as_ptr().cast::<__m256i>();
            [
                _mm256_loadu_si256(values),
                _mm256_loadu_si256(values.add(1)),
            ]
        }
    }

    #[inline(always)]
    fn to_f(vector: Self::I) -> Self::F {
        // SAFETY: see above.
        unsafe { [_mm256_cvtepi32_ps(vector[0]), _mm256_cvtepi32_ps(vector[1])] }
    }

    #[inline(always)]
    fn load_b(bytes: &[u8]) -> Self::B {
        assert!(bytes.len() >= 4 * LANES);
        // SAFETY: see above.
        unsafe {
            [
                _mm256_loadu_si256(bytes.as_ptr().cast::<__m256i>()),
                _mm256_loadu_si256(bytes.as_ptr().cast::<__m256i>().add(1)),
            ]
        }
    }

    #[inline(always)]
    fn store_b(vector: Self::B, out: &mut [i8]) {
        assert!(out.len() >= 4 * LANES);
        // SAFETY: see above.
        unsafe {
            let out = out.as_mut_ptr().cast::<__m256i>();
            _mm256_storeu_si256(out, vector[0]);
            _mm256_storeu_si256(out.add(1), vector[1]);
        }
    }

    #[inline(always)]
    fn sub_b(vector: Self::B, value: i8) -> Self::B {
        // SAFETY: see above.
        unsafe {
            let value = _mm256_set1_epi8(value);
            [
                _mm256_sub_epi8(vector[0], value),
                _mm256_sub_epi8(vector[1], value),
            ]
        }
    }

    #[inline(always)]
    fn low_nibbles(vector: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe { [half::low_nibbles(vector[0]), half::low_nibbles(vector[1])] }
    }

    #[inline(always)]
    fn high_nibbles(vector: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe { [half::high_nibbles(vector[0]), half::high_nibbles(vector[1])] }
    }

    #[inline(always)]
    fn add_fifth_bit(vector: Self::B, bits: Self::B, shift: u32) -> Self::B {
        // SAFETY: see above.
        unsafe {
            [
                half::add_fifth_bit(vector[0], bits[0], shift),
                half::add_fifth_bit(vector[1], bits[1], shift),
            ]
        }
    }

    #[inline(always)]
    fn add_bit_pairs(vector: Self::B, pairs: Self::B, shift: u32) -> Self::B {
        // SAFETY: see above.
        unsafe {
            [
                half::add_bit_pairs(vector[0], pairs[0], shift),
                half::add_bit_pairs(vector[1], pairs[1], shift),
            ]
        }
    }

    #[inline(always)]
    fn bit_field(words: Self::B, shift: u32, mask: i32) -> Self::I {
        // SAFETY: see above.
        unsafe {
            let shift = _mm_cvtsi32_si128(shift.cast_signed());
            let mask = _mm256_set1_epi32(mask);
            [
                _mm256_and_si256(_mm256_srl_epi32(words[0], shift), mask),
                _mm256_and_si256(_mm256_srl_epi32(words[1], shift), mask),
            ]
        }
    }

    #[inline(always)]
    fn prepare_i8(vector: Self::B) -> Self::B {
        vector
    }

    #[inline(always)]
    fn dot_u6(accumulator: Self::I, weights: Self::B, activations: [i8; 4]) -> Self::I {
        let activations = i32::from_le_bytes(activations.map(i8::cast_unsigned));
        // SAFETY: see above.
        unsafe {
            let activations = _mm256_set1_epi32(activations);
            [
                half::dot_u6(accumulator[0], weights[0], activations),
                half::dot_u6(accumulator[1], weights[1], activations),
            ]
        }
    }

    #[inline(always)]
    fn dot_i8(accumulator: Self::I, weights: Self::B, activations: [i8; 4]) -> Self::I {
        let activations = i32::from_le_bytes(activations.map(i8::cast_unsigned));
        // SAFETY: see above.
        unsafe {
            let activations = _mm256_set1_epi32(activations);
            [
                half::dot_i8(accumulator[0], weights[0], activations),
                half::dot_i8(accumulator[1], weights[1], activations),
            ]
        }
    }
}

/// What one register of the two does. All need AVX2, `dot_*` and the others alike.
mod half {
    use std::arch::x86_64::*;

    #[inline(always)]
    pub unsafe fn bf16_to_f32(bytes: *const u8) -> __m256 {
        // SAFETY: the caller has AVX2 and 16 readable bytes.
        unsafe {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(bytes.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        }
    }

    #[inline(always)]
    pub unsafe fn low_nibbles(bytes: __m256i) -> __m256i {
        // SAFETY: the caller has AVX2.
        unsafe { _mm256_and_si256(bytes, _mm256_set1_epi8(0x0F)) }
    }

    #[inline(always)]
    pub unsafe fn high_nibbles(bytes: __m256i) -> __m256i {
        // SAFETY: the caller has AVX2.
        unsafe { low_nibbles(_mm256_srli_epi16::<4>(bytes)) }
    }

    #[inline(always)]
    pub unsafe fn add_fifth_bit(bytes: __m256i, bits: __m256i, shift: u32) -> __m256i {
        // SAFETY: the caller has AVX2.
        unsafe {
            let shifted = _mm256_srlv_epi32(bits, _mm256_set1_epi32(shift.cast_signed()));
            let four = _mm256_and_si256(shifted, _mm256_set1_epi32(0x0F));
            // Bit b of the four moves to bit 8 b: 1 + 2^7 + 2^14 + 2^21 makes four shifted copies.
            let spread = _mm256_mullo_epi32(four, _mm256_set1_epi32(0x0020_4081));
            let ones = _mm256_and_si256(spread, _mm256_set1_epi32(0x0101_0101));
            _mm256_or_si256(bytes, _mm256_slli_epi32::<4>(ones))
        }
    }

    #[inline(always)]
    pub unsafe fn add_bit_pairs(bytes: __m256i, pairs: __m256i, shift: u32) -> __m256i {
        // SAFETY: the caller has AVX2.
        unsafe {
            let moved = _mm256_srl_epi16(pairs, _mm_cvtsi32_si128(shift.cast_signed()));
            let two = _mm256_and_si256(moved, _mm256_set1_epi8(3));
            _mm256_or_si256(bytes, _mm256_slli_epi16::<4>(two))
        }
    }

    /// Two products of at most 63 * 128 fit 16 bits: `vpmaddubsw` does not saturate.
    #[inline(always)]
    pub unsafe fn dot_u6(accumulator: __m256i, weights: __m256i, activations: __m256i) -> __m256i {
        // SAFETY: the caller has AVX2.
        unsafe {
            let pairs = _mm256_maddubs_epi16(weights, activations);
            _mm256_add_epi32(accumulator, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }

    /// `|w|` times `a` with `w`'s sign: two products of at most 128 * 127 fit 16 bits.
    #[inline(always)]
    pub unsafe fn dot_i8(accumulator: __m256i, weights: __m256i, activations: __m256i) -> __m256i {
        // SAFETY: the caller has AVX2.
        unsafe {
            dot_u6(
                accumulator,
                _mm256_abs_epi8(weights),
                _mm256_sign_epi8(activations, weights),
            )
        }
    }
}
