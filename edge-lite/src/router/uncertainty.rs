//! How sure a model is of its next token, from the logits that it is sampled from.

use serde::{Deserialize, Serialize};

/// Of one position's distribution, before biases, penalties and temperature: what the model itself believes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Uncertainty {
    /// `-Σ p ln p`, in nats: 0 where one token is certain, `ln vocab_size` where all are alike.
    pub entropy: f32,
    /// Probability of the most likely token less that of the second: 1 where one is certain.
    pub margin: f32,
}

impl Uncertainty {
    /// Of `logits`, `[vocab_size]`.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "both are small numbers, kept as they are shown"
    )]
    pub fn of_logits(logits: &[f32]) -> Self {
        let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for &logit in logits {
            if logit > first {
                (first, second) = (logit, first);
            } else if logit > second {
                second = logit;
            }
        }
        // With d = logit - first: p = e^d / Z, and so H = ln Z - Σ d e^d / Z.
        let (mut sum, mut weighted) = (0.0_f64, 0.0_f64);
        for &logit in logits {
            let distance = logit - first;
            // Lighter than e^-30 is nothing beside the first one, however many there are.
            if distance > -30.0 {
                let weight = distance.exp();
                sum += f64::from(weight);
                weighted += f64::from(distance * weight);
            }
        }
        if sum <= 0.0 {
            return Self::default();
        }
        let second_weight = f64::from(second - first).exp();
        Self {
            entropy: (sum.ln() - weighted / sum).max(0.0) as f32,
            margin: ((1.0 - second_weight) / sum) as f32,
        }
    }
}

/// A mean over the last tokens: all of them at first, then one in which older tokens fade.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RunningEntropy {
    mean: f64,
    tokens: usize,
    /// Tokens that the mean is over.
    window: usize,
}

impl RunningEntropy {
    /// Over about `window` tokens.
    #[must_use]
    pub fn new(window: usize) -> Self {
        Self {
            mean: 0.0,
            tokens: 0,
            window: window.max(1),
        }
    }

    /// Takes one more token, and gives the mean, in nats; `None` before a window is full, when one token would say too
    /// much.
    pub fn push(&mut self, entropy: f32) -> Option<f64> {
        self.tokens += 1;
        let over = self.tokens.min(self.window) as f64;
        self.mean += (f64::from(entropy) - self.mean) / over;
        (self.tokens >= self.window).then_some(self.mean)
    }
}

/// What the first tokens of an answer say, summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProbeSummary {
    /// Mean of the entropies, in nats.
    pub mean_entropy: f64,
    /// The largest.
    pub max_entropy: f64,
    /// Mean of the margins.
    pub mean_margin: f64,
    /// The smallest.
    pub min_margin: f64,
}

impl ProbeSummary {
    /// Of the tokens looked at; zeros of none.
    #[must_use]
    pub fn of(tokens: &[Uncertainty]) -> Self {
        if tokens.is_empty() {
            return Self::default();
        }
        let count = tokens.len() as f64;
        let entropies = tokens.iter().map(|token| f64::from(token.entropy));
        let margins = tokens.iter().map(|token| f64::from(token.margin));
        Self {
            mean_entropy: entropies.clone().sum::<f64>() / count,
            max_entropy: entropies.fold(0.0, f64::max),
            mean_margin: margins.clone().sum::<f64>() / count,
            min_margin: margins.fold(1.0, f64::min),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_have_the_largest_entropy_and_no_margin() {
        let found = Uncertainty::of_logits(&[1.5; 100]);
        assert!((found.entropy - 100_f32.ln()).abs() < 1e-5, "{found:?}");
        assert!(found.margin.abs() < 1e-7, "{found:?}");
    }

    #[test]
    fn a_certain_token_has_no_entropy_and_the_whole_margin() {
        let mut logits = vec![-50.0; 100];
        logits[7] = 60.0;
        let found = Uncertainty::of_logits(&logits);
        assert!(
            found.entropy < 1e-6 && found.margin > 1.0 - 1e-6,
            "{found:?}"
        );
    }

    #[test]
    fn two_tokens_are_as_the_formula_says() {
        // p = 3/4 and 1/4.
        let found = Uncertainty::of_logits(&[3_f32.ln(), 0.0]);
        let expected = -(0.75_f32 * 0.75_f32.ln() + 0.25 * 0.25_f32.ln());
        assert!((found.entropy - expected).abs() < 1e-5, "{found:?}");
        assert!((found.margin - 0.5).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn a_running_mean_says_nothing_before_its_window_is_full_and_then_forgets() {
        let mut running = RunningEntropy::new(3);
        assert_eq!((running.push(3.0), running.push(3.0)), (None, None));
        assert_eq!(running.push(0.0), Some(2.0));
        for _ in 0..60 {
            running.push(1.0);
        }
        assert!((running.push(1.0).unwrap() - 1.0).abs() < 1e-6);
    }
}
