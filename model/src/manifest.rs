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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SplitRange {
    /// Smallest split layer: the tail holds layers from here on.
    pub min: usize,
    /// Largest split layer.
    pub max: usize,
    /// What a device without an opinion should take.
    pub default: usize,
}

/// A manifest may come without `default`: the smallest split layer is then meant, which any device can run.
impl<'de> Deserialize<'de> for SplitRange {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Fields {
            min: usize,
            max: usize,
            default: Option<usize>,
        }
        let Fields { min, max, default } = Fields::deserialize(deserializer)?;
        let default = default.unwrap_or(min);
        Ok(Self { min, max, default })
    }
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
    /// Whether token ids may leave the device: as the rows of split layer 0, or as the history that penalties
    /// need. Manifests of before this field allow it.
    #[serde(default = "allowed")]
    pub token_upload: bool,
    /// Whether a device may fetch all layers and answer alone. See [`Manifest::allows_on_device_answers`].
    #[serde(default)]
    pub on_device_answers: bool,
    /// Whether the tail goes on by itself in sessions of split layer 0, so that their tokens cost no round trips.
    #[serde(default)]
    pub free_running: bool,
}

const fn allowed() -> bool {
    true
}

impl Manifest {
    /// Whether a device may fetch all layers and answer alone: it is said, or the largest split layer is the
    /// number of layers, which was how to say it before there was a field for it.
    #[must_use]
    pub fn allows_on_device_answers(&self) -> bool {
        self.on_device_answers || self.split.max >= self.identity.config.num_layers
    }

    /// Whether a prompt may come as token ids where a device runs layers, too: the tail has all layers to run on it, and
    /// token ids may come.
    #[must_use]
    pub const fn allows_token_prefill(&self) -> bool {
        self.split.min == 0 && self.token_upload
    }

    /// The most layers that a device may fetch.
    #[must_use]
    pub fn max_device_layers(&self) -> usize {
        if self.allows_on_device_answers() {
            self.identity.config.num_layers
        } else {
            self.split.max
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_range_without_a_default_takes_the_smallest_split_layer() {
        let range: SplitRange = serde_json::from_str(r#"{"min":2,"max":6}"#).unwrap();
        assert_eq!((range.min, range.max, range.default), (2, 6, 2));
        let whole: SplitRange = serde_json::from_str(r#"{"min":2,"max":6,"default":4}"#).unwrap();
        assert_eq!(whole.default, 4);
        assert_eq!(
            serde_json::to_string(&whole).unwrap(),
            r#"{"min":2,"max":6,"default":4}"#
        );
    }
}
