//! `status`: what the operator answers.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// What the operator answers.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SplitModelStatus {
    /// The `metadata.generation` that the rest of the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Progressing`, `Degraded` and `ModelAvailable`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
    /// Tail pods that exist.
    #[serde(default)]
    pub replicas: i32,
    /// Tail pods that serve.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Tail pods that there should be; absent where somebody else decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_replicas: Option<i32>,
    /// Label selector of the tail pods, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// The URL to give to devices: of the route where there is one, else of the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// GPU-seconds used and saved since the SplitModel was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub savings: Option<Savings>,
}

/// GPU-seconds used and saved. The four terms are measured apart and never mixed.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Savings {
    /// GPU-seconds the tails used.
    #[serde(default)]
    pub used_gpu_seconds: f64,
    /// GPU-seconds saved, all four terms together.
    #[serde(default)]
    pub saved_gpu_seconds: f64,
    /// Saved because devices ran the first layers.
    #[serde(default)]
    pub head_layers_gpu_seconds: f64,
    /// Saved because devices answered alone.
    #[serde(default)]
    pub on_device_answers_gpu_seconds: f64,
    /// Saved because drafts of devices were accepted.
    #[serde(default)]
    pub accepted_drafts_gpu_seconds: f64,
    /// Saved because prefixes were still in the KV cache.
    #[serde(default)]
    pub reused_prefixes_gpu_seconds: f64,
    /// When the numbers were last brought up to date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<Time>,
}
