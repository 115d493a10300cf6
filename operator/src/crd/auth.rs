//! `spec.auth`: who may use the tails.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::SecretRef;

/// Who may use the tails.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.secretRef) != self.allowAnonymous")
        .message("choose one: auth.secretRef names the Secret with the devices' hashed keys, or auth.allowAnonymous: true lets everybody in who can reach a tail")
        .field_path(".allowAnonymous"),
)]
pub struct Auth {
    /// A Secret whose key `keys` holds the hashed keys of devices, one line each. Pods reload it by
    /// themselves when it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// Lets everybody in who can reach a tail.
    #[serde(default)]
    pub allow_anonymous: bool,
}
