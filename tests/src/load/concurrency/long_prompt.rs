//! What a long prompt does to sessions that are in the middle of their answers.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::sync::watch;
use tokio::time::sleep;

use super::{Bench, CHUNK, Plan, all, ended};
use crate::load::answers::{Answer, Question};
use crate::load::device::Ended;
use crate::load::link::Link;
use crate::load::replay::{Opening, Replay};
use crate::load::samples::{Spread, median};

/// Sessions in the middle of their answers.
const SESSIONS: usize = 16;
/// Tokens of the answers that they repeat.
const ANSWER_TOKENS: usize = 256;
/// How long they are watched before the long prompt and after it.
const WATCHED: Duration = Duration::from_secs(4);

/// When a token came and how long it took.
type Token = (Instant, Duration);

/// Tokens of all repetitions, by when they came.
#[derive(Default)]
struct Measured {
    before: Vec<Duration>,
    during: Vec<Duration>,
    after: Vec<Duration>,
    alone_ms: Vec<f64>,
    among_ms: Vec<f64>,
}

/// The table.
pub(super) async fn table(bench: &Bench, plan: &Plan) -> Result<String> {
    let short = bench.answer(Question::plain(31, 64, ANSWER_TOKENS)).await?;
    let question = Question::plain(5_000, plan.long_prompt_tokens, 1);
    let long = bench.answer(question).await?;
    let mut measured = Measured::default();
    for _ in 0..plan.repeats {
        let alone = first_token(bench, &long).await?;
        measured.alone_ms.push(alone.as_secs_f64() * 1e3);
        measure(bench, &short, &long, &mut measured).await?;
    }
    Ok(print(plan, &measured))
}

async fn first_token(bench: &Bench, answer: &Arc<Answer>) -> Result<Duration> {
    let started = Instant::now();
    let mut replay = bench.open(answer).await?;
    replay.prefill(CHUNK).await.map_err(ended)?;
    let took = started.elapsed();
    replay.session.close().await;
    Ok(took)
}

async fn measure(
    bench: &Bench,
    short: &Arc<Answer>,
    long: &Arc<Answer>,
    measured: &mut Measured,
) -> Result<()> {
    let is_over = watch::Sender::new(false);
    let devices = (0..SESSIONS).map(|_| {
        let (link, opening) = (bench.link(), bench.opening.clone());
        decode_on(link, opening, Arc::clone(short), is_over.subscribe())
    });
    let devices = tokio::spawn(all(devices.collect::<Vec<_>>()));
    // The first seconds are those of the prompts.
    sleep(WATCHED / 2).await;
    let watched = Instant::now();
    sleep(WATCHED).await;
    let came = Instant::now();
    let among = first_token(bench, long).await?;
    let answered = Instant::now();
    sleep(WATCHED).await;
    is_over.send_replace(true);
    measured.among_ms.push(among.as_secs_f64() * 1e3);
    for (at, took) in devices.await??.into_iter().flatten() {
        let place = if at < watched {
            continue;
        } else if at < came {
            &mut measured.before
        } else if at <= answered {
            &mut measured.during
        } else {
            &mut measured.after
        };
        place.push(took);
    }
    Ok(())
}

/// Plays the answer again and again until it is over. A new session's first token does not count.
async fn decode_on(
    link: Link,
    opening: Opening,
    answer: Arc<Answer>,
    is_over: watch::Receiver<bool>,
) -> Result<Vec<Token>, Ended> {
    let mut tokens = Vec::new();
    while !*is_over.borrow() {
        let mut replay = Replay::open(&link, Arc::clone(&answer), &opening).await?;
        replay.prefill(CHUNK).await?;
        while !replay.is_done() && !*is_over.borrow() {
            let started = Instant::now();
            replay.decode().await?;
            tokens.push((Instant::now(), started.elapsed()));
        }
        replay.session.close().await;
    }
    Ok(tokens)
}

fn print(plan: &Plan, measured: &Measured) -> String {
    let (alone, among) = (
        median(measured.alone_ms.clone()),
        median(measured.among_ms.clone()),
    );
    let mut text = format!(
        "{SESSIONS} sessions decode, then a prompt of {} tokens comes. Its first token takes {:.2} s alone and \
         {:.2} s beside them, {:.2} times as long (medians of {}).\n\n\
         | time of a token of the {SESSIONS} | tokens | p50, ms | p90 | p99 | max |\n|---|---|---|---|---|---|\n",
        plan.long_prompt_tokens,
        alone / 1e3,
        among / 1e3,
        among / alone,
        plan.repeats,
    );
    for (name, durations) in [
        ("before", &measured.before),
        ("during the long prompt", &measured.during),
        ("after", &measured.after),
    ] {
        let spread = Spread::of(durations);
        let _ = writeln!(
            text,
            "| {name} | {} | {:.1} | {:.1} | {:.1} | {:.1} |",
            durations.len(),
            spread.p50,
            spread.p90,
            spread.p99,
            spread.max
        );
    }
    text
}
