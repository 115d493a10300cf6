//! Every instruction set gives the bits of plain Rust.

use std::cell::RefCell;

use super::portable::Portable;
use super::tile_unit::{DotTile, TileUnit};
use super::*;

/// Runs the work that `make` makes on each instruction set that this machine has, plain Rust first.
pub(crate) fn on_every_instruction_set<W: Work>(make: impl Fn() -> W) {
    make().run::<Portable>();
    #[cfg(target_arch = "x86_64")]
    if avx2::detected() {
        // SAFETY: just detected.
        unsafe { avx2::run(make()) };
    }
    #[cfg(target_arch = "x86_64")]
    if avx512::detected() {
        // SAFETY: just detected.
        unsafe { avx512::run(make()) };
    }
    #[cfg(target_arch = "aarch64")]
    if neon::detected() {
        // SAFETY: just detected.
        unsafe { neon::run(make()) };
    }
    #[cfg(target_arch = "aarch64")]
    if neon::dot_detected() {
        // SAFETY: just detected.
        unsafe { neon::run_dot(make()) };
    }
}

/// Every operation on fixed inputs: appends the bits of all results.
struct EveryOperation<'a>(&'a RefCell<Vec<Vec<u32>>>);

impl Work for EveryOperation<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let floats: Vec<f32> = (0_u8..16).map(|i| f32::from(i) * 0.37 - 2.1).collect();
        let bytes: Vec<u8> = (0_u8..64)
            .map(|i| i.wrapping_mul(37).wrapping_add(11))
            .collect();
        let activations = [127_i8, -127, 3, -90];
        let sum: i32 = activations.iter().map(|a| i32::from(*a)).sum();
        let (a, b) = (S::load(&floats), S::load_bf16(&bytes));
        let mut found = Vec::new();
        let mut keep = |vector: S::F| {
            let mut lanes = [0.0; LANES];
            S::store(vector, &mut lanes);
            found.extend(lanes.map(f32::to_bits));
        };
        keep(S::fma(a, S::splat(1.3), S::mul(a, a)));
        keep(S::max(S::add(a, a), S::splat(0.1)));
        keep(b);
        keep(S::load_f16(&bytes));
        let weights = S::load_b(&bytes);
        let five = S::add_fifth_bit(S::low_nibbles(weights), S::load_b(&bytes), 12);
        keep(S::to_f(S::dot_u6(S::splat_i(-5), five, activations)));
        keep(S::to_f(S::dot_u6(
            S::splat_i(9),
            S::high_nibbles(weights),
            activations,
        )));
        let six = S::add_bit_pairs(S::low_nibbles(weights), S::load_b(&bytes), 4);
        keep(S::to_f(S::dot_u6(S::splat_i(0), six, activations)));
        keep(S::to_f(S::bit_field(weights, 10, 0xFF)));
        let start = S::splat_i(-S::I8_BIAS * sum);
        keep(S::to_f(S::dot_i8(
            start,
            S::prepare_i8(weights),
            activations,
        )));
        keep(S::abs(a));
        keep(S::splat(S::largest(a)));
        keep(S::splat(S::largest(S::mul(a, S::splat(-1.0)))));
        keep(S::splat(S::sum(a)));
        let integers = S::load_i(&std::array::from_fn::<i32, LANES, _>(|i| {
            i32::from(bytes[i]) * 77_777_777
        }));
        let bits = S::sub_i(S::add_i(integers, S::bits(a)), S::splat_i(12_345));
        keep(S::to_f(bits));
        let mut signed = [0; 4 * LANES];
        S::store_b(S::sub_b(weights, 99), &mut signed);
        S::store_low_bytes(bits, &mut signed[7..]);
        found.extend(signed.map(|byte| i32::from(byte).cast_unsigned()));
        found.push(S::sum_i(bits).cast_unsigned());
        self.0.borrow_mut().push(found);
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let found = RefCell::default();
    on_every_instruction_set(|| EveryOperation(&found));
    let found = found.into_inner();
    for other in &found {
        assert_eq!(*other, found[0]);
    }
}

#[test]
fn the_tile_unit_gives_exact_sums_from_both_slots() {
    if !tile_unit::detected() {
        return;
    }
    let byte = |i: usize| i8::from_le_bytes([(i * i + 5 * i).to_le_bytes()[0]]);
    let rows = std::array::from_fn(|r| std::array::from_fn(|c| byte(32 * r + c)));
    let weights = std::array::from_fn(|k| std::array::from_fn(|i| byte(1_000 + 64 * k + i)));
    // The extremes: the largest sum that bytes can have.
    let smallest = ([[i8::MIN; 32]; LANES], [[i8::MIN; 4 * LANES]; 8]);
    let unit = TileUnit::new();
    let mut found = [DotTile::default(); 2];
    unit.start::<0>(&rows, &weights);
    unit.start::<1>(&smallest.0, &smallest.1);
    unit.finish::<1>(&mut found[1]);
    unit.finish::<0>(&mut found[0]);
    for (r, row) in rows.iter().enumerate() {
        for output in 0..LANES {
            let products = row
                .iter()
                .enumerate()
                .map(|(c, x)| i32::from(*x) * i32::from(weights[c / 4][4 * output + c % 4]));
            assert_eq!(found[0].0[r][output], products.sum::<i32>());
        }
    }
    assert_eq!(found[1].0, [[32 * 128 * 128; LANES]; LANES]);
}

#[test]
fn a_thread_has_one_tile_unit_at_a_time() {
    if tile_unit::detected() {
        let second = std::panic::catch_unwind(|| {
            let _first = TileUnit::new();
            let _second = TileUnit::new();
        });
        assert!(second.is_err());
        drop(TileUnit::new());
    }
}
