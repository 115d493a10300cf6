//! `cargo xtask bench operator`: the load generator is a program of the end-to-end tests, so that this one needs
//! no Kubernetes client.

use crate::processes::{self, cargo};

/// What is passed on; see `--help` of the load generator.
#[derive(clap::Args)]
pub struct Arguments {
    /// Numbers of SplitModels, growing.
    #[arg(long, default_value = "1,100,1000,5000")]
    sizes: String,
    /// For how long the cluster is left alone with 1,000 of them.
    #[arg(long, default_value_t = 600)]
    steady_seconds: u64,
}

/// Prints latencies, and what the operator uses when nothing changes and after a restart.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    processes::build_all()?;
    let steady_seconds = arguments.steady_seconds.to_string();
    cargo(&[
        "run",
        "--quiet",
        "--release",
        "--bin",
        "operator-load",
        "--",
        "--sizes",
        &arguments.sizes,
        "--steady-seconds",
        &steady_seconds,
    ])
}
