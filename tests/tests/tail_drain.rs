//! A tail with fifty live answers is asked to leave: every answer goes on elsewhere as if nothing had happened.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::device::{Answer, connect, prose, request, sampled};
use e2e::forwarder::Forwarder;
use e2e::smollm2;
use e2e::tail::Tail;
use edge_lite::{Client, Event, GenerateRequest, Generation, SamplingParams};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const SESSIONS: usize = 50;
const SPLIT_LAYER: usize = 2;
const MAX_TOKENS: usize = 40;
/// Tokens that every session has when the tail is asked to leave.
const BEFORE: usize = 4;
/// How long the tail may take to leave.
const GRACE: Duration = Duration::from_secs(45);

/// An answer, and the longest time between two of its tokens.
struct Timed {
    answer: Answer,
    longest_pause: Duration,
}

/// Prompts of about 5 to 25 tokens, half of the answers greedy and half of them drawn.
fn requests() -> Result<Vec<GenerateRequest>> {
    let number = |index: usize| {
        let prompt = prose(20 + 7 * (index % 13))?;
        let sampling = if index.is_multiple_of(2) {
            SamplingParams::default()
        } else {
            sampled(index as u64)
        };
        Ok(request(prompt, MAX_TOKENS, sampling))
    };
    (0..SESSIONS).map(number).collect()
}

/// Starts every generation at once.
async fn started(client: &Client, requests: &[GenerateRequest]) -> Result<Vec<Generation>> {
    let starting = requests
        .iter()
        .map(|request| client.generate(request.clone()));
    Ok(futures_util::future::try_join_all(starting).await?)
}

/// Reads every generation to its end; `answering` is told once by each of them, after [`BEFORE`] tokens.
fn read_all(
    generations: Vec<Generation>,
    answering: &mpsc::Sender<()>,
) -> JoinSet<Result<(usize, Timed)>> {
    let mut reading = JoinSet::new();
    for (index, generation) in generations.into_iter().enumerate() {
        let answering = answering.clone();
        reading.spawn(async move {
            let timed = read(generation, answering).await;
            Ok((index, timed.with_context(|| format!("session {index}"))?))
        });
    }
    reading
}

async fn read(mut generation: Generation, answering: mpsc::Sender<()>) -> Result<Timed> {
    let mut tokens = Vec::new();
    let (mut last, mut longest_pause) = (None, Duration::ZERO);
    while let Some(event) = generation.next().await {
        match event? {
            Event::Token(token) => {
                let now = Instant::now();
                if let Some(last) = last.replace(now) {
                    longest_pause = longest_pause.max(now - last);
                }
                tokens.push(token);
                if tokens.len() == BEFORE {
                    answering.send(()).await?;
                }
            }
            Event::Rest { .. } => {}
            Event::Report(report) => {
                let report = *report;
                return Ok(Timed {
                    answer: Answer { tokens, report },
                    longest_pause,
                });
            }
        }
    }
    anyhow::bail!("the generation ended without a report")
}

/// All answers, in the order of their requests.
async fn finished(mut reading: JoinSet<Result<(usize, Timed)>>) -> Result<Vec<Timed>> {
    let mut answers = Vec::new();
    while let Some(answer) = reading.join_next().await {
        answers.push(answer??);
    }
    answers.sort_by_key(|(index, _)| *index);
    Ok(answers.into_iter().map(|(_, timed)| timed).collect())
}

/// The largest and the median of the sessions' longest pauses.
fn pauses(answers: &[Timed]) -> (Duration, Duration) {
    let mut pauses: Vec<Duration> = answers.iter().map(|timed| timed.longest_pause).collect();
    pauses.sort_unstable();
    (pauses[pauses.len() - 1], pauses[pauses.len() / 2])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_live_answers_move_off_a_tail_that_drains_and_lose_nothing() -> Result<()> {
    let grace_seconds = GRACE.as_secs().to_string();
    let leaving = Tail::start(&smollm2(), &["--drain-seconds", &grace_seconds]).await?;
    let forwarder = Forwarder::start(leaving.address()).await?;
    let client = connect(&forwarder.url(), SPLIT_LAYER).await?;
    let requests = requests()?;

    let (answering, mut answered) = mpsc::channel(SESSIONS);
    let undisturbed = read_all(started(&client, &requests).await?, &answering);
    let undisturbed = finished(undisturbed).await?;
    for _ in 0..SESSIONS {
        answered.recv().await.context("every session answered")?;
    }

    let staying = Tail::start(&smollm2(), &[]).await?;
    let reading = read_all(started(&client, &requests).await?, &answering);
    for _ in 0..SESSIONS {
        answered.recv().await.context("every session answers")?;
    }
    let live = leaving.metric("headway_tail_sessions").await?;
    forwarder.point_to(staying.address());
    let asked = Instant::now();
    leaving.terminate()?;
    let leaves = async {
        let status = leaving.ended().await?;
        anyhow::Ok((status, asked.elapsed()))
    };
    let (moved, left) = tokio::try_join!(finished(reading), leaves)?;
    let (status, left_after) = left;

    ensure!(status.success(), "the tail ended with {status}");
    assert!(left_after < GRACE, "the tail took {left_after:?} to leave");
    assert_eq!(live, SESSIONS as f64, "all sessions were live");
    for (index, (before, after)) in undisturbed.iter().zip(&moved).enumerate() {
        let (before, after) = (&before.answer, &after.answer);
        assert_eq!(before.tokens.len(), MAX_TOKENS, "session {index}");
        assert_eq!(after.tokens, before.tokens, "session {index}");
        assert_eq!(after.report.text, before.report.text, "session {index}");
        assert_eq!(before.report.reconnects, 0, "session {index}");
        assert!(after.report.reconnects >= 1, "session {index}");
    }
    let resumed = staying
        .metric("headway_tail_sessions_resumed_total")
        .await?;
    assert!(
        resumed >= SESSIONS as f64,
        "{resumed} sessions were rebuilt"
    );
    assert_eq!(staying.panics(), [""; 0]);

    let ((largest, median), (largest_alone, median_alone)) = (pauses(&moved), pauses(&undisturbed));
    println!(
        "longest pause of each of {SESSIONS} sessions: with the drain {largest:?} at most, {median:?} in the median; \
         undisturbed {largest_alone:?} and {median_alone:?}; the tail left after {left_after:?}"
    );
    Ok(())
}
