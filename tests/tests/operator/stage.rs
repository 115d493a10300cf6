//! Pods with real tails on a cluster whose nodes are simulated.
//!
//! Pods here are kwok's and run nothing. So a real tail is started for each on an address of loopback, which the
//! pod's status is given; and what a kubelet would say of a container that has ended, its termination message first
//! of all, the test says in its place. All else is real: the tails' counters and last words, the operator, its way
//! to the tails, the API server.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use e2e::device::{finish, lossless, prose, request};
use e2e::smollm2;
use e2e::tail::Tail;
use edge_lite::{Client, ClientConfig, Drafting, SamplingParams};
use headway_operator::names;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::wait::eventually;
use crate::world::World;

const SPLIT_LAYER: usize = 10;
const MAX_TOKENS: usize = 12;

/// A pod of kwok's with a real tail.
pub struct Stage {
    pods: Api<Pod>,
    pub pod: String,
    address: SocketAddr,
    folder: TempDir,
    restarts: u32,
    tail: Option<Tail>,
}

/// Pods of a SplitModel that run.
pub async fn pods_of(world: &World, namespace: &str, name: &str) -> Result<Vec<String>> {
    let pods: Api<Pod> = Api::namespaced(world.client(), namespace);
    let own = ListParams::default().labels(&format!("{}={name}", names::SPLITMODEL_LABEL));
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
    /// Starts a tail for a pod.
    pub async fn open(world: &World, namespace: &str, pod: &str) -> Result<Self> {
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

    /// The tail.
    pub fn tail(&self) -> Result<&Tail> {
        self.tail.as_ref().context("a tail runs")
    }

    /// Answers one request; returns how many tokens the device got.
    pub async fn answer(&self) -> Result<i64> {
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
    pub async fn kill_and_restart(&mut self) -> Result<()> {
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
    pub async fn leave(mut self) -> Result<()> {
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
