//! Where an answer is given changes no token of the same model, and with a companion what its thresholds say: on real
//! processes, whatever happens to the tail in between.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use e2e::device::{
    Answer, chat, connect, finish, finish_after, first_tokens, lossless, request, sampled, unsplit,
};
use e2e::tail::Tail;
use e2e::{PATIENCE, companion, smollm2, tiny_llama};
use edge_lite::router::Thresholds;
use edge_lite::router::thresholds::{Predictor, THRESHOLDS_VERSION, TailCost};
use edge_lite::{
    Error, GenerateRequest, LocalConfig, LocalModel, Prompt, RequestError, Route, RouteMode,
    RouteReason, Router, RouterConfig, SamplingParams, WeightDtype,
};

const OUTPUT: &str = "headway_tail_output_tokens_total";
const SESSIONS: &str = "headway_tail_sessions_opened_total";
const ON_DEVICE_OUTPUT: &str = "headway_tail_on_device_tokens_total{part=\"output\"}";
/// Of the tiny models, whose positions are 256.
const TINY_TOKENS: usize = 40;

fn mode(mode: RouteMode) -> RouterConfig {
    RouterConfig {
        mode,
        min_search_wait: Duration::from_millis(10),
        max_search_wait: Duration::from_millis(50),
        ..RouterConfig::default()
    }
}

fn routes(answer: &Answer) -> Vec<Route> {
    let segments = answer.report.segments.iter();
    segments.map(|segment| segment.route).collect()
}

fn check_sums(answer: &Answer) {
    let tokens: usize = answer
        .report
        .segments
        .iter()
        .map(|segment| segment.tokens)
        .sum();
    assert_eq!(
        tokens,
        answer.report.token_ids.len(),
        "{:?}",
        answer.report.segments
    );
    for segment in &answer.report.segments {
        assert_eq!(segment.why, segment.reason.to_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moving_between_tail_and_device_changes_no_token() -> Result<()> {
    let local = unsplit(WeightDtype::Native).await?;
    let mut tail = Tail::start(&smollm2(), &[]).await?;
    let address = tail.address();
    for (split_layer, sampling) in [(0, SamplingParams::default()), (10, sampled(42))] {
        let request = request(chat("Tell me about the moon."), 320, sampling);
        let expected = finish(local.generate(request.clone()).await?).await?;
        let (client, config) = (lossless(split_layer), mode(RouteMode::Tail));
        let router = Router::connect(&tail.url(), client, Some(local.clone()), config).await?;
        let mut generation = router.generate(request).await?;
        let mut tokens = first_tokens(&mut generation, 2).await?;
        for _ in 0..2 {
            tail.kill().await?;
            // Tokens that are ahead still come; then the loss is seen.
            while router.tail_is_here() {
                tokens.append(&mut first_tokens(&mut generation, 1).await?);
            }
            tail = Tail::start_on(address, &smollm2(), &[]).await?;
            router.wait_for_tail().await;
            // And it has had a part in the answer before anything else happens to it.
            while tail.metric(OUTPUT).await? == 0.0 {
                tokens.append(&mut first_tokens(&mut generation, 1).await?);
            }
        }
        let answer = finish_after(tokens, generation).await?;
        assert_eq!(answer.tokens, expected.tokens, "split layer {split_layer}");
        check_sums(&answer);
        let there = if split_layer == 0 {
            Route::Cloud
        } else {
            Route::Split
        };
        let segments = &answer.report.segments;
        assert_eq!(
            routes(&answer),
            [there, Route::Device, there, Route::Device, there],
            "{segments:?}"
        );
        assert_eq!(segments[0].reason, RouteReason::Asked);
        assert!(
            matches!(segments[1].reason, RouteReason::TailLost { .. }),
            "{segments:?}"
        );
        assert_eq!(segments[2].reason, RouteReason::TailBack);
        assert_eq!((answer.report.route, answer.report.reconnects), (there, 2));
        assert!(answer.report.replayed_positions > answer.report.prompt_tokens as u64);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_model_on_the_device_answers_and_the_tail_is_told() -> Result<()> {
    let tail = Tail::start(&tiny_llama(), &["--on-device-answers"]).await?;
    let router = Router::connect(
        &tail.url(),
        lossless(0),
        Some(load(&tiny_llama()).await?),
        mode(RouteMode::Auto),
    )
    .await?;
    let answer = finish(router.generate(tiny_request()).await?).await?;
    assert_eq!(answer.report.segments[0].reason, RouteReason::SameModel);
    assert_eq!(answer.report.route, Route::Device);
    assert!(router.finish_reports(PATIENCE).await);
    assert_eq!(tail.metric(SESSIONS).await?, 0.0);
    assert_eq!(tail.metric(ON_DEVICE_OUTPUT).await?, TINY_TOKENS as f64);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_the_tail_had_a_part_in_is_not_reported() -> Result<()> {
    let first = Tail::start(&tiny_llama(), &["--on-device-answers"]).await?;
    let address = first.address();
    let local = load(&tiny_llama()).await?;
    let config = RouterConfig {
        return_to_tail: false,
        ..mode(RouteMode::Tail)
    };
    let router = Router::connect(&first.url(), lossless(0), Some(local.clone()), config).await?;
    let request = request(tiny_prompt(), 200, SamplingParams::default());
    let expected = finish(local.generate(request.clone()).await?).await?;
    let mut generation = router.generate(request).await?;
    let tokens = first_tokens(&mut generation, 2).await?;
    first.kill().await?;
    let answer = finish_after(tokens, generation).await?;
    assert_eq!(answer.tokens, expected.tokens);
    assert_eq!(routes(&answer), [Route::Cloud, Route::Device]);
    let second = Tail::start_on(address, &tiny_llama(), &["--on-device-answers"]).await?;
    assert!(router.finish_reports(PATIENCE).await);
    assert_eq!(second.metric(ON_DEVICE_OUTPUT).await?, 0.0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_must_not_leave_is_answered_here_or_not_at_all() -> Result<()> {
    let tail = Tail::start(&tiny_llama(), &["--on-device-answers"]).await?;
    let local_only = GenerateRequest {
        local_only: true,
        ..tiny_request()
    };
    let client = connect(&tail.url(), 0).await?;
    let refused = client.generate(local_only.clone()).await.err();
    assert!(
        matches!(refused, Some(Error::Request(RequestError::NoLocalModel))),
        "{refused:?}"
    );
    let without = Router::new(Some(client.clone()), None, mode(RouteMode::Auto)).await?;
    let refused = without.generate(local_only.clone()).await.err();
    assert!(
        matches!(refused, Some(Error::Request(RequestError::NoLocalModel))),
        "{refused:?}"
    );

    let companion = Companion::write()?;
    let local = load(companion.path()).await?;
    for asked in [RouteMode::Auto, RouteMode::Tail] {
        let config = RouterConfig {
            thresholds: Some(companion.thresholds(&tail, Some(0.0), None).await?),
            ..mode(asked)
        };
        let router = Router::new(Some(client.clone()), Some(local.clone()), config).await?;
        let answer = finish(router.generate(local_only.clone()).await?).await?;
        assert_eq!(answer.report.segments[0].reason, RouteReason::LocalOnly);
        assert_eq!(
            (answer.report.route, answer.report.bytes_up),
            (Route::Device, 0)
        );
        assert!(router.finish_reports(PATIENCE).await);
    }
    assert_eq!(tail.metric(SESSIONS).await?, 0.0);
    assert_eq!(tail.metric(ON_DEVICE_OUTPUT).await?, 0.0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_companion_that_becomes_unsure_hands_over_and_its_tokens_stay() -> Result<()> {
    let tail = Tail::start(&tiny_llama(), &[]).await?;
    let companion = Companion::write()?;
    let (local, full) = (load(companion.path()).await?, load(&tiny_llama()).await?);
    for sampling in [SamplingParams::default(), sampled(7)] {
        let request = request(tiny_prompt(), TINY_TOKENS, sampling);
        let alone = finish(local.generate(request.clone()).await?).await?;
        // Random weights are unsure from the first token; the running mean speaks after its window.
        let thresholds = companion.thresholds(&tail, None, Some(0.1)).await?;
        let window = thresholds.running_tokens;
        let config = RouterConfig {
            thresholds: Some(thresholds),
            ..mode(RouteMode::Auto)
        };
        let router = Router::connect(&tail.url(), lossless(1), Some(local.clone()), config).await?;
        let answer = finish(router.generate(request.clone()).await?).await?;
        check_sums(&answer);
        assert_eq!(routes(&answer), [Route::Device, Route::Split]);
        assert_eq!(answer.report.segments[0].tokens, window);
        assert!(matches!(
            answer.report.segments[1].reason,
            RouteReason::LocalLost { .. }
        ));
        assert_eq!(answer.tokens[..window], alone.tokens[..window]);
        // The rest is what the full model says behind those tokens. Penalties look at prompt and answer alike.
        let kept = answer.report.token_ids[..window].iter().copied();
        let prompt = tiny_ids().into_iter().chain(kept).collect();
        let behind = GenerateRequest {
            prompt: Prompt::TokenIds(prompt),
            max_tokens: TINY_TOKENS - window,
            ..request
        };
        let behind = finish(full.generate(behind).await?).await?;
        assert_eq!(answer.tokens[window..], behind.tokens[..]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_tokens_that_are_not_good_enough_are_never_shown() -> Result<()> {
    let tail = Tail::start(&tiny_llama(), &["--on-device-answers"]).await?;
    let companion = Companion::write()?;
    let (local, full) = (load(companion.path()).await?, load(&tiny_llama()).await?);
    let request = request(tiny_prompt(), TINY_TOKENS, sampled(3));
    let expected = finish(full.generate(request.clone()).await?).await?;
    let thresholds = companion.thresholds(&tail, Some(0.0), None).await?;
    let looked_at = thresholds.probe_tokens;
    let config = RouterConfig {
        thresholds: Some(thresholds),
        ..mode(RouteMode::Auto)
    };
    let router = Router::connect(&tail.url(), lossless(0), Some(local.clone()), config).await?;
    let answer = finish(router.generate(request.clone()).await?).await?;
    assert_eq!(answer.tokens, expected.tokens);
    let reason = &answer.report.segments[0].reason;
    assert!(
        matches!(reason, RouteReason::LocalUnsure { tokens, .. } if *tokens == looked_at),
        "{reason:?}"
    );
    assert_eq!(routes(&answer), [Route::Cloud]);

    // Where they are good enough, they are the local model's answer, with penalties over the same tokens.
    let config = RouterConfig {
        thresholds: Some(companion.thresholds(&tail, Some(1e6), None).await?),
        ..mode(RouteMode::Auto)
    };
    let router = Router::connect(&tail.url(), lossless(0), Some(local.clone()), config).await?;
    let answer = finish(router.generate(request.clone()).await?).await?;
    let alone = finish(local.generate(request).await?).await?;
    assert_eq!(answer.tokens, alone.tokens);
    assert_eq!(routes(&answer), [Route::Device]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_and_thresholds_that_do_not_fit_are_refused() -> Result<()> {
    let tail = Tail::start(&tiny_llama(), &[]).await?;
    let client = connect(&tail.url(), 0).await?;
    let other = load(&smollm2()).await?;
    let refused = Router::new(Some(client.clone()), Some(other), mode(RouteMode::Auto))
        .await
        .err();
    assert!(
        matches!(
            refused,
            Some(Error::Request(RequestError::OtherTokenizer { .. }))
        ),
        "{refused:?}"
    );

    let companion = Companion::write()?;
    let mut thresholds = companion.thresholds(&tail, None, None).await?;
    thresholds.local_model_digest = thresholds.full_model_digest.clone();
    let config = RouterConfig {
        thresholds: Some(thresholds),
        ..mode(RouteMode::Auto)
    };
    let local = load(companion.path()).await?;
    let refused = Router::new(Some(client), Some(local), config).await.err();
    assert!(
        matches!(
            refused,
            Some(Error::Request(RequestError::Thresholds { .. }))
        ),
        "{refused:?}"
    );
    assert!(
        Router::new(None, None, mode(RouteMode::Auto))
            .await
            .is_err()
    );
    Ok(())
}

async fn load(path: &Path) -> Result<LocalModel> {
    let path = path.to_owned();
    let load = move || LocalModel::load(&path, &LocalConfig::default());
    Ok(tokio::task::spawn_blocking(load).await??)
}

fn tiny_ids() -> Vec<u32> {
    vec![3, 17, 64, 9, 100]
}

fn tiny_prompt() -> Prompt {
    Prompt::TokenIds(tiny_ids())
}

fn tiny_request() -> GenerateRequest {
    request(tiny_prompt(), TINY_TOKENS, SamplingParams::default())
}

/// Another model of the tiny model's tokenizer.
struct Companion {
    folder: tempfile::TempDir,
}

impl Companion {
    fn write() -> Result<Self> {
        let folder = companion()?;
        Ok(Self { folder })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Thresholds for the pair, that expect half of the tokens to agree.
    async fn thresholds(
        &self,
        tail: &Tail,
        accepted_of_probe: Option<f64>,
        max_entropy: Option<f64>,
    ) -> Result<Thresholds> {
        let client = connect(&tail.url(), 0).await?;
        Ok(Thresholds {
            version: THRESHOLDS_VERSION,
            full_model_digest: client.manifest().model_digest.clone(),
            local_model_digest: load(self.path()).await?.model_digest()?,
            target_agreement: 0.5,
            request: Predictor::new([("bias", 0.5)]),
            tail_cost: TailCost {
                prompt_position_seconds: 0.0,
                token_seconds: 0.001,
            },
            accepted_loss_of_request: None,
            probe_tokens: 4,
            probe: Predictor::new([("bias", 0.5)]),
            accepted_loss_of_probe: accepted_of_probe,
            running_tokens: 6,
            max_running_entropy: max_entropy,
        })
    }
}
