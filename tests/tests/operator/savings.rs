//! Savings of real tails, under kills of tails, pods and operators.
//!
//! Pods here are kwok's and run nothing. So a real tail is started for each on an address of loopback, which the
//! pod's status is given; and what a kubelet would say of a container that has ended, its termination message first
//! of all, the test says in its place. All else is real: the tails' counters and last words, the operator, its way
//! to the tails, the API server.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use e2e::device::{finish, lossless, prose, request};
use e2e::operator::{Operator, OperatorOptions};
use e2e::smollm2;
use e2e::tail::Tail;
use edge_lite::{Client, ClientConfig, Drafting, SamplingParams};
use headway_operator::crd::status::Savings;
use headway_operator::names;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::specs::{merged, minimal};
use crate::wait::eventually;
use crate::world::World;

const NAME: &str = "smol";
const TAILS: usize = 2;
const SPLIT_LAYER: usize = 10;
const MAX_TOKENS: usize = 12;
/// Each with one tail killed; every third also with an operator killed.
const ROUNDS: usize = 9;

/// A pod of kwok's with a real tail.
struct Stage {
    pods: Api<Pod>,
    pod: String,
    address: SocketAddr,
    folder: TempDir,
    restarts: u32,
    tail: Option<Tail>,
}

pub async fn exactly_once(world: World) -> Result<()> {
    let namespace = world.namespace("savings").await?;
    world.delete_lease().await?;
    let mut operator = start(&world, "savings-0").await?;
    let spec = json!({
        "replicas": TAILS,
        "autoscaling": {"provider": "none"},
        "split": {"min": 0},
        "pricing": {"gpuHour": "3600", "currency": "EUR"},
    });
    world
        .create(&namespace, NAME, &merged(minimal(), &spec))
        .await?;
    world.ready(&namespace, NAME).await?;
    let mut stages = Vec::new();
    for pod in pods_of(&world, &namespace).await? {
        stages.push(Stage::open(&world, &namespace, &pod).await?);
    }
    ensure!(stages.len() == TAILS, "{} pods", stages.len());

    let (mut tokens, mut answers) = (0, 0);
    for round in 0..ROUNDS {
        for stage in &stages {
            tokens += stage.answer().await?;
            answers += 1;
        }
        let chosen = round % TAILS;
        stages[chosen].kill_and_restart().await?;
        if round % 3 == 2 {
            let index = 1 + round / 3;
            operator.kill().await?;
            world.delete_lease().await?;
            operator = start(&world, &format!("savings-{index}")).await?;
        }
    }
    counted(&world, &namespace, tokens, answers).await?;

    // One pod leaves, with its last words, and another comes.
    let leaving = stages.remove(0);
    tokens += leaving.answer().await?;
    answers += 1;
    let left = leaving.pod.clone();
    leaving.leave().await?;
    let newcomer = eventually("the pod is replaced", async || {
        let pods = pods_of(&world, &namespace).await?;
        let known = |pod: &String| *pod == left || stages.iter().any(|stage| stage.pod == *pod);
        let mut new = pods.into_iter().filter(|pod| !known(pod));
        new.next().context("no new pod")
    })
    .await?;
    stages.push(Stage::open(&world, &namespace, &newcomer).await?);
    for stage in &stages {
        tokens += stage.answer().await?;
        answers += 1;
    }
    let savings = counted(&world, &namespace, tokens, answers).await?;
    ensure!(savings.unread_endings == 0, "{}", json!(savings));
    ensure!(
        savings.used_gpu_seconds > 0.0 && savings.head_layers_gpu_seconds > 0.0,
        "{}",
        json!(savings)
    );
    shown(&world, &namespace, &operator, &savings).await?;
    quiet(&operator).await?;

    // Figures stay while nobody adds any.
    let log = operator.log();
    let ended = operator.terminate().await?;
    ensure!(ended.success(), "after SIGTERM: {ended}\n{log}");
    drop(stages);
    counted(&world, &namespace, tokens, answers).await?;
    let operator = start(&world, "savings-last").await?;
    world.delete(&namespace, NAME).await?;
    operator.terminate().await?;
    Ok(())
}

async fn start(world: &World, identity: &str) -> Result<Operator> {
    let options = OperatorOptions {
        identity,
        proxy: None,
        otlp_endpoint: None,
        scrape_seconds: 1,
    };
    world.start_with(options).await
}

/// Waits until the status says what the devices were given, and no more.
async fn counted(world: &World, namespace: &str, tokens: i64, answers: i64) -> Result<Savings> {
    let api = world.splitmodels(namespace);
    let waited = eventually("the status says what devices were given", async || {
        let status = api.get(NAME).await?.status.context("a status")?;
        let savings = status.savings.context("no savings yet")?;
        ensure!(
            savings.tokens.tails == tokens && savings.answers.split == answers,
            "devices got {tokens} tokens in {answers} answers: {}",
            json!(savings)
        );
        Ok(savings)
    });
    waited.await
}

/// The table of `kubectl`, and the metrics.
async fn shown(
    world: &World,
    namespace: &str,
    operator: &Operator,
    savings: &Savings,
) -> Result<()> {
    let table = world
        .kubectl(&["get", "splitmodels", "--namespace", namespace])
        .await?;
    for word in ["USED", "SAVED", "SAVED%", "MONEY", "EUR"] {
        ensure!(table.contains(word), "no {word} in\n{table}");
    }
    eventually("metrics say what the status says", async || {
        let own = format!("namespace=\"{namespace}\"");
        let used = operator
            .metric("headway_operator_used_gpu_seconds_total", &own)
            .await?;
        let tokens = operator
            .metric("headway_operator_output_tokens_total", &own)
            .await?;
        let right = (used - savings.used_gpu_seconds).abs() < 1e-6;
        ensure!(right && tokens > 0.0, "{used} s and {tokens} tokens");
        Ok(())
    })
    .await
}

/// Tails that do nothing are asked, and nothing is written.
async fn quiet(operator: &Operator) -> Result<()> {
    let asked = async || {
        operator
            .metric("headway_operator_scrapes_total", "ok")
            .await
    };
    let written = async || {
        operator
            .metric("headway_operator_status_writes_total", "")
            .await
    };
    let (asked_before, written_before) = (asked().await?, written().await?);
    eventually("tails are asked", async || {
        let asked = asked().await? - asked_before;
        ensure!(asked >= 10.0, "{asked} times");
        Ok(())
    })
    .await?;
    let written = written().await? - written_before;
    ensure!(written == 0.0, "{written} writes");
    Ok(())
}

async fn pods_of(world: &World, namespace: &str) -> Result<Vec<String>> {
    let pods: Api<Pod> = Api::namespaced(world.client(), namespace);
    let own = ListParams::default().labels(&format!("{}={NAME}", names::SPLITMODEL_LABEL));
    let pods = pods.list(&own).await?;
    let is_there = |pod: &&Pod| {
        let status = pod.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref());
        pod.metadata.deletion_timestamp.is_none() && phase == Some("Running")
    };
    Ok(pods
        .iter()
        .filter(is_there)
        .map(|pod| pod.name_any())
        .collect())
}

impl Stage {
    async fn open(world: &World, namespace: &str, pod: &str) -> Result<Self> {
        // All of 127.0.0.0/8 is loopback; the port is the one that every tail has.
        let ip = Ipv4Addr::new(
            127,
            fastrand::u8(1..),
            fastrand::u8(..),
            fastrand::u8(1..255),
        );
        let port = u16::try_from(names::TAIL_PORT)?;
        let mut stage = Self {
            pods: Api::namespaced(world.client(), namespace),
            pod: pod.to_owned(),
            address: (ip, port).into(),
            folder: tempfile::tempdir()?,
            restarts: 0,
            tail: None,
        };
        stage.tail = Some(stage.start_tail().await?);
        let ip = ip.to_string();
        stage
            .say(&json!({"podIP": ip, "podIPs": [{"ip": ip}]}))
            .await?;
        Ok(stage)
    }

    /// One termination message for each run, as a kubelet keeps it.
    fn message_path(&self) -> PathBuf {
        self.folder.path().join(self.restarts.to_string())
    }

    async fn start_tail(&self) -> Result<Tail> {
        let path = self.message_path();
        let path = path.to_str().context("a path in UTF-8")?;
        Tail::start_on(self.address, &smollm2(), &["--termination-message", path]).await
    }

    fn tail(&self) -> Result<&Tail> {
        self.tail.as_ref().context("a tail runs")
    }

    /// Answers one request; returns how many tokens the device got.
    async fn answer(&self) -> Result<i64> {
        // With guesses, a tail may send right ones beyond the last token that was asked for.
        let config = ClientConfig {
            drafting: Drafting::Off,
            ..lossless(SPLIT_LAYER)
        };
        let client = Client::connect(&self.tail()?.url(), config).await?;
        let request = request(prose(40)?, MAX_TOKENS, SamplingParams::default());
        let answer = finish(client.generate(request).await?).await?;
        Ok(i64::try_from(answer.tokens.len())?)
    }

    /// `kill -9`, once the tail has written down what it did; then the container starts again.
    async fn kill_and_restart(&mut self) -> Result<()> {
        self.written_down().await?;
        self.tail.take().context("a tail runs")?.kill().await?;
        let ended = json!({"terminated": {
            "exitCode": 137,
            "reason": "Error",
            "message": std::fs::read_to_string(self.message_path())?,
        }});
        self.restarts += 1;
        self.tail = Some(self.start_tail().await?);
        let mut container = self.container(&json!({"running": {}}));
        container["lastState"] = ended;
        self.say(&json!({"containerStatuses": [container]})).await
    }

    /// Waits until the last words, were they needed now, would say everything.
    async fn written_down(&self) -> Result<()> {
        eventually("the tail has written down what it did", async || {
            let tokens = self
                .tail()?
                .metric("headway_tail_output_tokens_total")
                .await?;
            let words: Value =
                serde_json::from_str(&std::fs::read_to_string(self.message_path())?)?;
            ensure!(words["output_tokens"].as_f64() == Some(tokens), "{words}");
            Ok(())
        })
        .await
    }

    /// The pod is deleted: the tail drains and leaves its last words in the pod's last status.
    async fn leave(mut self) -> Result<()> {
        let tail = self.tail.take().context("a tail runs")?;
        tail.terminate()?;
        let ended = tail.ended().await?;
        ensure!(ended.success(), "the tail ended with {ended}");
        let message = std::fs::read_to_string(self.message_path())?;
        let state =
            json!({"terminated": {"exitCode": 0, "reason": "Completed", "message": message}});
        let mut container = self.container(&state);
        container["ready"] = false.into();
        self.say(&json!({"containerStatuses": [container]})).await?;
        let now = DeleteParams::default().grace_period(0);
        self.pods.delete(&self.pod, &now).await?;
        Ok(())
    }

    fn container(&self, state: &Value) -> Value {
        json!({
            "name": names::TAIL,
            "image": "headway-tail-server:test",
            "imageID": "",
            "ready": true,
            "started": true,
            "restartCount": self.restarts,
            "state": state,
        })
    }

    /// Changes the pod's status.
    async fn say(&self, status: &Value) -> Result<()> {
        let patch = Patch::Merge(json!({"status": status}));
        let parameters = PatchParams::default();
        self.pods
            .patch_status(&self.pod, &parameters, &patch)
            .await?;
        Ok(())
    }
}
