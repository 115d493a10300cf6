//! What a tail does with many sessions at a time: its speed, how long each waits, and what drafts and prefixes
//! save. `cargo xtask bench concurrency` prints it.

mod drafts;
mod long_prompt;
mod prefixes;
mod sessions;

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow};

use super::answers::{Answer, Question, Reference};
use super::device::Ended;
use super::link::Link;
use super::replay::{Opening, Replay};
use super::samples::as_f64;
use super::scrape::Scrape;
use super::server::Server;
use super::usage::Usage;
use crate::smollm2;

/// Positions of a prompt that a device sends at a time.
const CHUNK: usize = 256;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Numbers of sessions; the first is what the others are compared with.
    pub sessions: Vec<usize>,
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens of each answer.
    pub answer_tokens: usize,
    /// Layers on the device; 0: token ids go up.
    pub split_layer: usize,
    /// Tokens of the prompt that comes in between.
    pub long_prompt_tokens: usize,
    /// How often each thing is measured, in turns.
    pub repeats: usize,
}

/// Measures all of it and prints Markdown on `print`.
///
/// # Errors
/// Where a tail refuses, or one of its tokens is not the known one.
pub async fn run(plan: &Plan, print: &mut impl FnMut(&str)) -> Result<()> {
    let bench = Bench::start(plan).await?;
    print(&sessions::table(&bench, plan).await?);
    print(&long_prompt::table(&bench, plan).await?);
    print(&drafts::table(&bench, plan).await?);
    print(&prefixes::table(&bench, plan).await?);
    Ok(())
}

/// A tail and the answers that are asked of it.
struct Bench {
    server: Server,
    reference: Arc<Reference>,
    opening: Opening,
    split_layer: usize,
}

impl Bench {
    async fn start(plan: &Plan) -> Result<Self> {
        let most = plan.sessions.iter().copied().max().unwrap_or(1).max(17);
        let options = [
            "--max-sessions",
            &most.to_string(),
            "--max-queue",
            &most.to_string(),
            "--max-draft-tokens",
            "8",
        ];
        let options = options.map(str::to_owned);
        let server = Server::start(&smollm2(), &options, None).await?;
        let opening = Opening {
            model_digest: server.model_digest(None).await?.into(),
            ..Opening::default()
        };
        let reference = tokio::task::spawn_blocking(|| Reference::load(&smollm2())).await??;
        Ok(Self {
            server,
            reference: Arc::new(reference),
            opening,
            split_layer: plan.split_layer,
        })
    }

    /// Computes an answer; nothing else runs meanwhile.
    async fn answer(&self, question: Question) -> Result<Arc<Answer>> {
        let reference = Arc::clone(&self.reference);
        let question = Question {
            split_layer: self.split_layer,
            ..question
        };
        tokio::task::spawn_blocking(move || reference.answer(question)).await?
    }

    fn link(&self) -> Link {
        self.server.link().clone()
    }

    async fn open(&self, answer: &Arc<Answer>) -> Result<Replay> {
        let opened = Replay::open(self.server.link(), Arc::clone(answer), &self.opening).await;
        opened.map_err(ended)
    }

    async fn moment(&self) -> Result<Moment> {
        Ok(Moment {
            at: Instant::now(),
            scrape: self.server.scrape().await?,
            tail: self.server.usage()?,
            generator: Usage::own()?,
        })
    }
}

/// What has been used up to a moment, by the tail and by the devices.
struct Moment {
    at: Instant,
    scrape: Scrape,
    tail: Usage,
    generator: Usage,
}

/// What was used between two moments.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    seconds: f64,
    steps: f64,
    rows: f64,
    /// Share of the time in which the tail's engine computed.
    busy: f64,
    /// Cores, on average.
    tail_cores: f64,
    /// Cores, on average.
    generator_cores: f64,
}

impl Used {
    fn between(before: &Moment, after: &Moment) -> Self {
        let seconds = (after.at - before.at).as_secs_f64();
        let grown = |name: &str| after.scrape.since(&before.scrape, name);
        let cores = |before: &Usage, after: &Usage| {
            after.cpu.saturating_sub(before.cpu).as_secs_f64() / seconds
        };
        Self {
            seconds,
            steps: grown("headway_tail_steps_total"),
            rows: after
                .scrape
                .sum_since(&before.scrape, "headway_tail_tokens_total"),
            busy: grown("headway_tail_busy_seconds_total") / seconds,
            tail_cores: cores(&before.tail, &after.tail),
            generator_cores: cores(&before.generator, &after.generator),
        }
    }

    fn rows_per_step(&self) -> f64 {
        self.rows / self.steps.max(1.0)
    }
}

/// Tokens a second.
fn speed(tokens: usize, seconds: f64) -> f64 {
    as_f64(tokens) / seconds
}

/// Runs one future for each session on the runtime's threads and waits for all.
async fn all<T: Send + 'static>(
    futures: impl IntoIterator<Item = impl Future<Output = Result<T, Ended>> + Send + 'static>,
) -> Result<Vec<T>> {
    let tasks: Vec<_> = futures.into_iter().map(tokio::spawn).collect();
    let mut done = Vec::new();
    for task in tasks {
        done.push(task.await.context("a device panicked")?.map_err(ended)?);
    }
    Ok(done)
}

/// A measurement ends where a session does.
fn ended(ended: Ended) -> anyhow::Error {
    anyhow!("a session ended: {ended:?}")
}
