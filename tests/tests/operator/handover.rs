//! From the operator's own number of pods to KEDA's.

use anyhow::{Result, ensure};
use headway_operator::kinds::OwnedKind;
use serde_json::json;

use crate::objects;
use crate::specs::{merged, minimal};
use crate::wait::eventually;
use crate::world::World;

const NAME: &str = "smol";
const PODS: i32 = 3;

/// A field that its owner gives up gets its default back, and the default of `replicas` is 1. KEDA does not run
/// here: what is lost stays lost.
pub async fn pods_stay(world: World) -> Result<()> {
    let namespace = world.namespace("handover").await?;
    world
        .create(
            &namespace,
            NAME,
            &merged(minimal(), &json!({"replicas": PODS})),
        )
        .await?;
    world.ready(&namespace, NAME).await?;
    let keda = json!({"autoscaling": {"provider": "keda", "keda": {"prometheusAddress": "http://prometheus:9090"}}});
    world
        .change(&namespace, NAME, &json!({"spec": keda}))
        .await?;
    eventually("KEDA is asked", async || {
        objects::existing(&world, &namespace, NAME, OwnedKind::ScaledObject).await?;
        let splitmodel = world.splitmodels(&namespace).get(NAME).await?;
        let observed = splitmodel
            .status
            .and_then(|status| status.observed_generation);
        ensure!(
            observed == splitmodel.metadata.generation,
            "the status is old"
        );
        let deployment = objects::existing(&world, &namespace, NAME, OwnedKind::Deployment).await?;
        ensure!(
            deployment.data["spec"]["replicas"] == PODS,
            "{}",
            deployment.data["spec"]["replicas"]
        );
        Ok(())
    })
    .await
}
