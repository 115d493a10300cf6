//! The prefix code of the trellis' integers.
//!
//! A code is the symbol `min(magnitude / 2, 16)`, in a canonical Huffman code for even and another for odd integers;
//! for symbol 16 then `magnitude / 2 - 15` in Elias' gamma code; then, where the integer is not 0, its sign.
//! The lengths were made by package-merge, for at most 9 bits, from hidden states behind layers 1 to 29 of
//! SmolLM2-135M-Instruct. Scaled by the typical magnitude of their row, those have the same distribution
//! behind every layer: no layer would save 2 % of the bytes with a code of its own at the finer rate.

use super::next_state;

/// The symbol that a gamma code follows.
const ESCAPE: usize = 16;
/// The longest symbol and a sign.
pub(super) const LOOKUP_BITS: u32 = 10;
/// Stands for no integer in a lookup.
const IS_ESCAPE: i8 = i8::MIN;
/// Zeros that a gamma code starts with at most. An escape is then 9 + 39 + 1 bits long at most.
const MAX_GAMMA_ZEROS: u32 = 19;

pub(super) static FOUR: PrefixCode = PrefixCode::new([
    [3, 2, 2, 3, 4, 4, 5, 5, 6, 7, 7, 8, 8, 8, 9, 9, 6],
    [2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 7, 8, 8, 8, 9, 9, 6],
]);

pub(super) static THREE: PrefixCode = PrefixCode::new([
    [2, 1, 3, 4, 6, 6, 7, 8, 9, 9, 9, 9, 9, 9, 9, 9, 8],
    [1, 2, 3, 4, 6, 6, 7, 8, 9, 9, 9, 9, 9, 9, 9, 9, 8],
]);

/// Bits of the symbols, from the symbol 0 on.
type Lengths = [u8; ESCAPE + 1];

pub(super) struct PrefixCode {
    /// For even and for odd integers: bits of a symbol and their number.
    symbols: [[(u16, u8); ESCAPE + 1]; 2],
    /// For each state: by the next [`LOOKUP_BITS`] bits, the code that they start with.
    lookups: [[Entry; 1 << LOOKUP_BITS]; 4],
}

/// A code without a gamma code.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    /// [`IS_ESCAPE`] stands for all that have one.
    integer: i8,
    /// With the sign; of an escape those of the symbol.
    bits: u8,
    next_state: u8,
}

impl PrefixCode {
    const fn new(lengths: [Lengths; 2]) -> Self {
        let [even, odd] = [canonical(&lengths[0]), canonical(&lengths[1])];
        Self {
            symbols: [even, odd],
            lookups: [
                lookup(&even, 0),
                lookup(&even, 1),
                lookup(&odd, 2),
                lookup(&odd, 3),
            ],
        }
    }

    /// Bits of the shortest code.
    pub(super) fn min_bits(&self) -> usize {
        let bits = self.lookups.iter().flatten().map(|entry| entry.bits);
        bits.min().unwrap_or(1).into()
    }

    /// The code of `integer`, whose magnitude is below 2^21, in the lowest bits; and its length.
    #[inline]
    pub(super) fn bits_of(&self, integer: i32) -> (u64, u32) {
        let magnitude = integer.unsigned_abs();
        let half = magnitude / 2;
        let symbol = (half as usize).min(ESCAPE);
        let (bits, count) = self.symbols[(magnitude % 2) as usize][symbol];
        let (mut bits, mut count) = (u64::from(bits), u32::from(count));
        if symbol == ESCAPE {
            let rest = half - 15;
            let gamma_bits = 2 * rest.ilog2() + 1;
            bits = bits << gamma_bits | u64::from(rest);
            count += gamma_bits;
        }
        if integer != 0 {
            bits = bits << 1 | u64::from(integer < 0);
            count += 1;
        }
        (bits, count)
    }

    /// The integer at the highest bits of `window`, the length of its code and the state behind it; `None` for an
    /// integer with a gamma code, which [`PrefixCode::escaped`] reads.
    #[inline]
    pub(super) fn short(&self, window: u64, state: u8) -> Option<(i32, u32, u8)> {
        let entry = self.lookups[usize::from(state)][(window >> (64 - LOOKUP_BITS)) as usize];
        (entry.integer != IS_ESCAPE).then_some((
            entry.integer.into(),
            entry.bits.into(),
            entry.next_state,
        ))
    }

    /// As [`PrefixCode::short`], where that is `None`; `None` where there is no code.
    #[cold]
    pub(super) fn escaped(&self, window: u64, state: u8) -> Option<(i32, u32, u8)> {
        let is_odd = state >= 2;
        let (_, symbol_bits) = self.symbols[usize::from(is_odd)][ESCAPE];
        let window = window << symbol_bits;
        let zeros = window.leading_zeros();
        if zeros > MAX_GAMMA_ZEROS {
            return None;
        }
        let gamma_bits = 2 * zeros + 1;
        // At most 20 bits.
        let rest = i32::try_from(window >> (64 - gamma_bits)).ok()?;
        let magnitude = 2 * (rest + 15) + i32::from(is_odd);
        let is_negative = window << gamma_bits >> 63 == 1;
        let integer = if is_negative { -magnitude } else { magnitude };
        let bits = u32::from(symbol_bits) + gamma_bits + 1;
        Some((integer, bits, next_state(state, integer)))
    }
}

/// The canonical code: shorter codes first, those of one length by symbol.
const fn canonical(lengths: &Lengths) -> [(u16, u8); ESCAPE + 1] {
    let mut codes = [(0, 0); ESCAPE + 1];
    let (mut code, mut length) = (0, 1);
    while length < LOOKUP_BITS {
        let mut symbol = 0;
        while symbol <= ESCAPE {
            if lengths[symbol] as u32 == length {
                codes[symbol] = (code, lengths[symbol]);
                code += 1;
            }
            symbol += 1;
        }
        code <<= 1;
        length += 1;
    }
    // Every sequence of bits starts with a code.
    assert!(code == 1 << LOOKUP_BITS, "the lengths fill the code");
    codes
}

const fn lookup(symbols: &[(u16, u8); ESCAPE + 1], state: u8) -> [Entry; 1 << LOOKUP_BITS] {
    let none = Entry {
        integer: IS_ESCAPE,
        bits: 0,
        next_state: 0,
    };
    let mut entries = [none; 1 << LOOKUP_BITS];
    let (mut symbol, mut magnitude) = (0, if state >= 2 { 1_i8 } else { 0 });
    while symbol <= ESCAPE {
        let (code, bits) = symbols[symbol];
        let shift = LOOKUP_BITS - bits as u32;
        let mut at = (code as usize) << shift;
        while at < (code as usize + 1) << shift {
            let is_negative = at >> (shift - 1) & 1 == 1;
            let integer = if is_negative { -magnitude } else { magnitude };
            entries[at] = if symbol == ESCAPE {
                Entry { bits, ..none }
            } else {
                Entry {
                    integer,
                    bits: bits + (magnitude != 0) as u8,
                    next_state: next_state(state, integer as i32),
                }
            };
            at += 1;
        }
        symbol += 1;
        magnitude += 2;
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::super::bits::WINDOW_BITS;
    use super::*;

    #[test]
    fn every_integer_reads_back_and_fits_a_window() {
        for code in [&FOUR, &THREE] {
            let large = (4..21).flat_map(|bits| [(1 << bits) - 1, 1 << bits, (1 << bits) + 1]);
            for magnitude in (0..200).chain(large) {
                for integer in [magnitude, -magnitude] {
                    let (bits, count) = code.bits_of(integer);
                    assert!(count <= WINDOW_BITS);
                    let window = bits << (64 - count);
                    let least = if integer % 2 == 0 { 0 } else { 2 };
                    for state in [least, least + 1] {
                        let read = code
                            .short(window, state)
                            .or_else(|| code.escaped(window, state));
                        let next = next_state(state, integer);
                        assert_eq!(read, Some((integer, count, next)), "{integer}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_gamma_code_beyond_the_longest_is_none() {
        for code in [&FOUR, &THREE] {
            let (bits, count) = code.symbols[1][ESCAPE];
            let escape = u64::from(bits) << (64 - u32::from(count));
            let gamma_of_zeros = |zeros: u32| escape | 1 << (63 - u32::from(count) - zeros);
            assert!(code.escaped(gamma_of_zeros(19), 2).is_some());
            assert_eq!(code.escaped(gamma_of_zeros(20), 2), None);
            assert_eq!(code.escaped(escape, 2), None);
        }
    }

    #[test]
    fn no_code_is_shorter_than_the_least() {
        assert_eq!((FOUR.min_bits(), THREE.min_bits()), (3, 2));
    }
}
