//! `cargo xtask bench savings-device`: one device of the workload, in a process of its own. It reads requests from its
//! standard input, one JSON object a line, and answers each with a report, in the same form.

use std::io::{BufRead as _, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use edge_lite::{
    Client, ClientConfig, DraftModelFile, Drafting, GenerateRequest, LocalConfig, LocalModel,
    Prompt, Report, RouteMode, Router, RouterConfig,
};
use headway_model::chat_template::ChatMessage;
use serde::{Deserialize, Serialize};

use super::Way;
use super::workload::Class;

/// What this device is.
#[derive(clap::Args)]
pub struct Arguments {
    #[arg(long)]
    tail: String,
    #[arg(long, value_enum)]
    way: Way,
    #[arg(long, value_enum)]
    class: Class,
    /// The model, for a device that holds it.
    #[arg(long)]
    model: PathBuf,
    #[arg(long)]
    early_exit: PathBuf,
    #[arg(long)]
    num_layers: usize,
    #[arg(long)]
    threads: usize,
}

/// One request.
#[derive(Serialize, Deserialize)]
pub struct Asked {
    pub messages: Vec<ChatMessage>,
    pub max_tokens: usize,
}

/// Serves requests until there are no more.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    headway_model::threads::set_threads(arguments.threads);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let router = runtime.block_on(router(arguments))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready")?;
    out.flush()?;
    for line in std::io::stdin().lock().lines() {
        let Asked {
            messages,
            max_tokens,
        } = serde_json::from_str(&line?).context("reading a request")?;
        let request = GenerateRequest {
            max_tokens,
            ..GenerateRequest::new(Prompt::Chat(messages))
        };
        let report: Report =
            runtime.block_on(async { router.generate(request).await?.finish().await })?;
        serde_json::to_writer(&mut out, &report)?;
        writeln!(out)?;
        out.flush()?;
    }
    Ok(())
}

async fn router(arguments: &Arguments) -> anyhow::Result<Router> {
    let (way, class) = (arguments.way, arguments.class);
    let split_layer = match way {
        Way::Cloud => 0,
        Way::Split | Way::Headway => class.split_layer(arguments.num_layers),
    };
    let is_headway = way == Way::Headway;
    let early_exit = DraftModelFile::EarlyExit(arguments.early_exit.clone());
    let config = ClientConfig {
        split_layer: Some(split_layer),
        drafting: if is_headway {
            Drafting::Auto
        } else {
            Drafting::Off
        },
        draft_model: Some(early_exit)
            .filter(|_| is_headway && matches!(class, Class::TwoThirds | Class::Whole)),
        reuse_prefix: is_headway,
        ..ClientConfig::default()
    };
    let client = Client::connect(&arguments.tail, config).await?;
    let local = if is_headway && class == Class::Whole {
        let path = arguments.model.clone();
        let load = move || LocalModel::load(&path, &LocalConfig::default());
        Some(tokio::task::spawn_blocking(load).await??)
    } else {
        None
    };
    let config = RouterConfig {
        mode: RouteMode::Auto,
        ..RouterConfig::default()
    };
    Ok(Router::new(Some(client), local, config).await?)
}
