//! The tail's KV cache is only a cache: whatever happens to a tail or to the way there costs time, and
//! never a token.
//!
//! A generation waits for its caller once [`AHEAD`] tokens are unread, so a test that has read a few tokens
//! of a long answer knows that the session is still in use, however slow the machine is.

use anyhow::Result;
use e2e::device::{
    Answer, chat, connect, finish, finish_after, first_tokens, prose, request, sampled, unsplit,
};
use e2e::forwarder::Forwarder;
use e2e::tail::Tail;
use e2e::{smollm2, tiny_llama};
use edge_lite::{Error, GenerateRequest, Generation, SamplingParams, TailError, WeightDtype};
use headway_wire::message::RefusalCode;

/// Events that a generation holds for its caller.
const AHEAD: usize = 64;
/// Tokens read before something happens, at most.
const READ: usize = 24;
const MAX_TOKENS: usize = READ + AHEAD + 8;
const SPLIT_LAYERS: [usize; 3] = [0, 10, 20];

const PREFILLED: &str = "headway_tail_tokens_total{phase=\"prefill\"}";

/// A request and its undisturbed answer.
struct Case {
    request: GenerateRequest,
    expected: Answer,
}

impl Case {
    async fn new(request: GenerateRequest) -> Result<Self> {
        let generation = unsplit(WeightDtype::Native)
            .await?
            .generate(request.clone())
            .await?;
        let expected = finish(generation).await?;
        Ok(Self { request, expected })
    }

    /// A question, answered greedily or with draws and penalties.
    async fn question(is_sampled: bool) -> Result<Self> {
        let sampling = if is_sampled {
            sampled(42)
        } else {
            SamplingParams::default()
        };
        Self::new(request(
            chat("Tell me about the moon."),
            MAX_TOKENS,
            sampling,
        ))
        .await
    }

    /// A prompt that takes a tail many steps.
    async fn long_prompt(is_sampled: bool) -> Result<Self> {
        let sampling = if is_sampled {
            sampled(43)
        } else {
            SamplingParams::default()
        };
        Self::new(request(prose(3000)?, 8, sampling)).await
    }

    fn check(&self, answer: &Answer, context: &str) {
        assert_eq!(answer.tokens, self.expected.tokens, "{context}");
        assert_eq!(answer.report.text, self.expected.report.text, "{context}");
    }
}

/// Kills `tail` and starts another one where it was.
async fn kill_and_restart(tail: Tail) -> Result<Tail> {
    let address = tail.address();
    tail.kill().await?;
    Tail::start_on(address, &smollm2(), &[]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_killed_while_it_answers_costs_no_token() -> Result<()> {
    let mut random = fastrand::Rng::with_seed(20_260_101);
    let cases = [Case::question(false).await?, Case::question(true).await?];
    let mut tail = Tail::start(&smollm2(), &[]).await?;
    let mut clients = Vec::new();
    for split_layer in SPLIT_LAYERS {
        clients.push(connect(&tail.url(), split_layer).await?);
    }
    for kill in 0..16 {
        let (case, client) = (&cases[kill % 2], &clients[kill % 3]);
        let read = random.usize(1..=READ);
        let mut generation = client.generate(case.request.clone()).await?;
        let tokens = first_tokens(&mut generation, read).await?;
        tail = kill_and_restart(tail).await?;
        let answer = finish_after(tokens, generation).await?;
        let context = format!("kill {kill} after {read} tokens, {:?}", client.choice());
        case.check(&answer, &context);
        assert!(answer.report.reconnects >= 1, "{context}");
        assert!(
            answer.report.replayed_positions >= answer.report.prompt_tokens as u64,
            "{context}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_killed_while_it_reads_the_prompt_costs_no_token() -> Result<()> {
    let cases = [
        Case::long_prompt(false).await?,
        Case::long_prompt(true).await?,
    ];
    // Small steps, so that there is a moment between the first of them and the last.
    let mut tail = Tail::start(&smollm2(), &["--step-tokens", "16"]).await?;
    for (kill, split_layer) in [0, 10, 20, 0].into_iter().enumerate() {
        let case = &cases[kill % 2];
        let client = connect(&tail.url(), split_layer).await?;
        let before = tail.metric(PREFILLED).await?;
        let generation = client.generate(case.request.clone()).await?;
        tail.wait_for_metric(PREFILLED, |rows| rows > before)
            .await?;
        tail = kill_and_restart(tail).await?;
        let answer = finish(generation).await?;
        case.check(&answer, &format!("split layer {split_layer}"));
        assert!(answer.report.reconnects >= 1, "split layer {split_layer}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_again_and_again_costs_no_token() -> Result<()> {
    let mut random = fastrand::Rng::with_seed(7);
    let cases = [Case::question(false).await?, Case::question(true).await?];
    let tail = Tail::start(&smollm2(), &[]).await?;
    let forwarder = Forwarder::start(tail.address()).await?;
    for (split_layer, case) in SPLIT_LAYERS.into_iter().zip(cases.iter().cycle()) {
        let client = connect(&forwarder.url(), split_layer).await?;
        let mut generation = client.generate(case.request.clone()).await?;
        let mut tokens = Vec::new();
        for _ in 0..3 {
            let read = random.usize(1..=READ / 3);
            tokens.append(&mut first_tokens(&mut generation, read).await?);
            forwarder.cut();
        }
        let answer = finish_after(tokens, generation).await?;
        case.check(&answer, &format!("split layer {split_layer}"));
        // Two cuts can meet the same connection; the first one always meets one.
        assert!(answer.report.reconnects >= 1, "split layer {split_layer}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_within_a_frame_costs_no_token() -> Result<()> {
    let mut random = fastrand::Rng::with_seed(8);
    let case = Case::long_prompt(true).await?;
    let tail = Tail::start(&smollm2(), &[]).await?;
    let forwarder = Forwarder::start(tail.address()).await?;
    for split_layer in SPLIT_LAYERS {
        let client = connect(&forwarder.url(), split_layer).await?;
        // Within the handshake, within Open, and within the rows of the prompt: the prompt's token ids alone
        // take 2 KiB, its activations over a MiB.
        let within_rows = if split_layer == 0 {
            600..1500
        } else {
            2000..1_000_000
        };
        let cuts = [
            random.u64(1..150),
            random.u64(200..400),
            random.u64(within_rows),
        ];
        forwarder.cut_next_after(&cuts);
        let answer = finish(client.generate(case.request.clone()).await?).await?;
        let context = format!("split layer {split_layer}, cuts after {cuts:?} bytes");
        case.check(&answer, &context);
        // A session whose Open did not arrive was never open.
        assert!(
            answer.report.reconnects >= 1,
            "{context}: {:?}",
            answer.report
        );
    }
    Ok(())
}

/// Starts a generation for every kind of session, and reads a few tokens of each.
async fn started(
    url: &str,
    cases: &[Case; 2],
) -> Result<Vec<(Vec<edge_lite::TokenEvent>, Generation)>> {
    let mut started = Vec::new();
    for (split_layer, case) in [0, 10, 10].into_iter().zip(cases.iter().cycle()) {
        let client = connect(url, split_layer).await?;
        let mut generation = client.generate(case.request.clone()).await?;
        started.push((first_tokens(&mut generation, 5).await?, generation));
    }
    Ok(started)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_move_off_a_tail_that_is_asked_to_leave() -> Result<()> {
    let cases = [Case::question(false).await?, Case::question(true).await?];
    let leaving = Tail::start(&smollm2(), &[]).await?;
    let staying = Tail::start(&smollm2(), &[]).await?;
    let forwarder = Forwarder::start(leaving.address()).await?;
    let started = started(&forwarder.url(), &cases).await?;
    forwarder.point_to(staying.address());
    leaving.terminate()?;
    for ((tokens, generation), case) in started.into_iter().zip(cases.iter().cycle()) {
        let answer = finish_after(tokens, generation).await?;
        case.check(&answer, "after the move");
        assert!(answer.report.reconnects >= 1, "{:?}", answer.report);
    }
    assert!(leaving.ended().await?.success());
    assert_eq!(
        staying
            .metric("headway_tail_sessions_resumed_total")
            .await?,
        3.0
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_with_nowhere_to_go_end_on_the_tail_that_leaves() -> Result<()> {
    let cases = [Case::question(false).await?, Case::question(true).await?];
    let tail = Tail::start(&smollm2(), &[]).await?;
    let started = started(&tail.url(), &cases).await?;
    tail.terminate()?;
    for ((tokens, generation), case) in started.into_iter().zip(cases.iter().cycle()) {
        case.check(
            &finish_after(tokens, generation).await?,
            "on the leaving tail",
        );
    }
    assert!(tail.ended().await?.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_not_rebuilt_on_a_tail_with_another_model() -> Result<()> {
    let case = Case::question(false).await?;
    let tail = Tail::start(&smollm2(), &[]).await?;
    let other = Tail::start(&tiny_llama(), &[]).await?;
    let forwarder = Forwarder::start(tail.address()).await?;
    let client = connect(&forwarder.url(), 10).await?;
    let other_digest = connect(&other.url(), 0)
        .await?
        .manifest()
        .model_digest
        .clone();
    let mut generation = client.generate(case.request.clone()).await?;
    first_tokens(&mut generation, 3).await?;
    forwarder.point_to(other.address());
    forwarder.cut();
    match finish(generation).await {
        Err(Error::Tail(TailError::Refused(refused))) => {
            assert_eq!(refused.code, RefusalCode::DigestMismatch);
            for digest in [&client.manifest().model_digest, &other_digest] {
                assert!(
                    refused.message.contains(digest.as_str()),
                    "{}",
                    refused.message
                );
            }
        }
        other => panic!("expected a digest mismatch, got {other:?}"),
    }
    Ok(())
}
