//! `edge-lite`: the command line of the client library.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use tracing_subscriber::EnvFilter;

use args::{Cli, Command};

mod args;
mod calibrate;
mod chat;
mod engine;
mod eval;
mod generate;
mod pull;
mod routing;

/// Threads that wait for the network; layers have their own. Each costs memory on a small device, and two are plenty.
const RUNTIME_THREADS: usize = 2;

fn main() -> ExitCode {
    let cli = Cli::parse(); // Bad arguments end the process here, with exit code 2.
    match run(cli) {
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
    if let Command::Eval(args) = &cli.command {
        return eval::run(args, cli.threads);
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
            Command::Calibrate(args) => calibrate::run(args).await,
            Command::Eval(_) => Ok(()),
        }
    })
}
