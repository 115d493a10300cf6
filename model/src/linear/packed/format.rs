//! How the blocks of each type lie in a tile of 16 rows, and how a kernel reads them.
//!
//! A block has one group of 32 columns, or eight (GGML's superblocks). A tile has the same block of 16 rows,
//! its bytes in this order:
//! - for each group, its values: four vectors of 64 bytes. Vector `j` holds, for lane (row) `r`, the bytes
//!   `4j` to `4j + 3` of the row: low nibbles are columns `4j..`, high ones columns `16 + 4j..`. Behind them
//!   one vector with each row's 32 fifth bits, or two vectors with pairs of fifth and sixth bits. 8-bit
//!   values are eight vectors, columns `4j..`;
//! - superblocks: each row's scale fields. Sixteen of 6 bits, eight scales and eight minima, are two words
//!   of low four bits and one of high two bits; sixteen of 8 bits are four words, moved up by 128;
//! - 16 half-precision factors `d`, one a row, and where the type has minima 16 factors `m`.

use candle_core::quantized::GgmlDType;

use crate::linear::activations::GROUP;
use crate::simd::{LANES, Simd};

/// Sizes of one type's blocks. A weight is `d · scale · (q - offset) + m · minimum`; without superblocks
/// scale and minimum are 1.
#[derive(Clone, Copy)]
pub struct Format {
    pub bits: usize,
    pub offset: i8,
    pub has_min: bool,
    /// Groups of 32 columns in a block.
    pub groups: usize,
}

/// A type of blocks that kernels are compiled for.
pub trait Packing {
    /// Its sizes.
    const FORMAT: Format;
}

pub struct Q4_0;
pub struct Q4_1;
pub struct Q5_0;
pub struct Q5_1;
pub struct Q8_0;
pub struct Q4K;
pub struct Q5K;
pub struct Q6K;

impl Packing for Q4_0 {
    const FORMAT: Format = Format::new(4, 8, false, 1);
}
impl Packing for Q4_1 {
    const FORMAT: Format = Format::new(4, 0, true, 1);
}
impl Packing for Q5_0 {
    const FORMAT: Format = Format::new(5, 16, false, 1);
}
impl Packing for Q5_1 {
    const FORMAT: Format = Format::new(5, 0, true, 1);
}
impl Packing for Q8_0 {
    const FORMAT: Format = Format::new(8, 0, false, 1);
}
impl Packing for Q4K {
    const FORMAT: Format = Format::new(4, 0, true, 8);
}
impl Packing for Q5K {
    const FORMAT: Format = Format::new(5, 0, true, 8);
}
impl Packing for Q6K {
    const FORMAT: Format = Format::new(6, 32, false, 8);
}

impl Format {
    const fn new(bits: usize, offset: i8, has_min: bool, groups: usize) -> Self {
        Self {
            bits,
            offset,
            has_min,
            groups,
        }
    }

    pub fn of(dtype: GgmlDType) -> Self {
        match dtype {
            GgmlDType::Q4_0 => Q4_0::FORMAT,
            GgmlDType::Q4_1 => Q4_1::FORMAT,
            GgmlDType::Q5_0 => Q5_0::FORMAT,
            GgmlDType::Q5_1 => Q5_1::FORMAT,
            GgmlDType::Q8_0 => Q8_0::FORMAT,
            GgmlDType::Q4K => Q4K::FORMAT,
            GgmlDType::Q5K => Q5K::FORMAT,
            GgmlDType::Q6K => Q6K::FORMAT,
            other => unreachable!("{other:?} is not a packed type"),
        }
    }

    pub const fn columns(self) -> usize {
        self.groups * GROUP
    }

    /// Scales of a group: two where each is of 16 columns.
    pub const fn scales_per_group(self) -> usize {
        if self.bits == 6 { 2 } else { 1 }
    }

    /// Bytes of a row's group that hold nibbles or bytes.
    pub const fn value_bytes(self) -> usize {
        if self.bits == 8 { GROUP } else { GROUP / 2 }
    }

    /// Bytes of a row's group that hold the bits above the fourth.
    pub const fn high_bytes(self) -> usize {
        match self.bits {
            5 => GROUP / 8,
            6 => GROUP / 4,
            _ => 0,
        }
    }

    pub const fn group_bytes(self) -> usize {
        self.value_bytes() + self.high_bytes()
    }

    /// Bytes of a row's scale fields.
    pub const fn field_bytes(self) -> usize {
        match (self.groups, self.bits) {
            (1, _) => 0,
            (_, 6) => 16,
            _ => 12,
        }
    }

    /// Bytes of a row's block, in the file and in a tile.
    pub const fn block_bytes(self) -> usize {
        let factors = 2 + 2 * self.has_min as usize;
        self.groups * self.group_bytes() + self.field_bytes() + factors
    }

    pub const fn tile_bytes(self) -> usize {
        LANES * self.block_bytes()
    }

    /// Where the fields begin in a tile.
    pub const fn fields_at(self) -> usize {
        LANES * self.groups * self.group_bytes()
    }

    /// Where the factors begin in a tile.
    pub const fn factors_at(self) -> usize {
        self.fields_at() + LANES * self.field_bytes()
    }
}

/// What a group's integer sums are multiplied by.
pub struct Scales<S: Simd> {
    /// Of the whole group, or of its first and its last 16 columns.
    pub scales: [S::F; 2],
    /// Zero where the type has none.
    pub min: S::F,
}

impl<S: Simd> Scales<S> {
    /// Those of `group` of a tile, counted from the tile's first. Products with fields are exact: 11 bits by 8.
    #[inline(always)]
    pub fn load<P: Packing>(tile: &[u8], group: u32) -> Self {
        let format = P::FORMAT;
        let factor = S::load_f16(&tile[format.factors_at()..]);
        let min_factor = if format.has_min {
            S::load_f16(&tile[format.factors_at() + 2 * LANES..])
        } else {
            S::splat(0.0)
        };
        let fields = &tile[format.fields_at()..];
        match (format.groups, format.bits) {
            (1, _) => Self {
                scales: [factor; 2],
                min: min_factor,
            },
            (_, 6) => Self {
                scales: [
                    S::mul(factor, signed_field::<S>(fields, 2 * group)),
                    S::mul(factor, signed_field::<S>(fields, 2 * group + 1)),
                ],
                min: min_factor,
            },
            _ => {
                let scale = S::mul(factor, six_bit_field::<S>(fields, group));
                Self {
                    scales: [scale; 2],
                    min: S::mul(min_factor, six_bit_field::<S>(fields, 8 + group)),
                }
            }
        }
    }
}

#[inline(always)]
fn signed_field<S: Simd>(fields: &[u8], index: u32) -> S::F {
    let words = S::load_b(&fields[64 * (index as usize / 4)..]);
    let field = S::bit_field(words, 8 * (index % 4), 0xFF);
    S::to_f(S::sub_i(field, S::splat_i(128)))
}

#[inline(always)]
fn six_bit_field<S: Simd>(fields: &[u8], index: u32) -> S::F {
    let low = S::load_b(&fields[64 * (index as usize / 8)..]);
    let low = S::to_f(S::bit_field(low, 4 * (index % 8), 0xF));
    let high = S::to_f(S::bit_field(S::load_b(&fields[128..]), 2 * index, 3));
    S::fma(high, S::splat(16.0), low)
}

/// The eight vectors of a group's unsigned values, in order of their columns. `data` begins with the group.
///
/// A loop and not `array::from_fn`: a closure would be compiled without the vector instructions.
#[inline(always)]
pub fn unpack<S: Simd, P: Packing>(data: &[u8]) -> [S::B; 8] {
    let format = P::FORMAT;
    let mut vectors = [S::load_b(data); 8];
    if format.bits == 8 {
        for j in 0..8 {
            vectors[j] = S::load_b(&data[64 * j..]);
        }
        return vectors;
    }
    for j in 0..4 {
        let bytes = S::load_b(&data[64 * j..]);
        vectors[j] = S::low_nibbles(bytes);
        vectors[j + 4] = S::high_nibbles(bytes);
    }
    let high = &data[LANES * format.value_bytes()..];
    if format.bits == 5 {
        let fifth_bits = S::load_b(high);
        let mut shift = 0;
        for vector in &mut vectors {
            *vector = S::add_fifth_bit(*vector, fifth_bits, shift);
            shift += 4;
        }
    }
    if format.bits == 6 {
        for (half, vectors) in vectors.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let pairs = S::load_b(&high[64 * half..]);
            let mut shift = 0;
            for vector in vectors {
                *vector = S::add_bit_pairs(*vector, pairs, shift);
                shift += 2;
            }
        }
    }
    vectors
}
