//! Speed and waiting times against the number of sessions.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Bench, CHUNK, Plan, Used, all, speed};
use crate::load::answers::{Answer, Question};
use crate::load::replay::Replay;
use crate::load::samples::{Spread, median};

/// Different prompts; sessions beyond take them again.
const PROMPTS: usize = 4;

/// One number of sessions, all repetitions.
#[derive(Default)]
struct Row {
    output: Vec<f64>,
    /// Output against the first row's of the same repetition.
    ratio: Vec<f64>,
    prompt: Vec<f64>,
    first_token: Vec<Duration>,
    per_token: Vec<Duration>,
    used: Vec<Used>,
}

/// The table.
pub(super) async fn table(bench: &Bench, plan: &Plan) -> Result<String> {
    let mut answers = Vec::new();
    for index in 0..PROMPTS {
        let question = Question::plain(index * 997, plan.prompt_tokens, plan.answer_tokens);
        answers.push(bench.answer(question).await?);
    }
    // Pages and caches are warm before anything counts.
    measure(bench, &answers, 2, &mut Row::default()).await?;
    let mut rows: Vec<Row> = plan.sessions.iter().map(|_| Row::default()).collect();
    for _ in 0..plan.repeats {
        for (row, sessions) in rows.iter_mut().zip(&plan.sessions) {
            measure(bench, &answers, *sessions, row).await?;
        }
        let one = rows[0].output.last().copied().unwrap_or(1.0);
        for row in &mut rows {
            let output = row.output.last().copied().unwrap_or_default();
            row.ratio.push(output / one);
        }
    }
    Ok(print(plan, rows))
}

/// All sessions at once: their prompts, then, when the last has its first token, their answers.
async fn measure(
    bench: &Bench,
    answers: &[Arc<Answer>],
    sessions: usize,
    row: &mut Row,
) -> Result<()> {
    let mut replays = Vec::new();
    for answer in answers.iter().cycle().take(sessions) {
        replays.push(bench.open(answer).await?);
    }
    let started = Instant::now();
    let prefilled = all(replays.into_iter().map(async |mut replay: Replay| {
        let started = Instant::now();
        replay.prefill(CHUNK).await?;
        Ok((replay, started.elapsed()))
    }))
    .await?;
    let prompts_took = started.elapsed().as_secs_f64();
    let (replays, first_token): (Vec<_>, Vec<_>) = prefilled.into_iter().unzip();

    let before = bench.moment().await?;
    let decoded = all(replays.into_iter().map(async |mut replay: Replay| {
        let mut per_token = Vec::new();
        while !replay.is_done() {
            let started = Instant::now();
            replay.decode().await?;
            per_token.push(started.elapsed());
        }
        Ok((replay, per_token))
    }))
    .await?;
    let after = bench.moment().await?;
    let used = Used::between(&before, &after);
    let question = answers[0].question();
    let (prompt, output) = (question.prompt_tokens, question.answer_tokens - 1);
    row.prompt.push(speed(sessions * prompt, prompts_took));
    row.output.push(speed(sessions * output, used.seconds));
    row.first_token.extend(first_token);
    row.used.push(used);
    for (replay, per_token) in decoded {
        row.per_token.extend(per_token);
        replay.session.close().await;
    }
    Ok(())
}

fn print(plan: &Plan, rows: Vec<Row>) -> String {
    let mut text = format!(
        "Split layer {}, prompts of {} tokens, answers of {}, medians of {} repetitions. Prompts come at the same \
         time; answers begin when the last prompt is done.\n\n\
         | sessions | output tok/s | ratio | prompt tok/s | first token: p50, ms | p90 | p99 | a token: p50, ms | p90 | p99 \
         | steps | rows a step | busy | tail, cores | generator, cores |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
        plan.split_layer, plan.prompt_tokens, plan.answer_tokens, plan.repeats,
    );
    for (sessions, row) in plan.sessions.iter().zip(rows) {
        let of_used = |of: fn(&Used) -> f64| median(row.used.iter().map(of).collect());
        let (first, token) = (Spread::of(&row.first_token), Spread::of(&row.per_token));
        let _ = writeln!(
            text,
            "| {sessions} | {:.1} | {:.2} | {:.0} | {:.0} | {:.0} | {:.0} | {:.1} | {:.1} | {:.1} | {:.0} | {:.1} | {:.0} % | {:.2} | {:.2} |",
            median(row.output.clone()),
            median(row.ratio.clone()),
            median(row.prompt.clone()),
            first.p50,
            first.p90,
            first.p99,
            token.p50,
            token.p90,
            token.p99,
            of_used(|used| used.steps),
            of_used(Used::rows_per_step),
            of_used(|used| used.busy * 100.0),
            of_used(|used| used.tail_cores),
            of_used(|used| used.generator_cores),
        );
    }
    text
}
