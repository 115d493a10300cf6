//! The file of an early exit.
//!
//! A GGUF file with the metadata keys below, and these tensors: `exit_input.weight` `[hidden_size, hidden_size]` and
//! `exit_input.bias` `[hidden_size]`; `blk.0.*` and so on, the exit's decoder layers; `output_norm.weight`;
//! `token_embd.weight` `[draft_vocab_size, hidden_size]`, which serves as lm_head.

use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QStorage, QTensor};

use super::exit_config;
use crate::block;
use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::error::LoadError;
use crate::layer_range::LayerRange;
use crate::linear::Linear;
use crate::quantization::Quantization;
use crate::weights::{Metadata, StoreAs, WeightDtype, Weights, dequantize, from_floats, names};

/// Weight of the map from the hidden states behind the split layer.
pub const INPUT_WEIGHT: &str = "exit_input.weight";
/// Its bias.
pub const INPUT_BIAS: &str = "exit_input.bias";

/// `general.architecture`.
const ARCHITECTURE: &str = "headway-exit";
/// Version of the layout, `u32`.
const VERSION_KEY: &str = "headway.exit.version";
/// The version that this code reads and writes.
const VERSION: u32 = 1;
/// The digest of the model that the exit belongs to, text.
const MODEL_DIGEST_KEY: &str = "headway.exit.model_digest";
/// The layers before the exit, `u32`.
const SPLIT_LAYER_KEY: &str = "headway.exit.split_layer";
/// [`exit_config`] as JSON, text.
const CONFIG_KEY: &str = "headway.exit.config";
/// For each row of the lm_head its token, an array of `u32`.
const TOKEN_IDS_KEY: &str = "headway.exit.token_ids";

/// An exit whose file is open for reading.
pub(super) struct ExitFile {
    path: PathBuf,
    weights: Weights,
    model_digest: String,
    pub(super) split_layer: usize,
    pub(super) token_ids: Vec<u32>,
}

impl ExitFile {
    pub(super) fn open(path: &Path) -> Result<Self, LoadError> {
        let (weights, metadata) = Weights::open_gguf_as(path, |metadata| config(path, metadata))?;
        let keys = Keys {
            path,
            metadata: &metadata,
        };
        let token_ids = keys.numbers(TOKEN_IDS_KEY)?;
        let expected = weights.config().vocab_size;
        if token_ids.len() != expected {
            return Err(keys.damaged(TOKEN_IDS_KEY, &format!("{expected} numbers")));
        }
        Ok(Self {
            model_digest: keys.text(MODEL_DIGEST_KEY)?.to_owned(),
            split_layer: keys.number(SPLIT_LAYER_KEY)? as usize,
            path: path.to_owned(),
            weights,
            token_ids,
        })
    }

    /// Refuses an exit of another model or of another layer.
    pub(super) fn check(
        &self,
        model_digest: &str,
        model: &ModelConfig,
        split_layer: usize,
    ) -> Result<(), LoadError> {
        let mismatch = |what: &'static str, found: String, expected: String| {
            Err(LoadError::Exit {
                path: self.path.clone(),
                what,
                found,
                expected,
            })
        };
        if self.model_digest != model_digest {
            let found = self.model_digest.clone();
            return mismatch("model", found, model_digest.to_owned());
        }
        if self.split_layer != split_layer {
            let (found, expected) = (self.split_layer.to_string(), split_layer.to_string());
            return mismatch("split layer", found, expected);
        }
        let found = self.weights.config();
        let expected = exit_config(model, found.num_layers, found.vocab_size);
        if *found != expected {
            return mismatch(
                "configuration",
                format!("{found:?}"),
                format!("{expected:?}"),
            );
        }
        let vocab_size = model.vocab_size;
        match self.token_ids.iter().find(|id| **id as usize >= vocab_size) {
            Some(id) => mismatch(
                "token id",
                id.to_string(),
                format!("0 to {}", vocab_size - 1),
            ),
            None => Ok(()),
        }
    }

    pub(super) fn input(&self) -> Result<Linear, LoadError> {
        let columns = self.weights.config().hidden_size;
        let weight = self.weights.read(INPUT_WEIGHT, &[columns, columns])?;
        let bias = self.weights.read_vector(INPUT_BIAS, columns)?;
        let native = StoreAs::Dtype(WeightDtype::Native);
        Linear::new(vec![weight], Some(bias), native)
    }

    pub(super) fn decoder(&self) -> Result<Decoder, LoadError> {
        let layers = LayerRange::new(0, self.weights.config().num_layers);
        Decoder::load(&self.weights, layers, WeightDtype::Native)
    }
}

fn config(path: &Path, metadata: &Metadata) -> Result<ModelConfig, LoadError> {
    let keys = Keys { path, metadata };
    let version = keys.number(VERSION_KEY)?;
    if version != VERSION {
        return Err(LoadError::Exit {
            path: path.to_owned(),
            what: "file version",
            found: version.to_string(),
            expected: VERSION.to_string(),
        });
    }
    let config: ModelConfig = serde_json::from_str(keys.text(CONFIG_KEY)?)
        .map_err(|e| keys.damaged(CONFIG_KEY, &format!("a model's configuration ({e})")))?;
    config.checked()
}

/// Metadata, and the file that errors name.
struct Keys<'a> {
    path: &'a Path,
    metadata: &'a Metadata,
}

impl<'a> Keys<'a> {
    fn text(&self, key: &str) -> Result<&'a str, LoadError> {
        let value = self
            .metadata
            .get(key)
            .and_then(|value| value.to_string().ok());
        value
            .map(String::as_str)
            .ok_or_else(|| self.damaged(key, "text"))
    }

    fn number(&self, key: &str) -> Result<u32, LoadError> {
        let value = self.metadata.get(key).and_then(|value| value.to_u32().ok());
        value.ok_or_else(|| self.damaged(key, "a number"))
    }

    fn numbers(&self, key: &str) -> Result<Vec<u32>, LoadError> {
        let values = self.metadata.get(key).and_then(|value| value.to_vec().ok());
        let numbers = values.map(|values| values.iter().map(Value::to_u32).collect());
        match numbers {
            Some(Ok(numbers)) => Ok(numbers),
            _ => Err(self.damaged(key, "a list of numbers")),
        }
    }

    fn damaged(&self, key: &str, expected: &str) -> LoadError {
        LoadError::Damaged {
            path: self.path.to_owned(),
            reason: format!("as an early exit it needs the key {key} with {expected}"),
        }
    }
}

/// What an exit is made of, in f32, to be written to a file.
pub struct ExitWeights {
    /// The digest of the model that the exit belongs to.
    pub model_digest: String,
    /// The layers of the model before the exit.
    pub split_layer: usize,
    /// [`exit_config`].
    pub config: ModelConfig,
    /// The tokens it can guess.
    pub token_ids: Vec<u32>,
    /// Name and values of each tensor of [`exit_tensors`], in any order.
    pub tensors: Vec<(String, Vec<f32>)>,
}

/// Names and shapes of an exit's tensors.
#[must_use]
pub fn exit_tensors(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let columns = config.hidden_size;
    let mut tensors = vec![
        (INPUT_WEIGHT.to_owned(), vec![columns, columns]),
        (INPUT_BIAS.to_owned(), vec![columns]),
        (names::OUTPUT_NORM.to_owned(), vec![columns]),
        (
            names::EMBEDDING.to_owned(),
            vec![config.vocab_size, columns],
        ),
    ];
    let layers = 0..config.num_layers;
    tensors.extend(layers.flat_map(|layer| block::tensors(config, layer)));
    tensors
}

impl ExitWeights {
    /// What training begins with: the model's own last `num_layers` layers and its lm_head for `token_ids`, behind a map
    /// that changes nothing.
    ///
    /// # Errors
    /// [`LoadError::LayerRange`] where the model has fewer layers behind `split_layer`, [`LoadError`] where a tensor
    /// cannot be read.
    pub fn of_last_layers(
        weights: &Weights,
        model_digest: String,
        split_layer: usize,
        num_layers: usize,
        token_ids: Vec<u32>,
    ) -> Result<Self, LoadError> {
        let model = weights.config();
        let Some(first) = model
            .num_layers
            .checked_sub(num_layers)
            .filter(|first| split_layer <= *first)
        else {
            return Err(LoadError::LayerRange {
                range: LayerRange::new(split_layer, split_layer + num_layers),
                num_layers: model.num_layers,
            });
        };
        let config = exit_config(model, num_layers, token_ids.len());
        let columns = model.hidden_size;
        let mut tensors = Vec::new();
        for (name, shape) in exit_tensors(&config) {
            let values = match name.as_str() {
                INPUT_WEIGHT => identity(columns),
                INPUT_BIAS => vec![0.0; columns],
                names::EMBEDDING => lm_head_rows(weights, &token_ids)?,
                other => {
                    let stored = names::shifted(other, first);
                    dequantize(&weights.read(&stored, &shape)?)?
                }
            };
            tensors.push((name, values));
        }
        Ok(Self {
            model_digest,
            split_layer,
            config,
            token_ids,
            tensors,
        })
    }

    /// Writes the exit, its matrices in 8 bits (`q8_0`) where their rows divide into blocks. Errors name `path`.
    ///
    /// # Errors
    /// [`LoadError::MissingTensor`] or [`LoadError::TensorShape`] where the tensors are not those of an exit,
    /// [`LoadError::Io`] where `out` cannot be written.
    pub fn write(&self, out: &mut (impl Write + Seek), path: &Path) -> Result<(), LoadError> {
        let tensors = exit_tensors(&self.config)
            .into_iter()
            .map(|(name, shape)| Ok((self.stored(&name, shape)?, name)))
            .collect::<Result<Vec<_>, LoadError>>()?;
        let tensors: Vec<_> = tensors
            .iter()
            .map(|(tensor, name)| (name.as_str(), tensor))
            .collect();
        let failed = |source| LoadError::Io {
            path: path.to_owned(),
            source,
        };
        let config = serde_json::to_string(&self.config).map_err(|e| failed(e.into()))?;
        let split_layer =
            u32::try_from(self.split_layer).map_err(|e| failed(io::Error::other(e)))?;
        let token_ids = self.token_ids.iter().map(|id| Value::U32(*id)).collect();
        let metadata = [
            (
                "general.architecture",
                Value::String(ARCHITECTURE.to_owned()),
            ),
            (VERSION_KEY, Value::U32(VERSION)),
            (MODEL_DIGEST_KEY, Value::String(self.model_digest.clone())),
            (SPLIT_LAYER_KEY, Value::U32(split_layer)),
            (CONFIG_KEY, Value::String(config)),
            (TOKEN_IDS_KEY, Value::Array(token_ids)),
        ];
        let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, value)).collect();
        gguf_file::write(out, &metadata, &tensors).map_err(|e| failed(io::Error::other(e)))
    }

    fn stored(&self, name: &str, shape: Vec<usize>) -> Result<QTensor, LoadError> {
        let values = self.tensors.iter().find(|(found, _)| found == name);
        let Some((_, values)) = values else {
            return Err(LoadError::MissingTensor {
                tensor: name.to_owned(),
                expected: shape,
            });
        };
        if values.len() != shape.iter().product::<usize>() {
            return Err(LoadError::TensorShape {
                tensor: name.to_owned(),
                found: vec![values.len()],
                expected: shape,
            });
        }
        let quantization = Quantization::Q8_0;
        let blocks = match shape[..] {
            [_, columns] => quantization.block_type(columns),
            _ => None,
        };
        let dtype = blocks.unwrap_or(GgmlDType::F32);
        QStorage::from_data(from_floats(values, dtype).into(), &Device::Cpu, dtype)
            .and_then(|storage| QTensor::new(storage, shape))
            .map_err(|e| LoadError::Quantization {
                tensor: name.to_owned(),
                quantization: quantization.to_string(),
                reason: e.to_string(),
            })
    }
}

fn identity(columns: usize) -> Vec<f32> {
    let mut values = vec![0.0; columns * columns];
    values
        .iter_mut()
        .step_by(columns + 1)
        .for_each(|value| *value = 1.0);
    values
}

/// The lm_head's rows for `token_ids`, `[token_ids.len(), hidden_size]`.
fn lm_head_rows(weights: &Weights, token_ids: &[u32]) -> Result<Vec<f32>, LoadError> {
    let model = weights.config();
    let name = match model.tied_embeddings {
        true => names::EMBEDDING,
        false => names::LM_HEAD,
    };
    let native = StoreAs::Dtype(WeightDtype::Native);
    let lm_head = weights.read(name, &[model.vocab_size, model.hidden_size])?;
    let lm_head = Linear::new(vec![lm_head], None, native)?;
    let mut rows = vec![0.0; token_ids.len() * model.hidden_size];
    for (id, row) in token_ids
        .iter()
        .zip(rows.chunks_exact_mut(model.hidden_size))
    {
        lm_head.row(*id as usize, row);
    }
    Ok(rows)
}
