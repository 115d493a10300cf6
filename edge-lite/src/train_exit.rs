//! Trains an early exit for a split layer on text that the model writes itself.
//!
//! own text ([`own_text`]) → an affine map by least squares ([`lens`]) → that map, copies of the model's last layers and
//! the final norm, trained to say what the model says ([`network`], [`optimizer`]) → the exit's file.
//!
//! The loss is the cross-entropy between the model's distribution over the frequent tokens and the exit's, at every
//! position. Nothing but this device and the model is needed.

mod attention;
#[cfg(feature = "cuda")]
mod gpu_writer;
mod lens;
mod network;
mod optimizer;
mod own_text;
mod product;
mod row_operations;
mod schedule;
mod values;
mod writer;

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use headway_model::Decoder;
use headway_model::artifact::identity;
use headway_model::early_exit::{ExitWeights, INPUT_BIAS, INPUT_WEIGHT};
use headway_model::layer_range::LayerRange;
use headway_model::sampler::argmax;
use headway_model::threads::alone;
use headway_model::weights::{WeightDtype, Weights, names};
use rayon::prelude::*;

use self::network::Network;
use self::optimizer::{Optimizer, Rates};
use self::own_text::{AT_END, AT_SPLIT, MAX_POSITIONS, OwnText, Taps, Text};
use self::product::product;
use self::row_operations::{dot, inverse_rms, softmax};
use self::schedule::{batches_of, scale, stride};
use self::writer::{CpuWriter, Writer};
use crate::error::{DeviceError, Error, RequestError};
use crate::place::Place;
use crate::vocabulary::Vocabulary;

/// The largest rates; they fall to nothing in the end.
const RATES: Rates = Rates {
    matrices: 0.02,
    vectors: 1e-3,
};
/// Tokens of the texts that the lens is fitted to.
const LENS_TOKENS: usize = 1 << 15;
/// Of so many texts one is kept to measure with.
const HELD_OUT: usize = 20;
/// And at most so many.
const MOST_HELD_OUT: usize = 100;

/// What to train.
#[derive(Clone, Debug)]
pub struct TrainExitConfig {
    /// A GGUF file or a folder.
    pub model: PathBuf,
    /// The layers before the exit, 1 to `L - exit_layers`.
    pub split_layer: usize,
    /// The exit's own decoder layers, 1 or more.
    pub exit_layers: usize,
    /// Tokens that the exit can guess: the most frequent ones.
    pub draft_vocab_size: usize,
    /// Tokens of text to write.
    pub tokens: usize,
    /// Passes over the text.
    pub epochs: usize,
    /// Selects the texts.
    pub seed: u64,
    /// Where the text is written; training itself runs on the CPU.
    pub place: Place,
}

/// How far training is.
#[derive(Clone, Copy, Debug)]
pub enum TrainExitProgress {
    /// So many tokens are written.
    Written {
        /// Tokens so far.
        tokens: usize,
    },
    /// So many steps are done.
    Trained {
        /// Steps so far.
        steps: usize,
        /// Steps in all.
        of: usize,
        /// Cross-entropy of the last step, in nats a position.
        loss: f32,
    },
}

/// A trained exit and what was measured of it on texts that it was not trained with.
pub struct TrainedExit {
    /// To be written to a file.
    pub weights: ExitWeights,
    /// Texts' positions that were measured.
    pub measured_positions: usize,
    /// Of them, the share at which the exit's first choice is the model's, in percent.
    pub agreement_percent: f64,
    /// The same before training, with the lens alone.
    pub lens_agreement_percent: f64,
}

/// Writes texts and trains an exit with them. Blocks, for minutes with a small model; `progress` is told how far it is.
///
/// Each of rayon's threads trains with a text of its own. candle shares single operations among threads that wait for each
/// other: set `CANDLE_NUM_THREADS` to 1 for the process, or 16 cores are four times slower.
///
/// # Errors
/// [`RequestError::Value`] for settings that make no sense, device errors from loading and running.
pub fn train_exit(
    config: &TrainExitConfig,
    mut progress: impl FnMut(TrainExitProgress),
) -> Result<TrainedExit, Error> {
    let weights = Weights::open(&config.model)?;
    check(config, &weights)?;
    let model_digest = identity(&weights)?.digest();
    let vocabulary = Vocabulary::of_weights(&weights)?;
    let num_layers = weights.config().num_layers;
    let all = LayerRange::new(0, num_layers);
    let decoder = Decoder::load(&weights, all, WeightDtype::Native).map_err(DeviceError::from)?;
    let taps = Taps {
        split_layer: config.split_layer,
        exit_layers: num_layers - config.exit_layers,
    };
    let mut writer = writer(config.place, &weights, &decoder, taps)?;
    let mut own_text = OwnText::new(&mut *writer, weights.config(), &vocabulary, config.seed)?;
    let mut texts = own_text.write(config.tokens, |tokens| {
        progress(TrainExitProgress::Written { tokens });
    })?;
    drop(writer);
    let held_out = (texts.len() / HELD_OUT).clamp(1, MOST_HELD_OUT);
    let held_out = texts.split_off(texts.len() - held_out);
    let token_ids = frequent_tokens(&texts, config.draft_vocab_size, weights.config().vocab_size);
    let initial = ExitWeights::of_last_layers(
        &weights,
        model_digest,
        config.split_layer,
        config.exit_layers,
        token_ids,
    )?;
    let output_norm = weights.read_vector(names::OUTPUT_NORM, weights.config().hidden_size)?;
    let mut trainer = Trainer::new(initial, texts, output_norm)?;
    let lens_agreement_percent = trainer.agreement_percent(&held_out, &decoder)?;
    trainer.train(config.epochs, &mut progress)?;
    let agreement_percent = trainer.agreement_percent(&held_out, &decoder)?;
    let mut weights = trainer.weights;
    weights.tensors = trainer.network.tensors().map_err(DeviceError::from)?;
    Ok(TrainedExit {
        weights,
        measured_positions: held_out.iter().map(|text| text.token_ids.len()).sum(),
        agreement_percent,
        lens_agreement_percent,
    })
}

/// What writes at `place`.
#[cfg_attr(
    not(feature = "cuda"),
    expect(unused_variables, reason = "a GPU's need")
)]
fn writer<'a>(
    place: Place,
    weights: &Weights,
    decoder: &'a Decoder,
    taps: Taps,
) -> Result<Box<dyn Writer + 'a>, DeviceError> {
    #[cfg(feature = "cuda")]
    if let Some(ordinal) = crate::device_layers::gpu_of(place) {
        return Ok(Box::new(gpu_writer::GpuWriter::new(
            ordinal, weights, taps,
        )?));
    }
    #[cfg(not(feature = "cuda"))]
    if let Place::Cuda(_) = place {
        return Err(DeviceError::NoCuda);
    }
    Ok(Box::new(CpuWriter::new(decoder, taps)))
}

fn check(config: &TrainExitConfig, weights: &Weights) -> Result<(), RequestError> {
    let model = weights.config();
    let most_layers = model.num_layers.saturating_sub(config.exit_layers);
    let values = [
        ("exit layers", config.exit_layers, 1, model.num_layers - 1),
        ("split layer", config.split_layer, 1, most_layers),
        (
            "draft vocabulary",
            config.draft_vocab_size,
            1,
            model.vocab_size,
        ),
        ("tokens", config.tokens, 1000, 1 << 30),
        ("epochs", config.epochs, 1, 1000),
    ];
    for (name, got, least, most) in values {
        if !(least..=most).contains(&got) {
            return Err(RequestError::Value {
                name,
                got: got.to_string(),
                expected: format!("{least} to {most}"),
            });
        }
    }
    Ok(())
}

/// The `count` tokens that occur most often; those that occur equally often by their ids.
fn frequent_tokens(texts: &[Text], count: usize, vocab_size: usize) -> Vec<u32> {
    let mut counts = vec![0_u32; vocab_size];
    for id in texts.iter().flat_map(|text| &text.token_ids) {
        counts[*id as usize] += 1;
    }
    let mut token_ids: Vec<u32> = (0_u32..).take(vocab_size).collect();
    token_ids.sort_by_key(|id| std::cmp::Reverse(counts[*id as usize]));
    token_ids.truncate(count);
    token_ids.sort_unstable();
    token_ids
}

struct Trainer {
    weights: ExitWeights,
    network: Network,
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
    fn new(
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

    fn train(
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
    fn agreement_percent(&self, texts: &[Text], decoder: &Decoder) -> Result<f64, Error> {
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
fn cross_entropy(guessed: &mut [f32], right: &mut [f32], share: f32) -> f32 {
    softmax(right);
    let along = dot(guessed, right);
    let loss = softmax(guessed) - along;
    for (guess, right) in guessed.iter_mut().zip(right) {
        *guess = (*guess - *right) * share;
    }
    loss * share
}

#[cfg(test)]
mod tests;
