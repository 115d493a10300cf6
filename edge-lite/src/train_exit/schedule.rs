//! Which texts each step of training takes, and how far it goes.

use super::own_text::Text;

/// Positions of one step, about.
const STEP_TOKENS: usize = 4096;
/// Steps in which the rates rise.
const WARM_UP_STEPS: usize = 20;

/// Consecutive texts of about [`STEP_TOKENS`] positions.
pub(super) fn batches_of(texts: &[Text]) -> Vec<std::ops::Range<usize>> {
    let mut batches = Vec::new();
    let (mut first, mut positions) = (0, 0);
    for (index, text) in texts.iter().enumerate() {
        positions += text.token_ids.len();
        if positions >= STEP_TOKENS || index + 1 == texts.len() {
            batches.push(first..index + 1);
            (first, positions) = (index + 1, 0);
        }
    }
    batches
}

/// A number near 0.62 of `count` that has no divisor in common with it.
pub(super) fn stride(count: usize) -> usize {
    let near = (count * 62 / 100).max(1);
    let common = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    (near..=count)
        .find(|stride| common(*stride, count) == 1)
        .unwrap_or(1)
}

/// From 0 up and down again.
#[expect(clippy::cast_precision_loss, reason = "steps are few")]
pub(super) fn scale(steps: usize, of: usize) -> f64 {
    let rise = (steps + 1) as f64 / WARM_UP_STEPS as f64;
    let fall = 1.0 - steps as f64 / of as f64;
    rise.min(1.0) * fall
}
