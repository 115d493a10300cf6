//! The Deployment of tail pods.

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment,
};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::{Settings, digest, json, metadata, pod, selector, session_target};
use crate::autoscale::scales::Standing;
use crate::kinds::OwnedKind;
use crate::names;
use crate::validate::ValidSpec;

/// How long pods may take before the Deployment counts as stuck: large models are downloaded in this time.
const PROGRESS_DEADLINE_SECONDS: i32 = 3600;

pub(super) fn build(
    valid: &ValidSpec,
    settings: &Settings,
    standing: &Standing,
    replicas: Option<i32>,
) -> Value {
    let mut metadata = metadata(OwnedKind::Deployment, valid);
    let template = session_target::projected(pod::template(valid, settings));
    if standing.replicas.is_some() {
        let asked = (
            names::ASKED_ANNOTATION.to_owned(),
            valid.spec.replicas.to_string(),
        );
        metadata.annotations = Some([asked].into());
    }
    json(&Deployment {
        metadata,
        spec: Some(DeploymentSpec {
            replicas,
            selector: LabelSelector {
                match_labels: Some(selector(valid)),
                ..LabelSelector::default()
            },
            strategy: Some(strategy(&valid.spec.rollout.max_surge)),
            progress_deadline_seconds: Some(PROGRESS_DEADLINE_SECONDS),
            revision_history_limit: Some(2),
            template: labelled(template),
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    })
}

/// `template` with its digest as a label, so that pods tell which one they were made from.
fn labelled(mut template: PodTemplateSpec) -> PodTemplateSpec {
    let digest = digest(&json(&template));
    let metadata = template.metadata.get_or_insert_default();
    let labels = metadata.labels.get_or_insert_default();
    labels.insert(names::TEMPLATE_LABEL.to_owned(), digest);
    template
}

/// No pod leaves before its successor serves, unless there may be no surplus pod: then one leaves at a time.
fn strategy(max_surge: &IntOrString) -> DeploymentStrategy {
    let is_zero = match max_surge {
        IntOrString::Int(count) => *count == 0,
        IntOrString::String(percent) => percent == "0%",
    };
    DeploymentStrategy {
        type_: Some("RollingUpdate".to_owned()),
        rolling_update: Some(RollingUpdateDeployment {
            max_surge: Some(max_surge.clone()),
            max_unavailable: Some(IntOrString::Int(i32::from(is_zero))),
        }),
    }
}
