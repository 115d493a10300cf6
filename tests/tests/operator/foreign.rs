//! Fields and objects that belong to others.

use anyhow::{Context as _, Result, ensure};
use headway_operator::kinds::OwnedKind;
use headway_operator::names;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use serde_json::json;

use crate::objects;
use crate::specs::{asleep, complete, merged};
use crate::wait::eventually;
use crate::world::{SOMEBODY, World};

const NAME: &str = "smol";

pub async fn fields_are_left_alone(world: World) -> Result<()> {
    let namespace = world.namespace("foreign-fields").await?;
    world.create(&namespace, NAME, &complete()).await?;
    let added = json!({"metadata": {
        "annotations": {"example.com/added": "by somebody"},
        "labels": {"example.com/added": "by-somebody"},
    }});
    let parameters = PatchParams {
        field_manager: Some(SOMEBODY.to_owned()),
        ..PatchParams::default()
    };
    for kind in objects::awake_kinds() {
        eventually("the objects exist", async || {
            objects::existing(&world, &namespace, NAME, kind).await
        })
        .await?;
        let api = objects::api(&world, &namespace, kind);
        api.patch(&kind.object_name(NAME), &parameters, &Patch::Merge(&added))
            .await?;
    }
    // As KEDA's HorizontalPodAutoscaler does it.
    let deployments = objects::api(&world, &namespace, OwnedKind::Deployment);
    let name = OwnedKind::Deployment.object_name(NAME);
    let scaled = Patch::Merge(json!({"spec": {"replicas": 3}}));
    deployments.patch_scale(&name, &parameters, &scaled).await?;
    // The operator has something to write for every kind: what it wrote before is not what it wants now.
    let change = json!({"metadata": {"annotations": {names::APPLIED_ANNOTATION: "0"}}});
    for kind in objects::awake_kinds() {
        let api = objects::api(&world, &namespace, kind);
        api.patch(&kind.object_name(NAME), &parameters, &Patch::Merge(&change))
            .await?;
    }
    for kind in objects::awake_kinds() {
        let object = eventually("the object is written again", async || {
            let object = objects::existing(&world, &namespace, NAME, kind).await?;
            let applied = object
                .metadata
                .annotations
                .as_ref()
                .and_then(|all| all.get(names::APPLIED_ANNOTATION));
            ensure!(applied.is_some_and(|digest| digest != "0"), "{applied:?}");
            Ok(object)
        })
        .await?;
        for added in [&object.metadata.annotations, &object.metadata.labels] {
            let added = added.as_ref().context("a map")?;
            ensure!(
                added.contains_key("example.com/added"),
                "{kind:?} lost {added:?}"
            );
        }
        if kind == OwnedKind::Deployment {
            ensure!(
                object.data["spec"]["replicas"] == 3,
                "{}",
                object.data["spec"]["replicas"]
            );
        }
    }
    Ok(())
}

pub async fn objects_are_not_taken_over(world: World) -> Result<()> {
    let namespace = world.namespace("foreign-objects").await?;
    let kind = OwnedKind::ServiceAccount;
    let api = objects::api(&world, &namespace, kind);
    let resource = kind.api_resource();
    let foreign = DynamicObject::new(&kind.object_name(NAME), &resource).data(json!({}));
    let before = api.create(&PostParams::default(), &foreign).await?;
    let spec = merged(asleep(), &json!({"split": {"default": 3}}));
    world.create(&namespace, NAME, &spec).await?;
    let taken = world.status(&namespace, NAME, "the taken name is told", |status| {
        objects::has_condition(status, "Degraded", "True", "NameTaken")
    });
    let status = taken.await?.status.context("a status")?;
    let condition = objects::condition(&status, "Degraded").context("the condition")?;
    for words in ["ServiceAccount smol-tail", "rename the SplitModel"] {
        ensure!(condition.message.contains(words), "{}", condition.message);
    }
    let now = api.get(&kind.object_name(NAME)).await?;
    ensure!(now == before, "{now:?} was {before:?}");

    // Deleting the SplitModel leaves it alone as well.
    world.create(&namespace, "other", &asleep()).await?;
    world.delete(&namespace, NAME).await?;
    let now = api.get(&kind.object_name(NAME)).await?;
    ensure!(now == before, "{now:?} was {before:?}");

    world.create(&namespace, NAME, &spec).await?;
    world
        .status(&namespace, NAME, "the taken name is told again", |status| {
            objects::has_condition(status, "Degraded", "True", "NameTaken")
        })
        .await?;
    api.delete(&kind.object_name(NAME), &DeleteParams::default())
        .await?;
    // Touched, so that it need not wait for the next try.
    let touch = json!({"spec": {"split": {"default": 4}}});
    world.change(&namespace, NAME, &touch).await?;
    world
        .status(&namespace, NAME, "the name is free", |status| {
            objects::has_condition(status, "Degraded", "False", "AsExpected")
        })
        .await?;
    let now = objects::existing(&world, &namespace, NAME, kind).await?;
    ensure!(now.metadata.uid != before.metadata.uid, "it was deleted");
    Ok(())
}
