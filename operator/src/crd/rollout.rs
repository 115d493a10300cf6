//! `spec.rollout`: how pods are replaced.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// How pods are replaced. Devices move to other pods by themselves and lose no token.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// How many pods there may be above the wanted number while they are replaced: a number, or a percentage
    /// such as `25%`. With 0, which saves a spare GPU, one old pod leaves before its successor starts.
    #[serde(default = "one")]
    #[x_kube(
        validation = Rule::new("string(self).matches('^(0|[1-9][0-9]{0,2}|1000|(100|[1-9]?[0-9])%)$')")
            .message("maxSurge is a number from 0 to 1000 or a percentage from 0% to 100%"),
    )]
    pub max_surge: IntOrString,
    /// Seconds that the sessions of a leaving pod have to move or to end.
    #[serde(default = "thirty")]
    #[schemars(range(min = 0, max = 3600))]
    pub drain_seconds: u32,
    /// Seconds that a pod of a new template may fail, counted from its arrival on a node, before the rollout stops by
    /// itself and pods of the template that serves take their places again: a container that crashes, an image that
    /// cannot be pulled, a model that cannot be had or is another one than promised. A download that goes on is no
    /// failure. The condition `Degraded` says why it stopped; a change of the spec begins a new rollout.
    #[serde(default = "three_minutes")]
    #[schemars(range(min = 10, max = 3600))]
    pub stop_after_seconds: u32,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            max_surge: one(),
            drain_seconds: thirty(),
            stop_after_seconds: three_minutes(),
        }
    }
}

fn one() -> IntOrString {
    IntOrString::Int(1)
}

fn thirty() -> u32 {
    30
}

fn three_minutes() -> u32 {
    180
}
