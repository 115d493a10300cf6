//! Specs that scenarios start from.

use serde_json::{Value, json};

/// The least that is valid: one pod.
pub fn minimal() -> Value {
    json!({
        "model": {"source": "hf://org/smol"},
        "auth": {"allowAnonymous": true},
    })
}

/// Without pods, for scenarios about other objects.
pub fn asleep() -> Value {
    merged(
        minimal(),
        &json!({"autoscaling": {"min": 0}, "replicas": 0}),
    )
}

/// Needs every kind of object; its pods find no device.
pub fn complete() -> Value {
    merged(
        minimal(),
        &json!({
            "tail": {"accelerator": {"deviceClassName": "gpu.example.com", "count": 2}},
            "autoscaling": {"provider": "keda", "keda": {"prometheusAddress": "http://prometheus:9090"}},
            "expose": {
                "serviceAnnotations": {"example.com/load-balancer": "internal"},
                "httpRoute": {"host": "smol.example.com", "parentRefs": [{"name": "gateway"}]},
            },
        }),
    )
}

/// `base` after a JSON merge patch (RFC 7396).
pub fn merged(mut base: Value, patch: &Value) -> Value {
    let Value::Object(changes) = patch else {
        return patch.clone();
    };
    if !base.is_object() {
        base = json!({});
    }
    for (name, change) in changes {
        if change.is_null() {
            base.as_object_mut().map(|fields| fields.remove(name));
        } else {
            base[name] = merged(base[name].take(), change);
        }
    }
    base
}
