//! What answers: a tail with the head layers here, or a model that is all here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use edge_lite::config::default_cache_dir;
use edge_lite::planner::Survey;
use edge_lite::{
    Client, ClientConfig, DraftModelFile, Drafting, GenerateRequest, Generation, LocalConfig,
    LocalModel, Router,
};

use crate::args::{CredentialArgs, EngineArgs, HeadArgs, PlaceArgs, SplitLayer};
use crate::{plan, routing};

/// How long the program waits at its end for the tail to be told of answers given here.
const FINISH_REPORTS: Duration = Duration::from_secs(2);

/// What answers.
pub enum Engine {
    /// A tail and the head layers for it, and what was known when they were planned, if they were.
    Tail(Box<Client>, Option<Box<Survey>>),
    /// All layers here.
    Device(LocalModel),
    /// A tail and a model here, one of which answers.
    Routed(Router),
}

impl Engine {
    /// Connects or loads. `request`: what will be asked first, as far as it is known, for a plan.
    pub async fn open(args: &EngineArgs, request: &GenerateRequest) -> Result<Self> {
        let Some(model) = &args.model else {
            let tail = args
                .tail
                .as_deref()
                .context("--tail or --model is missing")?;
            let config = tail_config(args)?;
            let is_routed = args.routing.is_routed();
            let (config, survey) = match args.head.split_layer {
                SplitLayer::Plan => {
                    match plan::planned(tail, config.clone(), args, request).await {
                        Err(error) if is_routed => {
                            tracing::warn!("no plan, so the tail's recommendation: {error:#}");
                            (config, None)
                        }
                        planned => planned?,
                    }
                }
                SplitLayer::Auto | SplitLayer::Layers(_) => (config, None),
            };
            if is_routed {
                return Ok(Self::Routed(routing::router(tail, config, args).await?));
            }
            let client = Box::new(Client::connect(tail, config).await?);
            return Ok(Self::Tail(client, survey));
        };
        let place = &args.head.place;
        let config = LocalConfig {
            dtype: place.dtype.unwrap_or_default(),
            place: place.device,
            max_positions: args.max_positions,
            prompt_chunk_positions: args.prompt_chunk.get(),
        };
        let cache_dir = place.cache_dir.as_deref();
        Ok(Self::Device(load_model(model, cache_dir, config).await?))
    }

    /// Takes the model that tails serve now, where they have begun to serve another one.
    pub async fn renew(&mut self) -> Result<()> {
        if let Self::Tail(client, _) = self {
            **client = client.renewed().await?;
        }
        Ok(())
    }

    /// Starts a generation.
    pub async fn generate(&self, request: GenerateRequest) -> Result<Generation> {
        Ok(match self {
            Self::Tail(client, _) => client.generate(request).await?,
            Self::Device(model) => model.generate(request).await?,
            Self::Routed(router) => router.generate(request).await?,
        })
    }

    /// For the program's end: tells the tail of answers given here, where that is still to be done, and stores what the
    /// answers told of the link, for the next plan.
    pub async fn finish(self) {
        let is_finished = match &self {
            Self::Tail(client, _) => client.finish_reports(FINISH_REPORTS).await,
            Self::Routed(router) => router.finish_reports(FINISH_REPORTS).await,
            Self::Device(_) => true,
        };
        if !is_finished {
            tracing::warn!("the tail was not told of all answers given here");
        }
        if let Self::Tail(client, Some(mut survey)) = self
            && let Err(error) = survey.remember(client.link())
        {
            tracing::warn!(%error, "what was seen of the link is not stored");
        }
    }
}

/// What guesses the next tokens.
fn draft_model(args: &EngineArgs) -> Result<Option<DraftModelFile>> {
    let early_exit = args.early_exit.clone().map(DraftModelFile::EarlyExit);
    let file = early_exit.or_else(|| args.companion.clone().map(DraftModelFile::Companion));
    if args.draft == Drafting::Model && file.is_none() {
        bail!("--draft model needs --early-exit or --companion");
    }
    Ok(file)
}

/// The client's configuration for sessions on a tail.
fn tail_config(args: &EngineArgs) -> Result<ClientConfig> {
    Ok(ClientConfig {
        max_positions: args.max_positions,
        reuse_prefix: args.reuse_prefix,
        drafting: args.draft,
        draft_model: draft_model(args)?,
        prefill: args.prefill,
        prompt_chunk_positions: args.prompt_chunk.get(),
        report_on_device_answers: !args.no_on_device_reports,
        ..client_config(&args.head, &args.credentials)
    })
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
        split_layer: args.split_layer.layers(),
        codec: args.codec,
        head_quantization: args.head_quantization,
        ..place_config(&args.place, credentials)
    }
}

/// As [`client_config`], where nothing is said of what runs here.
pub fn place_config(args: &PlaceArgs, credentials: &CredentialArgs) -> ClientConfig {
    ClientConfig {
        cache_dir: args.cache_dir.clone(),
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
