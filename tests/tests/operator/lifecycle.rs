//! Creating, looking at, scaling and deleting a `SplitModel`.

use anyhow::{Context as _, Result, ensure};
use headway_operator::kinds::OwnedKind;
use headway_operator::names;
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::objects;
use crate::specs::{complete, merged, minimal};
use crate::wait::eventually;
use crate::world::{SOMEBODY, World};

/// Kinds that only some specs ask for.
const OPTIONAL: [OwnedKind; 3] = [
    OwnedKind::ResourceClaimTemplate,
    OwnedKind::HttpRoute,
    OwnedKind::ScaledObject,
];

pub async fn created(world: World) -> Result<()> {
    let namespace = world.namespace("created").await?;
    world.create(&namespace, "smol", &minimal()).await?;
    world.create(&namespace, "whole", &complete()).await?;
    for kind in objects::awake_kinds() {
        for name in ["smol", "whole"] {
            if name == "smol" && OPTIONAL.contains(&kind) {
                continue;
            }
            eventually("an owned object exists", async || {
                let splitmodel = world.raw_splitmodels(&namespace).get(name).await?;
                let object = objects::existing(&world, &namespace, name, kind).await?;
                objects::check_metadata(&object, &splitmodel)
            })
            .await?;
        }
    }
    let splitmodel = world.ready(&namespace, "smol").await?;
    ensure!(
        splitmodel.finalizers() == [names::FINALIZER],
        "{:?}",
        splitmodel.finalizers()
    );
    for kind in OPTIONAL {
        let object = objects::owned(&world, &namespace, "smol", kind).await?;
        ensure!(object.is_none(), "{kind:?} was not asked for");
    }
    let status = splitmodel.status.context("a status")?;
    ensure!(
        objects::has_condition(&status, "ModelAvailable", "True", "Loaded"),
        "{status:?}"
    );
    ensure!(
        objects::has_condition(&status, "Degraded", "False", "AsExpected"),
        "{status:?}"
    );
    let endpoint = format!("ws://smol-tail.{namespace}.svc:8089");
    ensure!(status.endpoint.as_ref() == Some(&endpoint), "{status:?}");
    ensure!(
        (
            status.replicas,
            status.ready_replicas,
            status.desired_replicas
        ) == (1, 1, Some(1)),
        "{status:?}"
    );
    let degraded = world.status(&namespace, "whole", "missing devices are told", |status| {
        objects::has_condition(status, "Degraded", "True", "Unschedulable")
    });
    let status = degraded.await?.status.context("a status")?;
    ensure!(
        status.endpoint.as_deref() == Some("wss://smol.example.com"),
        "{status:?}"
    );
    Ok(())
}

pub async fn kubectl(world: World) -> Result<()> {
    let namespace = world.namespace("kubectl").await?;
    let spec = merged(minimal(), &json!({"split": {"default": 7}}));
    world.create(&namespace, "smol", &spec).await?;
    world.ready(&namespace, "smol").await?;

    let table = world
        .kubectl(&["get", "sm", "smol", "-n", &namespace])
        .await?;
    let lines: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let columns = [
        "NAME", "READY", "REPLICAS", "SPLIT", "USED", "SAVED", "SAVED%", "MONEY", "AGE",
    ];
    ensure!(
        lines.first().is_some_and(|header| *header == columns),
        "{table}"
    );
    ensure!(
        lines
            .get(1)
            .is_some_and(|row| row.starts_with(&["smol", "True", "1", "7"])),
        "{table}"
    );
    let wide = world
        .kubectl(&["get", "sm", "smol", "-n", &namespace, "-o", "wide"])
        .await?;
    for word in [
        "TailsReady",
        "hf://org/smol",
        "svc:8089",
        "REASON",
        "ENDPOINT",
    ] {
        ensure!(wide.contains(word), "{word} in {wide}");
    }
    ensure!(
        world
            .kubectl(&["get", "headway", "-n", &namespace])
            .await?
            .contains("smol"),
        "by category"
    );

    let explained = world
        .kubectl(&["explain", "splitmodel.spec.tail.limits"])
        .await?;
    for words in [
        "What one pod takes on",
        "kvMemory",
        "The most sessions at a time",
    ] {
        ensure!(explained.contains(words), "{words} in {explained}");
    }
    Ok(())
}

pub async fn scaled(world: World) -> Result<()> {
    let namespace = world.namespace("scaled").await?;
    world.create(&namespace, "smol", &minimal()).await?;
    world.ready(&namespace, "smol").await?;
    world
        .kubectl(&["scale", "sm/smol", "-n", &namespace, "--replicas=3"])
        .await?;
    let three =
        |status: &headway_operator::crd::status::SplitModelStatus| status.ready_replicas == 3;
    world
        .status(&namespace, "smol", "three tails are ready", three)
        .await?;
    let api = world.splitmodels(&namespace);
    // As a HorizontalPodAutoscaler does it.
    let scale = api.get_scale("smol").await?;
    let status = scale.status.context("the scale subresource has a status")?;
    ensure!(status.replicas == 3, "{status:?}");
    let selector = status
        .selector
        .context("a HorizontalPodAutoscaler needs a selector")?;
    let pods = objects::labelled(&world, Some(&namespace), &selector).await?;
    ensure!(
        pods.iter().filter(|object| objects::is_pod(object)).count() == 3,
        "{selector} selects the pods"
    );
    let parameters = PatchParams {
        field_manager: Some(SOMEBODY.to_owned()),
        ..PatchParams::default()
    };
    let two = Patch::Merge(json!({"spec": {"replicas": 2}}));
    api.patch_scale("smol", &parameters, &two).await?;
    let is_two = |status: &headway_operator::crd::status::SplitModelStatus| {
        status.replicas == 2 && status.ready_replicas == 2
    };
    world
        .status(&namespace, "smol", "two tails are ready", is_two)
        .await?;
    Ok(())
}

pub async fn deleted(world: World) -> Result<()> {
    let namespace = world.namespace("deleted").await?;
    for (name, spec) in [("smol", minimal()), ("whole", complete())] {
        world.create(&namespace, name, &spec).await?;
        let created = |status: &headway_operator::crd::status::SplitModelStatus| {
            status.endpoint.is_some() && status.replicas == 1
        };
        world
            .status(&namespace, name, "a pod exists", created)
            .await?;
        world
            .kubectl(&["delete", "sm", name, "-n", &namespace, "--timeout=60s"])
            .await?;
        world.gone(&namespace, name).await?;
    }
    // A successor of the same name starts anew.
    world.create(&namespace, "smol", &minimal()).await?;
    world.ready(&namespace, "smol").await?;
    Ok(())
}

pub async fn deleted_with_orphans(world: World) -> Result<()> {
    let namespace = world.namespace("orphans").await?;
    world.create(&namespace, "smol", &minimal()).await?;
    world.ready(&namespace, "smol").await?;
    let orphaning = [
        "delete",
        "sm",
        "smol",
        "-n",
        &namespace,
        "--cascade=orphan",
        "--timeout=60s",
    ];
    world.kubectl(&orphaning).await?;
    world.gone(&namespace, "smol").await
}
