//! Rows of `spec.model`, `spec.split` and `spec.edge`.

use headway_operator::kinds::OwnedKind::{Deployment, NetworkPolicy};
use serde_json::{Value, json};

use super::{Row, VOLUMES, argument, row};

/// A source of a file, with the digest that it takes.
fn file(source: &str) -> Value {
    json!({"model": {"source": source, "sha256": "0".repeat(64)}})
}

/// A volume of the pod with one key of a ConfigMap.
fn config_map(volume: &str, name: &str, key: &str) -> Value {
    let items = json!([{"key": key, "path": key}]);
    json!([{"name": volume, "configMap": {"name": name, "items": items, "optional": true}}])
}

pub(super) fn model() -> Vec<Row> {
    [source(), delivery(), cache()]
        .into_iter()
        .flatten()
        .collect()
}

fn source() -> Vec<Row> {
    vec![
        argument(
            "model.source",
            file("https://models.example.com/b.gguf"),
            "--model=https://models.example.com/b.gguf",
        )
        .from(file("https://models.example.com/a.gguf")),
        row(
            "model.source",
            file("https://models.example.com:8443/a.gguf"),
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
        .from(file("https://models.example.com/a.gguf")),
        argument("model.revision", json!({"model": {"revision": "v2"}}), "--model=hf://org/smol@v2"),
    ]
}

fn delivery() -> Vec<Row> {
    let token = |name: &str, key: &str| {
        let items = json!([{"key": key, "path": key}]);
        json!([{"name": "headway-hub", "secret": {"secretName": name, "items": items, "optional": true}}])
    };
    let changed = |leaf, after: Value, volume: Value, before: Value| {
        let after = json!({"model": after});
        row(leaf, after, Deployment, VOLUMES, volume).from(json!({"model": before}))
    };
    let identity = |key: &str| json!({"identityConfigMapRef": {"name": "smol", "key": key}});
    let authorities = |key: &str| json!({"caConfigMapRef": {"name": "ca", "key": key}});
    let digest = "1".repeat(64);
    let sha256 = format!("--model-sha256={digest}");
    vec![
        argument(
            "model.sha256",
            json!({"model": {"sha256": digest}}),
            &sha256,
        )
        .from(json!({"model": {"source": "pvc://weights/a.gguf"}})),
        changed(
            "model.identityConfigMapRef.name",
            identity("identity.json"),
            config_map("headway-identity", "smol", "identity.json"),
            json!({}),
        ),
        changed(
            "model.identityConfigMapRef.key",
            identity("other.json"),
            config_map("headway-identity", "smol", "other.json"),
            identity("identity.json"),
        ),
        changed(
            "model.caConfigMapRef.name",
            authorities("ca.crt"),
            config_map("headway-ca", "ca", "ca.crt"),
            json!({}),
        ),
        changed(
            "model.caConfigMapRef.key",
            authorities("other.crt"),
            config_map("headway-ca", "ca", "other.crt"),
            authorities("ca.crt"),
        ),
        changed(
            "model.credentialsSecretRef.name",
            json!({"credentialsSecretRef": {"name": "hub"}}),
            token("hub", "token"),
            json!({}),
        ),
        changed(
            "model.credentialsSecretRef.key",
            json!({"credentialsSecretRef": {"key": "other"}}),
            token("hub", "other"),
            json!({"credentialsSecretRef": {"name": "hub"}}),
        ),
    ]
}

fn cache() -> Vec<Row> {
    vec![
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
