//! Plays many devices on real tails and prints Markdown; `cargo xtask bench concurrency` and
//! `cargo xtask bench soak` run it.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that talks to a person"
)]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use e2e::load::concurrency::{self, Plan};
use e2e::load::soak::rules::{self, Extent};
use e2e::load::soak::{self, Settings};
use e2e::load::synthetic::{self, Crowd};
use headway_wire::Codec;

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
    /// Speed and waiting times of a tail that runs already, whatever its model: rows are random, and no token is
    /// compared.
    Synthetic {
        /// Where the tail listens, without TLS and credentials.
        #[arg(long, default_value = "127.0.0.1:8089")]
        tail: SocketAddr,
        /// Numbers of sessions, one after the other.
        #[arg(long, value_delimiter = ',', default_value = "64,256")]
        sessions: Vec<usize>,
        /// Tokens of each prompt.
        #[arg(long, default_value_t = 512)]
        prompt_tokens: usize,
        /// Tokens of each answer.
        #[arg(long, default_value_t = 256)]
        answer_tokens: usize,
        /// Layers that the devices would run; at least 1.
        #[arg(long, default_value_t = 16)]
        split_layer: usize,
        /// How rows go up.
        #[arg(long, default_value = "f16")]
        codec: Codec,
        /// Milliseconds over which sessions come.
        #[arg(long, default_value_t = 1000)]
        arrival_ms: u64,
        /// Milliseconds that a device takes for its layers, at least and at most.
        #[arg(long, value_delimiter = ',', num_args = 2, default_values_t = [0.0, 0.0])]
        think_ms: Vec<f64>,
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
        Command::Synthetic {
            tail,
            sessions,
            prompt_tokens,
            answer_tokens,
            split_layer,
            codec,
            arrival_ms,
            think_ms,
        } => {
            let crowd = Crowd {
                prompt_tokens,
                answer_tokens,
                split_layer,
                codec,
                arrival: Duration::from_millis(arrival_ms),
                think_ms: [think_ms[0], think_ms[1]],
            };
            synthetic::run(tail, &sessions, &crowd, &mut |line| println!("{line}")).await
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
