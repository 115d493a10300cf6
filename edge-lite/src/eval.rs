//! What a split costs in quality: perplexity, top-1 agreement and KL divergence against the unsplit model.
//!
//! Teacher-forced over a text, in windows that each start at position 0, all in one process: head layers
//! (quantised or not) → codec → tail layers of the unsplit model → logits.

use std::path::PathBuf;

use headway_model::Decoder;
use headway_model::layer_range::LayerRange;
use headway_model::quantization::Quantization;
use headway_model::weights::{WeightDtype, Weights};
use headway_wire::{Codec, Limits, codec};

use crate::error::{Error, RequestError};

mod metrics;
mod table;

pub use table::{EvalRow, EvalTable};

use metrics::{Divergence, LogProbs, Perplexity, Reference};

/// Rows of logits held at a time for the unsplit model and for one setting.
const LOGIT_ROWS: usize = 32;
/// The most positions of a window: hidden states of a window are held for every setting.
const MAX_WINDOW: usize = 1 << 16;

/// What to evaluate.
#[derive(Clone, Debug)]
pub struct EvalConfig {
    /// A GGUF file or a folder.
    pub model: PathBuf,
    /// The text's file.
    pub text: PathBuf,
    /// Layers before the cut, each 1 to `L - 1`.
    pub split_layers: Vec<usize>,
    /// How hidden states go up.
    pub codecs: Vec<Codec>,
    /// How head weights are quantised.
    pub head_quantizations: Vec<Quantization>,
    /// Positions of a window.
    pub window: usize,
    /// Tokens of the text that are used; `None`: all.
    pub max_tokens: Option<usize>,
}

/// Measures every combination of split layer, codec and head quantisation. Blocks.
///
/// Each window starts with the model's BOS token where it wants one. `progress` is told of windows done and
/// windows in all.
///
/// # Errors
/// [`RequestError`] for a split layer or a window that makes no sense, or a text that is too short or cannot
/// be read; device errors from loading and running.
pub fn evaluate(
    config: &EvalConfig,
    mut progress: impl FnMut(usize, usize),
) -> Result<EvalTable, Error> {
    let weights = Weights::open(&config.model)?;
    check(config, weights.config().num_layers)?;
    let windows = windows(config, &weights)?;
    let mut eval = Eval::load(config, &weights)?;
    let count = windows.len();
    for (index, window) in windows.iter().enumerate() {
        eval.window(window)?;
        progress(index + 1, count);
    }
    Ok(eval.table(weights.name(), config.window))
}

fn check(config: &EvalConfig, num_layers: usize) -> Result<(), RequestError> {
    let value = |name, got: String, expected: String| {
        Err(RequestError::Value {
            name,
            got,
            expected,
        })
    };
    if let Some(bad) = config
        .split_layers
        .iter()
        .find(|layer| !(1..num_layers).contains(*layer))
    {
        return value(
            "split layer",
            bad.to_string(),
            format!("1 to {}", num_layers - 1),
        );
    }
    for (name, len) in [
        ("number of split layers", config.split_layers.len()),
        ("number of codecs", config.codecs.len()),
        (
            "number of head quantizations",
            config.head_quantizations.len(),
        ),
    ] {
        if len == 0 {
            return value(name, "0".to_owned(), "1 or more".to_owned());
        }
    }
    if !(2..=MAX_WINDOW).contains(&config.window) {
        return value(
            "window",
            config.window.to_string(),
            format!("2 to {MAX_WINDOW}"),
        );
    }
    Ok(())
}

/// The text's token ids in windows of two or more.
fn windows(config: &EvalConfig, weights: &Weights) -> Result<Vec<Vec<u32>>, Error> {
    let text = std::fs::read_to_string(&config.text).map_err(|source| RequestError::Read {
        path: config.text.clone(),
        source,
    })?;
    let mut token_ids = weights.tokenizer()?.encode(&text)?;
    token_ids.truncate(config.max_tokens.unwrap_or(usize::MAX));
    let bos = weights.bos_token_id();
    let most = config.window.min(weights.config().max_positions) - usize::from(bos.is_some());
    let windows: Vec<Vec<u32>> = token_ids
        .chunks(most.max(1))
        .map(|chunk| {
            bos.into_iter()
                .chain(chunk.iter().copied())
                .collect::<Vec<u32>>()
        })
        .filter(|window| window.len() >= 2)
        .collect();
    if windows.is_empty() {
        let (got, expected) = (
            format!("{} tokens long", token_ids.len()),
            "2 tokens or more".to_owned(),
        );
        return Err(RequestError::Value {
            name: "text",
            got,
            expected,
        }
        .into());
    }
    Ok(windows)
}

/// One combination and its sums.
struct Setting {
    split_layer: usize,
    codec: Codec,
    perplexity: Perplexity,
    divergence: Divergence,
    encoded_bytes: u64,
    positions: u64,
}

/// A head, and the settings that differ behind it.
struct Head {
    quantization: Quantization,
    /// `None`: the unsplit model's own layers.
    decoder: Option<Decoder>,
    weight_bytes: usize,
    settings: Vec<Setting>,
}

struct Eval {
    reference: Decoder,
    reference_perplexity: Perplexity,
    heads: Vec<Head>,
}

impl Eval {
    fn load(config: &EvalConfig, weights: &Weights) -> Result<Self, Error> {
        let num_layers = weights.config().num_layers;
        let reference =
            Decoder::load(weights, LayerRange::new(0, num_layers), WeightDtype::Native)?;
        let largest = LayerRange::new(0, config.split_layers.iter().copied().max().unwrap_or(0));
        let heads = config.head_quantizations.iter().map(|&quantization| {
            let settings = config.split_layers.iter().flat_map(|&split_layer| {
                config
                    .codecs
                    .iter()
                    .map(move |&codec| Setting::new(split_layer, codec))
            });
            let decoder = match quantization {
                Quantization::None => None,
                lossy => Some(Decoder::load_quantized(weights, largest, lossy)?),
            };
            let weight_bytes = match &decoder {
                Some(decoder) => decoder.weight_bytes(),
                None => Decoder::load(weights, largest, WeightDtype::Native)?.weight_bytes(),
            };
            Ok(Head {
                quantization,
                decoder,
                weight_bytes,
                settings: settings.collect(),
            })
        });
        let heads = heads.collect::<Result<_, Error>>()?;
        Ok(Self {
            reference,
            reference_perplexity: Perplexity::default(),
            heads,
        })
    }

    /// Adds one window to all sums. `token_ids`: two or more.
    fn window(&mut self, token_ids: &[u32]) -> Result<(), Error> {
        let Self {
            reference,
            reference_perplexity,
            heads,
        } = self;
        let num_layers = reference.config().num_layers;
        // The last token has nothing after it to predict.
        let (inputs, targets) = (&token_ids[..token_ids.len() - 1], &token_ids[1..]);
        let mut expected = reference.embed(inputs)?;
        reference.forward(
            LayerRange::new(0, num_layers),
            &mut expected,
            &mut reference.new_cache(inputs.len()),
        )?;
        let mut split = Vec::new();
        for head in heads.iter_mut() {
            split.extend(head.hidden_states(reference, inputs)?);
        }
        let hidden_size = reference.config().hidden_size;
        let vocab_size = reference.config().vocab_size;
        for (chunk, targets) in targets.chunks(LOGIT_ROWS).enumerate() {
            let rows = chunk * LOGIT_ROWS * hidden_size
                ..(chunk * LOGIT_ROWS + targets.len()) * hidden_size;
            let expected = reference.logits(&expected[rows.clone()])?;
            let expected = Reference::new(LogProbs::new(expected, vocab_size));
            reference_perplexity.add(expected.log_probs(), targets);
            let settings = heads.iter_mut().flat_map(|head| &mut head.settings);
            for (setting, hidden_states) in settings.zip(&split) {
                let got =
                    LogProbs::new(reference.logits(&hidden_states[rows.clone()])?, vocab_size);
                setting.perplexity.add(&got, targets);
                setting.divergence.add(&expected, &got);
            }
        }
        Ok(())
    }

    fn table(self, model: &str, window: usize) -> EvalTable {
        let reference = self.reference_perplexity.value();
        let rows = self.heads.iter().flat_map(|head| {
            head.settings
                .iter()
                .map(|setting| setting.row(head, reference))
        });
        EvalTable {
            model: model.to_owned(),
            tokens: self.reference_perplexity.tokens(),
            window,
            reference_perplexity: reference,
            rows: rows.collect(),
        }
    }
}

impl Head {
    /// For each setting, hidden states behind the last layer: `[inputs.len(), hidden_size]`.
    fn hidden_states(
        &mut self,
        reference: &Decoder,
        inputs: &[u32],
    ) -> Result<Vec<Vec<f32>>, Error> {
        let decoder = self.decoder.as_ref().unwrap_or(reference);
        // From one cut to the next, so that each of the head's layers runs once.
        let mut order: Vec<usize> = (0..self.settings.len()).collect();
        order.sort_by_key(|&at| self.settings[at].split_layer);
        let mut hidden_states = decoder.embed(inputs)?;
        let mut layers_done = 0;
        let mut behind_tail = vec![Vec::new(); self.settings.len()];
        for at in order {
            let setting = &mut self.settings[at];
            decoder.forward(
                LayerRange::new(layers_done, setting.split_layer),
                &mut hidden_states,
                &mut decoder.new_cache(inputs.len()),
            )?;
            layers_done = setting.split_layer;
            behind_tail[at] = setting.behind_tail(reference, &hidden_states)?;
        }
        Ok(behind_tail)
    }
}

impl Setting {
    fn new(split_layer: usize, codec: Codec) -> Self {
        let (perplexity, divergence) = (Perplexity::default(), Divergence::default());
        Self {
            split_layer,
            codec,
            perplexity,
            divergence,
            encoded_bytes: 0,
            positions: 0,
        }
    }

    /// What comes out of the tail for these hidden states by way of the codec. Both: `[positions, hidden_size]`.
    fn behind_tail(
        &mut self,
        reference: &Decoder,
        hidden_states: &[f32],
    ) -> Result<Vec<f32>, Error> {
        let hidden_size = reference.config().hidden_size;
        let positions = hidden_states.len() / hidden_size;
        let activations = codec::encode(self.codec, hidden_states, hidden_size)?;
        self.encoded_bytes += activations.data.len() as u64;
        self.positions += positions as u64;
        // A window is one step here, however long it is.
        let limits = Limits {
            max_step_positions: u32::MAX,
            ..Limits::default()
        };
        let mut hidden_states = codec::decode(&activations, self.codec, hidden_size, &limits)?;
        let tail_range = LayerRange::new(self.split_layer, reference.config().num_layers);
        reference.forward(
            tail_range,
            &mut hidden_states,
            &mut reference.new_cache(positions),
        )?;
        Ok(hidden_states)
    }

    fn row(&self, head: &Head, reference: f64) -> EvalRow {
        let perplexity = self.perplexity.value();
        EvalRow {
            split_layer: self.split_layer,
            head_quantization: head.quantization,
            codec: self.codec.to_string(),
            perplexity,
            perplexity_change_percent: (perplexity / reference - 1.0) * 100.0,
            top1_agreement_percent: self.divergence.agreement() * 100.0,
            mean_kl: self.divergence.mean_kl(),
            bytes_per_position: self.encoded_bytes as f64 / self.positions.max(1) as f64,
            head_weight_bytes: head.weight_bytes,
        }
    }
}
