//! Products of tiles of bfloat16 with sums in f32, where the processor has a unit for them.

use super::LANES;

#[cfg(not(target_arch = "x86_64"))]
pub use self::absent::{Bf16Unit, bf16_detected};
#[cfg(target_arch = "x86_64")]
pub use super::amx::{Bf16Unit, bf16_detected};

/// Columns of a left tile and rows of a right one.
pub const DEPTH: usize = 32;

/// Two neighbours along the depth in each word, as bits of bfloat16, the first one in the lower half. Sixteen rows of the
/// left matrix as `[row][depth / 2]`, or sixteen columns of the right one as `[depth / 2][column]`.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct Tile(pub [[u32; LANES]; DEPTH / 2]);

/// `[row][column]`.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct Sums(pub [[f32; LANES]; LANES]);

/// Processors that no unit is known of.
#[cfg(not(target_arch = "x86_64"))]
mod absent {
    use super::{Sums, Tile};

    /// There is none.
    pub enum Bf16Unit {}

    pub const fn bf16_detected() -> bool {
        false
    }

    impl Bf16Unit {
        pub fn new() -> Self {
            unreachable!("a unit is detected before it is used")
        }

        pub fn products(&self, _: [&[Tile]; 2], _: [&[Tile]; 2], _: &mut [[Sums; 2]; 2]) {
            match *self {}
        }
    }
}
