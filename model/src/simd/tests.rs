use super::portable::Portable;
use super::*;

/// Every operation on fixed inputs, written to `out`.
struct EveryOperation<'a>(&'a mut Vec<f32>);

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
        let mut lanes = [0.0; LANES];
        let mut keep = |vector: S::F| {
            S::store(vector, &mut lanes);
            self.0.extend_from_slice(&lanes);
        };
        keep(S::fma(a, S::splat(1.3), S::mul(a, a)));
        keep(S::max(S::add(a, a), S::splat(0.1)));
        keep(b);
        keep(S::load_f16(&bytes));
        let weights = S::load_b(&bytes);
        let five = S::add_fifth_bit(S::low_nibbles(weights), S::load_b(&bytes), 12);
        keep(S::to_f(S::dot_u5(S::splat_i(-5), five, activations)));
        keep(S::to_f(S::dot_u5(
            S::splat_i(9),
            S::high_nibbles(weights),
            activations,
        )));
        let start = S::splat_i(-S::I8_BIAS * sum);
        keep(S::to_f(S::dot_i8(
            start,
            S::prepare_i8(weights),
            activations,
        )));
        self.0.push(S::sum(a));
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn every_instruction_set_gives_the_same_bits() {
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let mut expected = Vec::new();
    EveryOperation(&mut expected).run::<Portable>();
    if avx2::detected() {
        let mut found = Vec::new();
        // SAFETY: just detected.
        unsafe { avx2::run(EveryOperation(&mut found)) };
        assert_eq!(bits(&found), bits(&expected));
    }
    if avx512::detected() {
        let mut found = Vec::new();
        // SAFETY: just detected.
        unsafe { avx512::run(EveryOperation(&mut found)) };
        assert_eq!(bits(&found), bits(&expected));
    }
}
