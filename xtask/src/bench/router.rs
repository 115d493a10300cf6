//! `cargo xtask bench router`: how much of a mixed set of prompts a companion answers, what that costs in agreement, and
//! what it saves the tail.
//!
//! First `edge-lite calibrate` on both models, which judges every prompt by thresholds that were chosen on others. Then
//! the router itself, between real processes, on prompts that its thresholds were not chosen on.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use edge_lite::calibrate::{Calibration, prompts};
use edge_lite::router::Thresholds;
use edge_lite::{
    Client, ClientConfig, Drafting, GenerateRequest, LocalConfig, LocalModel, Prompt, Report,
    Route, RouteMode, Router, RouterConfig,
};

use crate::model::{self, companion};
use crate::paths::{program, root};
use crate::processes::{self, Tail};

/// Options of `bench router`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The most tokens of an answer.
    #[arg(long, default_value_t = 48)]
    max_tokens: usize,
    /// One prompt in so many.
    #[arg(long, default_value_t = 1)]
    every: usize,
    /// Agreement to aim at when the router itself answers.
    #[arg(long, default_value_t = 0.9)]
    target: f64,
    /// Of the prompts that the router's thresholds were not chosen on, one in so many is answered by it.
    #[arg(long, default_value_t = 2)]
    routed_every: usize,
    /// What an earlier run recorded; the models are not run again.
    #[arg(long, value_name = "PATH")]
    recorded: Option<PathBuf>,
    /// Where what is recorded goes, for --recorded.
    #[arg(long, value_name = "PATH")]
    record: Option<PathBuf>,
    /// Where the curve goes, as SVG.
    #[arg(long, default_value = "docs/benchmarks/router.svg")]
    plot: String,
}

/// Prints the tables and writes the plot.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    processes::build()?;
    let (full, local) = (model::fetch()?, companion::path()?);
    let folder = tempfile::tempdir()?;
    let record = arguments.record.clone();
    let record = record.unwrap_or_else(|| folder.path().join("calibration.json"));
    calibrate(arguments, [&full, &local], &record)?;
    let calibration = Calibration::read(&record)?;
    let tail = Tail::start(&full, &[])?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(answer(arguments, calibration, &tail.url, &local))
}

fn calibrate(
    arguments: &Arguments,
    [full, local]: [&Path; 2],
    record: &Path,
) -> anyhow::Result<()> {
    let mut command = Command::new(program("edge-lite")?);
    command
        .args(["--log", "info", "calibrate"])
        .args(["--max-tokens", &arguments.max_tokens.to_string()])
        .args(["--every", &arguments.every.to_string()])
        .args(["--target-agreement", &arguments.target.to_string()]);
    match &arguments.recorded {
        Some(recorded) => command.arg("--recorded").arg(recorded),
        None => command
            .arg("--prompts")
            .arg(root().join("tests/prompts/mixed.jsonl"))
            .arg("--model")
            .arg(full)
            .arg("--local")
            .arg(local),
    };
    let status = command
        .arg("--record")
        .arg(record)
        .arg("--plot")
        .arg(root().join(&arguments.plot))
        .status()?;
    ensure!(status.success(), "edge-lite calibrate failed");
    Ok(())
}

/// Every second prompt chooses the thresholds; of the others, some are answered by the router and by the tail alone.
async fn answer(
    arguments: &Arguments,
    calibration: Calibration,
    url: &str,
    local: &Path,
) -> anyhow::Result<()> {
    let prompts = prompts::read(&root().join("tests/prompts/mixed.jsonl"))?;
    let (chosen_on, others): (Vec<_>, Vec<_>) = calibration
        .records
        .into_iter()
        .enumerate()
        .partition(|(index, _)| index % 2 == 0);
    let chosen_on = chosen_on.into_iter().map(|(_, record)| record).collect();
    let Thresholds {
        full_model_digest,
        local_model_digest,
        ..
    } = calibration.thresholds;
    let digests = (full_model_digest, local_model_digest);
    let thresholds = Calibration::of(chosen_on, digests, arguments.target).thresholds;
    let config = ClientConfig {
        split_layer: Some(0),
        drafting: Drafting::Off,
        report_on_device_answers: false,
        ..ClientConfig::default()
    };
    let client = Client::connect(url, config).await?;
    let path = local.to_owned();
    let load = move || LocalModel::load(&path, &LocalConfig::default());
    let local = tokio::task::spawn_blocking(load).await??;
    let mut totals = Totals::default();
    let config = RouterConfig {
        mode: RouteMode::Auto,
        thresholds: Some(thresholds),
        ..RouterConfig::default()
    };
    let router = Router::new(Some(client.clone()), Some(local), config).await?;
    for (_, record) in others.into_iter().step_by(arguments.routed_every.max(1)) {
        let prompt = prompts.iter().find(|prompt| prompt.id == record.id);
        let prompt = prompt.context("a record has its prompt")?;
        let request = GenerateRequest {
            max_tokens: prompt.max_tokens.min(arguments.max_tokens),
            ..GenerateRequest::new(Prompt::Chat(prompt.messages()))
        };
        let routed = router.generate(request.clone()).await?.finish().await?;
        let alone = client.generate(request).await?.finish().await?;
        totals.add(&routed, &alone);
    }
    println!("{}", totals.row(arguments.target));
    Ok(())
}

#[derive(Default)]
struct Totals {
    answers: usize,
    tokens: usize,
    device_answers: usize,
    device_tokens: usize,
    handed_over: usize,
    same: usize,
    routed_us: u64,
    alone_us: u64,
}

impl Totals {
    fn add(&mut self, routed: &Report, alone: &Report) {
        let here = |report: &Report| -> usize {
            let segments = report
                .segments
                .iter()
                .filter(|segment| segment.route == Route::Device);
            segments.map(|segment| segment.tokens).sum()
        };
        self.answers += 1;
        self.tokens += routed.token_ids.len();
        self.device_tokens += here(routed);
        self.device_answers += usize::from(routed.route == Route::Device);
        self.handed_over += usize::from(routed.segments.len() > 1);
        self.same += usize::from(routed.token_ids == alone.token_ids);
        self.routed_us += routed.tail_compute_us;
        self.alone_us += alone.tail_compute_us;
    }

    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    fn row(&self, target: f64) -> String {
        let share = |part: usize, all: usize| 100.0 * part as f64 / all.max(1) as f64;
        let seconds = |us: u64| us as f64 / 1e6 / self.answers.max(1) as f64;
        format!(
            "The router itself, {} prompts that its thresholds for {:.0} % were not chosen on: {:.1} % answered here, {:.1} % \
             handed over in the middle, {:.1} % of the tokens from here; {:.3} tail seconds an answer beside {:.3} of the \
             tail alone ({:.1} %); {:.1} % of the answers are the tail's to the token.",
            self.answers,
            target * 100.0,
            share(self.device_answers, self.answers),
            share(self.handed_over, self.answers),
            share(self.device_tokens, self.tokens),
            seconds(self.routed_us),
            seconds(self.alone_us),
            100.0 * self.routed_us as f64 / self.alone_us.max(1) as f64,
            share(self.same, self.answers),
        )
    }
}
