//! `edge-lite`: the command line of the client library.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use args::Cli;
use clap::Parser as _;
use tracing_subscriber::EnvFilter;

mod args;
mod calibrate;
mod chat;
mod command;
mod engine;
mod eval;
mod generate;
mod plan;
mod profile;
mod pull;
mod routing;
mod train_exit;

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
    command::run(cli.command, cli.threads)
}
