//! The annotation that says: hands off.

use anyhow::{Context as _, Result, ensure};
use headway_operator::kinds::OwnedKind;
use headway_operator::names;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::objects;
use crate::specs::asleep;
use crate::wait::eventually;
use crate::world::{SOMEBODY, World};

const NAME: &str = "smol";

pub async fn hands_off(world: World) -> Result<()> {
    let namespace = world.namespace("paused").await?;
    world.create(&namespace, NAME, &asleep()).await?;
    let up_to_date =
        |status: &_| objects::has_condition(status, "Progressing", "False", "UpToDate");
    world
        .status(&namespace, NAME, "everything is applied", up_to_date)
        .await?;
    let annotation =
        |value| json!({"metadata": {"annotations": {names::PAUSED_ANNOTATION: value}}});
    world
        .change(&namespace, NAME, &annotation(Some("true")))
        .await?;
    let paused = |status: &_| objects::has_condition(status, "Progressing", "False", "Paused");
    let splitmodel = world
        .status(&namespace, NAME, "the pause is told", paused)
        .await?;
    let status = splitmodel.status.context("a status")?;
    let condition = objects::condition(&status, "Progressing").context("the condition")?;
    ensure!(
        condition.message.contains(names::PAUSED_ANNOTATION),
        "{}",
        condition.message
    );

    let kind = OwnedKind::PodDisruptionBudget;
    let before = objects::essence(&objects::existing(&world, &namespace, NAME, kind).await?);
    let parameters = PatchParams {
        field_manager: Some(SOMEBODY.to_owned()),
        ..PatchParams::default()
    };
    let drifted = Patch::Merge(json!({"spec": {"maxUnavailable": 0}}));
    let budgets = objects::api(&world, &namespace, kind);
    let changed = budgets
        .patch(&kind.object_name(NAME), &parameters, &drifted)
        .await?;
    // The new spec has been looked at, later than the drift, when the status speaks of its generation.
    world
        .change(&namespace, NAME, &json!({"spec": {"split": {"min": 2}}}))
        .await?;
    world
        .status(&namespace, NAME, "the new spec is seen", paused)
        .await?;
    let now = budgets.get(&kind.object_name(NAME)).await?;
    ensure!(
        objects::essence(&now) == objects::essence(&changed),
        "{now:?}"
    );
    let deployment = objects::existing(&world, &namespace, NAME, OwnedKind::Deployment).await?;
    let arguments =
        deployment.data["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
    ensure!(arguments.contains("--split-min=0"), "{arguments}");

    world.change(&namespace, NAME, &annotation(None)).await?;
    eventually("drift is corrected and the new spec applied", async || {
        let budget = objects::existing(&world, &namespace, NAME, kind).await?;
        ensure!(objects::essence(&budget) == before, "{budget:?}");
        let deployment = objects::existing(&world, &namespace, NAME, OwnedKind::Deployment).await?;
        let arguments =
            deployment.data["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
        ensure!(arguments.contains("--split-min=2"), "{arguments}");
        Ok(())
    })
    .await?;
    world
        .status(&namespace, NAME, "the pause is over", up_to_date)
        .await?;
    // A paused one can still be deleted.
    world
        .change(&namespace, NAME, &annotation(Some("true")))
        .await?;
    world
        .status(&namespace, NAME, "the pause is told", paused)
        .await?;
    world.delete(&namespace, NAME).await
}
