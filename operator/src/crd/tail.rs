//! `spec.tail`: the pods that run the later layers.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, CSIVolumeSource, ConfigMapVolumeSource, EmptyDirVolumeSource, LocalObjectReference,
    PersistentVolumeClaimVolumeSource, ProjectedVolumeSource, SecretVolumeSource, Toleration,
    TopologySpreadConstraint, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits::Limits;
use super::telemetry::{Log, Tracing};

/// The pods that run the later layers.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.podLabels) || self.podLabels.all(key, !key.startsWith('app.kubernetes.io/') && !key.startsWith('headway.dev/'))")
        .message("labels below app.kubernetes.io/ and headway.dev/ are the operator's; choose other keys")
        .field_path(".podLabels"),
    validation = Rule::new("!has(self.extraVolumes) || self.extraVolumes.all(volume, !volume.name.startsWith('headway-'))")
        .message("volume names that begin with headway- are the operator's; choose another name")
        .field_path(".extraVolumes"),
    validation = Rule::new("!has(self.extraVolumeMounts) || self.extraVolumeMounts.all(mount, has(self.extraVolumes) && self.extraVolumes.exists(volume, volume.name == mount.name))")
        .message("a mount names no volume of tail.extraVolumes; add the volume or correct the name")
        .field_path(".extraVolumeMounts"),
    validation = Rule::new("!has(self.extraVolumeMounts) || self.extraVolumeMounts.all(mount, mount.mountPath.startsWith('/') && !['/cache', '/model', '/tls', '/auth', '/tmp', '/hub', '/identity', '/ca', '/client-ca'].exists(path, mount.mountPath == path || mount.mountPath.startsWith(path + '/')))")
        .message("mountPath must be absolute, and /cache, /model, /tls, /auth, /tmp, /hub, /identity, /ca and /client-ca are the operator's; choose another path")
        .field_path(".extraVolumeMounts"),
)]
pub struct Tail {
    /// Image of tail-server; the one the operator was installed with where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^[^\s]+$"))]
    pub image: Option<String>,
    /// When nodes pull the image; Kubernetes' own rule by tag where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<ImagePullPolicy>,
    /// Secrets for private image registries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Type of the weights in memory; `native` is that of the file.
    #[serde(default)]
    pub dtype: Dtype,
    /// On a Hopper GPU: no bit of a session's logits depends on who shares its steps. Slower.
    #[serde(default)]
    pub deterministic: bool,
    /// The GPU of a pod; without it the tail runs on the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<Accelerator>,
    /// What one pod takes on; beyond it devices are refused with a time to come back.
    #[serde(default)]
    pub limits: Limits,
    /// What the pods write to their log.
    #[serde(default)]
    pub log: Log,
    /// Where the pods' traces go.
    #[serde(default)]
    pub tracing: Tracing,
    /// CPU and memory of a pod. The accelerator is added by itself.
    #[serde(default)]
    pub resources: Resources,
    /// Labels a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that pods tolerate, such as those of GPU or spot nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Where pods want to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// How pods are spread over nodes and zones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// RuntimeClass of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub runtime_class_name: Option<String>,
    /// PriorityClass of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// Labels added to pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub pod_labels: BTreeMap<String, String>,
    /// Annotations added to pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub pod_annotations: BTreeMap<String, String>,
    /// Volumes added to pods, of the kinds that the `restricted` Pod Security Standard allows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub extra_volumes: Vec<ExtraVolume>,
    /// Where the tail's container mounts the added volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub extra_volume_mounts: Vec<VolumeMount>,
}

/// When nodes pull an image.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are Kubernetes' own")]
pub enum ImagePullPolicy {
    Always,
    IfNotPresent,
    Never,
}

impl ImagePullPolicy {
    /// The name in a container's spec.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// Type of the weights in memory.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the types' own")]
pub enum Dtype {
    #[default]
    Native,
    F32,
    Bf16,
    F16,
    /// 8 bits with a scale for each output, on a Hopper GPU.
    Fp8,
}

impl Dtype {
    /// The name that `tail-server --dtype` takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Fp8 => "fp8",
        }
    }
}

/// The GPU of a pod, by device plugin or by dynamic resource allocation.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.resourceName) != has(self.deviceClassName)")
        .message("choose one: accelerator.resourceName for a device plugin, such as nvidia.com/gpu, or accelerator.deviceClassName for dynamic resource allocation")
        .field_path(".resourceName"),
)]
pub struct Accelerator {
    /// Extended resource of a device plugin, such as `nvidia.com/gpu`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 3, max = 253),
        regex(
            pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
        )
    )]
    pub resource_name: Option<String>,
    /// DeviceClass of dynamic resource allocation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub device_class_name: Option<String>,
    /// How many of them a pod has; the tail's layers are spread over them.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 16))]
    pub count: u32,
}

/// CPU and memory of a pod.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the scheduler sets aside.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub requests: BTreeMap<String, IntOrString>,
    /// What a pod may use at most.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub limits: BTreeMap<String, IntOrString>,
}

/// A volume of a kind that the `restricted` Pod Security Standard allows.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.configMap), has(self.csi), has(self.emptyDir), has(self.persistentVolumeClaim), has(self.projected), has(self.secret)].filter(given, given).size() == 1")
        .message("a volume has exactly one source: configMap, csi, emptyDir, persistentVolumeClaim, projected or secret"),
)]
pub struct ExtraVolume {
    /// Name of the volume.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// Files from a ConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapVolumeSource>,
    /// An ephemeral volume of a CSI driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub csi: Option<CSIVolumeSource>,
    /// An empty folder that ends with the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EmptyDirVolumeSource>,
    /// A claim in the SplitModel's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<PersistentVolumeClaimVolumeSource>,
    /// Several sources in one folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projected: Option<ProjectedVolumeSource>,
    /// Files from a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretVolumeSource>,
}

fn one() -> u32 {
    1
}
