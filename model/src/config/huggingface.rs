//! Configuration from a Hugging Face `config.json`.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Architecture, ModelConfig, RopeLayout, RopeScaling, config_error};
use crate::error::LoadError;

#[derive(Deserialize)]
struct Family {
    model_type: String,
}

/// The keys of `config.json` that matter here. Newer files put RoPE's base and scaling into
/// `rope_parameters`, older ones into `rope_theta` and `rope_scaling`.
#[derive(Deserialize)]
struct Raw {
    num_hidden_layers: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    rms_norm_eps: f32,
    rope_theta: Option<f32>,
    rope_scaling: Option<Map<String, Value>>,
    rope_parameters: Option<Map<String, Value>>,
    max_position_embeddings: usize,
    tie_word_embeddings: Option<bool>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
}

impl ModelConfig {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// [`LoadError::Architecture`] for a family that is not supported and [`LoadError::Config`] for a
    /// value that is missing or out of range.
    pub fn from_huggingface(json: &str) -> Result<Self, LoadError> {
        // The family first: another family's file has other keys, and that is not what is wrong with it.
        let family: Family = serde_json::from_str(json)
            .map_err(|e| config_error("config.json", e, "an object with model_type"))?;
        let architecture = Architecture::from_name(&family.model_type)?;
        let raw: Raw = serde_json::from_str(json)
            .map_err(|e| config_error("config.json", e, "the keys of a Llama-family model"))?;
        raw.refuse_unsupported(architecture)?;
        let rope = raw.rope_parameters.as_ref().or(raw.rope_scaling.as_ref());
        let theta = rope
            .and_then(|r| r.get("rope_theta"))
            .and_then(Value::as_f64)
            .map(to_f32);
        // Qwen's files name a window that `use_sliding_window: false` turns off.
        let windowed = raw
            .use_sliding_window
            .unwrap_or(architecture == Architecture::Mistral);
        Self {
            architecture,
            num_layers: raw.num_hidden_layers,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_attention_heads: raw.num_attention_heads,
            num_kv_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
            head_dim: raw
                .head_dim
                .unwrap_or(raw.hidden_size / raw.num_attention_heads.max(1)),
            vocab_size: raw.vocab_size,
            rms_norm_eps: raw.rms_norm_eps,
            rope_theta: theta.or(raw.rope_theta).unwrap_or(10_000.0),
            rope_layout: RopeLayout::Half,
            rope_scaling: rope_scaling(rope, raw.max_position_embeddings)?,
            max_positions: raw.max_position_embeddings,
            tied_embeddings: raw.tie_word_embeddings.unwrap_or(false),
            sliding_window: raw.sliding_window.filter(|_| windowed),
            sliding_window_start_layer: match architecture {
                Architecture::Qwen2 | Architecture::Qwen3 => raw.max_window_layers.unwrap_or(0),
                Architecture::Llama | Architecture::Mistral => 0,
            },
        }
        .checked()
    }
}

impl Raw {
    /// Loading a model and leaving out some of its arithmetic would give wrong text, not an error.
    fn refuse_unsupported(&self, architecture: Architecture) -> Result<(), LoadError> {
        let act = self.hidden_act.as_deref().unwrap_or("silu");
        if act != "silu" {
            return Err(config_error("hidden_act", act, "silu"));
        }
        if self.attention_bias == Some(true) && !architecture.has_qkv_bias() {
            return Err(config_error(
                "attention_bias",
                true,
                "false for this architecture",
            ));
        }
        if self.mlp_bias == Some(true) {
            return Err(config_error("mlp_bias", true, "false"));
        }
        Ok(())
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "JSON numbers are f64; the model computes in f32"
)]
fn to_f32(value: f64) -> f32 {
    value as f32
}

fn rope_scaling(
    rope: Option<&Map<String, Value>>,
    max_positions: usize,
) -> Result<RopeScaling, LoadError> {
    let Some(rope) = rope else {
        return Ok(RopeScaling::None);
    };
    let optional = |key: &str| rope.get(key).and_then(Value::as_f64).map(to_f32);
    let number = |key: &str| {
        optional(key).ok_or_else(|| {
            let found = rope
                .get(key)
                .map_or_else(|| "missing".to_owned(), Value::to_string);
            config_error(&format!("rope_scaling.{key}"), found, "a number")
        })
    };
    let original_max_positions = rope
        .get("original_max_position_embeddings")
        .and_then(Value::as_u64)
        .and_then(|positions| usize::try_from(positions).ok())
        .unwrap_or(max_positions);
    let kind = rope
        .get("rope_type")
        .or_else(|| rope.get("type"))
        .and_then(Value::as_str);
    match kind.unwrap_or("default") {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear {
            factor: number("factor")?,
        }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_positions,
        }),
        "yarn" => {
            let factor = number("factor")?;
            Ok(RopeScaling::Yarn {
                factor,
                original_max_positions,
                beta_fast: optional("beta_fast").unwrap_or(32.0),
                beta_slow: optional("beta_slow").unwrap_or(1.0),
                attention_factor: optional("attention_factor")
                    .unwrap_or_else(|| 0.1 * factor.max(1.0).ln() + 1.0),
            })
        }
        other => Err(config_error(
            "rope_scaling.rope_type",
            other,
            "default, linear, llama3 or yarn",
        )),
    }
}
