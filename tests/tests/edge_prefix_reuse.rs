//! What a tail has computed once is not sent and not computed again, and no token tells the difference.

use anyhow::{Context as _, Result};
use e2e::device::{
    Answer, finish, finish_after, first_tokens, lossless, prose, request, sampled, unsplit,
};
use e2e::forwarder::Forwarder;
use e2e::smollm2;
use e2e::tail::Tail;
use edge_lite::{
    ChatMessage, Client, ClientConfig, Codec, Credentials, GenerateRequest, Prompt, SamplingParams,
    Secret, Token, WeightDtype,
};
use sha2::{Digest as _, Sha256};

/// Positions that are reused together.
const BLOCK: u64 = 32;
/// Bytes of a prompt of some 250 tokens.
const PROMPT_BYTES: usize = 1000;
/// Events that a generation holds for its caller: a longer answer is still under way when its first token is read.
const AHEAD: usize = 64;

const REUSED: &str = "headway_tail_reused_positions_total";
const KEPT_BLOCKS: &str = "headway_tail_kv_blocks{state=\"kept\"}";
const SESSIONS: &str = "headway_tail_sessions";

/// A device that asks for reuse.
fn reusing(split_layer: usize) -> ClientConfig {
    ClientConfig {
        reuse_prefix: true,
        ..lossless(split_layer)
    }
}

async fn ask(client: &Client, request: &GenerateRequest) -> Result<Answer> {
    Ok(finish(client.generate(request.clone()).await?).await?)
}

fn long_request() -> Result<GenerateRequest> {
    let draws = SamplingParams {
        temperature: 0.8,
        seed: 11,
        ..SamplingParams::default()
    };
    Ok(request(prose(PROMPT_BYTES)?, 16, draws))
}

/// All positions that can be left out of a prompt.
fn whole_blocks(prompt_tokens: usize) -> u64 {
    (prompt_tokens as u64 - 1) / BLOCK * BLOCK
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_that_the_tail_holds_gives_the_same_answer() -> Result<()> {
    let request = long_request()?;
    let model = unsplit(WeightDtype::Native).await?;
    let expected = finish(model.generate(request.clone()).await?).await?;
    let tail = Tail::start(&smollm2(), &[]).await?;
    let int8 = Codec::Int8 { group_size: 32 };
    for (split_layer, codec) in [(0, Codec::F32), (10, Codec::F32), (10, int8)] {
        let context = format!("split layer {split_layer}, {codec}");
        let config = ClientConfig {
            codec: Some(codec),
            ..reusing(split_layer)
        };
        let client = Client::connect(&tail.url(), config).await?;
        let before = tail.metric(REUSED).await?;
        let first = ask(&client, &request).await?;
        assert_eq!(first.report.reused_positions, 0, "{context}");
        if codec == Codec::F32 {
            assert_eq!(first.tokens, expected.tokens, "{context}");
        }
        let again = ask(&client, &request).await?;
        assert_eq!(again.tokens, first.tokens, "{context}");
        let reused = again.report.reused_positions;
        assert_eq!(
            reused,
            whole_blocks(again.report.prompt_tokens),
            "{context}"
        );
        assert!(reused > 0);
        if split_layer > 0 {
            // Token ids are few bytes beside everything else.
            assert!(
                again.report.bytes_up < first.report.bytes_up / 4,
                "{context}"
            );
        }
        assert_eq!(tail.metric(REUSED).await? - before, reused as f64);
        assert_eq!(again.report.replayed_positions, 0, "{context}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_turn_of_a_chat_reuses_the_turns_before_it() -> Result<()> {
    let tail = Tail::start(&smollm2(), &[]).await?;
    let model = unsplit(WeightDtype::Native).await?;
    for split_layer in [0, 10] {
        let client = Client::connect(&tail.url(), reusing(split_layer)).await?;
        let mut messages = Vec::new();
        let mut say = |role: &str, content: &str| {
            messages.push(ChatMessage {
                role: role.to_owned(),
                content: content.to_owned(),
            });
            messages.clone()
        };
        // Positions that the tail has been sent so far.
        let mut held = 0;
        for question in ["What is the sea?", "Why is it salty?", "Who sails on it?"] {
            let prompt = Prompt::Chat(say("user", question));
            let request = GenerateRequest {
                max_tokens: 70,
                ..GenerateRequest::new(prompt)
            };
            let expected = finish(model.generate(request.clone()).await?).await?;
            let answer = ask(&client, &request).await?;
            let report = &answer.report;
            assert_eq!(answer.tokens, expected.tokens, "{question}");
            assert_eq!(report.reused_positions, held / BLOCK * BLOCK, "{question}");
            // The last token of an answer is not sent.
            held = (report.prompt_tokens + report.token_ids.len()) as u64 - 1;
            say("assistant", &report.text);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_rebuilt_on_the_same_tail_sends_almost_nothing_again() -> Result<()> {
    let request = GenerateRequest {
        max_tokens: AHEAD + 40,
        ..long_request()?
    };
    let model = unsplit(WeightDtype::Native).await?;
    let expected = finish(model.generate(request.clone()).await?).await?;
    let tail = Tail::start(&smollm2(), &[]).await?;
    let forwarder = Forwarder::start(tail.address()).await?;
    for split_layer in [0, 10] {
        let client = Client::connect(&forwarder.url(), reusing(split_layer)).await?;
        let mut generation = client.generate(request.clone()).await?;
        let tokens = first_tokens(&mut generation, 20).await?;
        forwarder.cut();
        let answer = finish_after(tokens, generation).await?;
        assert_eq!(answer.tokens, expected.tokens, "split layer {split_layer}");
        let report = &answer.report;
        assert_eq!(report.reconnects, 1, "split layer {split_layer}");
        assert!(
            report.reused_positions >= whole_blocks(report.prompt_tokens),
            "{report:?}"
        );
        // At most the block that was not whole.
        assert!(report.replayed_positions < BLOCK, "{report:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_the_replay_buffer_keeps_is_reused() -> Result<()> {
    let request = long_request()?;
    let tail = Tail::start(&smollm2(), &[]).await?;
    let client = Client::connect(&tail.url(), reusing(10)).await?;
    let expected = ask(&client, &request).await?;
    // Rows of 576 numbers of four bytes; steps of 50 rows, of which two fit and a third does not.
    let config = ClientConfig {
        prompt_chunk_positions: 50,
        max_replay_bytes: 120 * 576 * 4,
        ..reusing(10)
    };
    let client = Client::connect(&tail.url(), config).await?;
    let answer = ask(&client, &request).await?;
    assert_eq!(answer.tokens, expected.tokens);
    assert_eq!(answer.report.reused_positions, 96);
    let none = ClientConfig {
        max_replay_bytes: 0,
        ..reusing(10)
    };
    let client = Client::connect(&tail.url(), none).await?;
    let answer = ask(&client, &request).await?;
    assert_eq!(answer.tokens, expected.tokens);
    assert_eq!(answer.report.reused_positions, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn penalties_are_right_and_reuse_nothing() -> Result<()> {
    let request = request(prose(PROMPT_BYTES)?, 16, sampled(5));
    let model = unsplit(WeightDtype::Native).await?;
    let expected = finish(model.generate(request.clone()).await?).await?;
    let tail = Tail::start(&smollm2(), &[]).await?;
    for split_layer in [0, 10] {
        let client = Client::connect(&tail.url(), reusing(split_layer)).await?;
        for _ in 0..2 {
            let answer = ask(&client, &request).await?;
            assert_eq!(answer.tokens, expected.tokens, "split layer {split_layer}");
            assert_eq!(answer.report.reused_positions, 0);
        }
        // What such a session has sent serves others.
        let answer = ask(&client, &long_request()?).await?;
        assert!(answer.report.reused_positions > 0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_tenant_never_finds_what_another_has_sent() -> Result<()> {
    let tokens = ["of-the-first-tenant", "of-the-second-tenant"].map(str::to_owned);
    let lines = tokens
        .iter()
        .zip(["acme", "globex"])
        .map(|(token, tenant)| {
            let digest = Sha256::digest(token);
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{tenant}:{hex}\n")
        });
    let folder = tempfile::tempdir()?;
    let keys = folder.path().join("keys");
    std::fs::write(&keys, lines.collect::<String>())?;
    let keys = keys.to_str().context("UTF-8")?;
    let tail = Tail::start(&smollm2(), &["--auth-keys", keys]).await?;
    let request = long_request()?;
    for split_layer in [0, 10] {
        let mut answers = Vec::new();
        for token in [&tokens[0], &tokens[1], &tokens[0], &tokens[1]] {
            let config = ClientConfig {
                credentials: Credentials {
                    token: Some(Token::Value(Secret::new(token.clone()))),
                    ..Credentials::default()
                },
                ..reusing(split_layer)
            };
            let client = Client::connect(&tail.url(), config).await?;
            answers.push(ask(&client, &request).await?);
        }
        let whole = whole_blocks(answers[0].report.prompt_tokens);
        let reused = answers.iter().map(|answer| answer.report.reused_positions);
        assert_eq!(reused.collect::<Vec<_>>(), [0, 0, whole, whole]);
        assert!(
            answers
                .iter()
                .all(|answer| answer.tokens == answers[0].tokens)
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_kept_unasked() -> Result<()> {
    let request = long_request()?;
    let tail = Tail::start(&smollm2(), &[]).await?;
    for split_layer in [0, 10] {
        let client = Client::connect(&tail.url(), lossless(split_layer)).await?;
        for _ in 0..2 {
            let answer = ask(&client, &request).await?;
            assert_eq!(answer.report.reused_positions, 0);
            tail.wait_for_metric(SESSIONS, |sessions| sessions == 0.0)
                .await?;
            assert_eq!(tail.metric(KEPT_BLOCKS).await?, 0.0);
        }
    }
    let client = Client::connect(&tail.url(), reusing(10)).await?;
    ask(&client, &request).await?;
    tail.wait_for_metric(SESSIONS, |sessions| sessions == 0.0)
        .await?;
    assert!(tail.metric(KEPT_BLOCKS).await? > 0.0);
    Ok(())
}
