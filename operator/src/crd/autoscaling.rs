//! `spec.autoscaling`: how many pods there are when the load changes.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many pods there are when the load changes.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.min <= self.max")
        .message("min is above max; lower autoscaling.min or raise autoscaling.max")
        .field_path(".min"),
    validation = Rule::new("(self.provider == 'keda') == has(self.keda)")
        .message("autoscaling.keda belongs to provider keda: give keda.prometheusAddress with it, and leave keda out otherwise")
        .field_path(".keda"),
)]
pub struct Autoscaling {
    /// Who sets the number of pods: `operator` decides by load, between `min` and `max`; `keda` leaves
    /// it to a ScaledObject that the operator creates; `none` takes `spec.replicas` as it is, which any
    /// HorizontalPodAutoscaler can set through the scale subresource.
    #[serde(default)]
    pub provider: Provider,
    /// The fewest pods. 0 lets the model go to sleep: without a session for `windows.scaleDownDelaySeconds` it has no
    /// pod, and the first session starts one.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1000))]
    pub min: i32,
    /// The most pods.
    #[serde(default = "ten")]
    #[schemars(range(min = 1, max = 1000))]
    pub max: i32,
    /// The load of one pod that is aimed at.
    #[serde(default)]
    pub targets: Targets,
    /// Over which time load is looked at.
    #[serde(default)]
    pub windows: Windows,
    /// What provider `keda` needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keda: Option<Keda>,
}

impl Default for Autoscaling {
    fn default() -> Self {
        Self {
            provider: Provider::default(),
            min: 1,
            max: 10,
            targets: Targets::default(),
            windows: Windows::default(),
            keda: None,
        }
    }
}

/// Who sets the number of pods.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// This operator.
    #[default]
    Operator,
    /// KEDA, by a ScaledObject.
    Keda,
    /// Nobody, or a HorizontalPodAutoscaler of the user's.
    None,
}

/// The load of one pod that is aimed at.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Targets {
    /// Percent of `tail.limits.sessions` in use.
    #[serde(default = "seventy")]
    #[schemars(range(min = 1, max = 100))]
    pub sessions_percent: u32,
    /// Percent of `tail.limits.kvMemory` in use.
    #[serde(default = "eighty")]
    #[schemars(range(min = 1, max = 100))]
    pub kv_percent: u32,
    /// Milliseconds that work waits for its step, 95th percentile.
    #[serde(default = "hundred")]
    #[schemars(range(min = 1, max = 60_000))]
    pub queue_delay_ms: u32,
}

impl Default for Targets {
    fn default() -> Self {
        Self {
            sessions_percent: 70,
            kv_percent: 80,
            queue_delay_ms: 100,
        }
    }
}

/// Over which time load is looked at.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.panicSeconds < self.stableSeconds")
        .message("the panic window must be shorter than the stable one; lower windows.panicSeconds or raise windows.stableSeconds")
        .field_path(".panicSeconds"),
)]
pub struct Windows {
    /// Seconds over which load is averaged.
    #[serde(default = "sixty")]
    #[schemars(range(min = 10, max = 3600))]
    pub stable_seconds: u32,
    /// Seconds over which a burst is noticed.
    #[serde(default = "six")]
    #[schemars(range(min = 1, max = 600))]
    pub panic_seconds: u32,
    /// Seconds for which fewer pods must have been enough before one goes.
    #[serde(default = "three_hundred")]
    #[schemars(range(min = 0, max = 86_400))]
    pub scale_down_delay_seconds: u32,
}

impl Default for Windows {
    fn default() -> Self {
        Self {
            stable_seconds: 60,
            panic_seconds: 6,
            scale_down_delay_seconds: 300,
        }
    }
}

/// What provider `keda` needs.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Keda {
    /// The Prometheus that scrapes the tails, as KEDA reaches it.
    #[schemars(length(min = 8, max = 1024), regex(pattern = r"^https?://[^\s]+$"))]
    pub prometheus_address: String,
}

fn one() -> i32 {
    1
}

fn ten() -> i32 {
    10
}

fn seventy() -> u32 {
    70
}

fn eighty() -> u32 {
    80
}

fn hundred() -> u32 {
    100
}

fn sixty() -> u32 {
    60
}

fn six() -> u32 {
    6
}

fn three_hundred() -> u32 {
    300
}
