//! [`ValidSpec`] → [`Desired`]: every object a SplitModel owns, as it should be. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource as _;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::autoscale::scales::Standing;
use crate::crd::SplitModel;
use crate::crd::autoscaling::Provider;
use crate::kinds::OwnedKind;
use crate::names;
use crate::rollout::Stopped;
use crate::validate::ValidSpec;

mod deployment;
mod endpoint_slice;
mod http_route;
mod network_policy;
mod pod;
mod pod_disruption_budget;
mod pod_monitor;
mod resource_claim_template;
mod scaled_object;
mod service;
mod session_target;
mod tail_arguments;

#[cfg(test)]
mod tests;

/// What the operator was installed with, as far as objects depend on it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Image of tail-server where a SplitModel names none.
    pub tail_image: String,
    /// Whether each SplitModel gets a PodMonitor.
    pub pod_monitors: bool,
}

/// Every object that should exist for one SplitModel, in the order of creation.
#[derive(Clone, Debug)]
pub struct Desired {
    /// The objects.
    pub objects: Vec<DesiredObject>,
    /// Number of pods; `None` where somebody else decides.
    pub replicas: Option<i32>,
    /// Why pods keep a former template, where they do.
    pub stopped: Option<String>,
}

/// One object as it should be.
#[derive(Clone, Debug)]
pub struct DesiredObject {
    /// Its kind.
    pub kind: OwnedKind,
    /// Its name.
    pub name: String,
    /// The body of the server-side apply; carries `digest` as an annotation.
    pub manifest: Value,
    /// Digest of the body without the annotation.
    pub digest: String,
}

/// Builds every object of `valid`, as things stand.
#[must_use]
pub fn build(valid: &ValidSpec, settings: &Settings, standing: &Standing) -> Desired {
    let replicas = replicas(valid, standing);
    let manifests = [
        (OwnedKind::ServiceAccount, Some(service::account(valid))),
        (OwnedKind::Service, Some(service::service(valid))),
        (OwnedKind::HeadlessService, Some(service::headless(valid))),
        (OwnedKind::NetworkPolicy, Some(network_policy::build(valid))),
        (
            OwnedKind::PodDisruptionBudget,
            Some(pod_disruption_budget::build(valid)),
        ),
        (
            OwnedKind::ResourceClaimTemplate,
            resource_claim_template::build(valid),
        ),
        (OwnedKind::HttpRoute, http_route::build(valid)),
        (OwnedKind::ScaledObject, scaled_object::build(valid)),
        (
            OwnedKind::PodMonitor,
            settings.pod_monitors.then(|| pod_monitor::build(valid)),
        ),
        (
            OwnedKind::EndpointSlice,
            standing.door.map(|door| endpoint_slice::build(valid, door)),
        ),
        (
            OwnedKind::Deployment,
            Some(deployment::build(valid, settings, standing, replicas)),
        ),
    ];
    let objects = manifests
        .into_iter()
        .filter_map(|(kind, manifest)| Some(DesiredObject::new(kind, valid, manifest?)))
        .collect();
    Desired {
        objects,
        replicas,
        stopped: None,
    }
}

/// The number of pods to ask for.
fn replicas(valid: &ValidSpec, standing: &Standing) -> Option<i32> {
    let scaling = &valid.spec.autoscaling;
    match scaling.provider {
        Provider::None => Some(valid.spec.replicas),
        Provider::Operator => {
            let replicas = standing.replicas.unwrap_or(valid.spec.replicas);
            Some(replicas.clamp(scaling.min, scaling.max))
        }
        Provider::Keda => None,
    }
}

impl Desired {
    /// Digest of the template that pods are made from.
    ///
    /// # Panics
    /// Never: every SplitModel has a Deployment, and its template the label.
    #[must_use]
    pub fn template(&self) -> &str {
        let deployment = self
            .objects
            .iter()
            .find(|object| object.kind == OwnedKind::Deployment);
        let manifest = &deployment.expect("there is a Deployment").manifest;
        let label = &manifest["spec"]["template"]["metadata"]["labels"][names::TEMPLATE_LABEL];
        label.as_str().expect("the template is labelled")
    }

    /// Puts the former `template` into the place of the one that was stopped.
    #[must_use]
    pub fn held(mut self, stopped: &Stopped, template: &PodTemplateSpec) -> Self {
        let deployments = self
            .objects
            .iter_mut()
            .filter(|object| object.kind == OwnedKind::Deployment);
        for deployment in deployments {
            let manifest = &mut deployment.manifest;
            manifest["spec"]["template"] = json(template);
            for (name, value) in stopped.annotations() {
                manifest["metadata"]["annotations"][name] = value.into();
            }
            deployment.sign();
        }
        self.stopped = Some(stopped.because.clone());
        self
    }
}

impl DesiredObject {
    fn new(kind: OwnedKind, valid: &ValidSpec, mut manifest: Value) -> Self {
        let resource = kind.api_resource();
        let name = kind.object_name(&valid.owner.name);
        manifest["apiVersion"] = resource.api_version.into();
        manifest["kind"] = resource.kind.into();
        let mut object = Self {
            kind,
            name,
            manifest,
            digest: String::new(),
        };
        object.sign();
        object
    }

    /// Puts the manifest's digest into an annotation.
    fn sign(&mut self) {
        let annotations = self.manifest.pointer_mut("/metadata/annotations");
        if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
            annotations.remove(names::APPLIED_ANNOTATION);
        }
        self.digest = digest(&self.manifest);
        self.manifest["metadata"]["annotations"][names::APPLIED_ANNOTATION] =
            self.digest.clone().into();
    }
}

/// The first 16 bytes of the SHA-256 of `manifest` as JSON, in hexadecimal: short enough for an annotation, and
/// nobody gains anything by a collision.
fn digest(manifest: &Value) -> String {
    let hash = Sha256::digest(manifest.to_string().as_bytes());
    hash.iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Metadata of an owned object. The owner reference does not block the owner's deletion: the finalizer waits
/// for what has to be waited for, and so the operator needs no permission on `splitmodels/finalizers`.
fn metadata(kind: OwnedKind, valid: &ValidSpec) -> ObjectMeta {
    ObjectMeta {
        name: Some(kind.object_name(&valid.owner.name)),
        namespace: Some(valid.owner.namespace.clone()),
        labels: Some(labels(valid)),
        owner_references: Some(vec![OwnerReference {
            api_version: SplitModel::api_version(&()).into_owned(),
            kind: SplitModel::kind(&()).into_owned(),
            name: valid.owner.name.clone(),
            uid: valid.owner.uid.clone(),
            controller: Some(true),
            block_owner_deletion: None,
        }]),
        ..ObjectMeta::default()
    }
}

/// Labels of every owned object and pod.
fn labels(valid: &ValidSpec) -> BTreeMap<String, String> {
    let mut labels = selector(valid);
    for (key, value) in [
        ("app.kubernetes.io/component", names::TAIL),
        ("app.kubernetes.io/managed-by", names::MANAGED_BY),
        ("app.kubernetes.io/part-of", "headway"),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}

/// Labels that select the pods of `valid`. They never change: a Deployment's selector is immutable.
fn selector(valid: &ValidSpec) -> BTreeMap<String, String> {
    BTreeMap::from([
        (
            "app.kubernetes.io/name".to_owned(),
            "tail-server".to_owned(),
        ),
        (names::SPLITMODEL_LABEL.to_owned(), valid.owner.name.clone()),
    ])
}

/// [`selector`] as the text that the scale subresource shows.
#[must_use]
pub fn selector_text(valid: &ValidSpec) -> String {
    let pairs = selector(valid).into_iter();
    let pairs: Vec<String> = pairs.map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(",")
}

/// The URL under which devices reach the tails.
#[must_use]
pub fn endpoint(valid: &ValidSpec) -> String {
    let expose = &valid.spec.expose;
    if let Some(route) = &expose.http_route {
        // Whether the Gateway ends TLS is its own affair; devices on the internet should find that it does.
        return format!("wss://{}", route.host);
    }
    let scheme = if expose.tls_secret_ref.is_some() {
        "wss"
    } else {
        "ws"
    };
    let service = names::owned(&valid.owner.name);
    format!(
        "{scheme}://{service}.{}.svc:{}",
        valid.owner.namespace,
        names::TAIL_PORT
    )
}

/// A typed object as the JSON that is applied, without `status` and other nulls.
fn json(object: &impl Serialize) -> Value {
    serde_json::to_value(object).expect("Kubernetes types are JSON")
}
