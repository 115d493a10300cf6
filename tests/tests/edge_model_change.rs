//! Another model takes the place of a device's: an answer is of one model from its first token to its last, and between
//! two answers the device moves.

use anyhow::{Context as _, Result, ensure};
use e2e::device::{Answer, chat, connect, finish, finish_after, first_tokens, request};
use e2e::forwarder::Forwarder;
use e2e::tail::Tail;
use e2e::{other_model, smollm2};
use edge_lite::{Error, GenerateRequest, LocalConfig, LocalModel, SamplingParams};

/// Tokens read before something happens.
const READ: usize = 16;
/// More than a generation holds for its caller are still to come.
const MAX_TOKENS: usize = 96;
const SPLIT_LAYERS: [usize; 2] = [0, 10];

fn question() -> GenerateRequest {
    request(
        chat("Tell me about the moon."),
        MAX_TOKENS,
        SamplingParams::default(),
    )
}

/// What the model of a file answers by itself.
async fn answer_of(model: std::path::PathBuf) -> Result<Answer> {
    let load = move || LocalModel::load(&model, &LocalConfig::default());
    let whole = tokio::task::spawn_blocking(load).await??;
    Ok(finish(whole.generate(question()).await?).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_goes_on_with_tails_of_its_model() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let other = Tail::start(&other_model(folder.path())?, &[]).await?;
    let (first, second) = (
        Tail::start(&smollm2(), &[]).await?,
        Tail::start(&smollm2(), &[]).await?,
    );
    let expected = answer_of(smollm2()).await?;
    for split_layer in SPLIT_LAYERS {
        let service = Forwarder::start(first.address()).await?;
        let client = connect(&service.url(), split_layer).await?;
        let mut generation = client.generate(question()).await?;
        let tokens = first_tokens(&mut generation, READ).await?;
        ensure!(!client.is_outdated(), "every tail is of its model");
        let other = other.address();
        service.point_to_each(&[other, other, other, second.address()]);
        service.cut();
        let answer = finish_after(tokens, generation).await?;
        assert_eq!(answer.tokens, expected.tokens, "split layer {split_layer}");
        assert_eq!(answer.report.reconnects, 1, "split layer {split_layer}");
        ensure!(client.is_outdated(), "a tail has said so");

        // Some are still of its model, and answer.
        service.point_to(first.address());
        let same = client.renewed().await?;
        assert_eq!(same.manifest().model_digest, client.manifest().model_digest);
        ensure!(!same.is_outdated(), "the tail is of its model");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn between_answers_a_device_takes_the_new_model() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let model = other_model(folder.path())?;
    let (old, new) = (
        Tail::start(&smollm2(), &[]).await?,
        Tail::start(&model, &[]).await?,
    );
    let expected = answer_of(model).await?;
    for split_layer in SPLIT_LAYERS {
        let service = Forwarder::start(old.address()).await?;
        let client = connect(&service.url(), split_layer).await?;
        service.point_to(new.address());
        let refused = finish(client.generate(question()).await?).await;
        let error = refused.err().context("the head is of another model")?;
        let Error::Tail(error) = &error else {
            anyhow::bail!("{error}");
        };
        ensure!(error.is_of_another_model(), "{error}");
        for digest in [
            &client.manifest().model_digest,
            &expected_digest(&new).await?,
        ] {
            ensure!(error.to_string().contains(digest), "{error}");
        }

        let renewed = client.renewed().await?;
        let answer = finish(renewed.generate(question()).await?).await?;
        assert_eq!(answer.tokens, expected.tokens, "split layer {split_layer}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_that_leaves_keeps_an_answer_that_no_other_takes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let new = Tail::start(&other_model(folder.path())?, &[]).await?;
    let expected = answer_of(smollm2()).await?;
    for split_layer in SPLIT_LAYERS {
        let old = Tail::start(&smollm2(), &["--drain-seconds=300"]).await?;
        let service = Forwarder::start(old.address()).await?;
        let client = connect(&service.url(), split_layer).await?;
        let mut generation = client.generate(question()).await?;
        let tokens = first_tokens(&mut generation, READ).await?;
        service.point_to(new.address());
        old.terminate()?;
        let answer = finish_after(tokens, generation).await?;
        assert_eq!(answer.tokens, expected.tokens, "split layer {split_layer}");
        assert_eq!(answer.report.reconnects, 0, "split layer {split_layer}");
        ensure!(old.ended().await?.success(), "it leaves in peace");
    }
    Ok(())
}

/// Behind one address, the tails of two models: a part comes from none but its own.
#[tokio::test]
async fn no_part_of_a_head_comes_from_a_tail_of_another_model() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let options = ["--head-quantizations=none,q4_0"];
    let tail = Tail::start(&other_model(folder.path())?, &options).await?;
    let own = expected_digest(&tail).await?;
    let other = format!("sha256:{}", "0".repeat(64));
    for path in [
        "/v1/tokenizer?",
        "/v1/head/q4_0?layers=0-2&",
        "/v1/head/q4_0/layer-1?",
        "/v1/head/none/layer-1?",
    ] {
        let (status, _) = tail.get(&format!("{path}model={own}")).await?;
        assert_eq!(status, 200, "{path}");
        let (status, body) = tail.get(&format!("{path}model={other}")).await?;
        assert_eq!(status, 409, "{path}: {body}");
        for part in ["digest_mismatch", &own, &other] {
            ensure!(body.contains(part), "{path}: {body}");
        }
    }
    Ok(())
}

async fn expected_digest(tail: &Tail) -> Result<String> {
    let (_, manifest) = tail.get("/v1/model").await?;
    let manifest: serde_json::Value = serde_json::from_str(&manifest)?;
    let digest = manifest["model_digest"].as_str();
    Ok(digest.context("a digest")?.to_owned())
}
