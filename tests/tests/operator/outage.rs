//! The API server goes away for a while, in the middle of work.

use anyhow::{Result, bail, ensure};
use headway_operator::kinds::OwnedKind;
use k8s_openapi::jiff::Timestamp;
use kube::api::DeleteParams;

use crate::objects;
use crate::specs::minimal;
use crate::wait::eventually;
use crate::world::World;

const KEPT: [&str; 3] = ["kept-a", "kept-b", "kept-c"];
const DELETED: [&str; 3] = ["deleted-a", "deleted-b", "deleted-c"];
const NEW: [&str; 3] = ["new-a", "new-b", "new-c"];

pub async fn nothing_is_lost(world: World) -> Result<()> {
    let cluster = world.cluster();
    if !cluster.is_ours() {
        return Ok(());
    }
    let namespace = world.namespace("outage").await?;
    for name in KEPT.into_iter().chain(DELETED) {
        world.create(&namespace, name, &minimal()).await?;
    }
    for name in KEPT.into_iter().chain(DELETED) {
        world.ready(&namespace, name).await?;
    }
    let began = Timestamp::now();
    let restart = tokio::task::spawn_blocking(|| cluster.restart_component("kube-apiserver"));
    let work = async {
        for (name, new) in DELETED.into_iter().zip(NEW) {
            delete(&world, &namespace, name).await?;
            create(&world, &namespace, new).await?;
        }
        anyhow::Ok(())
    };
    let (restarted, worked) = tokio::join!(restart, work);
    restarted??;
    world.add_outage(began..=Timestamp::now());
    worked?;
    for name in DELETED {
        world.gone(&namespace, name).await?;
    }
    for name in KEPT.into_iter().chain(NEW) {
        world.ready(&namespace, name).await?;
        for kind in [
            OwnedKind::Service,
            OwnedKind::PodMonitor,
            OwnedKind::Deployment,
        ] {
            objects::existing(&world, &namespace, name, kind).await?;
        }
    }
    let pods = objects::labelled(
        &world,
        Some(&namespace),
        "app.kubernetes.io/name=tail-server",
    )
    .await?;
    let count = pods.iter().filter(|object| objects::is_pod(object)).count();
    ensure!(count == KEPT.len() + NEW.len(), "{count} pods");
    Ok(())
}

/// Tries until it is known to have happened.
async fn delete(world: &World, namespace: &str, name: &str) -> Result<()> {
    let api = world.raw_splitmodels(namespace);
    eventually("a SplitModel can be deleted", async || {
        match api.delete(name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => bail!(error),
        }
    })
    .await
}

/// Tries until it is known to have happened.
async fn create(world: &World, namespace: &str, name: &str) -> Result<()> {
    let api = world.raw_splitmodels(namespace);
    eventually("a SplitModel can be created", async || {
        // The first try may have succeeded without an answer.
        if api.get_opt(name).await?.is_none() {
            world.create(namespace, name, &minimal()).await?;
        }
        Ok(())
    })
    .await
}
