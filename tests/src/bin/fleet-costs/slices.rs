//! How many EndpointSlices a Service has, how large they are, and how often they are written while its pods are
//! replaced: by the control plane's own controllers, with pods on simulated nodes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::TryStreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, watcher};
use serde_json::json;

use crate::cluster::{Cluster, NAMESPACE};
use crate::{ms, number};

const NAME: &str = "llama-tail";
const PATIENCE: Duration = Duration::from_secs(300);
/// Nothing more comes after a time of this length without a change.
const QUIET: Duration = Duration::from_secs(5);

/// What a watch of slices has brought.
#[derive(Default)]
struct Seen {
    events: usize,
    bytes: usize,
    last: Option<Instant>,
}

pub async fn measure(
    cluster: &Cluster,
    endpoints: usize,
    print: &mut impl FnMut(&str),
) -> Result<()> {
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let service = serde_json::from_value(json!({
        "metadata": {"name": NAME},
        "spec": {"selector": {"app": NAME}, "ports": [{"name": "tail", "port": 8089}]},
    }))?;
    services.create(&PostParams::default(), &service).await?;
    let seen = Arc::new(Mutex::new(Seen::default()));
    tokio::spawn(follow(cluster.client.clone(), Arc::clone(&seen)));

    print("## EndpointSlices\n");
    print(
        "| what | pods | slices | bytes an endpoint | writes of slices | writes a pod | KiB to each watch | API server, ms of CPU a pod | controller manager | s |\n|---|---|---|---|---|---|---|---|---|---|",
    );
    for (what, revision) in [("pods come", "1"), ("rolling restart", "2")] {
        let before = taken(&seen);
        let cpu = (
            cluster.cpu("kube-apiserver")?,
            cluster.cpu("kube-controller-manager")?,
        );
        let started = Instant::now();
        apply(cluster, endpoints, revision).await?;
        settled(cluster, endpoints, &seen).await?;
        let took = started.elapsed().saturating_sub(QUIET);
        let after = taken(&seen);
        let (slices, bytes) = slices(cluster).await?;
        let writes = after.0 - before.0;
        let each = |after: Duration, before: Duration| {
            ms(after.saturating_sub(before)) / number(endpoints)
        };
        print(&format!(
            "| {what} | {endpoints} | {slices} | {:.0} | {writes} | {:.2} | {:.0} | {:.1} | {:.1} | {:.1} |",
            number(bytes) / number(endpoints),
            number(writes) / number(endpoints),
            number(after.1 - before.1) / 1024.0,
            each(cluster.cpu("kube-apiserver")?, cpu.0),
            each(cluster.cpu("kube-controller-manager")?, cpu.1),
            took.as_secs_f64(),
        ));
    }
    print("");
    Ok(())
}

async fn apply(cluster: &Cluster, replicas: usize, revision: &str) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let body = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": NAME}},
            "template": {
                "metadata": {"labels": {"app": NAME}, "annotations": {"revision": revision}},
                "spec": {"containers": [{"name": "tail", "image": "tail"}]},
            },
        },
    });
    let parameters = PatchParams::apply("costs");
    deployments
        .patch(NAME, &parameters, &Patch::Apply(body))
        .await?;
    Ok(())
}

/// Waits until all pods are those of the last revision and nothing changes any more.
async fn settled(cluster: &Cluster, replicas: usize, seen: &Mutex<Seen>) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let wanted = Some(i32::try_from(replicas)?);
    let started = Instant::now();
    loop {
        let deployment = deployments.get(NAME).await?;
        let status = deployment.status.clone().unwrap_or_default();
        let is_observed = status.observed_generation == deployment.metadata.generation;
        let is_whole = status.updated_replicas == wanted
            && status.ready_replicas == wanted
            && status.replicas == wanted;
        let last = seen.lock().unwrap_or_else(PoisonError::into_inner).last;
        let is_quiet = last.is_some_and(|last| last.elapsed() >= QUIET);
        if is_observed && is_whole && is_quiet {
            return Ok(());
        }
        ensure!(started.elapsed() < PATIENCE, "pods are not all replaced");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn slices(cluster: &Cluster) -> Result<(usize, usize)> {
    let api: Api<EndpointSlice> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let listed = api.list(&ListParams::default()).await?;
    let mut bytes = 0;
    for slice in &listed.items {
        bytes += serde_json::to_vec(slice)?.len();
    }
    Ok((listed.items.len(), bytes))
}

fn taken(seen: &Mutex<Seen>) -> (usize, usize) {
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    (seen.events, seen.bytes)
}

/// Counts what a watch brings, as every node's proxy has one. A version that is seen twice counts once.
async fn follow(client: kube::Client, seen: Arc<Mutex<Seen>>) -> Result<()> {
    let api: Api<EndpointSlice> = Api::namespaced(client, NAMESPACE);
    let mut versions: BTreeMap<String, String> = BTreeMap::new();
    let events = watcher(api, watcher::Config::default());
    tokio::pin!(events);
    while let Some(event) = events.try_next().await? {
        let (watcher::Event::Apply(slice) | watcher::Event::InitApply(slice)) = event else {
            continue;
        };
        let version = slice.resource_version().unwrap_or_default();
        if versions.insert(slice.name_any(), version.clone()) == Some(version) {
            continue;
        }
        let bytes = serde_json::to_vec(&slice)?.len();
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.events += 1;
        seen.bytes += bytes;
        seen.last = Some(Instant::now());
    }
    Ok(())
}
