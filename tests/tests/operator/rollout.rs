//! What the status says while pods are replaced.

use anyhow::{Context as _, Result, ensure};
use headway_operator::kinds::OwnedKind;
use serde_json::json;

use crate::objects;
use crate::specs::minimal;
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
