//! `edge-lite train-exit`

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::process::Command;

use anyhow::{Context as _, Result};
use edge_lite::train_exit::{TrainExitConfig, TrainExitProgress, train_exit};

use crate::args::TrainExitArgs;
use crate::engine::model_path;

/// Steps of training, and thousands of tokens of text, between two lines of progress.
const EVERY: usize = 20;

/// By this candle has its single operations done by so many threads: one pool, for which all callers wait.
const CANDLE_THREADS: &str = "CANDLE_NUM_THREADS";

/// `threads`: 0 is one for each core.
pub fn run(args: &TrainExitArgs, threads: usize) -> Result<()> {
    if std::env::var_os(CANDLE_THREADS).is_none() {
        return run_again();
    }
    // The matrix products of training run on rayon's threads, the model's layers on its own.
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .context("cannot start threads")?;
    // Before the minutes of work.
    let mut file = BufWriter::new(
        File::create(&args.output)
            .with_context(|| format!("--output {}", args.output.display()))?,
    );
    let config = TrainExitConfig {
        model: model_path(&args.model, args.cache_dir.as_deref())?,
        split_layer: args.split_layer,
        exit_layers: args.exit_layers,
        draft_vocab_size: args.draft_vocab,
        tokens: args.tokens,
        epochs: args.epochs,
        seed: args.seed,
        place: args.device,
    };
    let mut thousands = 0;
    let trained = train_exit(&config, |progress| match progress {
        TrainExitProgress::Written { tokens } => {
            if tokens / 1000 >= thousands + EVERY {
                thousands = tokens / 1000;
                tracing::info!(tokens, of = config.tokens, "text is written");
            }
        }
        TrainExitProgress::Trained { steps, of, loss } => {
            if steps % EVERY == 0 || steps == of {
                tracing::info!(steps, of, loss, "the exit is trained");
            }
        }
    })?;
    trained.weights.write(&mut file, &args.output)?;
    file.flush().context("--output")?;
    writeln!(
        std::io::stdout(),
        "{}: at {} positions of other texts the first choice is the model's in {:.1} % ({:.1} % before training)",
        args.output.display(),
        trained.measured_positions,
        trained.agreement_percent,
        trained.lens_agreement_percent,
    )?;
    Ok(())
}

/// Runs this program again, in its own place, so that candle's single operations are done by whoever asks: training keeps each
/// core busy with a text of its own. A variable can be set for a new program alone.
fn run_again() -> Result<()> {
    let mut command = Command::new(std::env::current_exe().context("this program")?);
    command
        .args(std::env::args_os().skip(1))
        .env(CANDLE_THREADS, "1");
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt as _;
        Err(command.exec()).context("this program cannot be run")
    }
    #[cfg(not(unix))]
    {
        let status = command.status().context("this program cannot be run")?;
        anyhow::ensure!(status.success(), "training ended with {status}");
        Ok(())
    }
}
