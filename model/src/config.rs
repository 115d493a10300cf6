//! What a model is: its sizes and the few choices in which the Llama families differ.

use serde::{Deserialize, Serialize};

use crate::error::LoadError;

mod gguf;
mod huggingface;

/// The families this crate runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// Llama 1 to 3 and models of the same shape (SmolLM2, for one).
    Llama,
    /// Mistral: Llama with an optional sliding window.
    Mistral,
    /// Qwen2: Llama with biases on q, k and v.
    Qwen2,
    /// Qwen3: Llama with RMS norms on each head's q and k.
    Qwen3,
}

impl Architecture {
    /// The name in GGUF's `general.architecture` and Hugging Face's `model_type`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    fn from_name(name: &str) -> Result<Self, LoadError> {
        match name {
            "llama" => Ok(Self::Llama),
            "mistral" => Ok(Self::Mistral),
            "qwen2" => Ok(Self::Qwen2),
            "qwen3" => Ok(Self::Qwen3),
            _ => Err(LoadError::Architecture {
                found: name.to_owned(),
            }),
        }
    }

    /// q, k and v carry a bias.
    #[must_use]
    pub const fn has_qkv_bias(self) -> bool {
        matches!(self, Self::Qwen2)
    }

    /// Each head's q and k pass an RMS norm before RoPE.
    #[must_use]
    pub const fn has_qk_norm(self) -> bool {
        matches!(self, Self::Qwen3)
    }
}

/// Which elements of a head RoPE rotates together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RopeLayout {
    /// Elements `i` and `i + head_dim / 2`: safetensors checkpoints, and GGUF's Qwen files.
    Half,
    /// Elements `2i` and `2i + 1`: GGUF's Llama files, whose q and k rows are permuted for it.
    Interleaved,
}

/// How the rotation frequencies are stretched beyond the context a model was first trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum RopeScaling {
    /// Unchanged frequencies.
    None,
    /// All frequencies divided by `factor` (position interpolation).
    Linear {
        /// Context growth.
        factor: f32,
    },
    /// Llama 3.1's scheme: long wavelengths divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// Context growth.
        factor: f32,
        /// Wavelengths above `original_max_positions / low_freq_factor` are divided.
        low_freq_factor: f32,
        /// Wavelengths below `original_max_positions / high_freq_factor` are kept.
        high_freq_factor: f32,
        /// Context the model was first trained on, in positions.
        original_max_positions: usize,
    },
    /// YaRN (arXiv:2309.00071).
    Yarn {
        /// Context growth.
        factor: f32,
        /// Context the model was first trained on, in positions.
        original_max_positions: usize,
        /// Rotations above which a dimension is extrapolated (kept).
        beta_fast: f32,
        /// Rotations below which a dimension is interpolated (divided).
        beta_slow: f32,
        /// Multiplies cos and sin.
        attention_factor: f32,
    },
    /// One divisor for each frequency, as GGUF's tensor `rope_freqs.weight` gives them.
    Factors {
        /// `head_dim / 2` divisors.
        factors: Vec<f32>,
    },
}

/// A model's sizes and choices, the same for every source of its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Number of decoder layers, `L`.
    pub num_layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads; divides `num_attention_heads`.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Added to the mean square in every RMS norm.
    pub rms_norm_eps: f32,
    /// Base of the RoPE frequencies.
    pub rope_theta: f32,
    /// Element pairing of RoPE.
    pub rope_layout: RopeLayout,
    /// Frequency scaling of RoPE.
    pub rope_scaling: RopeScaling,
    /// Positions the model was made for.
    pub max_positions: usize,
    /// The lm_head is the embedding matrix.
    pub tied_embeddings: bool,
    /// A position sees this many positions up to and including itself; `None`: all.
    pub sliding_window: Option<usize>,
    /// Layers below this one ignore `sliding_window` (Qwen's `max_window_layers`).
    pub sliding_window_start_layer: usize,
}

impl ModelConfig {
    /// Width of all query heads together.
    #[must_use]
    pub const fn q_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key heads together; that of the value heads is the same.
    #[must_use]
    pub const fn kv_size(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// The window of `layer`, or `None` where it sees every position before it.
    #[must_use]
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        self.sliding_window
            .filter(|_| layer >= self.sliding_window_start_layer)
    }

    /// Refuses sizes that no model can have, before memory is taken on their word.
    pub(crate) fn checked(self) -> Result<Self, LoadError> {
        let bounds = [
            ("num_layers", self.num_layers, 1024),
            ("hidden_size", self.hidden_size, 32_768),
            ("intermediate_size", self.intermediate_size, 1 << 18),
            ("num_attention_heads", self.num_attention_heads, 1024),
            ("num_kv_heads", self.num_kv_heads, 1024),
            ("head_dim", self.head_dim, 1024),
            ("vocab_size", self.vocab_size, 1 << 21),
            ("max_positions", self.max_positions, 1 << 24),
        ];
        for (key, found, most) in bounds {
            if found == 0 || found > most {
                return Err(config_error(key, found, format!("1 to {most}")));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_kv_heads) {
            let expected = format!(
                "a divisor of num_attention_heads = {}",
                self.num_attention_heads
            );
            return Err(config_error("num_kv_heads", self.num_kv_heads, expected));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(config_error("head_dim", self.head_dim, "an even number"));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return Err(config_error(
                "rms_norm_eps",
                self.rms_norm_eps,
                "between 0 and 1",
            ));
        }
        if !(self.rope_theta >= 1.0 && self.rope_theta.is_finite()) {
            return Err(config_error("rope_theta", self.rope_theta, "1 or more"));
        }
        if let RopeScaling::Factors { factors } = &self.rope_scaling
            && (factors.len() != self.head_dim / 2
                || factors.iter().any(|f| !(f.is_finite() && *f > 0.0)))
        {
            let expected = format!("{} positive numbers", self.head_dim / 2);
            return Err(config_error(
                "rope_freqs.weight",
                format!("{} values", factors.len()),
                expected,
            ));
        }
        if self.sliding_window == Some(0) {
            return Err(config_error("sliding_window", 0, "1 or more, or absent"));
        }
        Ok(self)
    }
}

fn config_error(key: &str, found: impl ToString, expected: impl Into<String>) -> LoadError {
    LoadError::Config {
        key: key.to_owned(),
        found: found.to_string(),
        expected: expected.into(),
    }
}
