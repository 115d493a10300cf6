//! The steps of training: each thread goes there and back with a text of its own, then the gradients' sum is applied.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use headway_model::Decoder;
use headway_model::early_exit::{ExitWeights, INPUT_BIAS, INPUT_WEIGHT};
use headway_model::sampler::argmax;
use headway_model::threads::alone;
use rayon::prelude::*;

use super::TrainExitProgress;
use super::lens;
use super::network::Network;
use super::optimizer::{Optimizer, Rates};
use super::own_text::{AT_END, AT_SPLIT, MAX_POSITIONS, Text};
use super::product::product;
use super::row_operations::{dot, inverse_rms, softmax};
use super::schedule::{batches_of, scale, stride};
use crate::error::{DeviceError, Error};

/// The largest rates; they fall to nothing in the end.
const RATES: Rates = Rates {
    matrices: 0.02,
    vectors: 1e-3,
};
/// Tokens of the texts that the lens is fitted to.
const LENS_TOKENS: usize = 1 << 15;
/// An exit, and the texts it learns from.
pub(super) struct Trainer {
    /// All but the tensors, which are the network's.
    pub(super) weights: ExitWeights,
    pub(super) network: Network,
    /// `[hidden_size, draft_vocab_size]`.
    lm_head: Tensor,
    texts: Vec<Text>,
    output_norm: Vec<f32>,
    hidden_size: usize,
}

/// What a step needs of a text.
struct Sample {
    /// `[1, positions, hidden_size]`.
    at_split: Tensor,
    /// What the lm_head takes of the model, `[positions, hidden_size]`.
    normed: Tensor,
}

/// Of each trained tensor, by its name.
type Gradients = BTreeMap<String, Tensor>;

impl Trainer {
    /// Fits the lens of `weights` to the first of `texts`.
    pub(super) fn new(
        mut weights: ExitWeights,
        texts: Vec<Text>,
        output_norm: Vec<f32>,
    ) -> Result<Self, DeviceError> {
        let hidden_size = weights.config.hidden_size;
        let mut tokens = 0;
        let fitted = texts.iter().take_while(|text| {
            tokens += text.token_ids.len();
            tokens <= LENS_TOKENS + text.token_ids.len()
        });
        let fitted = fitted.count();
        let (weight, bias) = lens::fit(&texts[..fitted], hidden_size)?;
        for (name, values) in &mut weights.tensors {
            match name.as_str() {
                INPUT_WEIGHT => values.clone_from(&weight),
                INPUT_BIAS => values.clone_from(&bias),
                _ => {}
            }
        }
        let network = Network::new(&weights, MAX_POSITIONS)?;
        Ok(Self {
            lm_head: network.lm_head.t()?.contiguous()?,
            network,
            weights,
            texts,
            output_norm,
            hidden_size,
        })
    }

    /// `epochs` passes over the texts.
    pub(super) fn train(
        &mut self,
        epochs: usize,
        progress: &mut impl FnMut(TrainExitProgress),
    ) -> Result<(), DeviceError> {
        let batches = batches_of(&self.texts);
        let of = batches.len() * epochs;
        let mut optimizer = Optimizer::new(&self.network.vars)?;
        for steps in 0..of {
            // A stride that is no divisor: every epoch sees every batch once, none in the order they were written in.
            let batch = &batches[steps * stride(batches.len()) % batches.len()];
            let (gradients, loss) = self.batch_gradients(&self.texts[batch.clone()])?;
            let scale = scale(steps, of);
            let rates = Rates {
                matrices: RATES.matrices * scale,
                vectors: RATES.vectors * scale,
            };
            optimizer.step(&self.network.vars, &gradients, rates)?;
            let steps = steps + 1;
            progress(TrainExitProgress::Trained { steps, of, loss });
        }
        Ok(())
    }

    /// The gradients of the mean cross-entropy over all positions of `texts`, and that mean in nats.
    ///
    /// Each thread goes there and back with one text at a time: what lies between stays in its cache.
    fn batch_gradients(&self, texts: &[Text]) -> Result<(Gradients, f32), DeviceError> {
        let positions: usize = texts.iter().map(|text| text.token_ids.len()).sum();
        #[expect(clippy::cast_precision_loss, reason = "positions of a step")]
        let share = 1.0 / positions as f32;
        texts
            .par_iter()
            .map(|text| alone(|| self.gradients(text, share)))
            .try_reduce_with(|(mut sums, sum), (gradients, loss)| {
                for (name, gradient) in gradients {
                    let total = match sums.get(&name) {
                        Some(sum) => (sum + gradient)?,
                        None => gradient,
                    };
                    sums.insert(name, total);
                }
                Ok((sums, sum + loss))
            })
            .unwrap_or_else(|| Ok((Gradients::new(), 0.0)))
    }

    /// The gradients of a text's summed cross-entropy, times `share`, and that sum, times `share`.
    fn gradients(&self, text: &Text, share: f32) -> Result<(Gradients, f32), DeviceError> {
        let sample = self.sample(text)?;
        let out = self.network.forward(&sample.at_split)?.squeeze(0)?;
        let (gradient, loss) = self.output_gradient(&out.detach(), &sample.normed, share)?;
        // Its gradient with respect to `out` is the loss's.
        let mut gradients = (out * gradient)?.sum_all()?.backward()?;
        let vars = self.network.vars.iter();
        let of_vars = vars.filter_map(|(name, var)| Some((name.clone(), gradients.remove(var)?)));
        Ok((of_vars.collect(), loss))
    }

    fn sample(&self, text: &Text) -> Result<Sample, DeviceError> {
        let values = |place: usize| -> Vec<f32> {
            let states = text.hidden_states[place].iter();
            states.map(|value| value.to_f32()).collect()
        };
        let mut at_end = values(AT_END);
        let eps = self.weights.config.rms_norm_eps;
        for row in at_end.chunks_exact_mut(self.hidden_size) {
            normalize(row, &self.output_norm, eps);
        }
        let shape = (text.token_ids.len(), self.hidden_size);
        let at_split = Tensor::from_vec(values(AT_SPLIT), shape, &Device::Cpu)?;
        Ok(Sample {
            at_split: at_split.unsqueeze(0)?,
            normed: Tensor::from_vec(at_end, shape, &Device::Cpu)?,
        })
    }

    /// The gradient of the summed cross-entropy, times `share`, with respect to `out`, `[positions, hidden_size]`, and that
    /// sum, times `share`.
    fn output_gradient(
        &self,
        out: &Tensor,
        normed: &Tensor,
        share: f32,
    ) -> Result<(Tensor, f32), DeviceError> {
        let logits = |states: &Tensor| product(states, &self.lm_head)?.flatten_all()?.to_vec1();
        let (mut guessed, mut right): (Vec<f32>, Vec<f32>) = (logits(out)?, logits(normed)?);
        let vocab_size = self.weights.token_ids.len();
        let pairs = guessed
            .par_chunks_exact_mut(vocab_size)
            .zip(right.par_chunks_exact_mut(vocab_size));
        let loss = pairs
            .map(|(guessed, right)| cross_entropy(guessed, right, share))
            .sum::<f32>();
        let gradient = Tensor::from_vec(guessed, (out.dim(0)?, vocab_size), &Device::Cpu)?;
        Ok((product(&gradient, &self.network.lm_head)?, loss))
    }

    /// The share of positions at which the exit's first choice is the model's, in percent.
    pub(super) fn agreement_percent(
        &self,
        texts: &[Text],
        decoder: &Decoder,
    ) -> Result<f64, Error> {
        let (mut agreed, mut positions) = (0_u32, 0_u32);
        for text in texts {
            let sample = self.sample(text)?;
            let logits = || {
                let out = self.network.forward(&sample.at_split)?.squeeze(0)?;
                out.detach().matmul(&self.lm_head)?.to_vec2::<f32>()
            };
            let guessed = logits().map_err(DeviceError::from)?;
            let at_end: Vec<f32> = text.hidden_states[AT_END]
                .iter()
                .map(|value| value.to_f32())
                .collect();
            let right = decoder.logits(&at_end).map_err(DeviceError::from)?;
            let right = right.chunks_exact(right.len() / guessed.len());
            for (guessed, right) in guessed.iter().zip(right) {
                let right = argmax(right);
                let guess = self.weights.token_ids[argmax(guessed) as usize];
                agreed += u32::from(guess == right);
                positions += 1;
            }
        }
        Ok(100.0 * f64::from(agreed) / f64::from(positions.max(1)))
    }
}

fn normalize(row: &mut [f32], weight: &[f32], eps: f32) {
    let scale = inverse_rms(row, eps);
    for (value, weight) in row.iter_mut().zip(weight) {
        *value *= scale * weight;
    }
}

/// Cross-entropy of `guessed` under `right`, both logits, times `share`; its gradient takes the place of `guessed`.
pub(super) fn cross_entropy(guessed: &mut [f32], right: &mut [f32], share: f32) -> f32 {
    softmax(right);
    let along = dot(guessed, right);
    let loss = softmax(guessed) - along;
    for (guess, right) in guessed.iter_mut().zip(right) {
        *guess = (*guess - *right) * share;
    }
    loss * share
}
