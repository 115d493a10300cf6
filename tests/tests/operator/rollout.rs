//! What the status says while pods are replaced, and what becomes of pods that fail.

use anyhow::{Context as _, Result, ensure};
use headway_operator::crd::SplitModel;
use headway_operator::kinds::OwnedKind;
use headway_operator::names;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;

use crate::objects;
use crate::specs::{merged, minimal};
use crate::wait::eventually;
use crate::world::World;

const NAME: &str = "smol";
/// Each of them could catch the operator between its write and what it then sees of it.
const CHANGES: usize = 5;

pub async fn status_is_not_ahead(world: World) -> Result<()> {
    let namespace = world.namespace("rollout").await?;
    world.create(&namespace, NAME, &minimal()).await?;
    for change in 0..CHANGES {
        world.ready(&namespace, NAME).await?;
        let value = change.to_string();
        let annotated =
            json!({"spec": {"tail": {"podAnnotations": {"example.com/change": value}}}});
        world.change(&namespace, NAME, &annotated).await?;
        // Whoever waits for this may rely on it.
        world.ready(&namespace, NAME).await?;
        let kind = OwnedKind::Deployment;
        let deployment = objects::existing(&world, &namespace, NAME, kind).await?;
        let annotations = &deployment.data["spec"]["template"]["metadata"]["annotations"];
        ensure!(annotations["example.com/change"] == *value, "{annotations}");
        let status = &deployment.data["status"];
        let observed = status["observedGeneration"]
            .as_i64()
            .context("a generation")?;
        let is_done = Some(observed) >= deployment.metadata.generation
            && status["updatedReplicas"] == 1
            && status["replicas"] == 1;
        ensure!(
            is_done,
            "the SplitModel is up to date, the Deployment is not: {status}"
        );
    }
    Ok(())
}

/// A spec whose pods cannot get their image gives way to the one before, which serves all the time, scales, and is
/// left by the next change.
pub async fn failing_stops(world: World) -> Result<()> {
    let namespace = world.namespace("failing-rollout").await?;
    let spec = merged(minimal(), &json!({"rollout": {"stopAfterSeconds": 10}}));
    world.create(&namespace, NAME, &spec).await?;
    world.ready(&namespace, NAME).await?;
    let serving = pods(&world, &namespace).await?;
    let (pod, template) = serving.first().context("a pod")?;

    // No node takes it, and what a kubelet would say of it is said below.
    let broken = json!({"spec": {"tail": {
        "image": "registry.example/none:1",
        "nodeSelector": {"example.com/nowhere": "true"},
    }}});
    world.change(&namespace, NAME, &broken).await?;
    let message = eventually("the rollout has stopped", async || {
        fail_others(&world, &namespace, template).await?;
        let splitmodel = world.splitmodels(&namespace).get(NAME).await?;
        stopped(&splitmodel)
    })
    .await?;
    ensure!(
        message.contains("no such image") && message.contains(names::STOPPED_ANNOTATION),
        "{message}"
    );
    alone(&world, &namespace, template, 1).await?;
    let left = pods(&world, &namespace).await?;
    ensure!(left[0].0 == *pod, "{left:?}; {pod} served");

    world
        .change(&namespace, NAME, &json!({"spec": {"replicas": 2}}))
        .await?;
    alone(&world, &namespace, template, 2).await?;
    let splitmodel = world.splitmodels(&namespace).get(NAME).await?;
    stopped(&splitmodel).context("after a change of another field")?;

    let mended = json!({"spec": {"tail": {"image": null, "nodeSelector": null, "podAnnotations": {"try": "2"}}}});
    world.change(&namespace, NAME, &mended).await?;
    let splitmodel = world.ready(&namespace, NAME).await?;
    ensure!(stopped(&splitmodel).is_err(), "{:?}", splitmodel.status);
    let kind = OwnedKind::Deployment;
    let deployment = objects::existing(&world, &namespace, NAME, kind).await?;
    let annotations = deployment.annotations();
    ensure!(
        !annotations.contains_key(names::STOPPED_ANNOTATION),
        "{annotations:?}"
    );
    let all = pods(&world, &namespace).await?;
    ensure!(all.iter().all(|(_, each)| each != template), "{all:?}");
    Ok(())
}

/// Name and template of the pods that are not leaving.
async fn pods(world: &World, namespace: &str) -> Result<Vec<(String, String)>> {
    let pods: Api<Pod> = Api::namespaced(world.client(), namespace);
    let own = ListParams::default().labels(names::SPLITMODEL_LABEL);
    let pods = pods.list(&own).await?.items.into_iter();
    let staying = pods.filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let named = staying.map(|pod| {
        let template = pod.labels().get(names::TEMPLATE_LABEL);
        Ok((
            pod.name_any(),
            template.context("the label of a template")?.clone(),
        ))
    });
    named.collect()
}

/// Waits until the pods of `template` are `count`, and there are no others.
async fn alone(world: &World, namespace: &str, template: &str, count: usize) -> Result<()> {
    eventually("pods of the template that serves", async || {
        let pods = pods(world, namespace).await?;
        let is_alone = pods.iter().all(|(_, each)| each == template);
        ensure!(is_alone && pods.len() == count, "{pods:?}");
        Ok(())
    })
    .await
}

/// Says of the pods of other templates what a kubelet would: they have been on a node for a minute, without an image.
async fn fail_others(world: &World, namespace: &str, template: &str) -> Result<()> {
    let api: Api<Pod> = Api::namespaced(world.client(), namespace);
    let since = k8s_openapi::jiff::Timestamp::now() - std::time::Duration::from_secs(60);
    let status = json!({
        "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": since.to_string()}],
        "containerStatuses": [{
            "name": names::TAIL, "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}},
        }],
    });
    for (pod, each) in pods(world, namespace).await? {
        if each != template {
            let patch = Patch::Merge(json!({"status": status}));
            let parameters = PatchParams::default();
            // Gone already, once the rollout has stopped.
            let _ = api.patch_status(&pod, &parameters, &patch).await;
        }
    }
    Ok(())
}

/// What `Degraded` says of a rollout that was stopped, beside tails that serve.
fn stopped(splitmodel: &SplitModel) -> Result<String> {
    let status = splitmodel.status.as_ref().context("a status")?;
    for (type_, value, reason) in [
        ("Ready", "True", "TailsReady"),
        ("Progressing", "False", "RolloutStopped"),
        ("Degraded", "True", "RolloutStopped"),
    ] {
        let is_said = objects::has_condition(status, type_, value, reason);
        ensure!(is_said, "{}", json!(status.conditions));
    }
    let mut conditions = status.conditions.iter();
    let degraded = conditions.find(|condition| condition.type_ == "Degraded");
    Ok(degraded.context("Degraded")?.message.clone())
}
