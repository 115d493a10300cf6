//! `spec.tail.limits`: what one pod takes on.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// What one pod takes on; beyond it devices are refused with a time to come back.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// The most sessions at a time.
    #[serde(default = "sessions")]
    #[schemars(range(min = 1, max = 65_536))]
    pub sessions: u32,
    /// The most memory for KV caches, such as `16Gi`. Without it the tail takes what its GPU has free behind the
    /// weights, less a reserve, and 2Gi on the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 12), regex(pattern = r"^[1-9][0-9]{0,8}(Mi|Gi)$"))]
    pub kv_memory: Option<String>,
    /// The most tokens of one engine step. More is faster for prompts and slower for those who wait. Without it the
    /// tail takes 1024 on a GPU and 128 on the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 65_536))]
    pub step_tokens: Option<u32>,
    /// The most sessions whose prompts wait for a step.
    #[serde(default = "queue")]
    #[schemars(range(min = 1, max = 65_536))]
    pub queue: u32,
    /// The most guessed tokens that one step verifies for a session; 0 verifies none. 16 where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 64))]
    pub draft_tokens: Option<u32>,
    /// After how long without a step a session may be ended where a newcomer finds no room; its device rebuilds it.
    /// 30 where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400))]
    pub evict_idle_seconds: Option<u32>,
    /// How long the KV cache of a prompt is kept for later sessions of its tenant that ask for it; 0 keeps none. 300
    /// where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86_400))]
    pub prefix_retention_seconds: Option<u32>,
    /// What all devices of one tenant may take together.
    #[serde(default)]
    pub per_tenant: Quota,
    /// What one device of a tenant may take. Anonymous devices cannot be told apart and have no such limit.
    #[serde(default)]
    pub per_device: Quota,
}

/// What somebody may take of one pod.
#[derive(KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Quota {
    /// Sessions at a time; no limit where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_536))]
    pub sessions: Option<u32>,
    /// Tokens of prompts and answers a second, on average; no limit where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 20, max = 1_000_000_000))]
    pub tokens_per_second: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: sessions(),
            kv_memory: None,
            step_tokens: None,
            queue: queue(),
            draft_tokens: None,
            evict_idle_seconds: None,
            prefix_retention_seconds: None,
            per_tenant: Quota::default(),
            per_device: Quota::default(),
        }
    }
}

fn sessions() -> u32 {
    64
}

fn queue() -> u32 {
    256
}
