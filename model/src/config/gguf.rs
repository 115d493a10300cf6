//! Configuration from GGUF metadata (keys as in the GGUF specification).

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;

use super::{Architecture, ModelConfig, RopeLayout, RopeScaling, config_error};
use crate::error::LoadError;

impl ModelConfig {
    /// Reads the metadata of a GGUF file.
    ///
    /// `has_lm_head`: the file has a tensor `output.weight`; without it the embeddings are tied.
    /// `rope_factors`: the values of `rope_freqs.weight`, where the file has it.
    ///
    /// # Errors
    /// [`LoadError::Architecture`] for a family that is not supported and [`LoadError::Config`] for a
    /// value that is missing or out of range.
    pub fn from_gguf(
        metadata: &HashMap<String, Value>,
        has_lm_head: bool,
        rope_factors: Option<Vec<f32>>,
    ) -> Result<Self, LoadError> {
        let name = metadata
            .get("general.architecture")
            .and_then(|value| value.to_string().ok())
            .ok_or_else(|| {
                config_error("general.architecture", "missing", "an architecture's name")
            })?;
        let architecture = Architecture::from_name(name)?;
        let keys = Keys {
            metadata,
            prefix: name,
        };
        let num_attention_heads = keys.count("attention.head_count")?;
        let hidden_size = keys.count("embedding_length")?;
        let head_dim = match keys.optional_count("attention.key_length")? {
            Some(head_dim) => head_dim,
            None => hidden_size / num_attention_heads.max(1),
        };
        let max_positions = keys.count("context_length")?;
        let rope_scaling = match rope_factors {
            Some(factors) => RopeScaling::Factors { factors },
            None => keys.rope_scaling(max_positions)?,
        };
        Self {
            architecture,
            num_layers: keys.count("block_count")?,
            hidden_size,
            intermediate_size: keys.count("feed_forward_length")?,
            num_attention_heads,
            num_kv_heads: keys
                .optional_count("attention.head_count_kv")?
                .unwrap_or(num_attention_heads),
            head_dim,
            vocab_size: keys.vocab_size()?,
            rms_norm_eps: keys.number("attention.layer_norm_rms_epsilon")?,
            rope_theta: keys.optional_number("rope.freq_base")?.unwrap_or(10_000.0),
            rope_layout: match architecture {
                Architecture::Llama | Architecture::Mistral => RopeLayout::Interleaved,
                Architecture::Qwen2 | Architecture::Qwen3 => RopeLayout::Half,
            },
            rope_scaling,
            max_positions,
            tied_embeddings: !has_lm_head,
            sliding_window: keys.optional_count("attention.sliding_window")?,
            sliding_window_start_layer: 0,
        }
        .checked()
    }
}

struct Keys<'a> {
    metadata: &'a HashMap<String, Value>,
    prefix: &'a str,
}

impl Keys<'_> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    fn optional_count(&self, key: &str) -> Result<Option<usize>, LoadError> {
        let key = self.full(key);
        let Some(value) = self.metadata.get(&key) else {
            return Ok(None);
        };
        as_count(value).map(Some).ok_or_else(|| {
            config_error(&key, format!("{value:?}"), "a number that is not negative")
        })
    }

    fn count(&self, key: &str) -> Result<usize, LoadError> {
        self.optional_count(key)?
            .ok_or_else(|| config_error(&self.full(key), "missing", "a number"))
    }

    fn optional_number(&self, key: &str) -> Result<Option<f32>, LoadError> {
        let key = self.full(key);
        let Some(value) = self.metadata.get(&key) else {
            return Ok(None);
        };
        value
            .to_f32()
            .map(Some)
            .map_err(|_| config_error(&key, format!("{value:?}"), "a 32-bit float"))
    }

    fn number(&self, key: &str) -> Result<f32, LoadError> {
        self.optional_number(key)?
            .ok_or_else(|| config_error(&self.full(key), "missing", "a number"))
    }

    fn vocab_size(&self) -> Result<usize, LoadError> {
        if let Some(size) = self.optional_count("vocab_size")? {
            return Ok(size);
        }
        match self.metadata.get("tokenizer.ggml.tokens") {
            Some(Value::Array(tokens)) => Ok(tokens.len()),
            _ => Err(config_error(
                &self.full("vocab_size"),
                "missing",
                "a number, or tokenizer.ggml.tokens",
            )),
        }
    }

    fn rope_scaling(&self, max_positions: usize) -> Result<RopeScaling, LoadError> {
        let kind = self
            .metadata
            .get(&self.full("rope.scaling.type"))
            .and_then(|v| v.to_string().ok());
        let factor = self.optional_number("rope.scaling.factor")?.unwrap_or(1.0);
        match kind.map(String::as_str) {
            None | Some("none") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor }),
            Some("yarn") => Ok(RopeScaling::Yarn {
                factor,
                original_max_positions: self
                    .optional_count("rope.scaling.original_context_length")?
                    .unwrap_or(max_positions),
                beta_fast: self
                    .optional_number("rope.scaling.yarn_beta_fast")?
                    .unwrap_or(32.0),
                beta_slow: self
                    .optional_number("rope.scaling.yarn_beta_slow")?
                    .unwrap_or(1.0),
                attention_factor: self
                    .optional_number("rope.scaling.attn_factor")?
                    .unwrap_or_else(|| 0.1 * factor.max(1.0).ln() + 1.0),
            }),
            Some(other) => Err(config_error(
                &self.full("rope.scaling.type"),
                other,
                "none, linear or yarn",
            )),
        }
    }
}

/// A count of any integer type; arrays (one value a layer) count where all values are the same.
fn as_count(value: &Value) -> Option<usize> {
    let number = match value {
        Value::U8(v) => i128::from(*v),
        Value::I8(v) => i128::from(*v),
        Value::U16(v) => i128::from(*v),
        Value::I16(v) => i128::from(*v),
        Value::U32(v) => i128::from(*v),
        Value::I32(v) => i128::from(*v),
        Value::U64(v) => i128::from(*v),
        Value::I64(v) => i128::from(*v),
        Value::Array(values) => {
            let first = as_count(values.first()?)?;
            return values
                .iter()
                .all(|v| as_count(v) == Some(first))
                .then_some(first);
        }
        _ => return None,
    };
    usize::try_from(number).ok()
}
