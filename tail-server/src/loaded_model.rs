//! A model ready to be served: its tail layers in memory, and what devices need to know of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use headway_hub::{Fetched, Hub, HubError};
use headway_model::manifest::{Identity, Manifest, SplitRange, sha256_digest};
use headway_model::weights::{WeightDtype, Weights};
use headway_model::{BLOCK_POSITIONS, LayerRange, LoadError, artifact};
use headway_wire::{Limits, PROTOCOL_VERSION};

use crate::capacity::KvLimits;
use crate::config::{Config, DeliveryConfig};
use crate::delivery::Delivery;
use crate::tail_layers::{KvMemory, TailLayers, TailLayersError};

/// Why a model cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadModelError {
    /// The source could not be turned into files.
    #[error("cannot fetch the model {model}")]
    Fetch {
        /// The source.
        model: String,
        /// Why.
        #[source]
        source: headway_hub::HubError,
    },
    /// The files could not be read as a model.
    #[error("cannot load the model from {path}")]
    Load {
        /// The files.
        path: PathBuf,
        /// Why.
        #[source]
        source: LoadError,
    },
    /// The file with the identity cannot be read.
    #[error("--model-identity {path}: {reason}; --print-identity writes one")]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The layers could not be brought to the device that is to run them.
    #[error("the device cannot run the model {model}")]
    Device {
        /// The source.
        model: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The split layers asked for are not the model's.
    #[error(
        "split layers {min} to {max} were asked for; the model has {num_layers} layers: --split-min can be 0 \
         (with --no-token-upload 1) to {}, --split-max {min} to {num_layers}", num_layers.saturating_sub(1)
    )]
    SplitRange {
        /// Smallest split layer asked for.
        min: usize,
        /// Largest split layer asked for.
        max: usize,
        /// The model's layers.
        num_layers: usize,
    },
    /// The split layer to recommend is not one that is served.
    #[error("--split-default {got}: this tail serves split layers {min} to {max}")]
    SplitDefault {
        /// The split layer asked for.
        got: usize,
        /// Smallest split layer.
        min: usize,
        /// Largest split layer.
        max: usize,
    },
    /// The KV cache is too small for the shortest session.
    #[error(
        "--max-kv-bytes {max_kv_bytes}: the shortest session takes {block_bytes}, a block of \
         {BLOCK_POSITIONS} positions in each of the tail's layers"
    )]
    KvBytes {
        /// The limit.
        max_kv_bytes: usize,
        /// Bytes of one block in each of the tail's layers.
        block_bytes: usize,
    },
    /// The tokenizer that would be served is not the one that the digest covers.
    #[error("the tokenizer's digest is {got}; the model's identity says {expected}")]
    Tokenizer {
        /// In the identity.
        expected: String,
        /// Of the bytes.
        got: String,
    },
}

impl LoadModelError {
    /// One word for what is wrong with the source or the files, where another attempt can go better; `None` where
    /// the command line or the device is what is wrong.
    pub(crate) fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Fetch { source, .. } => Some(source.reason()),
            Self::Load { source, .. } => Some(load_reason(source)),
            Self::Tokenizer { .. } => Some("DigestMismatch"),
            Self::Identity { .. } => Some("IdentityUnusable"),
            _ => None,
        }
    }
}

fn load_reason(error: &LoadError) -> &'static str {
    match error {
        LoadError::Identity { .. } => "DigestMismatch",
        // A range that was asked for while the model was read.
        LoadError::Io { source, .. } => match source.get_ref() {
            Some(cause) => match cause.downcast_ref::<HubError>() {
                Some(error) => error.reason(),
                None => "LoadFailed",
            },
            None => "LoadFailed",
        },
        _ => "LoadFailed",
    }
}

/// What the device is used for, as asked or as suits it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceLimits {
    /// The most bytes of KV cache, all sessions together.
    pub(crate) kv_bytes: usize,
    /// The most rows of one engine step.
    pub(crate) step_tokens: usize,
}

/// A model ready to be served.
pub struct LoadedModel {
    pub(crate) weights: Arc<Weights>,
    pub(crate) layers: TailLayers,
    pub(crate) limits: DeviceLimits,
    pub(crate) kv_limits: KvLimits,
    pub(crate) manifest: Manifest,
    /// `tokenizer.json`, the very bytes that the manifest's digest covers.
    pub(crate) tokenizer_json: Bytes,
    /// Of the repository, where the model is from one.
    pub(crate) commit: Option<String>,
}

impl LoadedModel {
    /// Fetches and loads the model. Blocks, for minutes where there is much to fetch.
    ///
    /// # Errors
    /// [`LoadModelError`] says what was wrong with the source, the files or the configuration.
    pub fn load(config: &Config) -> Result<Self, LoadModelError> {
        Self::load_with(fetch(config, |hub| hub)?, config)
    }

    /// As [`LoadedModel::load`], and says in `delivery` how far it is.
    pub(crate) fn load_telling(
        config: &Config,
        delivery: &Arc<Delivery>,
    ) -> Result<Self, LoadModelError> {
        let fetched = fetch(config, |hub| hub.with_progress(delivery.progress()))?;
        delivery.loading();
        Self::load_with(fetched, config)
    }

    fn load_with(fetched: Fetched, config: &Config) -> Result<Self, LoadModelError> {
        let Fetched {
            path,
            commit,
            ranges,
        } = fetched;
        let failed = |source| {
            let path = path.clone();
            LoadModelError::Load { path, source }
        };
        let ranges = ranges.map(Arc::new);
        let weights = Weights::open(&path).map_err(failed)?;
        let weights = match ranges.clone() {
            None => weights,
            Some(ranges) => weights
                .with_fetch(move |wanted| ranges.ensure(wanted).map_err(std::io::Error::other)),
        };
        let split = split_range(config, weights.config().num_layers)?;
        let tail_layers = LayerRange::new(split.min, weights.config().num_layers);
        let identity = match &config.delivery.identity_file {
            None => artifact::identity(&weights).map_err(failed)?,
            Some(file) => {
                let identity = read_identity(file)?;
                let verified = artifact::verify(&weights, &identity, tail_layers);
                if let (Err(LoadError::Identity { .. }), Some(ranges)) = (&verified, &ranges) {
                    // Kept, it would be what it is at the next attempt, too.
                    ranges.forget();
                }
                verified.map_err(failed)?;
                identity
            }
        };
        let tokenizer_json = tokenizer_of(&weights, &identity, failed)?;
        let not_on_device = |error| match error {
            TailLayersError::Load(source) => failed(source),
            #[cfg(feature = "cuda")]
            TailLayersError::Cuda(_) => LoadModelError::Device {
                model: config.model.clone(),
                source: Box::new(error),
            },
        };
        let layers = TailLayers::load(&weights, tail_layers, config).map_err(not_on_device)?;
        let kv = layers.kv_memory(config.max_kv_bytes);
        let kv = kv.map_err(not_on_device)?;
        let limits = DeviceLimits {
            kv_bytes: kv.bytes,
            step_tokens: layers.step_tokens(config),
        };
        let block_bytes = layers.block_bytes();
        let max_positions = max_positions(&kv, &weights, block_bytes * tail_layers.len())?;
        let kv_limits = KvLimits {
            parts: kv.parts,
            block_bytes,
            prefix_retention: config.sessions.prefix_retention.unwrap_or_default(),
        };

        let manifest = Manifest {
            name: weights.name().to_owned(),
            model_digest: identity.digest(),
            identity,
            protocol_version: PROTOCOL_VERSION,
            split,
            dtype: on_devices(config.dtype),
            codecs: config.codecs.iter().map(ToString::to_string).collect(),
            quantizations: config.head_quantizations.clone(),
            max_positions,
            token_upload: config.token_upload,
            free_running: split.min == 0 && config.token_upload,
            on_device_answers: config.on_device_answers || split.max == weights.config().num_layers,
        };
        tracing::info!(
            name = manifest.name, model_digest = manifest.model_digest, layers = %tail_layers,
            weight_bytes = layers.weight_bytes(), ?limits, "model loaded"
        );
        Ok(Self {
            weights: Arc::new(weights),
            layers,
            limits,
            kv_limits,
            manifest,
            tokenizer_json: tokenizer_json.into(),
            commit,
        })
    }

    /// What devices are told of the model.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

/// The type in which a lossless device holds its weights.
fn on_devices(dtype: WeightDtype) -> WeightDtype {
    match dtype {
        // Devices have no kernels for it.
        WeightDtype::Fp8 => WeightDtype::Native,
        dtype => dtype,
    }
}

/// The tokenizer's JSON, if it is the one of `identity`.
fn tokenizer_of(
    weights: &Weights,
    identity: &Identity,
    failed: impl Fn(LoadError) -> LoadModelError,
) -> Result<Vec<u8>, LoadModelError> {
    let json = weights
        .tokenizer()
        .and_then(|tokenizer| tokenizer.to_json())
        .map_err(failed)?;
    let (got, expected) = (sha256_digest(&json), &identity.tokenizer.digest);
    if got == *expected {
        return Ok(json);
    }
    Err(LoadModelError::Tokenizer {
        expected: expected.clone(),
        got,
    })
}

/// The identity of the model of `config`, as JSON for `--model-identity`. Blocks.
///
/// # Errors
/// [`LoadModelError`] where the model cannot be fetched or read.
pub fn print_identity(config: &Config) -> Result<String, LoadModelError> {
    let path = fetch(config, |hub| hub.in_ranges(false))?.path;
    let identity = Weights::open(&path).and_then(|weights| artifact::identity(&weights));
    let identity = identity.and_then(|identity| {
        serde_json::to_string_pretty(&identity).map_err(|error| LoadError::Damaged {
            path: path.clone(),
            reason: error.to_string(),
        })
    });
    identity.map_err(|source| LoadModelError::Load { path, source })
}

fn fetch(config: &Config, tell: impl FnOnce(Hub) -> Hub) -> Result<Fetched, LoadModelError> {
    let DeliveryConfig {
        sha256,
        identity_file,
        token_file,
        ca_file,
        retry: _,
    } = &config.delivery;
    let hub = Hub::from_env(&config.cache_dir)
        .with_sha256(sha256.as_deref())
        .with_token_file(token_file.clone())
        .with_ca_file(ca_file.clone())
        // Without an identity, every byte is needed to know what the model is.
        .in_ranges(identity_file.is_some());
    let fetched = tell(hub).fetch(&config.model);
    fetched.map_err(|source| LoadModelError::Fetch {
        model: shown(&config.model),
        source,
    })
}

/// A source without what may be secret in it.
fn shown(model: &str) -> String {
    model.split('?').next().unwrap_or_default().to_owned()
}

fn read_identity(path: &Path) -> Result<Identity, LoadModelError> {
    let unusable = |reason: String| LoadModelError::Identity {
        path: path.to_owned(),
        reason,
    };
    let json = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
    serde_json::from_slice(&json).map_err(|error| unusable(error.to_string()))
}

/// The split layers served. Up to `L - 1` unless asked for: with `L` the device takes the whole model, which
/// its owner has to want.
fn split_range(config: &Config, num_layers: usize) -> Result<SplitRange, LoadModelError> {
    let last = num_layers.saturating_sub(1);
    // Split layer 0 is the one at which token ids come instead of hidden states.
    let least = usize::from(!config.token_upload);
    let min = config.split_min.unwrap_or(0).max(least);
    let max = config.split_max.unwrap_or(last);
    if min > max || min > last || max > num_layers {
        return Err(LoadModelError::SplitRange {
            min,
            max,
            num_layers,
        });
    }
    // A third of the layers: enough to save something on a device that has not measured itself yet.
    let default = match config.split_default {
        None => (num_layers / 3).clamp(min, max.min(last)),
        Some(default) if (min..=max).contains(&default) => default,
        Some(got) => return Err(LoadModelError::SplitDefault { got, min, max }),
    };
    Ok(SplitRange { min, max, default })
}

/// The longest session: what the model was made for, unless the KV cache or the protocol holds less.
/// `column_bytes`: of a block in each of the tail's layers.
fn max_positions(
    kv: &KvMemory,
    weights: &Weights,
    column_bytes: usize,
) -> Result<usize, LoadModelError> {
    let wanted = weights
        .config()
        .max_positions
        .min(Limits::default().max_positions as usize);
    // Of the device that has room for the fewest.
    let columns = kv.parts.iter().filter(|part| part.layers > 0);
    let columns = columns.map(|part| part.blocks / part.layers).min();
    match columns.unwrap_or(0) {
        0 => Err(LoadModelError::KvBytes {
            max_kv_bytes: kv.bytes,
            block_bytes: column_bytes,
        }),
        columns => Ok(wanted.min(columns.saturating_mul(BLOCK_POSITIONS))),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::config::Args;

    fn range(options: &[&str], num_layers: usize) -> Result<SplitRange, LoadModelError> {
        let base = ["tail-server", "--model", "m", "--cache-dir", "c"];
        let args = Args::try_parse_from(base.iter().chain(options)).unwrap();
        split_range(&Config::try_from(args).unwrap(), num_layers)
    }

    #[test]
    fn the_default_is_what_was_asked_for_or_a_third() {
        assert_eq!(range(&[], 30).unwrap().default, 10);
        assert_eq!(range(&["--split-default", "4"], 30).unwrap().default, 4);
        assert!(matches!(
            range(&["--split-default", "30"], 30),
            Err(LoadModelError::SplitDefault {
                got: 30,
                min: 0,
                max: 29
            })
        ));
    }

    #[test]
    fn limits_are_the_devices_unless_they_are_given() {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny/llama");
        let limits = |options: &[&str]| {
            let base = [
                "tail-server",
                "--cache-dir",
                "c",
                "--device",
                "cpu",
                "--model",
                model,
            ];
            let args = Args::try_parse_from(base.iter().chain(options)).unwrap();
            let model = LoadedModel::load(&Config::try_from(args).unwrap()).unwrap();
            (model.limits.kv_bytes, model.limits.step_tokens)
        };
        assert_eq!(limits(&[]), (2 << 30, 128));
        let given = limits(&["--max-kv-bytes", "1000000", "--step-tokens", "9"]);
        assert_eq!(given, (1_000_000, 9));
    }

    #[test]
    fn without_token_upload_the_device_runs_a_layer_at_least() {
        let split = range(&["--no-token-upload"], 30).unwrap();
        assert_eq!((split.min, split.max), (1, 29));
        let split = range(&["--no-token-upload", "--split-min", "5"], 30).unwrap();
        assert_eq!(split.min, 5);
        assert!(range(&["--no-token-upload", "--split-default", "0"], 30).is_err());
        assert!(range(&["--no-token-upload"], 1).is_err());
    }
}
