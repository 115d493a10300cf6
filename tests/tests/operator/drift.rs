//! What somebody changes or deletes comes back as it was.

use anyhow::{Context as _, Result, ensure};
use headway_operator::kinds::OwnedKind;
use headway_operator::names;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::objects;
use crate::specs::complete;
use crate::wait::eventually;
use crate::world::{SOMEBODY, World};

const NAME: &str = "smol";

pub async fn undone(world: World) -> Result<()> {
    let namespace = world.namespace("drift").await?;
    world.create(&namespace, NAME, &complete()).await?;
    // Those of a model that sleeps are put back by the same code.
    for kind in objects::awake_kinds() {
        eventually("the objects exist", async || {
            objects::existing(&world, &namespace, NAME, kind).await
        })
        .await?;
    }
    let kinds = objects::awake_kinds().map(|kind| undone_of_kind(&world, &namespace, kind));
    futures_util::future::try_join_all(kinds).await?;
    Ok(())
}

async fn undone_of_kind(world: &World, namespace: &str, kind: OwnedKind) -> Result<()> {
    let label = |name: &str| json!({"metadata": {"labels": {name: null}}});
    let changes = [
        changed_field(kind),
        label(names::SPLITMODEL_LABEL),
        label("app.kubernetes.io/managed-by"),
        label("app.kubernetes.io/part-of"),
        json!({"metadata": {"labels": {names::SPLITMODEL_LABEL: "another"}}}),
        json!({"metadata": {"annotations": {names::APPLIED_ANNOTATION: null}}}),
        json!({"metadata": {"annotations": {names::APPLIED_ANNOTATION: "0"}}}),
        json!({"metadata": {"ownerReferences": null}}),
    ];
    for change in changes {
        let tried = undone_change(world, namespace, kind, &change).await;
        tried.with_context(|| format!("{kind:?} after {change}"))?;
    }
    let tried = undone_deletion(world, namespace, kind).await;
    tried.with_context(|| format!("{kind:?} after its deletion"))
}

/// A change of something that the operator applied.
fn changed_field(kind: OwnedKind) -> Value {
    match kind {
        OwnedKind::ServiceAccount => json!({"automountServiceAccountToken": true}),
        OwnedKind::Service => json!({"spec": {"selector": {"app.kubernetes.io/name": "other"}}}),
        OwnedKind::HeadlessService => json!({"spec": {"publishNotReadyAddresses": false}}),
        OwnedKind::NetworkPolicy => json!({"spec": {"policyTypes": ["Ingress"], "egress": null}}),
        OwnedKind::PodDisruptionBudget => json!({"spec": {"maxUnavailable": 0}}),
        // The API server lets nobody change its spec.
        OwnedKind::ResourceClaimTemplate => {
            json!({"metadata": {"labels": {"app.kubernetes.io/name": "other"}}})
        }
        OwnedKind::HttpRoute => json!({"spec": {"hostnames": ["other.example.com"]}}),
        OwnedKind::ScaledObject => json!({"spec": {"maxReplicaCount": 99}}),
        OwnedKind::PodMonitor => json!({"spec": {"podTargetLabels": []}}),
        OwnedKind::EndpointSlice => json!({"endpoints": []}),
        OwnedKind::Deployment => {
            json!({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 5}}}})
        }
    }
}

async fn undone_change(
    world: &World,
    namespace: &str,
    kind: OwnedKind,
    change: &Value,
) -> Result<()> {
    let api = objects::api(world, namespace, kind);
    let before = objects::existing(world, namespace, NAME, kind).await?;
    let parameters = PatchParams {
        field_manager: Some(SOMEBODY.to_owned()),
        ..PatchParams::default()
    };
    let name = kind.object_name(NAME);
    let changed = api.patch(&name, &parameters, &Patch::Merge(change)).await?;
    let wanted = objects::essence(&before);
    ensure!(objects::essence(&changed) != wanted, "nothing was changed");
    eventually("the change is undone", async || {
        let now = objects::existing(world, namespace, NAME, kind).await?;
        let found = objects::essence(&now);
        ensure!(found == wanted, "{found}\ninstead of\n{wanted}");
        ensure!(now.metadata.uid == before.metadata.uid, "it was replaced");
        Ok(())
    })
    .await
}

async fn undone_deletion(world: &World, namespace: &str, kind: OwnedKind) -> Result<()> {
    let api = objects::api(world, namespace, kind);
    let before = objects::existing(world, namespace, NAME, kind).await?;
    let wanted = objects::essence(&before);
    api.delete(&kind.object_name(NAME), &DeleteParams::default())
        .await?;
    eventually("the object is back", async || {
        let now = objects::existing(world, namespace, NAME, kind).await?;
        let found = objects::essence(&now);
        ensure!(
            now.metadata.uid != before.metadata.uid,
            "it was not deleted"
        );
        ensure!(found == wanted, "{found}\ninstead of\n{wanted}");
        Ok(())
    })
    .await
}
