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
    /// `Ready`, `Progressing`, `Degraded`, `ModelAvailable` and `SavingsCurrent`.
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
    /// The model that tails serve, as the last of them has said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ServedModel>,
    /// GPU-seconds used and saved since the SplitModel was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub savings: Option<Savings>,
}

/// A model by what is in it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServedModel {
    /// SHA-256 over configuration, tokenizer and weights: what devices and tails compare.
    pub digest: String,
    /// The commit that the revision of an `hf://` source led to. As `spec.model.revision` it makes a rollout
    /// repeatable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
}

/// GPU-seconds used and saved. The four terms are measured apart and never mixed. `docs/savings.md` says how.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Savings {
    /// Since when figures are added up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// When the figures last changed. The condition `SavingsCurrent` says whether they are up to date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<Time>,
    /// GPU-seconds the tails used.
    #[serde(default)]
    pub used_gpu_seconds: f64,
    /// GPU-seconds saved, all four terms together.
    #[serde(default)]
    pub saved_gpu_seconds: f64,
    /// What was saved, in percent of used and saved together.
    #[serde(default)]
    pub saved_percent: f64,
    /// `savedGpuSeconds` at the present `spec.pricing`, with its currency; absent where there is no price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub money_saved: Option<String>,
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
    /// Tokens of answers, by who gave them.
    #[serde(default)]
    pub tokens: Tokens,
    /// Answers by where their layers ran.
    #[serde(default)]
    pub answers: Answers,
    /// Runs of tails whose last counters could not be read, because a node was lost, say: what they did after
    /// they were asked last is in no figure.
    #[serde(default)]
    pub unread_endings: i64,
    /// Names of pods that could not be asked for a while; the first 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub unscraped_pods: Vec<String>,
    /// What of each pod is in the figures, so that nothing is counted twice. For the operator alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1200), extend("x-kubernetes-list-type" = "atomic"))]
    pub pods: Vec<CountedPod>,
}

/// Tokens of answers.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tokens {
    /// Sent to devices by tails.
    #[serde(default)]
    pub tails: i64,
    /// Of answers that devices gave alone, as they report them.
    #[serde(default)]
    pub devices: i64,
}

/// Answers by where their layers ran.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answers {
    /// The first layers on the device, the others on a tail.
    #[serde(default)]
    pub split: i64,
    /// All layers on a tail.
    #[serde(default)]
    pub tail: i64,
    /// All layers on the device, as devices report it.
    #[serde(default)]
    pub on_device: i64,
}

/// What of a pod is in the figures.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CountedPod {
    /// `metadata.uid` of the pod.
    pub uid: String,
    /// `metadata.name` of the pod.
    #[serde(default)]
    pub name: String,
    /// Its last runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2), extend("x-kubernetes-list-type" = "atomic"))]
    pub runs: Vec<CountedRun>,
}

/// What of a run of a tail's process is in the figures.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CountedRun {
    /// When it began, in milliseconds since 1970.
    pub started_ms: i64,
    /// Whether its last counters are in the figures.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
    /// The highest counters seen, in the order of the operator's `Counters`; times in microseconds. Zeros at the
    /// end are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub counted: Vec<i64>,
}
