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
mod trainer;
mod values;
mod writer;

use std::path::PathBuf;

use headway_model::Decoder;
use headway_model::artifact::identity;
use headway_model::early_exit::ExitWeights;
use headway_model::layer_range::LayerRange;
use headway_model::weights::{WeightDtype, Weights, names};

use self::own_text::{OwnText, Taps, Text};
use self::trainer::Trainer;
use self::writer::{CpuWriter, Writer};
use crate::error::{DeviceError, Error, RequestError};
use crate::place::Place;
use crate::vocabulary::Vocabulary;

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

#[cfg(test)]
mod tests;
