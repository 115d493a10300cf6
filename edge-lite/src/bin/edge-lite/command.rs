//! Runs what the command line names.

use anyhow::{Context as _, Result};

use crate::args::Command;
use crate::{calibrate, chat, eval, generate, plan, profile, pull, train_exit};

/// Threads that wait for the network: few, because layers run on those of `--threads`, and each takes memory.
const RUNTIME_THREADS: usize = 2;

/// `threads`: those of `--threads`; 0 is one for each core.
pub fn run(command: Command, threads: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    match command {
        Command::Generate(args) => runtime.block_on(generate::run(args)),
        Command::Chat(args) => runtime.block_on(chat::run(args)),
        Command::Pull(args) => runtime.block_on(pull::run(args)),
        Command::Profile(args) => runtime.block_on(profile::run(args)),
        Command::Plan(args) => runtime.block_on(plan::run(args)),
        Command::Calibrate(args) => runtime.block_on(calibrate::run(args)),
        Command::Eval(args) => eval::run(&args, threads),
        Command::TrainExit(args) => train_exit::run(&args, threads),
    }
}
