//! Sums over positions, in f64.

use rayon::prelude::*;

/// Logits of some rows and what makes them log-probabilities.
pub(super) struct LogProbs {
    /// `[rows, vocab_size]`
    logits: Vec<f32>,
    vocab_size: usize,
    /// For each row: the logarithm of the sum of exponentials.
    log_sums: Vec<f64>,
    /// For each row: the index of the largest logit, the lowest of equals.
    best: Vec<usize>,
}

impl LogProbs {
    pub(super) fn new(logits: Vec<f32>, vocab_size: usize) -> Self {
        let (log_sums, best) = logits.par_chunks(vocab_size).map(summarize).unzip();
        Self {
            logits,
            vocab_size,
            log_sums,
            best,
        }
    }

    fn rows(&self) -> usize {
        self.log_sums.len()
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.logits[row * self.vocab_size..(row + 1) * self.vocab_size]
    }

    fn of(&self, row: usize, token_id: u32) -> f64 {
        f64::from(self.row(row)[token_id as usize]) - self.log_sums[row]
    }
}

fn summarize(logits: &[f32]) -> (f64, usize) {
    let (best, largest) =
        logits
            .iter()
            .enumerate()
            .fold((0, f32::NEG_INFINITY), |best, (index, &logit)| {
                if logit > best.1 { (index, logit) } else { best }
            });
    let largest = f64::from(largest);
    let sum: f64 = logits
        .iter()
        .map(|&logit| (f64::from(logit) - largest).exp())
        .sum();
    (largest + sum.ln(), best)
}

/// What others are compared with: its probabilities are needed for each of them.
pub(super) struct Reference {
    log_probs: LogProbs,
    /// `[rows, vocab_size]`
    probabilities: Vec<f64>,
}

impl Reference {
    pub(super) fn new(log_probs: LogProbs) -> Self {
        let rows = log_probs.logits.par_chunks(log_probs.vocab_size);
        let probabilities = rows
            .zip(&log_probs.log_sums)
            .flat_map_iter(|(row, log_sum)| {
                row.iter()
                    .map(move |&logit| (f64::from(logit) - log_sum).exp())
            })
            .collect();
        Self {
            log_probs,
            probabilities,
        }
    }

    pub(super) const fn log_probs(&self) -> &LogProbs {
        &self.log_probs
    }
}

/// `exp(mean of -log p(token))`
#[derive(Default)]
pub(super) struct Perplexity {
    negative_log_sum: f64,
    tokens: usize,
}

impl Perplexity {
    /// `targets`: one token for each row.
    pub(super) fn add(&mut self, log_probs: &LogProbs, targets: &[u32]) {
        assert_eq!(log_probs.rows(), targets.len(), "each row has its target");
        for (row, target) in targets.iter().enumerate() {
            self.negative_log_sum -= log_probs.of(row, *target);
        }
        self.tokens += targets.len();
    }

    pub(super) fn value(&self) -> f64 {
        (self.negative_log_sum / self.tokens as f64).exp()
    }

    pub(super) const fn tokens(&self) -> usize {
        self.tokens
    }
}

/// How far one model's distributions are from another's.
#[derive(Default)]
pub(super) struct Divergence {
    kl_sum: f64,
    agreed: usize,
    rows: usize,
}

impl Divergence {
    pub(super) fn add(&mut self, expected: &Reference, got: &LogProbs) {
        let rows = expected.log_probs.rows();
        assert_eq!(rows, got.rows(), "both have the same rows");
        // Collected before summing: the order of a parallel sum is not fixed, and neither is its result.
        let kls: Vec<f64> = (0..rows)
            .into_par_iter()
            .map(|row| kl(expected, got, row))
            .collect();
        self.kl_sum += kls.iter().sum::<f64>();
        self.agreed += (0..rows)
            .filter(|&row| expected.log_probs.best[row] == got.best[row])
            .count();
        self.rows += rows;
    }

    pub(super) fn mean_kl(&self) -> f64 {
        self.kl_sum / self.rows as f64
    }

    pub(super) fn agreement(&self) -> f64 {
        self.agreed as f64 / self.rows as f64
    }
}

/// KL(expected ‖ got) of one row, in nats. Rounding can make it a hair negative; it is then 0.
fn kl(expected: &Reference, got: &LogProbs, row: usize) -> f64 {
    let vocab_size = got.vocab_size;
    let probabilities = &expected.probabilities[row * vocab_size..(row + 1) * vocab_size];
    let (expected_sum, got_sum) = (expected.log_probs.log_sums[row], got.log_sums[row]);
    let logits = expected.log_probs.row(row).iter().zip(got.row(row));
    let sum: f64 = probabilities
        .iter()
        .zip(logits)
        .map(|(probability, (&expected, &got))| {
            let log_expected = f64::from(expected) - expected_sum;
            probability * (log_expected - (f64::from(got) - got_sum))
        })
        .sum();
    sum.max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uniform_model_has_the_vocabulary_as_perplexity() {
        let mut perplexity = Perplexity::default();
        perplexity.add(&LogProbs::new(vec![0.5; 3 * 8], 8), &[0, 3, 7]);
        assert!((perplexity.value() - 8.0).abs() < 1e-9);
        assert_eq!(perplexity.tokens(), 3);
    }

    #[test]
    fn equal_distributions_do_not_diverge() {
        let logits = vec![1.0, 2.0, -1.0, 0.0, 5.0, 3.0];
        let mut divergence = Divergence::default();
        // A constant on all logits of a row changes nothing.
        let shifted = logits.iter().map(|logit| logit + 2.0).collect();
        let expected = Reference::new(LogProbs::new(logits, 3));
        divergence.add(&expected, &LogProbs::new(shifted, 3));
        assert!(divergence.mean_kl() < 1e-6);
        assert!((divergence.agreement() - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn kl_of_two_coins_is_what_the_formula_says() {
        let logits = |p: f32| vec![p.ln(), (1.0 - p).ln()];
        let mut divergence = Divergence::default();
        divergence.add(
            &Reference::new(LogProbs::new(logits(0.5), 2)),
            &LogProbs::new(logits(0.25), 2),
        );
        let expected = 0.5 * (0.5_f64 / 0.25).ln() + 0.5 * (0.5_f64 / 0.75).ln();
        assert!(
            (divergence.mean_kl() - expected).abs() < 1e-6,
            "{}",
            divergence.mean_kl()
        );
    }
}
