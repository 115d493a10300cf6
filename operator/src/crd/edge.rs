//! `spec.edge`: what devices are offered and allowed.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What devices are offered and allowed.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EdgePolicy {
    /// Quantisations in which devices may fetch the layers they run; the first is recommended. Only `none`
    /// loses nothing.
    #[serde(default = "quantizations")]
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-list-type" = "set"))]
    pub quantizations: Vec<Quantization>,
    /// Codecs for the activations a device uploads; the first is recommended. Only `f32` loses nothing.
    #[serde(default = "codecs")]
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-list-type" = "set"))]
    pub codecs: Vec<Codec>,
    /// Whether devices may upload token ids: needed for split layer 0, and for sampling penalties.
    #[serde(default = "yes")]
    pub token_upload: bool,
    /// Whether devices may fetch all layers and answer without the cluster.
    #[serde(default)]
    pub on_device_answers: bool,
}

impl Default for EdgePolicy {
    fn default() -> Self {
        Self {
            quantizations: quantizations(),
            codecs: codecs(),
            token_upload: true,
            on_device_answers: false,
        }
    }
}

/// How head weights are stored; the names are ggml's.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are the formats' own")]
pub enum Quantization {
    None,
    #[serde(rename = "q8_0")]
    Q8_0,
    #[serde(rename = "q6_k")]
    Q6K,
    #[serde(rename = "q5_k")]
    Q5K,
    #[serde(rename = "q4_k")]
    Q4K,
    #[serde(rename = "q4_1")]
    Q4_1,
    #[serde(rename = "q4_0")]
    Q4_0,
}

impl Quantization {
    /// The name that `tail-server --head-quantizations` takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Q8_0 => "q8_0",
            Self::Q6K => "q6_k",
            Self::Q5K => "q5_k",
            Self::Q4K => "q4_k",
            Self::Q4_1 => "q4_1",
            Self::Q4_0 => "q4_0",
        }
    }
}

/// How activations travel from device to tail.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the formats' own")]
pub enum Codec {
    F32,
    Bf16,
    F16,
    Int8,
    Int4,
    Tcq4,
    Tcq3,
}

impl Codec {
    /// The name that `tail-server --codecs` takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Tcq4 => "tcq4",
            Self::Tcq3 => "tcq3",
        }
    }
}

fn quantizations() -> Vec<Quantization> {
    vec![
        Quantization::None,
        Quantization::Q8_0,
        Quantization::Q6K,
        Quantization::Q4K,
    ]
}

fn codecs() -> Vec<Codec> {
    vec![
        Codec::F32,
        Codec::Bf16,
        Codec::F16,
        Codec::Int8,
        Codec::Int4,
        Codec::Tcq4,
        Codec::Tcq3,
    ]
}

fn yes() -> bool {
    true
}
