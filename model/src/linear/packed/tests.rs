//! One row has the same bits from every kernel and every instruction set.

use std::cell::RefCell;

use candle_core::quantized::GgmlDType;

use super::*;
use crate::linear::tests::{noise, tensor};
use crate::simd::tests::on_every_instruction_set;
use crate::simd::{Simd, Work, tile_unit};

/// A product, appended to `found` as bits.
struct Bits<'a> {
    matrix: &'a PackedMatrix,
    x: &'a PackedInput,
    found: &'a RefCell<Vec<Vec<u32>>>,
}

impl Work for Bits<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let rows = match self.x {
            PackedInput::Rows(x) => x.rows,
            PackedInput::Tiles(x) => x.rows,
        };
        let mut values = vec![f32::NAN; rows * self.matrix.outputs];
        let out = DisjointOut::new(&mut values, self.matrix.outputs);
        let tiles = 0..self.matrix.outputs.div_ceil(LANES);
        match self.x {
            PackedInput::Rows(x) => RowProduct {
                matrix: self.matrix,
                x,
                out: &out,
                tiles,
            }
            .run::<S>(),
            PackedInput::Tiles(x) => TileProduct {
                matrix: self.matrix,
                x,
                out: &out,
                tiles,
            }
            .run::<S>(),
        }
        let bits = values.iter().map(|value| value.to_bits()).collect();
        self.found.borrow_mut().push(bits);
    }
}

#[test]
fn the_tile_unit_gives_the_bits_of_the_plain_kernel() {
    let types = [
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ];
    for dtype in types {
        let block = Format::of(dtype).columns();
        for (rows, outputs, blocks) in [(1, 40, 1), (7, 16, 2), (8, 33, 3), (37, 40, 9)] {
            let columns = blocks * block;
            let matrix = PackedMatrix::new(&tensor(dtype, outputs, columns));
            let x = noise(rows * columns, 4);
            let plain = PackedInput::Rows(QuantizedRows::new(&x, rows, columns, Vec::new()));
            let found = RefCell::default();
            on_every_instruction_set(|| Bits {
                matrix: &matrix,
                x: &plain,
                found: &found,
            });
            if tile_unit::detected() {
                let tiles = PackedInput::Tiles(QuantizedRows::new(&x, rows, columns, Vec::new()));
                on_every_instruction_set(|| Bits {
                    matrix: &matrix,
                    x: &tiles,
                    found: &found,
                });
            }
            let found = found.into_inner();
            for other in &found {
                assert_eq!(*other, found[0], "{dtype:?}, {rows} rows of {columns}");
            }
        }
    }
}
