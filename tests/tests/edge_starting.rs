//! Devices of a model that has no tail for a while: asleep, or away behind a gateway. In the tails' place stands the
//! operator's own door, or a gateway that knows no pod.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::device::{connect, finish, finish_after, first_tokens, lossless, request};
use e2e::forwarder::Forwarder;
use e2e::tail::Tail;
use e2e::tiny_llama;
use edge_lite::{
    Client, Error, GenerateRequest, LocalConfig, LocalModel, Prompt, Route, Router, RouterConfig,
    SamplingParams, TailError,
};
use headway_operator::autoscale::doors::{Doors, Place};
use headway_operator::metrics::Metrics;
use tokio::net::TcpListener;
use tokio::sync::Notify;

const SPLIT_LAYER: usize = 1;
const READ: usize = 8;
/// More than a generation holds for its caller.
const MAX_TOKENS: usize = 96;

/// A model that sleeps: whoever comes to the address meets the operator.
struct Asleep {
    doors: Doors,
    knocked: Arc<Notify>,
    forwarder: Forwarder,
}

fn key() -> (String, String) {
    ("ml".to_owned(), "tiny".to_owned())
}

impl Asleep {
    async fn new() -> Result<Self> {
        let knocked = Arc::new(Notify::new());
        let place = Place {
            address: Ipv4Addr::LOCALHOST.into(),
            ports: 21_000..=21_999,
        };
        let metrics = Arc::new(Metrics::new()?);
        let doors = Doors::new(Some(place), Arc::clone(&knocked), metrics);
        let door = doors.at(&key()).context("a free port")?;
        Ok(Self {
            doors,
            knocked,
            forwarder: Forwarder::start(door).await?,
        })
    }

    /// What the operator does when somebody knocks.
    async fn wake(&self) -> Result<Tail> {
        self.knocked.notified().await;
        let tail = Tail::start(&tiny_llama(), &[]).await?;
        self.forwarder.point_to(tail.address());
        Ok(tail)
    }
}

fn tiny() -> GenerateRequest {
    let prompt = Prompt::TokenIds(vec![1, 5, 9, 2, 7]);
    request(prompt, MAX_TOKENS, SamplingParams::default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_waits_for_a_model_that_sleeps_and_its_answer_is_the_usual_one() -> Result<()> {
    let model = Asleep::new().await?;
    let url = model.forwarder.url();
    let coming = tokio::spawn(async move { connect(&url, SPLIT_LAYER).await });
    let tail = model.wake().await?;
    let client = coming.await??;
    let answer = finish(client.generate(tiny()).await?).await?;
    let direct = connect(&tail.url(), SPLIT_LAYER).await?;
    let usual = finish(direct.generate(tiny()).await?).await?;
    assert_eq!(answer.tokens, usual.tokens);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_has_waited_long_enough_says_for_what() -> Result<()> {
    let model = Asleep::new().await?;
    let mut config = lossless(SPLIT_LAYER);
    config.reconnect.starting_deadline = Duration::from_secs(3);
    let came = Client::connect(&model.forwarder.url(), config).await;
    let error = came.err().context("nobody started a tail")?;
    let Error::Tail(TailError::GaveUp { attempts, last, .. }) = error else {
        anyhow::bail!("{error:?}");
    };
    assert_eq!(attempts, 1);
    assert!(last.to_string().contains("is being started"), "{last}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_outlives_a_time_without_any_tail() -> Result<()> {
    let tail = Tail::start(&tiny_llama(), &[]).await?;
    let direct = connect(&tail.url(), SPLIT_LAYER).await?;
    let usual = finish(direct.generate(tiny()).await?).await?;
    let model = Asleep::new().await?;
    let door = model.doors.at(&key()).context("a door")?;
    // A gateway that has no pod: 404, and nothing of ours in it.
    let gateway = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let nobody = gateway.local_addr()?;
    let met = Arc::new(Notify::new());
    let meets = Arc::clone(&met);
    let gateway_routes = axum::Router::new().fallback(move || {
        meets.notify_one();
        std::future::ready(axum::http::StatusCode::NOT_FOUND)
    });
    let serving = tokio::spawn(async move { axum::serve(gateway, gateway_routes).await });
    for (stands_in, came) in [(door, &model.knocked), (nobody, &met)] {
        model.forwarder.point_to(tail.address());
        let client = connect(&model.forwarder.url(), SPLIT_LAYER).await?;
        let mut generation = client.generate(tiny()).await?;
        let tokens = first_tokens(&mut generation, READ).await?;
        model.forwarder.point_to(stands_in);
        model.forwarder.cut();
        let rest = tokio::spawn(finish_after(tokens, generation));
        came.notified().await;
        model.forwarder.point_to(tail.address());
        let answer = rest.await??;
        assert_eq!(answer.tokens, usual.tokens, "{stands_in}");
        ensure!(answer.report.reconnects >= 1, "{:?}", answer.report);
    }
    serving.abort();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_can_answers_by_itself_until_the_model_is_awake() -> Result<()> {
    let model = Asleep::new().await?;
    let load = || LocalModel::load(&tiny_llama(), &LocalConfig::default());
    let local = tokio::task::spawn_blocking(load).await??;
    let alone = finish(local.generate(tiny()).await?).await?;
    let url = model.forwarder.url();
    let config = RouterConfig::default();
    let router = Router::connect(&url, lossless(SPLIT_LAYER), Some(local), config).await?;
    ensure!(!router.tail_is_here(), "there is no tail yet");
    let answer = finish(router.generate(tiny()).await?).await?;
    assert_eq!(answer.report.route, Route::Device);
    assert_eq!(answer.tokens, alone.tokens);
    // It has woken the model by coming.
    let _tail = model.wake().await?;
    router.wait_for_tail().await;
    Ok(())
}
