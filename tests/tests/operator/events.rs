//! Transitions are told as events; repeats are not.

use anyhow::{Result, ensure};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams};
use serde_json::json;

use crate::objects;
use crate::specs::minimal;
use crate::wait::eventually;
use crate::world::World;

const NAME: &str = "smol";

pub async fn transitions(world: World) -> Result<()> {
    let namespace = world.namespace("events").await?;
    world.create(&namespace, NAME, &minimal()).await?;
    world.ready(&namespace, NAME).await?;
    for reason in ["TailsReady", "Loaded", "UpToDate"] {
        eventually("the transition is told", async || {
            let told = told(&world, &namespace, reason).await?;
            ensure!(told == 1, "{reason} was told {told} times");
            Ok(())
        })
        .await?;
    }
    // More pods are no transition of Ready.
    world
        .change(&namespace, NAME, &json!({"spec": {"replicas": 2}}))
        .await?;
    let two = |status: &headway_operator::crd::status::SplitModelStatus| status.ready_replicas == 2;
    world
        .status(&namespace, NAME, "two tails are ready", two)
        .await?;
    world.ready(&namespace, NAME).await?;
    let ready = told(&world, &namespace, "TailsReady").await?;
    ensure!(ready == 1, "TailsReady was told {ready} times");

    let sleep = json!({"spec": {"autoscaling": {"min": 0}, "replicas": 0}});
    world.change(&namespace, NAME, &sleep).await?;
    let asleep = |status: &_| objects::has_condition(status, "Ready", "False", "ScaledToZero");
    world
        .status(&namespace, NAME, "no tail is wanted", asleep)
        .await?;
    world
        .change(&namespace, NAME, &json!({"spec": {"replicas": 1}}))
        .await?;
    world.ready(&namespace, NAME).await?;
    for (reason, times) in [("ScaledToZero", 1), ("TailsReady", 2)] {
        eventually("both transitions are told", async || {
            let told = told(&world, &namespace, reason).await?;
            ensure!(told == times, "{reason} was told {told} times, not {times}");
            Ok(())
        })
        .await?;
    }
    let described = world
        .kubectl(&["describe", "sm", NAME, "-n", &namespace])
        .await?;
    for words in ["Events:", "TailsReady", "ScaledToZero", "headway-operator"] {
        ensure!(described.contains(words), "{words} in {described}");
    }
    Ok(())
}

/// How often a transition with `reason` was told; the API counts repeats within one object.
async fn told(world: &World, namespace: &str, reason: &str) -> Result<i32> {
    let events: Api<Event> = Api::namespaced(world.client(), namespace);
    let events = events.list(&ListParams::default()).await?;
    let about = events.items.iter().filter(|event| {
        event.reason.as_deref() == Some(reason)
            && event
                .regarding
                .as_ref()
                .and_then(|object| object.name.as_deref())
                == Some(NAME)
    });
    Ok(about
        .map(|event| event.series.as_ref().map_or(1, |series| series.count))
        .sum())
}
