//! `cargo xtask bench soak`: the load is a program of the end-to-end tests, a short run of which is one of them.

use crate::model;
use crate::processes::{self, cargo};

/// What is passed on; see `--help` of the load generator.
#[derive(clap::Args)]
pub struct Arguments {
    /// Minutes of load, at least 3; quiet phases come on top.
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// What the load is drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Prints what was done and what a tail was like in each quiet phase; fails where a rule is broken.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    processes::build()?;
    model::fetch()?;
    let minutes = arguments.minutes.to_string();
    let seed = arguments.seed.to_string();
    cargo(&[
        "run",
        "--quiet",
        "--release",
        "--bin",
        "tail-load",
        "--",
        "soak",
        "--minutes",
        &minutes,
        "--seed",
        &seed,
    ])
}
