//! Looking at objects of the cluster.

use anyhow::{Context as _, Result, ensure};
use headway_operator::crd::status::SplitModelStatus;
use headway_operator::kinds::OwnedKind;
use headway_operator::names;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, ObjectList};
use kube::core::{ApiResource, DynamicObject, TypeMeta};
use serde_json::{Value, json};

use crate::world::World;

/// What the API server or a controller gives anew to each object.
const GIVEN_FIELDS: [&str; 6] = [
    "clusterIP",
    "clusterIPs",
    "ipFamilies",
    "ipFamilyPolicy",
    "internalTrafficPolicy",
    "nodePort",
];

/// Objects of a kind, in a namespace.
pub fn api(world: &World, namespace: &str, kind: OwnedKind) -> Api<DynamicObject> {
    Api::namespaced_with(world.client(), namespace, &kind.api_resource())
}

/// The object that a SplitModel owns of a kind.
pub async fn owned(
    world: &World,
    namespace: &str,
    splitmodel: &str,
    kind: OwnedKind,
) -> Result<Option<DynamicObject>> {
    let name = kind.object_name(splitmodel);
    Ok(api(world, namespace, kind).get_opt(&name).await?)
}

/// The object that a SplitModel owns of a kind, which has to be there.
pub async fn existing(
    world: &World,
    namespace: &str,
    splitmodel: &str,
    kind: OwnedKind,
) -> Result<DynamicObject> {
    let object = owned(world, namespace, splitmodel, kind).await?;
    object.with_context(|| format!("{kind:?} of {splitmodel} is missing"))
}

/// The kinds that a SplitModel owns while it is awake.
pub fn awake_kinds() -> impl Iterator<Item = OwnedKind> + Clone {
    OwnedKind::ALL
        .into_iter()
        .filter(|kind| *kind != OwnedKind::EndpointSlice)
}

/// Every kind that is made for SplitModels, by the operator or by what it makes.
fn made_kinds() -> Vec<ApiResource> {
    // The two kinds of Services are one for the API server.
    let kinds = OwnedKind::ALL
        .into_iter()
        .filter(|kind| *kind != OwnedKind::HeadlessService);
    let pods = [
        ApiResource::erase::<ReplicaSet>(&()),
        ApiResource::erase::<Pod>(&()),
    ];
    kinds.map(OwnedKind::api_resource).chain(pods).collect()
}

/// All objects with a label, of every kind that is made for SplitModels.
pub async fn labelled(
    world: &World,
    namespace: Option<&str>,
    selector: &str,
) -> Result<Vec<DynamicObject>> {
    let mut found = Vec::new();
    for resource in made_kinds() {
        let api = match namespace {
            Some(namespace) => Api::namespaced_with(world.client(), namespace, &resource),
            None => Api::all_with(world.client(), &resource),
        };
        let list: ObjectList<DynamicObject> =
            api.list(&ListParams::default().labels(selector)).await?;
        // Kubernetes makes slices of its own, with the labels of their Service.
        let is_ours = |object: &DynamicObject| {
            resource.kind != "EndpointSlice"
                || object
                    .labels()
                    .get("endpointslice.kubernetes.io/managed-by")
                    == Some(&names::MANAGED_BY.to_owned())
        };
        let items = list.items.into_iter().filter(is_ours);
        found.extend(items.map(|mut object: DynamicObject| {
            // Items of a list do not say what they are.
            object.types = Some(TypeMeta {
                api_version: resource.api_version.clone(),
                kind: resource.kind.clone(),
            });
            object
        }));
    }
    Ok(found)
}

/// Fails while an object with the label is left.
pub async fn none_left(world: &World, namespace: &str, selector: &str) -> Result<()> {
    let left = labelled(world, Some(namespace), selector).await?;
    let left: Vec<String> = left.iter().map(title).collect();
    ensure!(left.is_empty(), "{} are left", left.join(", "));
    Ok(())
}

/// Whether an object of [`labelled`] is a pod.
pub fn is_pod(object: &DynamicObject) -> bool {
    object
        .types
        .as_ref()
        .is_some_and(|types| types.kind == "Pod")
}

/// Kind, namespace and name.
pub fn title(object: &DynamicObject) -> String {
    let kind = object
        .types
        .as_ref()
        .map_or("?", |types| types.kind.as_str());
    format!(
        "{kind} {}/{}",
        object.namespace().unwrap_or_default(),
        object.name_any()
    )
}

/// What makes two objects of one name the same: all that is wished for, nothing that is given or observed.
pub fn essence(object: &DynamicObject) -> Value {
    let mut annotations = object.annotations().clone();
    annotations.retain(|name, _| !name.starts_with("deployment.kubernetes.io/"));
    let mut data = object.data.clone();
    if let Some(fields) = data.as_object_mut() {
        fields.remove("status");
    }
    if let Some(spec) = data.get_mut("spec").and_then(Value::as_object_mut) {
        spec.retain(|name, _| !GIVEN_FIELDS.contains(&name.as_str()));
    }
    json!({
        "types": object.types,
        "name": object.name_any(),
        "labels": object.labels(),
        "annotations": annotations,
        "owners": object.owner_references(),
        "finalizers": object.finalizers(),
        "data": data,
    })
}

/// A condition of a status.
pub fn condition<'a>(status: &'a SplitModelStatus, type_: &str) -> Option<&'a Condition> {
    status
        .conditions
        .iter()
        .find(|condition| condition.type_ == type_)
}

/// Whether a condition has a status and a reason.
pub fn has_condition(status: &SplitModelStatus, type_: &str, value: &str, reason: &str) -> bool {
    condition(status, type_)
        .is_some_and(|condition| condition.status == value && condition.reason == reason)
}

/// Checks what every owned object has: a controlling owner, labels, the digest of what was applied.
pub fn check_metadata(object: &DynamicObject, splitmodel: &DynamicObject) -> Result<()> {
    let title = title(object);
    let owners = object.owner_references();
    ensure!(owners.len() == 1, "{title} has the owners {owners:?}");
    ensure!(
        Some(&owners[0].uid) == splitmodel.metadata.uid.as_ref(),
        "{title}: {owners:?}"
    );
    ensure!(owners[0].controller == Some(true), "{title}: {owners:?}");
    let labels = object.labels();
    for (key, value) in [
        (names::SPLITMODEL_LABEL, splitmodel.name_any().as_str()),
        ("app.kubernetes.io/managed-by", names::MANAGED_BY),
        ("app.kubernetes.io/name", "tail-server"),
        ("app.kubernetes.io/part-of", "headway"),
    ] {
        let found = labels.get(key).map(String::as_str);
        ensure!(found == Some(value), "{title}: {key} is {found:?}");
    }
    let annotations = object.annotations();
    ensure!(
        annotations.contains_key(names::APPLIED_ANNOTATION),
        "{title}: {annotations:?}"
    );
    Ok(())
}
