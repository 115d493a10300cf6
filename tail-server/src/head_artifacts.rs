//! The head weights that devices download, built on first request and kept on disk.
//!
//! ```text
//! <cache>/head/<hex of the model digest>/<quantisation>/layer-3.gguf, layer-3.json
//! ```
//!
//! The JSON is the file's [`Artifact`] and is written after it, so a file without its JSON is not there.
//! Both appear by rename. A file from an earlier run is hashed before it is served for the first time.
//!
//! Invariants:
//! - Layers that devices may not run are never built, nor is the lm_head while there are any: they are the
//!   tail's.
//! - One part is built at a time, in a blocking thread, and its bytes are never all in memory.

use std::collections::HashMap;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use headway_model::artifact::{self, Part};
use headway_model::manifest::{Artifact, Manifest, format_digest};
use headway_model::weights::Weights;
use headway_model::{LayerRange, LoadError, Quantization};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

#[cfg(test)]
mod tests;

/// Why a part is not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArtifactError {
    #[error("quantisation {got:?} is not offered; offered are {offered}")]
    Quantization { offered: String, got: String },
    #[error(
        "{got} is not served: devices of this tail run layers 0 to {max_layers} (exclusive), so the parts are {parts}"
    )]
    NotServed {
        got: String,
        max_layers: usize,
        parts: String,
    },
    #[error(
        "layers={got:?} cannot be read; a range is layers=START-END, END exclusive: layers=0-{max_layers}"
    )]
    Range { got: String, max_layers: usize },
    #[error("the part could not be built")]
    Build(#[from] LoadError),
    #[error("the artefact cache could not be read or written")]
    Cache(#[from] std::io::Error),
    #[error("the built part has digest {got}, the model's identity says {expected}")]
    Digest { expected: String, got: String },
    #[error("the thread that built the part has gone")]
    BuilderGone,
}

impl ArtifactError {
    /// True where the fault is this machine's, so that the cause is for the log and not for the peer.
    pub(crate) fn is_internal(&self) -> bool {
        match self {
            Self::Quantization { .. } | Self::NotServed { .. } | Self::Range { .. } => false,
            Self::Build(_) | Self::Cache(_) | Self::Digest { .. } | Self::BuilderGone => true,
        }
    }
}

/// A part's name and quantisation, checked: this tail serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PartKey {
    quantization: Quantization,
    part: Part,
}

/// A part on disk.
pub(crate) struct PartFile {
    pub(crate) artifact: Artifact,
    pub(crate) path: PathBuf,
}

/// Which parts this tail serves. Pure.
pub(crate) struct Offer {
    quantizations: Vec<Quantization>,
    /// The most layers that a device may run: layers below it may be downloaded.
    max_layers: usize,
    default_layers: usize,
    num_layers: usize,
}

impl Offer {
    fn new(manifest: &Manifest) -> Self {
        Self {
            quantizations: manifest.quantizations.clone(),
            max_layers: manifest.max_device_layers(),
            default_layers: manifest.split.default,
            num_layers: manifest.identity.config.num_layers,
        }
    }

    /// One part by its names in the URL.
    pub(crate) fn part(&self, quantization: &str, part: &str) -> Result<PartKey, ArtifactError> {
        let quantization = self.quantization(quantization)?;
        let known = part
            .parse::<Part>()
            .ok()
            .filter(|part| self.is_served(*part));
        let part = known.ok_or_else(|| self.not_served(part))?;
        Ok(PartKey { quantization, part })
    }

    /// The parts that a device needs for `layers`, as in `0-10`; without it, for the default split.
    pub(crate) fn parts(
        &self,
        quantization: &str,
        layers: Option<&str>,
    ) -> Result<Vec<PartKey>, ArtifactError> {
        let quantization = self.quantization(quantization)?;
        let range = match layers {
            None => LayerRange::new(0, self.default_layers),
            Some(text) => self.range(text)?,
        };
        let parts = Part::of(range, self.num_layers);
        if range.end > self.max_layers || !parts.iter().all(|part| self.is_served(*part)) {
            return Err(self.not_served(&format!("layers={}-{}", range.start, range.end)));
        }
        Ok(parts
            .into_iter()
            .map(|part| PartKey { quantization, part })
            .collect())
    }

    fn quantization(&self, text: &str) -> Result<Quantization, ArtifactError> {
        let offered = text
            .parse::<Quantization>()
            .ok()
            .filter(|known| self.quantizations.contains(known));
        offered.ok_or_else(|| ArtifactError::Quantization {
            offered: self
                .quantizations
                .iter()
                .map(|known| known.name())
                .collect::<Vec<_>>()
                .join(", "),
            got: shortened(text),
        })
    }

    fn range(&self, text: &str) -> Result<LayerRange, ArtifactError> {
        let parsed = text.split_once('-').and_then(|(start, end)| {
            let (start, end) = (start.parse::<usize>().ok()?, end.parse::<usize>().ok()?);
            (start <= end).then(|| LayerRange::new(start, end))
        });
        parsed.ok_or_else(|| ArtifactError::Range {
            got: shortened(text),
            max_layers: self.max_layers,
        })
    }

    fn is_served(&self, part: Part) -> bool {
        match part {
            Part::Embedding => self.max_layers > 0,
            Part::Layer(layer) => layer < self.max_layers,
            Part::LmHead => self.max_layers == self.num_layers,
        }
    }

    fn not_served(&self, got: &str) -> ArtifactError {
        let parts = match self.max_layers {
            0 => "none: this tail takes token ids only".to_owned(),
            max_layers if max_layers == self.num_layers => {
                format!("embedding, layer-0 to layer-{} and lm_head", max_layers - 1)
            }
            max_layers => format!("embedding and layer-0 to layer-{}", max_layers - 1),
        };
        ArtifactError::NotServed {
            got: shortened(got),
            max_layers: self.max_layers,
            parts,
        }
    }
}

/// A peer's text for an error message, not longer than a line.
fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

/// The parts of one model, on disk or to be built.
pub(crate) struct HeadArtifacts {
    offer: Offer,
    store: Arc<Store>,
    /// Held while a part is built.
    building: Arc<tokio::sync::Mutex<()>>,
}

impl HeadArtifacts {
    pub(crate) fn new(weights: Arc<Weights>, manifest: &Manifest, cache_dir: &Path) -> Self {
        let hex = manifest.model_digest.trim_start_matches("sha256:");
        let store = Store {
            weights,
            native: manifest.identity.parts.clone(),
            folder: cache_dir.join("head").join(hex),
            known: Mutex::default(),
        };
        Self {
            offer: Offer::new(manifest),
            store: Arc::new(store),
            building: Arc::default(),
        }
    }

    pub(crate) fn offer(&self) -> &Offer {
        &self.offer
    }

    /// The part's file, built where it is not there yet.
    pub(crate) async fn file(&self, key: PartKey) -> Result<PartFile, ArtifactError> {
        let path = self.store.path(key, "gguf");
        if let Some(artifact) = self.store.known(key) {
            return Ok(PartFile { artifact, path });
        }
        // The guard goes into the thread: a request that is cancelled does not let a second build start.
        let guard = Arc::clone(&self.building).lock_owned().await;
        let store = Arc::clone(&self.store);
        let built = tokio::task::spawn_blocking(move || {
            let _guard = guard;
            store.ensure(key)
        });
        let artifact = built.await.map_err(|_| ArtifactError::BuilderGone)??;
        Ok(PartFile { artifact, path })
    }
}

/// The files. Everything here blocks.
struct Store {
    weights: Arc<Weights>,
    /// The unchanged parts, as the model's identity lists them.
    native: Vec<Artifact>,
    folder: PathBuf,
    /// Parts that this process has built or hashed.
    known: Mutex<HashMap<PartKey, Artifact>>,
}

impl Store {
    fn path(&self, key: PartKey, extension: &str) -> PathBuf {
        self.folder
            .join(key.quantization.name())
            .join(format!("{}.{extension}", key.part))
    }

    fn known(&self, key: PartKey) -> Option<Artifact> {
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .cloned()
    }

    fn ensure(&self, key: PartKey) -> Result<Artifact, ArtifactError> {
        if let Some(artifact) = self.known(key) {
            return Ok(artifact);
        }
        let artifact = match self.earlier_run(key) {
            Some(artifact) => artifact,
            None => self.build(key)?,
        };
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key, artifact.clone());
        Ok(artifact)
    }

    /// A file whose bytes are what its JSON says; anything else is built again.
    fn earlier_run(&self, key: PartKey) -> Option<Artifact> {
        let json = std::fs::read(self.path(key, "json")).ok()?;
        let artifact: Artifact = serde_json::from_slice(&json).ok()?;
        let path = self.path(key, "gguf");
        let is_whole = file_digest(&path).ok()? == artifact.digest
            && self.check_native(key, &artifact).is_ok();
        if !is_whole {
            tracing::warn!(path = %path.display(), "a cached head artefact is damaged and is built again");
        }
        is_whole.then_some(artifact)
    }

    fn build(&self, key: PartKey) -> Result<Artifact, ArtifactError> {
        let path = self.path(key, "gguf");
        let folder = path.parent().unwrap_or(&self.folder);
        std::fs::create_dir_all(folder)?;
        if key.quantization != Quantization::None {
            // What is made of other weights cannot be told from what is made of the right ones.
            self.check_native(
                PartKey {
                    quantization: Quantization::None,
                    ..key
                },
                &artifact::native_part(&self.weights, key.part)?,
            )?;
        }
        let mut file = NamedTempFile::new_in(folder)?;
        let mut out = BufWriter::new(file.as_file_mut());
        let artifact = artifact::write_part(&self.weights, key.part, key.quantization, &mut out)?;
        out.flush()?;
        drop(out);
        file.as_file().sync_all()?;
        self.check_native(key, &artifact)?;
        persist(file, &path)?;

        let mut json = NamedTempFile::new_in(folder)?;
        serde_json::to_writer(&mut json, &artifact).map_err(std::io::Error::from)?;
        persist(json, &self.path(key, "json"))?;
        tracing::info!(
            part = artifact.name,
            quantization = key.quantization.name(),
            bytes = artifact.bytes,
            "head artefact built"
        );
        Ok(artifact)
    }

    /// An unchanged part must be the one that the model's digest covers.
    fn check_native(&self, key: PartKey, artifact: &Artifact) -> Result<(), ArtifactError> {
        let name = key.part.to_string();
        match self.native.iter().find(|native| native.name == name) {
            Some(native)
                if key.quantization == Quantization::None && native.digest != artifact.digest =>
            {
                let (expected, got) = (native.digest.clone(), artifact.digest.clone());
                Err(ArtifactError::Digest { expected, got })
            }
            _ => Ok(()),
        }
    }
}

fn persist(file: NamedTempFile, path: &Path) -> Result<(), ArtifactError> {
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// The file's SHA-256, read in pieces.
fn file_digest(path: &Path) -> std::io::Result<String> {
    let mut hasher = HashWriter(Sha256::new());
    std::io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
    Ok(format_digest(hasher.0.finalize().as_slice()))
}

struct HashWriter(Sha256);

impl std::io::Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
