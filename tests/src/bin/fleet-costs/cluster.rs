//! A control plane of one's own, a namespace in it, and what its parts have used.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::load::usage::Usage;
use e2e::operator::Installation;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::{Value, json};

/// Everything is in this namespace.
pub const NAMESPACE: &str = "costs";
/// Simulated nodes; each takes 1,000 pods.
const NODES: usize = 4;

/// A control plane of one's own; it ends when dropped.
pub struct Cluster {
    /// As administrator.
    pub client: Client,
    state: PathBuf,
    _rig: cluster_rig::Cluster,
}

impl Cluster {
    /// Starts one with simulated nodes and an empty namespace.
    pub async fn start() -> Result<Self> {
        let rig = cluster_rig::Cluster::start(cluster_rig::Options {
            nodes: NODES,
            crds: true,
        })?;
        // For the definition of SplitModels.
        Installation::new(&rig).await?;
        let kubeconfig = Kubeconfig::read_from(rig.kubeconfig())?;
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        let client = Client::try_from(config)?;
        let namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        namespaces
            .create(&PostParams::default(), &namespace)
            .await?;
        let folder = rig.kubeconfig().parent().context("a folder")?;
        Ok(Self {
            client,
            state: folder.join("state.json"),
            _rig: rig,
        })
    }

    /// Processor time of a component since its start.
    pub fn cpu(&self, component: &str) -> Result<Duration> {
        let state: Value = serde_json::from_slice(&std::fs::read(&self.state)?)?;
        let components = state["components"].as_array().context("components")?;
        let found = components.iter().find(|each| each["name"] == component);
        let pid = found.and_then(|each| each["pid"].as_u64());
        let pid = pid.with_context(|| format!("no {component}"))?;
        Ok(Usage::of(u32::try_from(pid)?)?.cpu)
    }
}
