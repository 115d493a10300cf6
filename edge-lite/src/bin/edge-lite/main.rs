//! `edge-lite`: the command line of the client library.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use args::{Cli, Command};
use clap::Parser as _;
use tracing_subscriber::EnvFilter;

mod args;
mod calibrate;
mod chat;
mod engine;
mod eval;
mod generate;
mod plan;
mod profile;
mod pull;
mod routing;
mod train_exit;

/// Threads that wait for the network: few, because layers run on those of `--threads`, and each takes memory.
const RUNTIME_THREADS: usize = 2;

fn main() -> ExitCode {
    // Bad arguments end the process here, with exit code 2.
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A closed stderr leaves nobody to tell.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let filter = EnvFilter::try_new(&cli.log).context("--log")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    headway_model::threads::set_threads(cli.threads);
    match &cli.command {
        Command::Eval(args) => return eval::run(args, cli.threads),
        Command::TrainExit(args) => return train_exit::run(args, cli.threads),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        match cli.command {
            Command::Generate(args) => generate::run(args).await,
            Command::Chat(args) => chat::run(args).await,
            Command::Pull(args) => pull::run(args).await,
            Command::Profile(args) => profile::run(args).await,
            Command::Plan(args) => plan::run(args).await,
            Command::Calibrate(args) => calibrate::run(args).await,
            Command::Eval(_) | Command::TrainExit(_) => Ok(()),
        }
    })
}
