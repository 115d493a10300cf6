//! Plays many devices on real tails and prints Markdown; `cargo xtask bench concurrency` and
//! `cargo xtask bench soak` run it.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that talks to a person"
)]

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use e2e::load::concurrency::{self, Plan};
use e2e::load::soak::rules::{self, Extent};
use e2e::load::soak::{self, Settings};

#[derive(Parser)]
#[command(about = "Plays many devices on a tail")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Speed and waiting times against the number of sessions.
    Concurrency {
        /// Numbers of sessions, the first of which the others are compared with.
        #[arg(long, value_delimiter = ',', default_value = "1,2,4,8,16,32,64")]
        sessions: Vec<usize>,
        /// Tokens of each prompt.
        #[arg(long, default_value_t = 128)]
        prompt_tokens: usize,
        /// Tokens of each answer.
        #[arg(long, default_value_t = 64)]
        answer_tokens: usize,
        /// Layers on the devices; 0: token ids go up.
        #[arg(long, default_value_t = 0)]
        split_layer: usize,
        /// Tokens of the prompt that comes while others decode.
        #[arg(long, default_value_t = 4000)]
        long_prompt_tokens: usize,
        /// Repetitions, in turns.
        #[arg(long, default_value_t = 3)]
        repeats: usize,
    },
    /// Everything that can happen to a tail, for a long time.
    Soak {
        /// Minutes of load, at least 3; quiet phases come on top.
        #[arg(long, default_value_t = 30)]
        minutes: u64,
        /// What the acts are drawn from.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Half a minute of load, and the rules that it can be held to.
        #[arg(long)]
        short: bool,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Concurrency {
            sessions,
            prompt_tokens,
            answer_tokens,
            split_layer,
            long_prompt_tokens,
            repeats,
        } => {
            let plan = Plan {
                sessions,
                prompt_tokens,
                answer_tokens,
                split_layer,
                long_prompt_tokens,
                repeats,
            };
            concurrency::run(&plan, &mut |table| println!("{table}")).await
        }
        Command::Soak {
            minutes,
            seed,
            short,
        } => {
            let (settings, extent) = if short {
                (Settings::short(seed), Extent::Short)
            } else {
                (Settings::of_minutes(minutes, seed), Extent::Long)
            };
            let outcome = soak::run(settings, &mut |said| eprintln!("{said}")).await?;
            println!("{}", outcome.markdown());
            println!("{}", serde_json::to_string(&outcome)?);
            let broken = rules::broken(&outcome, extent);
            ensure!(broken.is_empty(), "broken rules:\n{}", broken.join("\n"));
            Ok(())
        }
    }
}
