//! The vector operations that the kernels are written in, once for every instruction set.
//!
//! A kernel is a [`Work`]: code generic over [`Simd`]. [`dispatch`] runs it with the widest
//! implementation that the machine has. All of them work on 16 lanes and fuse multiply and add, and
//! [`Simd::sum`] adds in one fixed order: a kernel gives the same bits on every machine.
#![expect(
    unsafe_code,
    reason = "vector intrinsics take pointers and need a detected instruction set"
)]

use std::sync::LazyLock;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod bf16_tiles;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
pub(crate) mod tile_unit;

/// Lanes of every vector of 32-bit values; vectors of bytes have four times as many.
pub const LANES: usize = 16;

/// Sixteen-lane arithmetic. Loads and stores panic on slices that are too short.
pub trait Simd: Copy {
    /// 16 × f32.
    type F: Copy;
    /// 16 × i32.
    type I: Copy;
    /// 64 × u8.
    type B: Copy;
    /// What [`Simd::dot_i8`] adds to a lane for each unit of the activation bytes' sum.
    const I8_BIAS: i32;

    /// The first 16 values of `values`.
    fn load(values: &[f32]) -> Self::F;
    /// The first 16 half-precision values of `bytes` (32 bytes, little-endian).
    fn load_f16(bytes: &[u8]) -> Self::F;
    /// The first 16 bfloat16 values of `bytes` (32 bytes, little-endian).
    fn load_bf16(bytes: &[u8]) -> Self::F;
    /// Writes 16 values.
    fn store(vector: Self::F, out: &mut [f32]);
    /// The same value in every lane.
    fn splat(value: f32) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a * b`.
    fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a + b`.
    fn add(a: Self::F, b: Self::F) -> Self::F;
    /// The larger of each pair of lanes.
    fn max(a: Self::F, b: Self::F) -> Self::F;
    /// Without the sign.
    fn abs(vector: Self::F) -> Self::F;
    /// The largest lane.
    fn largest(vector: Self::F) -> f32;

    /// The same integer in every lane.
    fn splat_i(value: i32) -> Self::I;
    /// The first 16 integers of `values`.
    fn load_i(values: &[i32]) -> Self::I;
    /// The bits of floats.
    fn bits(vector: Self::F) -> Self::I;
    /// `a + b`, modulo 2^32.
    fn add_i(a: Self::I, b: Self::I) -> Self::I;
    /// `a - b`, modulo 2^32.
    fn sub_i(a: Self::I, b: Self::I) -> Self::I;
    /// The sum of the lanes, modulo 2^32.
    fn sum_i(vector: Self::I) -> i32;
    /// Writes the low byte of each lane.
    fn store_low_bytes(vector: Self::I, out: &mut [i8]);
    /// Integers to floats.
    fn to_f(vector: Self::I) -> Self::F;

    /// The first 64 bytes of `bytes`.
    fn load_b(bytes: &[u8]) -> Self::B;
    /// Writes 64 bytes.
    fn store_b(vector: Self::B, out: &mut [i8]);
    /// Each byte less `value`, modulo 256.
    fn sub_b(vector: Self::B, value: i8) -> Self::B;
    /// The low four bits of each byte.
    fn low_nibbles(vector: Self::B) -> Self::B;
    /// The high four bits of each byte.
    fn high_nibbles(vector: Self::B) -> Self::B;
    /// `bits` (64 bytes) holds one 32-bit mask a lane. Adds 16 to byte `b` of a lane where bit
    /// `shift + b` of its mask is set (`b` = 0 to 3).
    fn add_fifth_bit(vector: Self::B, bits: Self::B, shift: u32) -> Self::B;
    /// Adds to each byte, times 16, bits `shift` and `shift + 1` of the same byte of `pairs`.
    fn add_bit_pairs(vector: Self::B, pairs: Self::B, shift: u32) -> Self::B;
    /// Each lane's 32-bit word, moved down by `shift`, and of that the bits of `mask`.
    fn bit_field(words: Self::B, shift: u32, mask: i32) -> Self::I;
    /// Makes signed weight bytes ready for [`Simd::dot_i8`].
    fn prepare_i8(vector: Self::B) -> Self::B;
    /// Adds to each lane the dot product of its four weight bytes (0 to 63) with `activations`.
    fn dot_u6(accumulator: Self::I, weights: Self::B, activations: [i8; 4]) -> Self::I;
    /// The same for weights from [`Simd::prepare_i8`], plus [`Simd::I8_BIAS`] times the sum of `activations`.
    fn dot_i8(accumulator: Self::I, weights: Self::B, activations: [i8; 4]) -> Self::I;

    /// The sum of the lanes, always added in the same order.
    #[inline(always)]
    fn sum(vector: Self::F) -> f32 {
        let mut lanes = [0.0_f32; LANES];
        Self::store(vector, &mut lanes);
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }
}

/// A kernel. `run` must be `#[inline(always)]`, and so must everything it calls with `S`: only then
/// is it compiled for the instruction set that [`dispatch`] chose.
pub trait Work {
    /// Does the work with the operations of `S`.
    fn run<S: Simd>(self);
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    NeonDot,
    #[cfg(target_arch = "aarch64")]
    Neon,
    Portable,
}

static LEVEL: LazyLock<Level> = LazyLock::new(|| {
    #[cfg(target_arch = "x86_64")]
    {
        if avx512::detected() {
            return Level::Avx512;
        }
        if avx2::detected() {
            return Level::Avx2;
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        if neon::dot_detected() {
            return Level::NeonDot;
        }
        if neon::detected() {
            return Level::Neon;
        }
    }
    Level::Portable
});

/// Runs `work` with the widest vectors this machine has.
pub fn dispatch<W: Work>(work: W) {
    match *LEVEL {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level says that the instructions were detected.
        Level::Avx512 => unsafe { avx512::run(work) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level says that the instructions were detected.
        Level::Avx2 => unsafe { avx2::run(work) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the level says that the instructions were detected.
        Level::NeonDot => unsafe { neon::run_dot(work) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the level says that the instructions were detected.
        Level::Neon => unsafe { neon::run(work) },
        Level::Portable => work.run::<portable::Portable>(),
    }
}

/// The instruction set the kernels use on this machine, for reports.
#[must_use]
pub fn instruction_set() -> &'static str {
    match *LEVEL {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 if tile_unit::detected() => "avx512-vnni, amx-int8",
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => "avx512-vnni",
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => "avx2",
        #[cfg(target_arch = "aarch64")]
        Level::NeonDot => "neon-dotprod",
        #[cfg(target_arch = "aarch64")]
        Level::Neon => "neon",
        Level::Portable => "portable",
    }
}

#[cfg(test)]
pub(crate) mod tests;
