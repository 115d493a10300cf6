//! `spec.model`: the weights, and how they reach the pods.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{ConfigMapKeyRef, SecretKeyRef};

/// The model, and how its weights reach the pods.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.revision) || self.source.startsWith('hf://')")
        .message("revision applies to hf:// sources only; put the version into the path of an https:// or pvc:// source")
        .field_path(".revision"),
    validation = Rule::new("!has(self.credentialsSecretRef) || self.source.startsWith('hf://')")
        .message("credentialsSecretRef applies to hf:// sources only; remove it")
        .field_path(".credentialsSecretRef"),
    validation = Rule::new("!self.source.startsWith('hf://') || self.source.matches('^hf://[A-Za-z0-9][-A-Za-z0-9._]*/[A-Za-z0-9][-A-Za-z0-9._]*(/[A-Za-z0-9][-A-Za-z0-9._/]*)?$')")
        .message("an hf:// source is hf://organisation/repository or hf://organisation/repository/file.gguf; a revision goes into model.revision")
        .field_path(".source"),
    validation = Rule::new("!self.source.startsWith('pvc://') || self.source.matches('^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9][-A-Za-z0-9._/]*$')")
        .message("a pvc:// source is pvc://claim/path, with the path of a file or folder within the volume")
        .field_path(".source"),
    validation = Rule::new("!self.source.startsWith('https://') || self.source.matches('^https://[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?(:[0-9]{1,5})?/([^?#]*[.]gguf([?#].*)?|[^?#]*/)$')")
        .message("an https:// source is the address of a file, https://host/path/file.gguf, or of a folder with safetensors, https://host/path/")
        .field_path(".source"),
    validation = Rule::new("!self.source.startsWith('https://') || has(self.sha256) || has(self.identityConfigMapRef)")
        .message("an https:// source takes a digest: model.sha256 for a file, model.identityConfigMapRef for a folder")
        .field_path(".source"),
    validation = Rule::new("!has(self.sha256) || self.source.matches('^[^?#]+[.]gguf([?#].*)?$')")
        .message("sha256 is the digest of one .gguf file; for a folder or a repository give model.identityConfigMapRef")
        .field_path(".sha256"),
    validation = Rule::new("!has(self.caConfigMapRef) || !self.source.startsWith('pvc://')")
        .message("caConfigMapRef applies to https:// and hf:// sources only; remove it")
        .field_path(".caConfigMapRef"),
    validation = Rule::new("!oldSelf.source.startsWith('hf://') || self.source == oldSelf.source")
        .message("an hf:// source cannot be changed, because savings and the devices' head layers belong to one model; set model.revision for another version, or create another SplitModel")
        .field_path(".source"),
)]
pub struct Model {
    /// Where the weights are: `hf://organisation/repository[/file.gguf]`, `https://host/path/file.gguf`,
    /// `https://host/path/` for a folder with safetensors, or `pvc://claim/path` for a file or folder on a
    /// PersistentVolumeClaim in this namespace.
    #[schemars(
        length(min = 8, max = 1024),
        regex(pattern = r"^(hf|https|pvc)://[^\s]+$")
    )]
    pub source: String,
    /// Branch, tag or commit of an `hf://` source; the repository's main branch where it is absent. A commit
    /// is what makes a rollout repeatable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 128),
        regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")
    )]
    pub revision: Option<String>,
    /// SHA-256 of the `.gguf` file that the source names, 64 hexadecimal digits in lower case. `https://` sources take
    /// it; others may. Tails refuse a file that has another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 64, max = 64), regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: Option<String>,
    /// The model's identity, as `tail-server --print-identity` writes it. Tails refuse a model that is another one, and
    /// of safetensors they fetch only the layers that they serve, and others when a device asks for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity_config_map_ref: Option<ConfigMapKeyRef>,
    /// Certificate authorities in PEM that the source is trusted by, beside the usual ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_config_map_ref: Option<ConfigMapKeyRef>,
    /// The access token for a private `hf://` repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretKeyRef>,
    /// Where pods keep downloaded weights and built head artefacts.
    #[serde(default)]
    pub cache: ModelCache,
}

/// Where pods keep downloaded weights and built head artefacts.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.claimName) && has(self.sizeLimit))")
        .message("claimName and sizeLimit exclude each other: sizeLimit bounds the pod's own cache, a claim has a size of its own")
        .field_path(".sizeLimit"),
)]
pub struct ModelCache {
    /// A PersistentVolumeClaim that pods share (ReadWriteMany, or ReadWriteOnce on one node). Without it,
    /// each pod downloads into a volume of its own that ends with the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub claim_name: Option<String>,
    /// Bound of a pod's own cache volume, such as `40Gi`; unbounded where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), regex(pattern = r"^[1-9][0-9]*(Mi|Gi|Ti)$"))]
    pub size_limit: Option<String>,
}
