//! Rows of `spec.model`, `spec.split` and `spec.edge`.

use headway_operator::kinds::OwnedKind::{Deployment, NetworkPolicy};
use serde_json::json;

use super::{Row, VOLUMES, argument, row};

pub(super) fn model() -> Vec<Row> {
    let secret = |name: &str, key: &str| json!([{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}]);
    let environment = "/spec/template/spec/containers/0/env";
    vec![
        argument(
            "model.source",
            json!({"model": {"source": "https://models.example.com/b.gguf"}}),
            "--model=https://models.example.com/b.gguf",
        )
        .from(json!({"model": {"source": "https://models.example.com/a.gguf"}})),
        row(
            "model.source",
            json!({"model": {"source": "https://models.example.com:8443/a.gguf"}}),
            NetworkPolicy,
            "/spec/egress",
            json!([{"ports": [{"port": 8443}]}]),
        )
        .from(json!({"model": {"source": "pvc://weights/a.gguf"}})),
        row(
            "model.source",
            json!({"model": {"source": "pvc://weights/a.gguf"}}),
            Deployment,
            VOLUMES,
            json!([{"name": "headway-model", "persistentVolumeClaim": {"claimName": "weights", "readOnly": true}}]),
        )
        .from(json!({"model": {"source": "https://models.example.com/a.gguf"}})),
        argument("model.revision", json!({"model": {"revision": "v2"}}), "--model=hf://org/smol@v2"),
        row(
            "model.credentialsSecretRef.name",
            json!({"model": {"credentialsSecretRef": {"name": "hub"}}}),
            Deployment,
            environment,
            secret("hub", "token"),
        ),
        row(
            "model.credentialsSecretRef.key",
            json!({"model": {"credentialsSecretRef": {"key": "other"}}}),
            Deployment,
            environment,
            secret("hub", "other"),
        )
        .from(json!({"model": {"credentialsSecretRef": {"name": "hub"}}})),
        row(
            "model.cache.claimName",
            json!({"model": {"cache": {"claimName": "weights"}}}),
            Deployment,
            VOLUMES,
            json!([{"name": "headway-cache", "persistentVolumeClaim": {"claimName": "weights"}}]),
        ),
        row(
            "model.cache.sizeLimit",
            json!({"model": {"cache": {"sizeLimit": "40Gi"}}}),
            Deployment,
            VOLUMES,
            json!([{"name": "headway-cache", "emptyDir": {"sizeLimit": "40Gi"}}]),
        ),
    ]
}

pub(super) fn split_and_edge() -> Vec<Row> {
    vec![
        argument("split.min", json!({"split": {"min": 3}}), "--split-min=3"),
        argument("split.max", json!({"split": {"max": 9}}), "--split-max=9"),
        argument(
            "split.default",
            json!({"split": {"default": 5}}),
            "--split-default=5",
        ),
        argument(
            "edge.quantizations",
            json!({"edge": {"quantizations": ["q8_0", "q4_1"]}}),
            "--head-quantizations=q8_0,q4_1",
        ),
        argument(
            "edge.codecs",
            json!({"edge": {"codecs": ["f32", "int8"]}}),
            "--codecs=f32,int8",
        ),
        argument(
            "edge.tokenUpload",
            json!({"edge": {"tokenUpload": false}}),
            "--no-token-upload",
        )
        .from(json!({"split": {"min": 1}})),
        argument(
            "edge.onDeviceAnswers",
            json!({"edge": {"onDeviceAnswers": true}}),
            "--on-device-answers",
        ),
    ]
}
