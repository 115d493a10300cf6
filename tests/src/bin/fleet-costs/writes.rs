//! What a write of savings costs the API server and its database, by the number of pods that the status speaks of.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use headway_operator::crd::SplitModel;
use headway_operator::names::SAVINGS_MANAGER;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::books;
use crate::cluster::{Cluster, NAMESPACE};
use crate::{ms, number, quantile};

pub async fn measure(
    cluster: &Cluster,
    pods: &[usize],
    writes: usize,
    print: &mut impl FnMut(&str),
) -> Result<()> {
    print("## Status writes\n");
    print(
        "| pods of the SplitModel | object, KiB | p50, ms | p99, ms | API server, ms of CPU | etcd, ms of CPU |\n|---|---|---|---|---|---|",
    );
    let api: Api<SplitModel> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    for &count in pods {
        let name = format!("model-{count}");
        let body = json!({
            "apiVersion": "headway.dev/v1alpha1",
            "kind": "SplitModel",
            "metadata": {"name": name},
            "spec": {"model": {"source": "hf://org/model"}, "auth": {"allowAnonymous": true}},
        });
        let parameters = PatchParams::apply("costs");
        api.patch(&name, &parameters, &Patch::Apply(body)).await?;
        // The first one makes the object large; what is measured are changes of it.
        let version = api.get(&name).await?.metadata.resource_version;
        let mut written = write(&api, &name, (count, 1), version).await?;
        let before = (cluster.cpu("kube-apiserver")?, cluster.cpu("etcd")?);
        let mut times = Vec::new();
        for age in 0..writes {
            let (started, version) = (Instant::now(), written.metadata.resource_version);
            written = write(&api, &name, (count, 2 + u64::try_from(age)?), version).await?;
            times.push(started.elapsed());
        }
        let bytes = serde_json::to_vec(&written)?.len();
        let each =
            |after: Duration, before: Duration| ms(after.saturating_sub(before)) / number(writes);
        print(&format!(
            "| {count} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} |",
            number(bytes) / 1024.0,
            ms(quantile(&mut times, 0.5)),
            ms(quantile(&mut times, 0.99)),
            each(cluster.cpu("kube-apiserver")?, before.0),
            each(cluster.cpu("etcd")?, before.1),
        ));
    }
    print("");
    Ok(())
}

/// The object afterwards, which every watch gets. `(pods, age)`: what the status says.
async fn write(
    api: &Api<SplitModel>,
    name: &str,
    (pods, age): (usize, u64),
    version: Option<String>,
) -> Result<SplitModel> {
    let savings = books::savings(&books::ledger(pods, age), None);
    let body = json!({
        "apiVersion": "headway.dev/v1alpha1",
        "kind": "SplitModel",
        "metadata": {"name": name, "resourceVersion": version.context("a version")?},
        "status": {"savings": savings},
    });
    let parameters = PatchParams::apply(SAVINGS_MANAGER).force();
    let patch = Patch::Apply(body);
    Ok(api.patch_status(name, &parameters, &patch).await?)
}
