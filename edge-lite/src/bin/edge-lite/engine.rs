//! What answers: a tail with the head layers here, or a model that is all here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use edge_lite::config::default_cache_dir;
use edge_lite::{
    Client, ClientConfig, GenerateRequest, Generation, LocalConfig, LocalModel, Router,
};

use crate::args::{CredentialArgs, EngineArgs, HeadArgs};
use crate::routing;

/// How long the program waits at its end for the tail to be told of answers given here.
const FINISH_REPORTS: Duration = Duration::from_secs(2);

/// What answers.
pub enum Engine {
    /// A tail and the head layers for it.
    Tail(Box<Client>),
    /// All layers here.
    Device(LocalModel),
    /// A tail and a model here, one of which answers.
    Routed(Router),
}

impl Engine {
    /// Connects or loads.
    pub async fn open(args: &EngineArgs) -> Result<Self> {
        let Some(model) = &args.model else {
            let tail = args
                .tail
                .as_deref()
                .context("--tail or --model is missing")?;
            if args.routing.is_routed() {
                return Ok(Self::Routed(routing::router(tail, args).await?));
            }
            let client = Client::connect(tail, tail_config(args)).await?;
            return Ok(Self::Tail(Box::new(client)));
        };
        let config = LocalConfig {
            dtype: args.head.dtype.unwrap_or_default(),
            place: args.head.device,
            max_positions: args.max_positions,
            ..LocalConfig::default()
        };
        let cache_dir = args.head.cache_dir.as_deref();
        Ok(Self::Device(load_model(model, cache_dir, config).await?))
    }

    /// Starts a generation.
    pub async fn generate(&self, request: GenerateRequest) -> Result<Generation> {
        Ok(match self {
            Self::Tail(client) => client.generate(request).await?,
            Self::Device(model) => model.generate(request).await?,
            Self::Routed(router) => router.generate(request).await?,
        })
    }

    /// Tells the tail of answers given here, where that is still to be done; for the program's end.
    pub async fn finish_reports(&self) {
        let is_finished = match self {
            Self::Tail(client) => client.finish_reports(FINISH_REPORTS).await,
            Self::Routed(router) => router.finish_reports(FINISH_REPORTS).await,
            Self::Device(_) => true,
        };
        if !is_finished {
            tracing::warn!("the tail was not told of all answers given here");
        }
    }
}

/// The client's configuration for sessions on a tail.
pub fn tail_config(args: &EngineArgs) -> ClientConfig {
    ClientConfig {
        max_positions: args.max_positions,
        reuse_prefix: args.reuse_prefix,
        drafting: args.draft,
        report_on_device_answers: !args.no_on_device_reports,
        ..client_config(&args.head, &args.credentials)
    }
}

/// A model on this device, fetched where it must be.
pub async fn load_model(
    source: &str,
    cache_dir: Option<&Path>,
    config: LocalConfig,
) -> Result<LocalModel> {
    let (source, cache_dir) = (source.to_owned(), cache_dir.map(Path::to_owned));
    let load = move || -> Result<LocalModel> {
        let path = model_path(&source, cache_dir.as_deref())?;
        Ok(LocalModel::load(&path, &config)?)
    };
    tokio::task::spawn_blocking(load).await?
}

/// The client's configuration for what the command line says about the head.
pub fn client_config(args: &HeadArgs, credentials: &CredentialArgs) -> ClientConfig {
    ClientConfig {
        cache_dir: args.cache_dir.clone(),
        split_layer: args.split_layer.layers(),
        codec: args.codec,
        head_quantization: args.head_quantization,
        dtype: args.dtype,
        place: args.device,
        credentials: credentials.credentials(),
        ..ClientConfig::default()
    }
}

/// The path of a model that may have to be downloaded. Blocks.
pub fn model_path(source: &str, cache_dir: Option<&Path>) -> Result<PathBuf> {
    let cache_dir = cache_dir.map(Path::to_owned).or_else(default_cache_dir);
    let cache_dir = cache_dir.context("this system names no cache folder; give --cache-dir")?;
    Ok(headway_hub::resolve(source, &cache_dir)?)
}
