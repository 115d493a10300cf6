//! The manifest: what a tail serves, and by which digests a device can check it.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::config::ModelConfig;
use crate::quantization::Quantization;
use crate::weights::WeightDtype;

/// `sha256:` and 64 lower-case hexadecimal digits.
#[must_use]
pub fn sha256_digest(bytes: &[u8]) -> String {
    format_digest(Sha256::digest(bytes).as_slice())
}

/// Writes a raw SHA-256 the way digests are written everywhere in Headway.
#[must_use]
pub fn format_digest(raw: &[u8]) -> String {
    use std::fmt::Write as _;
    raw.iter().fold(String::from("sha256:"), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A file that a tail serves, named by what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// `tokenizer`, `embedding`, `layer-0` … or `lm_head`.
    pub name: String,
    /// Size of the file.
    pub bytes: u64,
    /// SHA-256 of the file, as [`sha256_digest`] writes it.
    pub digest: String,
}

/// Everything that makes two models the same model. Its digest is the model's digest, so a manifest
/// whose digest fits vouches for every artifact that it lists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Sizes and choices.
    pub config: ModelConfig,
    /// The tokenizer, a Hugging Face `tokenizer.json`.
    pub tokenizer: Artifact,
    /// Embedding, every layer and lm_head, with unchanged weights, in this order.
    pub parts: Vec<Artifact>,
    /// The chat template (Jinja), where the model has one.
    pub chat_template: Option<String>,
    /// Put in front of every prompt, where the model wants it.
    pub bos_token_id: Option<u32>,
    /// The ids that end a turn.
    pub eos_token_ids: Vec<u32>,
}

impl Identity {
    /// The model's digest: SHA-256 over the JSON of this value, fields in the order of the type.
    #[must_use]
    pub fn digest(&self) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        sha256_digest(&json)
    }
}

/// The split layers a tail accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitRange {
    /// Smallest split layer: the tail holds layers from here on.
    pub min: usize,
    /// Largest split layer.
    pub max: usize,
    /// What a device without an opinion should take.
    pub default: usize,
}

/// What a tail answers on `GET /v1/model`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// A name to show to people.
    pub name: String,
    /// [`Identity::digest`] of `identity`; a device checks it.
    pub model_digest: String,
    /// What the digest covers.
    pub identity: Identity,
    /// Protocol version the tail speaks.
    pub protocol_version: u32,
    /// Split layers accepted.
    pub split: SplitRange,
    /// The type in which the tail holds its weights; a lossless device takes the same.
    pub dtype: WeightDtype,
    /// Codecs accepted, by name; the first is recommended.
    pub codecs: Vec<String>,
    /// Head quantisations offered; the first is recommended.
    pub quantizations: Vec<Quantization>,
    /// The most positions a session may have.
    pub max_positions: usize,
}
