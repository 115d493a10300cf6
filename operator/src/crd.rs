//! The `SplitModel` resource: what a user declares, and what the operator answers in its status.
//!
//! The rules of the API server stand beside the fields: bounds in the schema, rules over several fields in CEL.
//! `cargo xtask crds` writes the definition into `crds/`.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{CustomResource, CustomResourceExt as _, KubeSchema};
use serde::{Deserialize, Serialize};

pub mod auth;
pub mod autoscaling;
pub mod edge;
pub mod expose;
pub mod limits;
pub mod model;
pub mod pricing;
pub mod rollout;
pub mod split;
pub mod status;
pub mod tail;
pub mod telemetry;

#[cfg(test)]
mod tests;

use auth::Auth;
use autoscaling::Autoscaling;
use edge::EdgePolicy;
use expose::Expose;
use model::Model;
use pricing::Pricing;
use rollout::Rollout;
use split::Split;
use status::SplitModelStatus;
use tail::Tail;

/// A language model whose first layers run on client devices and whose later layers run on this cluster.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "headway.dev",
    version = "v1alpha1",
    kind = "SplitModel",
    namespaced,
    status = "SplitModelStatus",
    derive = "PartialEq",
    shortname = "sm",
    category = "headway",
    cel,
    doc = "A language model whose first layers run on client devices and whose later layers run on this cluster.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status", description = "Whether tails serve the model"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.readyReplicas", description = "Tail pods that serve"),
    printcolumn(name = "Split", type_ = "integer", json_path = ".spec.split.default", description = "Layers a device runs unless it decides otherwise"),
    printcolumn(name = "Used", type_ = "number", json_path = ".status.savings.usedGpuSeconds", description = "GPU-seconds used by the tails"),
    printcolumn(name = "Saved", type_ = "number", json_path = ".status.savings.savedGpuSeconds", description = "GPU-seconds saved by what devices did"),
    printcolumn(name = "Saved%", type_ = "number", json_path = ".status.savings.savedPercent", description = "What was saved, in percent of used and saved together"),
    printcolumn(name = "Money", type_ = "string", json_path = ".status.savings.moneySaved", description = "What was saved, at the price in spec.pricing"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason", priority = 1),
    printcolumn(name = "Tokens", type_ = "integer", json_path = ".status.savings.tokens.tails", priority = 1, description = "Tokens that tails sent to devices"),
    printcolumn(name = "Current", type_ = "string", json_path = ".status.conditions[?(@.type=='SavingsCurrent')].status", priority = 1, description = "Whether the savings are up to date"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".status.desiredReplicas", priority = 1),
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.model.source", priority = 1),
    printcolumn(name = "Revision", type_ = "string", json_path = ".spec.model.revision", priority = 1),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint", priority = 1),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]{0,50}[a-z0-9])?$')")
        .message("metadata.name names Services: 1 to 52 characters, lower-case letters, digits and '-', beginning with a letter and ending with a letter or digit"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.edge.tokenUpload || self.split.min >= 1")
        .message("edge.tokenUpload is false, but split.min is 0: at split layer 0 a device uploads token ids; set split.min to 1 or more, or edge.tokenUpload to true")
        .field_path(".split.min"),
    validation = Rule::new("self.autoscaling.provider != 'none' || self.replicas <= self.autoscaling.max")
        .message("replicas is above autoscaling.max; lower replicas or raise autoscaling.max")
        .field_path(".replicas"),
    validation = Rule::new("!has(self.auth.clientCaConfigMapRef) || has(self.expose.tlsSecretRef)")
        .message("auth.clientCaConfigMapRef takes expose.tlsSecretRef: devices show certificates where TLS ends, which must be at the tails")
        .field_path(".auth.clientCaConfigMapRef"),
)]
pub struct SplitModelSpec {
    /// The model, and how its weights reach the pods.
    pub model: Model,
    /// How many layers devices run.
    #[serde(default)]
    pub split: Split,
    /// What devices are offered and allowed.
    #[serde(default)]
    pub edge: EdgePolicy,
    /// The pods that run the later layers.
    #[serde(default)]
    pub tail: Tail,
    /// How many pods there are when the load changes.
    #[serde(default)]
    pub autoscaling: Autoscaling,
    /// The number of tail pods that a person or a HorizontalPodAutoscaler asks for through the scale
    /// subresource. With `autoscaling.provider: none` it is exactly that number; with `operator` it is the number to
    /// begin with and, whenever it is changed, to go on from, between `autoscaling.min` and `autoscaling.max`; with
    /// `keda` it is ignored.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,
    /// How devices reach the tails.
    #[serde(default)]
    pub expose: Expose,
    /// Who may use the tails. There is no default: letting everybody in is a decision.
    pub auth: Auth,
    /// How pods are replaced.
    #[serde(default)]
    pub rollout: Rollout,
    /// What GPU time costs, so that the status can say what was saved in money.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pricing: Option<Pricing>,
}

/// The definition to install: the derived one, without number formats that Kubernetes does not know and would
/// warn of.
#[must_use]
pub fn definition() -> CustomResourceDefinition {
    fn drop_formats(schema: &mut serde_json::Value) {
        match schema {
            serde_json::Value::Object(fields) => {
                if matches!(fields.get("format"), Some(serde_json::Value::String(format)) if format == "uint32")
                {
                    fields.remove("format");
                }
                fields.values_mut().for_each(drop_formats);
            }
            serde_json::Value::Array(items) => items.iter_mut().for_each(drop_formats),
            _ => {}
        }
    }
    let mut json = serde_json::to_value(SplitModel::crd()).expect("a definition is JSON");
    drop_formats(&mut json);
    serde_json::from_value(json).expect("only formats were dropped")
}

fn one() -> i32 {
    1
}

/// A Secret in the SplitModel's namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret, in the namespace of the SplitModel.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub name: String,
}

/// One key of a Secret in the SplitModel's namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret, in the namespace of the SplitModel.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub name: String,
    /// The key within the Secret.
    #[serde(default = "token_key")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// One key of a ConfigMap in the SplitModel's namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKeyRef {
    /// Name of the ConfigMap, in the namespace of the SplitModel.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub name: String,
    /// The key within the ConfigMap.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

fn token_key() -> String {
    "token".to_owned()
}
