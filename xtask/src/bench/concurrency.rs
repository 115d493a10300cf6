//! `cargo xtask bench concurrency`: the devices are played by a program of the end-to-end tests, which knows how
//! to start tails and compares every token.

use crate::model;
use crate::processes::{self, cargo};

/// What is passed on; see `--help` of the load generator.
#[derive(clap::Args)]
pub struct Arguments {
    /// Numbers of sessions, the first of which the others are compared with.
    #[arg(long, default_value = "1,2,4,8,16,32,64")]
    sessions: String,
    /// Layers on the devices; 0: token ids go up.
    #[arg(long, default_value_t = 0)]
    split_layer: usize,
    /// Repetitions, in turns; the median is reported.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
}

/// Prints speed and waiting times by the number of sessions, beside a long prompt, with drafts and with prefixes.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    processes::build()?;
    model::fetch()?;
    let split_layer = arguments.split_layer.to_string();
    let repeats = arguments.repeats.to_string();
    cargo(&[
        "run",
        "--quiet",
        "--release",
        "--bin",
        "tail-load",
        "--",
        "concurrency",
        "--sessions",
        &arguments.sessions,
        "--split-layer",
        &split_layer,
        "--repeats",
        &repeats,
    ])
}
