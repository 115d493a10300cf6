//! `edge-lite calibrate`

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use edge_lite::calibrate::{CalibrateConfig, Calibration, Full, calibrate, prompts};
use edge_lite::{Client, ClientConfig, Drafting, LocalConfig};

use crate::args::{CredentialArgs, HeadArgs};
use crate::engine::{client_config, load_model};

/// `edge-lite calibrate`
#[derive(Debug, Args)]
pub struct CalibrateArgs {
    /// Prompts, one JSON object a line: id, task, prompt, max_tokens
    #[arg(long, value_name = "PATH", required_unless_present = "recorded")]
    pub prompts: Option<PathBuf>,
    /// The full model's tail: ws://HOST:PORT or wss://HOST
    #[arg(long, required_unless_present_any = ["model", "recorded"], conflicts_with = "model")]
    pub tail: Option<String>,
    /// The full model here: a GGUF file, a folder, hf://org/repo or https://host/file.gguf
    #[arg(long)]
    pub model: Option<String>,
    /// The local model, a smaller one of the same tokenizer
    #[arg(long, value_name = "MODEL", required_unless_present = "recorded")]
    pub local: Option<String>,
    /// Choose again from what --record wrote, for another target, and run nothing
    #[arg(long, value_name = "PATH", conflicts_with_all = ["prompts", "tail", "model", "local"])]
    pub recorded: Option<PathBuf>,
    /// Share of tokens on which routed answers and the full model's shall agree
    #[arg(long, default_value_t = 0.9, value_parser = share)]
    pub target_agreement: f64,
    /// The most tokens of an answer, whatever the prompts say
    #[arg(long, default_value_t = 64)]
    pub max_tokens: usize,
    /// Use one prompt in so many
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub every: u16,
    /// Where the thresholds go, for --routing
    #[arg(long, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// Where the curve of quality against cost goes, as SVG
    #[arg(long, value_name = "PATH")]
    pub plot: Option<PathBuf>,
    /// Where everything that was recorded goes, as JSON
    #[arg(long, value_name = "PATH")]
    pub record: Option<PathBuf>,
    #[command(flatten)]
    pub head: HeadArgs,
    #[command(flatten)]
    pub credentials: CredentialArgs,
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    if (0.0..=1.0).contains(&share) {
        Ok(share)
    } else {
        Err("expected 0 to 1".to_owned())
    }
}

pub async fn run(args: CalibrateArgs) -> Result<()> {
    let found = match &args.recorded {
        Some(path) => Calibration::read(path)?.aiming_at(args.target_agreement),
        None => record(&args).await?,
    };
    write(&args, &found)
}

/// Runs every prompt on both models.
async fn record(args: &CalibrateArgs) -> Result<Calibration> {
    let prompts = prompts::read(args.prompts.as_deref().context("--prompts is missing")?)?;
    let prompts: Vec<_> = prompts
        .into_iter()
        .step_by(usize::from(args.every))
        .collect();
    let cache_dir = args.head.place.cache_dir.as_deref();
    let local = args.local.as_deref().context("--local is missing")?;
    let config = LocalConfig {
        place: args.head.place.device,
        ..LocalConfig::default()
    };
    let local = load_model(local, cache_dir, config.clone()).await?;
    let full = match (&args.tail, &args.model) {
        (Some(tail), _) => {
            // Guesses, and what the tail has kept, would hide what a token costs.
            let config = ClientConfig {
                drafting: Drafting::Off,
                report_on_device_answers: false,
                reuse_prefix: false,
                ..client_config(&args.head, &args.credentials)
            };
            Full::Tail(Box::new(Client::connect(tail, config).await?))
        }
        (None, Some(model)) => Full::Model(Box::new(load_model(model, cache_dir, config).await?)),
        (None, None) => return Err(anyhow!("--tail or --model is missing")),
    };
    let config = CalibrateConfig {
        target_agreement: args.target_agreement,
        max_tokens: args.max_tokens,
    };
    let found = calibrate(&full, &local, &prompts, &config, |done, all| {
        if done.is_multiple_of(20) {
            tracing::info!("prompt {done} of {all}");
        }
    });
    Ok(found.await?)
}

fn write(args: &CalibrateArgs, found: &Calibration) -> Result<()> {
    std::io::stdout().write_all(found.to_markdown().as_bytes())?;
    if let Some(path) = &args.output {
        save(
            path,
            &(serde_json::to_string_pretty(&found.thresholds)? + "\n"),
        )?;
    }
    if let Some(path) = &args.record {
        save(path, &(serde_json::to_string(found)? + "\n"))?;
    }
    if let Some(path) = &args.plot {
        let svg = found
            .to_svg()
            .map_err(|error| anyhow!("drawing the curve: {error}"))?;
        save(path, &svg)?;
    }
    Ok(())
}

fn save(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
