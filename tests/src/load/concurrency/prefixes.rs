//! What a prefix saves that the tail holds already.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::time::{sleep, timeout};

use super::{Bench, CHUNK, Plan, ended};
use crate::PATIENCE;
use crate::load::answers::{Answer, Question};
use crate::load::replay::{Offer, Opening, Replay};
use crate::load::samples::median;

/// Tokens of the prompt.
const PROMPT_TOKENS: usize = 1_000;

/// One kind of session, all repetitions.
#[derive(Default)]
struct Row {
    first_token_ms: Vec<f64>,
    compute_ms: Vec<f64>,
    reused: Vec<u32>,
}

/// The table.
pub(super) async fn table(bench: &Bench, plan: &Plan) -> Result<String> {
    let names = [
        "first session, kept",
        "again, nothing offered",
        "again, digests offered",
    ];
    let mut rows = names.map(|_| Row::default());
    for repetition in 0..plan.repeats {
        // Each repetition has a prompt of its own, so that nothing of it is kept from the one before.
        let question = Question::plain(9_000 + repetition * 1_201, PROMPT_TOKENS, 2);
        let answer = bench.answer(question).await?;
        let keeping = Opening {
            keep_prefix: true,
            ..bench.opening.clone()
        };
        let kept_before = bench.server.scrape().await?.kv_blocks("kept");
        measure(bench, &answer, &keeping, &mut rows[0]).await?;
        wait_until_kept(bench, kept_before).await?;
        measure(bench, &answer, &bench.opening, &mut rows[1]).await?;
        let offering = Opening {
            offer: Offer::Right,
            ..bench.opening.clone()
        };
        measure(bench, &answer, &offering, &mut rows[2]).await?;
    }
    let mut text = format!(
        "Sessions one after another with the same prompt of {PROMPT_TOKENS} tokens, to their first token. Medians of \
         {}; ratios to the session without an offer.\n\n\
         | session | positions reused | first token, ms | ratio | tail time, ms | ratio |\n|---|---|---|---|---|---|\n",
        plan.repeats,
    );
    let (first_token, compute) = (
        median(rows[1].first_token_ms.clone()),
        median(rows[1].compute_ms.clone()),
    );
    for (name, row) in names.into_iter().zip(rows) {
        let reused = row.reused.iter().copied().max().unwrap_or_default();
        let (own_first, own_compute) = (median(row.first_token_ms), median(row.compute_ms));
        let _ = writeln!(
            text,
            "| {name} | {reused} | {own_first:.0} | {:.2} | {own_compute:.1} | {:.2} |",
            own_first / first_token,
            own_compute / compute,
        );
    }
    Ok(text)
}

async fn measure(
    bench: &Bench,
    answer: &Arc<Answer>,
    opening: &Opening,
    row: &mut Row,
) -> Result<()> {
    let started = Instant::now();
    let opened = Replay::open(bench.server.link(), Arc::clone(answer), opening).await;
    let mut replay = opened.map_err(ended)?;
    replay.prefill(CHUNK).await.map_err(ended)?;
    row.first_token_ms
        .push(started.elapsed().as_secs_f64() * 1e3);
    #[expect(clippy::cast_precision_loss, reason = "seconds in microseconds")]
    row.compute_ms.push(replay.compute_us as f64 / 1e3);
    row.reused.push(replay.session.opened.reused_positions);
    replay.session.close().await;
    Ok(())
}

/// The tail keeps a prefix when it has seen that its session is over.
async fn wait_until_kept(bench: &Bench, kept_before: f64) -> Result<()> {
    let kept = async {
        while bench.server.scrape().await?.kv_blocks("kept") <= kept_before {
            sleep(Duration::from_millis(10)).await;
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, kept).await.context("no prefix is kept")?
}
