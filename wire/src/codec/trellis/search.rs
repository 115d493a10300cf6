//! The encoder's search: the path through the trellis with the least squared error (Viterbi's algorithm).
//!
//! The integers of every fourth, from 0 to 3 on, are the subsets. The states 0 and 1 allow the subsets 0 and 2, the
//! states 2 and 3 the subsets 1 and 3, so a path is always within two steps of every value, and mostly within one.

/// Adding it rounds an f32 below 2^22 to the nearest integer, ties to even, in one vector instruction on every
/// machine; the lowest bits of the sum are then the integer.
const ROUNDER: f32 = (3 << 22) as f32;

/// Keeps its memory from row to row.
#[derive(Default)]
pub(super) struct Search {
    /// For each value, bit s: the path to state s came from the second of the two states before it.
    from_second: Vec<u8>,
    integers: Vec<i32>,
}

impl Search {
    /// The integers whose multiples by `step` are nearest to `values`; the magnitude of each value is at most 2^20
    /// steps.
    pub(super) fn nearest(&mut self, values: &[f32], step: f32) -> &[i32] {
        let mut costs = [0.0, f32::INFINITY, f32::INFINITY, f32::INFINITY];
        self.from_second.clear();
        self.from_second.extend(values.iter().map(|value| {
            let errors = squared_errors(value / step);
            let (next, from_second) = advance(costs, errors);
            costs = next;
            from_second
        }));
        let mut state = 0;
        for other in 1..4 {
            if costs[other] < costs[state] {
                state = other;
            }
        }
        self.integers.clear();
        self.integers.resize(values.len(), 0);
        let steps = self.integers.iter_mut().zip(values).zip(&self.from_second);
        for ((integer, value), from_second) in steps.rev() {
            let second = usize::from(from_second >> state & 1);
            let subset = state ^ second << 1;
            *integer = nearest_in(subset, value / step);
            state = (state & 1) << 1 | second;
        }
        &self.integers
    }
}

/// For each subset: how far its nearest integer is.
#[inline]
fn squared_errors(value: f32) -> [f32; 4] {
    [0.0, 0.25, 0.5, 0.75].map(|offset| {
        let quarter = value * 0.25 - offset;
        let error = (quarter - ((quarter + ROUNDER) - ROUNDER)) * 4.0;
        error * error
    })
}

/// Each state is reached from two: 0 and 2 from 0 and 1, the others from 2 and 3. Returns the lesser costs, and a bit
/// for each state that is better reached from the second.
#[inline]
fn advance(costs: [f32; 4], errors: [f32; 4]) -> ([f32; 4], u8) {
    let mut from_second = 0;
    let mut next = [0.0; 4];
    for state in 0..4 {
        let before = (state & 1) << 1;
        let first = costs[before] + errors[state];
        let second = costs[before + 1] + errors[state ^ 2];
        let is_second = second < first;
        next[state] = if is_second { second } else { first };
        from_second |= u8::from(is_second) << state;
    }
    (next, from_second)
}

/// The same rounding as in [`squared_errors`].
fn nearest_in(subset: usize, value: f32) -> i32 {
    let offset = [0.0, 0.25, 0.5, 0.75][subset];
    let rounded = (value * 0.25 - offset) + ROUNDER;
    // At most 2^18 + 1 on either side, and the rounder's own bits end with as many zeros.
    let quarter = (rounded.to_bits() as i32).wrapping_sub(ROUNDER.to_bits() as i32);
    4 * quarter + [0, 1, 2, 3][subset]
}

#[cfg(test)]
mod tests {
    use super::super::next_state;
    use super::*;

    /// The least squared error over all paths, by trying them.
    fn least(values: &[f32], state: u8) -> f32 {
        let Some((value, rest)) = values.split_first() else {
            return 0.0;
        };
        (-12..=12_i32)
            .filter(|integer| (integer & 1 == 1) == (state >= 2))
            .filter(|integer| (value - *integer as f32).abs() < 3.0)
            .map(|integer| {
                let error = value - integer as f32;
                error * error + least(rest, next_state(state, integer))
            })
            .fold(f32::INFINITY, f32::min)
    }

    #[test]
    fn the_path_is_allowed_and_no_other_has_a_smaller_error() {
        let values: Vec<f32> = (0..60_u32)
            .map(|at| (at.wrapping_mul(2_654_435_761) >> 16) as f32 / 4096.0 - 8.0)
            .collect();
        for values in values.chunks(6) {
            let mut search = Search::default();
            let mut state = 0;
            let mut error = 0.0;
            for (value, integer) in values.iter().zip(search.nearest(values, 1.0)) {
                assert_eq!(integer & 1 == 1, state >= 2);
                error += (value - *integer as f32).powi(2);
                state = next_state(state, *integer);
            }
            assert!((error - least(values, 0)).abs() < 1e-4);
        }
    }
}
