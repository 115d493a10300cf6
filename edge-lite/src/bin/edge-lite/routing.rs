//! What the command line says about where answers are given.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use edge_lite::router::Thresholds;
use edge_lite::{Client, ClientConfig, LocalConfig, LocalModel, RouteMode, Router, RouterConfig};

use crate::args::EngineArgs;
use crate::engine::load_model;

/// What `--local` says for the tail's own model.
const SAME: &str = "same";

/// Where answers are given, beside a tail.
#[derive(Debug, Args)]
pub struct RouteArgs {
    /// A model here that can answer in place of the tail: the same one or a smaller one of the same tokenizer. A GGUF
    /// file, a folder, hf://org/repo, https://host/file.gguf, or same for all layers of the tail's
    #[arg(long, value_name = "MODEL", requires = "tail")]
    pub local: Option<String>,
    /// Where to answer: auto, device, or tail with the device for when the tail is away
    #[arg(long, default_value = "auto", requires = "tail")]
    pub route: RouteMode,
    /// When the local model is good enough: what edge-lite calibrate wrote
    #[arg(long, value_name = "PATH", requires = "local")]
    pub routing: Option<PathBuf>,
    /// Send nothing of the prompt or the answer anywhere; fails where no model here can answer
    #[arg(long)]
    pub local_only: bool,
}

impl RouteArgs {
    /// Whether there is anything to decide.
    pub fn is_routed(&self) -> bool {
        self.local.is_some() || self.route != RouteMode::Auto
    }
}

/// The router for `tail` and what stands beside it.
pub async fn router(tail: &str, client_config: ClientConfig, args: &EngineArgs) -> Result<Router> {
    let config = RouterConfig {
        mode: args.routing.route,
        thresholds: args
            .routing
            .routing
            .as_deref()
            .map(Thresholds::read)
            .transpose()?,
        ..RouterConfig::default()
    };
    let local = match args.routing.local.as_deref() {
        None => None,
        Some(SAME) => {
            let whole = Client::connect(tail, client_config.clone().with_all_layers()).await?;
            whole.local_model().cloned()
        }
        Some(model) => Some(load(model, args).await?),
    };
    Ok(Router::connect(tail, client_config, local, config).await?)
}

async fn load(model: &str, args: &EngineArgs) -> Result<LocalModel> {
    let config = LocalConfig {
        place: args.head.place.device,
        max_positions: args.max_positions,
        ..LocalConfig::default()
    };
    load_model(model, args.head.place.cache_dir.as_deref(), config).await
}
