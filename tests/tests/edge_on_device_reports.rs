//! A device that answers alone tells the tail, which counts what that saved it.

use std::net::SocketAddr;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use e2e::device::{connect, first_tokens, lossless, request};
use e2e::forwarder::Forwarder;
use e2e::program::program;
use e2e::tail::Tail;
use e2e::{PATIENCE, artifact_cache_dir, tiny_llama};
use edge_lite::{Client, ClientConfig, FinishReason, Prompt, Report, Route, SamplingParams};
use tokio::process::Command;

/// Of the tiny model.
const NUM_LAYERS: usize = 3;

const PROMPT_TOKENS: &str = "headway_tail_on_device_tokens_total{part=\"prompt\"}";
const OUTPUT_TOKENS: &str = "headway_tail_on_device_tokens_total{part=\"output\"}";
const SAVED: &str = "headway_tail_saved_seconds_total{term=\"on_device_answers\"}";

fn prompt() -> Prompt {
    Prompt::TokenIds(vec![3, 17, 64, 9, 100])
}

async fn answer(client: &Client, max_tokens: usize) -> Result<Report> {
    let request = request(prompt(), max_tokens, SamplingParams::default());
    Ok(client.generate(request).await?.finish().await?)
}

async fn reported(tail: &Tail) -> Result<(f64, f64)> {
    Ok((
        tail.metric(PROMPT_TOKENS).await?,
        tail.metric(OUTPUT_TOKENS).await?,
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_a_device_alone_are_in_the_tails_savings() -> Result<()> {
    for option in [&["--split-max", "3"][..], &["--on-device-answers"]] {
        let tail = Tail::start(&tiny_llama(), option).await?;
        let alone = connect(&tail.url(), NUM_LAYERS).await?;
        let report = answer(&alone, 7).await?;
        assert_eq!((report.route, report.prompt_tokens), (Route::Device, 5));
        assert!(alone.finish_reports(PATIENCE).await);
        assert_eq!(reported(&tail).await?, (5.0, 7.0), "{option:?}");
        // It is not known yet what they are worth.
        assert_eq!(tail.metric(SAVED).await?, 0.0);

        // A split answer is none of a device alone, and shows what rows cost.
        answer(&connect(&tail.url(), 0).await?, 7).await?;
        tail.wait_for_metric(SAVED, |seconds| seconds > 0.0).await?;
        assert_eq!(reported(&tail).await?, (5.0, 7.0));

        answer(&alone, 2).await?;
        answer(&alone.clone(), 3).await?;
        assert!(alone.finish_reports(PATIENCE).await);
        assert_eq!(reported(&tail).await?, (15.0, 12.0));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_answer_counts_with_the_tokens_it_has() -> Result<()> {
    let tail = Tail::start(&tiny_llama(), &["--on-device-answers"]).await?;
    let client = connect(&tail.url(), NUM_LAYERS).await?;
    let mut generation = client
        .generate(request(prompt(), 200, SamplingParams::default()))
        .await?;
    first_tokens(&mut generation, 2).await?;
    generation.cancel();
    let report = generation.finish().await?;
    assert_eq!(report.finish_reason, FinishReason::Cancelled);
    assert!(client.finish_reports(PATIENCE).await);
    let tokens = report.token_ids.len() as f64;
    assert!(tokens >= 2.0);
    assert_eq!(reported(&tail).await?, (5.0, tokens));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_is_told_not_to_reports_nothing() -> Result<()> {
    let tail = Tail::start(&tiny_llama(), &["--on-device-answers"]).await?;
    let config = ClientConfig {
        report_on_device_answers: false,
        ..lossless(NUM_LAYERS)
    };
    let client = Client::connect(&tail.url(), config).await?;
    answer(&client, 4).await?;
    assert!(client.finish_reports(PATIENCE).await);
    assert_eq!(reported(&tail).await?, (0.0, 0.0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_while_the_tail_was_away_is_reported_when_it_is_back() -> Result<()> {
    let first = Tail::start(&tiny_llama(), &["--on-device-answers"]).await?;
    let address = first.address();
    let client = connect(&first.url(), NUM_LAYERS).await?;
    first.kill().await?;
    let report = answer(&client, 6).await?;
    assert_eq!(report.finish_reason, FinishReason::Length);

    let second = Tail::start_on(address, &tiny_llama(), &["--on-device-answers"]).await?;
    assert!(client.finish_reports(PATIENCE).await);
    assert_eq!(reported(&second).await?, (5.0, 6.0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_that_was_cut_off_on_its_way_is_counted_once() -> Result<()> {
    let tail = Tail::start(&tiny_llama(), &["--on-device-answers"]).await?;
    let forwarder = Forwarder::start(tail.address()).await?;
    let client = connect(&forwarder.url(), NUM_LAYERS).await?;
    // Ends within the headers, or within the body.
    forwarder.cut_next_after(&[100, 250]);
    forwarder.cut();
    answer(&client, 6).await?;
    assert!(client.finish_reports(PATIENCE).await);
    assert_eq!(reported(&tail).await?, (5.0, 6.0));
    Ok(())
}

/// Runs `edge-lite generate` with all layers of what `tail` serves, and `options`.
async fn generate(tail: SocketAddr, options: &[&str]) -> Result<Report> {
    let (url, layers) = (format!("ws://{tail}"), NUM_LAYERS.to_string());
    let output = Command::new(program("edge-lite"))
        .args(["generate", "--tail", &url, "--split-layer", &layers])
        .args(["--head-quantization", "none", "--cache-dir"])
        .arg(artifact_cache_dir())
        .args(["--raw", "--prompt", "The sea", "--format", "json"])
        .args(["--max-tokens", "5", "--ignore-end-of-turn"])
        .args(options)
        .stdin(Stdio::null())
        .output()
        .await?;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    serde_json::from_slice(&output.stdout).with_context(|| error.into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_reports_its_answer_before_it_ends() -> Result<()> {
    let tail = Tail::start(&tiny_llama(), &["--on-device-answers"]).await?;
    let report = generate(tail.address(), &[]).await?;
    assert_eq!(report.route, Route::Device);
    let expected = (report.prompt_tokens as f64, 5.0);
    assert_eq!(reported(&tail).await?, expected);
    generate(tail.address(), &["--no-on-device-reports"]).await?;
    assert_eq!(reported(&tail).await?, expected);
    Ok(())
}
