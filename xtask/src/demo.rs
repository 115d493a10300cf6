//! `cargo xtask demo`: the main job, on a real model.

use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::model;
use crate::paths::program;
use crate::processes::{self, Tail};

pub mod cluster;

/// Options of `demo`.
#[derive(clap::Args)]
pub struct Arguments {
    /// What to ask the model.
    #[arg(
        long,
        default_value = "Explain in three sentences why the sky is blue."
    )]
    prompt: String,
    /// Layers that run on the device.
    #[arg(long, default_value_t = 10)]
    split_layer: usize,
    /// The most tokens of the answer.
    #[arg(long, default_value_t = 120)]
    max_tokens: usize,
    /// The same on Kubernetes, on this machine: a control plane, a real node, the Helm chart and a SplitModel. Takes
    /// root, and Debian's containerd, runc, containernetworking-plugins and nftables.
    #[arg(long)]
    cluster: bool,
}

/// Builds both programs, fetches the model, streams an answer and prints what ran where.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.cluster {
        return cluster::run(arguments);
    }
    processes::build()?;
    let path = model::fetch()?;
    let split_layer = arguments.split_layer.to_string();
    // The tail loads only what it owns: layers from the split layer on.
    let tail = Tail::start(&path, &["--split-min", &split_layer])?;
    println!(
        "tail-server (process {}) holds layers {split_layer} and up, on {}\n",
        tail.id(),
        tail.url
    );
    println!("> {}\n", arguments.prompt);
    answer(&tail.url, arguments)?;
    println!("\nThe tail's own counters:");
    for line in processes::metrics(&tail.url)?
        .lines()
        .filter(|line| !line.starts_with('#'))
    {
        let shown = [
            "weight_bytes",
            "compute_seconds",
            "saved_seconds",
            "tokens_total",
        ];
        if shown.iter().any(|name| line.contains(name)) {
            println!("  {line}");
        }
    }
    Ok(())
}

/// Streams an answer of the tail at `url` to stdout, and what ran where behind it.
fn answer(url: &str, arguments: &Arguments) -> anyhow::Result<()> {
    let status = Command::new(program("edge-lite")?)
        .args(["generate", "--tail", url, "--prompt", &arguments.prompt])
        .args(["--split-layer", &arguments.split_layer.to_string()])
        .args(["--max-tokens", &arguments.max_tokens.to_string()])
        .status()
        .context("starting edge-lite")?;
    ensure!(status.success(), "edge-lite failed");
    Ok(())
}
