//! What verifying drafts costs the tail, and what right ones save it.

use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::Result;

use super::{Bench, CHUNK, Plan, Used, all, speed};
use crate::load::answers::{Answer, Question};
use crate::load::device::Ended;
use crate::load::replay::Replay;
use crate::load::samples::{as_f64, median};

/// Tokens of a draft.
const DRAFT_TOKENS: usize = 4;
/// Tokens of the prompt.
const PROMPT_TOKENS: usize = 64;
/// Numbers of sessions.
const SESSIONS: [usize; 2] = [1, 8];

/// What the devices guess.
#[derive(Clone, Copy)]
enum Guesses {
    Nothing,
    Right,
    Wrong,
}

impl Guesses {
    const ALL: [Self; 3] = [Self::Nothing, Self::Right, Self::Wrong];

    const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "none",
            Self::Right => "4 right ones",
            Self::Wrong => "4 wrong ones",
        }
    }
}

/// One way to guess, all repetitions.
#[derive(Default)]
struct Row {
    output: Vec<f64>,
    output_ratio: Vec<f64>,
    compute_ms: Vec<f64>,
    compute_ratio: Vec<f64>,
    rows_per_step: Vec<f64>,
}

/// The table.
pub(super) async fn table(bench: &Bench, plan: &Plan) -> Result<String> {
    // As many tokens after the first as whole drafts of four and a fifth token give.
    let answer_tokens = 1 + plan.answer_tokens.max(10) / 5 * 5;
    let question = Question::plain(77, PROMPT_TOKENS, answer_tokens);
    let answer = bench.answer(question).await?;
    let mut text = format!(
        "Answers of {answer_tokens} tokens, drafts of {DRAFT_TOKENS}: what one token costs, the first of each answer \
         left out. Medians of {}; ratios to no drafts in the same repetition.\n\n\
         | sessions | drafts | output tok/s | ratio | tail time a token, ms | ratio | rows a step |\n\
         |---|---|---|---|---|---|---|\n",
        plan.repeats,
    );
    for sessions in SESSIONS {
        let mut rows = Guesses::ALL.map(|_| Row::default());
        for _ in 0..plan.repeats {
            for (row, guesses) in rows.iter_mut().zip(Guesses::ALL) {
                measure(bench, &answer, sessions, guesses, row).await?;
            }
            let last = |values: &[f64]| values.last().copied().unwrap_or(1.0);
            let (output, compute) = (last(&rows[0].output), last(&rows[0].compute_ms));
            for row in &mut rows {
                row.output_ratio.push(last(&row.output) / output);
                row.compute_ratio.push(last(&row.compute_ms) / compute);
            }
        }
        for (row, guesses) in rows.into_iter().zip(Guesses::ALL) {
            let _ = writeln!(
                text,
                "| {sessions} | {} | {:.1} | {:.2} | {:.2} | {:.2} | {:.1} |",
                guesses.name(),
                median(row.output),
                median(row.output_ratio),
                median(row.compute_ms),
                median(row.compute_ratio),
                median(row.rows_per_step),
            );
        }
    }
    Ok(text)
}

async fn measure(
    bench: &Bench,
    answer: &Arc<Answer>,
    sessions: usize,
    guesses: Guesses,
    row: &mut Row,
) -> Result<()> {
    let mut replays = Vec::new();
    for _ in 0..sessions {
        replays.push(bench.open(answer).await?);
    }
    let replays = all(replays.into_iter().map(async |mut replay: Replay| {
        replay.prefill(CHUNK).await?;
        replay.compute_us = 0;
        Ok(replay)
    }))
    .await?;
    let before = bench.moment().await?;
    let playing = replays.into_iter().map(|replay| play(replay, guesses));
    let replays = all(playing).await?;
    let used = Used::between(&before, &bench.moment().await?);
    let tokens = sessions * (answer.question().answer_tokens - 1);
    let mut compute_ms = 0.0;
    for replay in replays {
        #[expect(clippy::cast_precision_loss, reason = "seconds in microseconds")]
        let microseconds = replay.compute_us as f64;
        compute_ms += microseconds / 1e3;
        replay.session.close().await;
    }
    row.output.push(speed(tokens, used.seconds));
    row.compute_ms.push(compute_ms / as_f64(tokens));
    row.rows_per_step.push(used.rows_per_step());
    Ok(())
}

/// Plays the rest of the answer.
async fn play(mut replay: Replay, guesses: Guesses) -> Result<Replay, Ended> {
    while !replay.is_done() {
        match guesses {
            Guesses::Nothing => replay.decode().await?,
            Guesses::Right => replay.verify(DRAFT_TOKENS, 0).await?,
            Guesses::Wrong => replay.verify(0, DRAFT_TOKENS).await?,
        }
    }
    Ok(replay)
}
