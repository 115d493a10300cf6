//! Draws from the distributions that a fleet is made of. The generator is passed in with its seed.

use super::events::Micros;

/// A generator of random numbers, and what is drawn from it.
#[derive(Clone, Debug)]
pub(super) struct Random(fastrand::Rng);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// In `[0, 1)`.
    pub(super) fn share(&mut self) -> f64 {
        self.0.f64()
    }

    /// Below `end`, which is at least 1.
    pub(super) fn below(&mut self, end: usize) -> usize {
        self.0.usize(..end)
    }

    /// Exponential with this mean.
    pub(super) fn exponential(&mut self, mean: f64) -> f64 {
        // 1 − share is in (0, 1], so the logarithm is finite.
        -mean * (1.0 - self.share()).ln()
    }

    /// Evenly between the two.
    pub(super) fn between(&mut self, least: f64, most: f64) -> f64 {
        (most - least).mul_add(self.share(), least)
    }

    /// Log-normal with this median; `sigma` is the deviation of the logarithm, and 0 gives the median.
    pub(super) fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        if sigma == 0.0 {
            return median;
        }
        // Box and Muller's method, of which one of the two values is used.
        let radius = (-2.0 * (1.0 - self.share()).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * self.share()).cos();
        median * (sigma * normal).exp()
    }
}

/// A time from a number of microseconds that was computed; negative ones are none.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates, and is rounded on purpose"
)]
pub(super) fn micros(value: f64) -> Micros {
    value.round() as Micros
}

/// Exact up to 2^53: no count or time here is near it.
#[expect(clippy::cast_precision_loss, reason = "see above")]
pub(super) const fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: u32 = 200_000;

    fn mean(mut draw: impl FnMut() -> f64) -> f64 {
        (0..DRAWS).map(|_| draw()).sum::<f64>() / f64::from(DRAWS)
    }

    #[test]
    fn means_are_those_of_the_distributions() {
        let mut random = Random::new(1);
        let exponential = mean(|| random.exponential(7.0));
        assert!((exponential - 7.0).abs() < 0.1, "{exponential}");
        // The mean of a log-normal is its median times e^(σ²/2).
        let log_normal = mean(|| random.log_normal(100.0, 0.5));
        let expected = 100.0 * (0.125_f64).exp();
        assert!((log_normal - expected).abs() < 1.0, "{log_normal}");
    }
}
