//! Dot products of 16 rows of activations with a tile of 16 rows of weights, where the processor has a unit
//! for them. They are exact integers: a kernel that uses the unit has the bits of one that does not.

use super::LANES;

#[cfg(not(target_arch = "x86_64"))]
pub use self::absent::{TileUnit, detected};
#[cfg(target_arch = "x86_64")]
pub use super::amx::{TileUnit, detected};

/// Columns of one dot product.
pub const DEPTH: usize = 32;

/// Weights of 16 outputs: `[column / 4][4 · output + column % 4]`.
pub type WeightTile = [[i8; 4 * LANES]; DEPTH / 4];

/// Activations of 16 rows: `[row][column]`.
pub type RowTile = [[i8; DEPTH]; LANES];

/// Dot products, `[row][output]`.
#[repr(C, align(64))]
#[derive(Clone, Copy, Default)]
pub struct DotTile(pub [[i32; LANES]; LANES]);

/// Processors that no unit is known of.
#[cfg(not(target_arch = "x86_64"))]
mod absent {
    use super::{DotTile, RowTile, WeightTile};

    /// There is none.
    pub enum TileUnit {}

    pub const fn detected() -> bool {
        false
    }

    impl TileUnit {
        pub fn new() -> Self {
            unreachable!("a unit is detected before it is used")
        }

        pub fn start<const SLOT: usize>(&self, _: &RowTile, _: &WeightTile) {
            match *self {}
        }

        pub fn finish<const SLOT: usize>(&self, _: &mut DotTile) {
            match *self {}
        }
    }
}
