//! A model cut into part files, so that a device fetches what it runs and nothing else.
//!
//! A part is a GGUF file with the tensors of the embedding, of one layer, or of final norm and lm_head.
//! Its bytes depend on the weights and the quantisation alone, so its digest names it.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Seek, SeekFrom, Write};
use std::str::FromStr;

use candle_core::Device;
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{QStorage, QTensor};
use sha2::{Digest as _, Sha256};

use crate::block;
use crate::config::ModelConfig;
use crate::error::LoadError;
use crate::layer_range::LayerRange;
use crate::manifest::{Artifact, Identity, format_digest, sha256_digest};
use crate::quantization::Quantization;
use crate::weights::{StoreAs, Weights, names};

mod native;

pub use native::native_part;
use native::native_parts;

/// A piece of a model that is fetched as one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The embedding matrix.
    Embedding,
    /// One decoder layer.
    Layer(usize),
    /// Final norm and lm_head; where embeddings are tied, the norm alone.
    LmHead,
}

impl Part {
    /// The parts that a decoder of `layers` needs.
    #[must_use]
    pub fn of(layers: LayerRange, num_layers: usize) -> Vec<Self> {
        let first = (layers.start == 0).then_some(Self::Embedding);
        let last = (layers.end == num_layers).then_some(Self::LmHead);
        first
            .into_iter()
            .chain(layers.iter().map(Self::Layer))
            .chain(last)
            .collect()
    }

    fn tensors(self, config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
        let vocabulary = vec![config.vocab_size, config.hidden_size];
        match self {
            Self::Embedding => vec![(names::EMBEDDING.to_owned(), vocabulary)],
            Self::Layer(layer) => block::tensors(config, layer),
            Self::LmHead => {
                let norm = (names::OUTPUT_NORM.to_owned(), vec![config.hidden_size]);
                let lm_head = (names::LM_HEAD.to_owned(), vocabulary);
                if config.tied_embeddings {
                    vec![norm]
                } else {
                    vec![norm, lm_head]
                }
            }
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => f.write_str("embedding"),
            Self::Layer(layer) => write!(f, "layer-{layer}"),
            Self::LmHead => f.write_str("lm_head"),
        }
    }
}

/// A part's name that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not a part of a model; expected embedding, layer-N or lm_head")]
pub struct UnknownPart {
    found: String,
}

impl FromStr for Part {
    type Err = UnknownPart;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownPart {
            found: text.to_owned(),
        };
        match text {
            "embedding" => Ok(Self::Embedding),
            "lm_head" => Ok(Self::LmHead),
            _ => {
                let part = text
                    .strip_prefix("layer-")
                    .and_then(|layer| layer.parse().ok())
                    .map(Self::Layer);
                // `layer-07` and `layer-+7` would be second names of the same file.
                part.filter(|part| part.to_string() == text)
                    .ok_or_else(unknown)
            }
        }
    }
}

/// Hashes the whole model: all parts beside each other, on [`threads`], and no part in memory.
///
/// # Errors
/// [`LoadError`] where the weights or the tokenizer cannot be read.
///
/// [`threads`]: crate::threads::threads
pub fn identity(weights: &Weights) -> Result<Identity, LoadError> {
    let num_layers = weights.config().num_layers;
    let parts = Part::of(LayerRange::new(0, num_layers), num_layers);
    let parts = native_parts(weights, &parts)?;
    describe(weights, parts)
}

/// Makes sure that `weights` are those of `identity`, as far as a tail of `layers` reads them: configuration,
/// tokenizer, and the parts of these layers. The others are neither read nor fetched.
///
/// # Errors
/// [`LoadError::Identity`] names what is another one; else what cannot be read.
pub fn verify(weights: &Weights, identity: &Identity, layers: LayerRange) -> Result<(), LoadError> {
    let expected = identity.digest();
    let described = describe(weights, identity.parts.clone())?;
    differ("what is not in the weights", &expected, &described.digest())?;
    let parts = needed(weights.config(), layers);
    fetch(weights, &parts)?;
    for got in native_parts(weights, &parts)? {
        let listed = identity.parts.iter().find(|part| part.name == got.name);
        let listed = listed.map(|part| part.digest.as_str());
        differ(&got.name, listed.unwrap_or("none"), &got.digest)?;
    }
    Ok(())
}

fn differ(what: &str, expected: &str, got: &str) -> Result<(), LoadError> {
    if expected == got {
        return Ok(());
    }
    Err(LoadError::Identity {
        what: what.to_owned(),
        expected: expected.to_owned(),
        got: got.to_owned(),
    })
}

/// The parts whose tensors a tail of `layers` reads: with tied embeddings, the embedding is its lm_head.
fn needed(config: &ModelConfig, layers: LayerRange) -> Vec<Part> {
    let mut parts = Part::of(layers, config.num_layers);
    if config.tied_embeddings && parts.contains(&Part::LmHead) && layers.start > 0 {
        parts.insert(0, Part::Embedding);
    }
    parts
}

/// Brings the bytes of `parts` here, all in one go.
fn fetch(weights: &Weights, parts: &[Part]) -> Result<(), LoadError> {
    let mut places = Vec::new();
    for part in parts {
        for (name, shape) in part.tensors(weights.config()) {
            places.push(weights.locate(&name, &shape)?);
        }
    }
    weights.fetch(&places.iter().collect::<Vec<_>>())
}

/// The identity of a model with these parts.
fn describe(weights: &Weights, parts: Vec<Artifact>) -> Result<Identity, LoadError> {
    let tokenizer = weights.tokenizer()?.to_json()?;
    Ok(Identity {
        config: weights.config().clone(),
        tokenizer: Artifact {
            name: "tokenizer".to_owned(),
            bytes: tokenizer.len() as u64,
            digest: sha256_digest(&tokenizer),
        },
        parts,
        chat_template: weights.chat_template().map(str::to_owned),
        bos_token_id: weights.bos_token_id(),
        eos_token_ids: weights.eos_token_ids().to_vec(),
    })
}

/// Writes one part as a GGUF file, its matrices in `quantization`. Holds that part in memory meanwhile.
///
/// # Errors
/// [`LoadError`] where a tensor cannot be read, or `out` cannot be written.
pub fn write_part(
    weights: &Weights,
    part: Part,
    quantization: Quantization,
    out: &mut impl Write,
) -> Result<Artifact, LoadError> {
    let mut tensors = Vec::new();
    for (name, shape) in part.tensors(weights.config()) {
        let tensor = weights.read(&name, &shape)?;
        let tensor = if shape.len() == 2 {
            StoreAs::Quantized(quantization).apply(tensor)?
        } else {
            tensor
        };
        let storage = QStorage::from_data(Cow::Borrowed(&tensor.data), &Device::Cpu, tensor.dtype);
        let tensor = storage
            .and_then(|storage| QTensor::new(storage, shape))
            .map_err(|e| LoadError::Quantization {
                tensor: name.clone(),
                quantization: quantization.to_string(),
                reason: e.to_string(),
            })?;
        tensors.push((name, tensor));
    }
    let architecture = Value::String(weights.config().architecture.name().to_owned());
    let metadata = [("general.architecture", &architecture)];
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect();
    let mut out = HashingWriter {
        out,
        sha256: Sha256::new(),
        bytes: 0,
    };
    gguf_file::write(&mut out, &metadata, &tensors).map_err(|e| LoadError::Io {
        path: part.to_string().into(),
        source: io::Error::other(e),
    })?;
    Ok(Artifact {
        name: part.to_string(),
        bytes: out.bytes,
        digest: format_digest(&out.sha256.finalize()),
    })
}

/// Hashes and counts what it passes on.
struct HashingWriter<'a, W> {
    out: &'a mut W,
    sha256: Sha256,
    bytes: u64,
}

impl<W: Write> Write for HashingWriter<'_, W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.out.write(buffer)?;
        self.sha256.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The GGUF writer asks where it stands and never goes elsewhere.
impl<W: Write> Seek for HashingWriter<'_, W> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match to {
            SeekFrom::Current(0) => Ok(self.bytes),
            _ => Err(io::Error::from(io::ErrorKind::NotSeekable)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_names_are_read_back_and_have_one_spelling() {
        for part in [
            Part::Embedding,
            Part::Layer(0),
            Part::Layer(17),
            Part::LmHead,
        ] {
            assert_eq!(part.to_string().parse(), Ok(part));
        }
        for wrong in [
            "layer-07",
            "layer-+7",
            "layer-",
            "layer--1",
            "Embedding",
            "../embedding",
            "",
        ] {
            assert!(wrong.parse::<Part>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_device_needs_the_embedding_and_its_own_layers() {
        assert_eq!(
            Part::of(LayerRange::new(0, 2), 30),
            [Part::Embedding, Part::Layer(0), Part::Layer(1)]
        );
        assert_eq!(
            Part::of(LayerRange::new(29, 30), 30),
            [Part::Layer(29), Part::LmHead]
        );
        assert_eq!(
            Part::of(LayerRange::new(0, 1), 1),
            [Part::Embedding, Part::Layer(0), Part::LmHead]
        );
    }
}
