//! The PodDisruptionBudget: node drains take one tail at a time.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::{json, metadata, selector};
use crate::kinds::OwnedKind;
use crate::validate::ValidSpec;

/// One at a time, also for a single pod: a node can always be drained, and devices wait or move.
pub(super) fn build(valid: &ValidSpec) -> Value {
    json(&PodDisruptionBudget {
        metadata: metadata(OwnedKind::PodDisruptionBudget, valid),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(LabelSelector {
                match_labels: Some(selector(valid)),
                ..LabelSelector::default()
            }),
            // A pod that does not serve protects nothing.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    })
}
