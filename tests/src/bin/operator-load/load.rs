//! SplitModels in numbers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use cluster_rig::Cluster;
use futures_util::{StreamExt as _, TryStreamExt as _};
use headway_operator::crd::SplitModel;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Client, Config};
use serde_json::json;

const NAMESPACE: &str = "load";
/// Requests at a time.
const CONCURRENCY: usize = 16;

/// When a SplitModel was asked for.
pub struct Applied {
    /// Its name.
    pub name: String,
    /// When the API server had it.
    pub at: Instant,
}

/// The SplitModels that were applied.
pub struct Load {
    /// As administrator.
    pub client: Client,
    count: AtomicUsize,
    /// Names are never used twice.
    next: AtomicUsize,
}

impl Load {
    /// An empty namespace.
    pub async fn new(cluster: &Cluster) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig())?;
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        let client = Client::try_from(config)?;
        let namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        namespaces
            .create(&PostParams::default(), &namespace)
            .await?;
        Ok(Self {
            client,
            count: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// In the namespace of the load.
    pub fn api(&self) -> Api<SplitModel> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Applies `count` more, as fast as the API server takes them.
    pub async fn add(&self, count: usize) -> Result<Vec<Applied>> {
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        let api = self.api();
        let applied = futures_util::stream::iter(first..first + count)
            .map(async |index| {
                let name = format!("model-{index}");
                let body = json!({
                    "apiVersion": "headway.dev/v1alpha1",
                    "kind": "SplitModel",
                    "metadata": {"name": name},
                    "spec": {"model": {"source": "hf://org/model"}, "auth": {"allowAnonymous": true}},
                });
                let parameters = PatchParams::apply("bench");
                api.patch(&name, &parameters, &Patch::Apply(body)).await?;
                let at = Instant::now();
                Ok::<_, kube::Error>(Applied { name, at })
            })
            .buffer_unordered(CONCURRENCY)
            .try_collect()
            .await?;
        self.count.fetch_add(count, Ordering::Relaxed);
        Ok(applied)
    }

    /// Deletes the youngest, and waits until it is gone.
    pub async fn remove_last(&self) -> Result<()> {
        let index = self
            .next
            .load(Ordering::Relaxed)
            .checked_sub(1)
            .context("none is left")?;
        let name = format!("model-{index}");
        let api = self.api();
        let uid = api
            .get_metadata(&name)
            .await?
            .metadata
            .uid
            .context("a uid")?;
        api.delete(&name, &DeleteParams::default()).await?;
        await_condition(api, &name, conditions::is_deleted(&uid)).await?;
        self.count.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }

    /// Waits until all are ready.
    pub async fn all_ready(&self) -> Result<()> {
        let api = self.api();
        loop {
            let all = api.list(&ListParams::default()).await?;
            let ready = all.items.iter().filter(|each| is_up_to_date(each)).count();
            if ready >= self.len() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }
}

fn is_up_to_date(splitmodel: &SplitModel) -> bool {
    let conditions = splitmodel
        .status
        .iter()
        .flat_map(|status| &status.conditions);
    conditions
        .into_iter()
        .any(|condition| condition.type_ == "Progressing" && condition.reason == "UpToDate")
}
