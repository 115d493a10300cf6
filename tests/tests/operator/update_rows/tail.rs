//! Rows of `spec.tail`.

use headway_operator::kinds::OwnedKind::{Deployment, NetworkPolicy, ResourceClaimTemplate};
use serde_json::{Value, json};

use super::{LIMITS, Row, VOLUMES, argument, removal, row};
use crate::specs::merged;

const REQUESTS: &str = "/spec/template/spec/containers/0/resources/requests";
const CLAIM_REQUESTS: &str = "/spec/spec/devices/requests";

#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn tail() -> Vec<Row> {
    let plugin = json!({"tail": {"accelerator": {"resourceName": "nvidia.com/gpu"}}});
    let claim = json!({"tail": {"accelerator": {"deviceClassName": "gpu.example.com"}}});
    let container =
        |pointer, leaf, after, expected| row(leaf, after, Deployment, pointer, expected);
    vec![
        container(
            "/spec/template/spec/containers/0/image",
            "tail.image",
            json!({"tail": {"image": "registry.example.com/tail:2"}}),
            json!("registry.example.com/tail:2"),
        ),
        container(
            "/spec/template/spec/containers/0/imagePullPolicy",
            "tail.imagePullPolicy",
            json!({"tail": {"imagePullPolicy": "Never"}}),
            json!("Never"),
        ),
        row(
            "tail.imagePullSecrets[]",
            json!({"tail": {"imagePullSecrets": [{"name": "registry"}]}}),
            Deployment,
            "/spec/template/spec/imagePullSecrets",
            json!([{"name": "registry"}]),
        ),
        argument(
            "tail.dtype",
            json!({"tail": {"dtype": "bf16"}}),
            "--dtype=bf16",
        ),
        row(
            "tail.accelerator.resourceName",
            plugin.clone(),
            Deployment,
            LIMITS,
            json!({"nvidia.com/gpu": "1"}),
        ),
        row(
            "tail.accelerator.deviceClassName",
            claim.clone(),
            ResourceClaimTemplate,
            CLAIM_REQUESTS,
            json!([{"exactly": {"deviceClassName": "gpu.example.com", "count": 1}}]),
        ),
        row(
            "tail.accelerator.deviceClassName",
            json!({"tail": {"accelerator": {"deviceClassName": "other.example.com"}}}),
            ResourceClaimTemplate,
            CLAIM_REQUESTS,
            json!([{"exactly": {"deviceClassName": "other.example.com"}}]),
        )
        .from(claim.clone()),
        removal(
            "tail.accelerator.deviceClassName",
            claim.clone(),
            json!({"tail": {"accelerator": null}}),
            ResourceClaimTemplate,
            "",
        ),
        row(
            "tail.accelerator.count",
            json!({"tail": {"accelerator": {"count": 3}}}),
            Deployment,
            LIMITS,
            json!({"nvidia.com/gpu": "3"}),
        )
        .from(plugin),
        row(
            "tail.accelerator.count",
            json!({"tail": {"accelerator": {"count": 3}}}),
            ResourceClaimTemplate,
            CLAIM_REQUESTS,
            json!([{"exactly": {"count": 3}}]),
        )
        .from(claim),
        argument(
            "tail.deterministic",
            json!({"tail": {"deterministic": true}}),
            "--deterministic",
        ),
        row(
            "tail.resources.requests",
            json!({"tail": {"resources": {"requests": {"cpu": 2}}}}),
            Deployment,
            REQUESTS,
            json!({"cpu": "2"}),
        ),
        row(
            "tail.resources.limits",
            json!({"tail": {"resources": {"limits": {"memory": "4Gi"}}}}),
            Deployment,
            LIMITS,
            json!({"memory": "4Gi"}),
        ),
    ]
}

pub(super) fn placement() -> Vec<Row> {
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}],
    }}});
    let spread = json!([{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}]);
    let tolerations = json!([{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}]);
    let pod = |leaf, after: Value, pointer, expected: &Value| {
        row(
            leaf,
            json!({"tail": after}),
            Deployment,
            pointer,
            expected.clone(),
        )
    };
    vec![
        pod(
            "tail.nodeSelector",
            json!({"nodeSelector": {"pool": "gpu"}}),
            "/spec/template/spec/nodeSelector",
            &json!({"pool": "gpu"}),
        ),
        pod(
            "tail.tolerations[]",
            json!({"tolerations": tolerations}),
            "/spec/template/spec/tolerations",
            &tolerations,
        ),
        pod(
            "tail.affinity",
            json!({"affinity": affinity}),
            "/spec/template/spec/affinity",
            &affinity,
        ),
        pod(
            "tail.topologySpreadConstraints[]",
            json!({"topologySpreadConstraints": spread}),
            "/spec/template/spec/topologySpreadConstraints",
            &spread,
        ),
        pod(
            "tail.runtimeClassName",
            json!({"runtimeClassName": "gvisor"}),
            "/spec/template/spec/runtimeClassName",
            &json!("gvisor"),
        ),
        pod(
            "tail.priorityClassName",
            json!({"priorityClassName": "high"}),
            "/spec/template/spec/priorityClassName",
            &json!("high"),
        ),
        pod(
            "tail.podLabels",
            json!({"podLabels": {"team": "a"}}),
            "/spec/template/metadata/labels",
            &json!({"team": "a"}),
        ),
        removal(
            "tail.podLabels",
            json!({"tail": {"podLabels": {"team": "a"}}}),
            json!({"tail": {"podLabels": null}}),
            Deployment,
            "/spec/template/metadata/labels/team",
        ),
        pod(
            "tail.podAnnotations",
            json!({"podAnnotations": {"example.com/a": "b"}}),
            "/spec/template/metadata/annotations",
            &json!({"example.com/a": "b"}),
        ),
    ]
}

pub(super) fn limits() -> Vec<Row> {
    let limit = |leaf, limits: Value, expected: &str| {
        argument(leaf, json!({"tail": {"limits": limits}}), expected)
    };
    vec![
        limit(
            "tail.limits.sessions",
            json!({"sessions": 7}),
            "--max-sessions=7",
        ),
        limit(
            "tail.limits.kvMemory",
            json!({"kvMemory": "1Gi"}),
            "--max-kv-bytes=1073741824",
        ),
        limit(
            "tail.limits.stepTokens",
            json!({"stepTokens": 64}),
            "--step-tokens=64",
        ),
        limit("tail.limits.queue", json!({"queue": 9}), "--max-queue=9"),
        limit(
            "tail.limits.draftTokens",
            json!({"draftTokens": 0}),
            "--max-draft-tokens=0",
        ),
        limit(
            "tail.limits.evictIdleSeconds",
            json!({"evictIdleSeconds": 5}),
            "--evict-idle-seconds=5",
        ),
        limit(
            "tail.limits.prefixRetentionSeconds",
            json!({"prefixRetentionSeconds": 0}),
            "--prefix-retention-seconds=0",
        ),
        limit(
            "tail.limits.perTenant.sessions",
            json!({"perTenant": {"sessions": 3}}),
            "--tenant-max-sessions=3",
        ),
        limit(
            "tail.limits.perTenant.tokensPerSecond",
            json!({"perTenant": {"tokensPerSecond": 300}}),
            "--tenant-tokens-per-second=300",
        ),
        limit(
            "tail.limits.perDevice.sessions",
            json!({"perDevice": {"sessions": 1}}),
            "--device-max-sessions=1",
        ),
        limit(
            "tail.limits.perDevice.tokensPerSecond",
            json!({"perDevice": {"tokensPerSecond": 20}}),
            "--device-tokens-per-second=20",
        ),
    ]
}

pub(super) fn telemetry() -> Vec<Row> {
    let collector = || json!({"tail": {"tracing": {"otlpEndpoint": "http://collector:4318"}}});
    vec![
        argument(
            "tail.log.format",
            json!({"tail": {"log": {"format": "json"}}}),
            "--log-format=json",
        ),
        argument(
            "tail.log.filter",
            json!({"tail": {"log": {"filter": "debug"}}}),
            "--log-filter=debug",
        ),
        argument(
            "tail.tracing.otlpEndpoint",
            collector(),
            "--otlp-endpoint=http://collector:4318",
        ),
        row(
            "tail.tracing.otlpEndpoint",
            collector(),
            NetworkPolicy,
            "/spec/egress",
            json!([{"ports": [{"port": 4318}]}]),
        ),
    ]
}

pub(super) fn volumes() -> Vec<Row> {
    let volume = |source: Value| json!({"tail": {"extraVolumes": [merged(json!({"name": "extra"}), &source)]}});
    let source = |leaf, source: Value| {
        let expected = json!([merged(json!({"name": "extra"}), &source)]);
        row(leaf, volume(source), Deployment, VOLUMES, expected)
    };
    let empty = || volume(json!({"emptyDir": {}}));
    vec![
        row(
            "tail.extraVolumes[].name",
            json!({"tail": {"extraVolumes": [{"name": "renamed", "emptyDir": {}}]}}),
            Deployment,
            VOLUMES,
            json!([{"name": "renamed"}]),
        )
        .from(empty()),
        source("tail.extraVolumes[].configMap", json!({"configMap": {"name": "files"}})),
        source("tail.extraVolumes[].csi", json!({"csi": {"driver": "csi.example.com"}})),
        source("tail.extraVolumes[].emptyDir", json!({"emptyDir": {"medium": "Memory"}})),
        source("tail.extraVolumes[].persistentVolumeClaim", json!({"persistentVolumeClaim": {"claimName": "files"}})),
        source("tail.extraVolumes[].projected", json!({"projected": {"sources": [{"configMap": {"name": "files"}}]}})),
        // One volume with another source: the former one has to go.
        source("tail.extraVolumes[].secret", json!({"secret": {"secretName": "files"}}))
            .from(volume(json!({"configMap": {"name": "files"}}))),
        row(
            "tail.extraVolumeMounts[]",
            json!({"tail": {"extraVolumeMounts": [{"name": "extra", "mountPath": "/extra", "readOnly": true}]}}),
            Deployment,
            "/spec/template/spec/containers/0/volumeMounts",
            json!([{"name": "extra", "mountPath": "/extra", "readOnly": true}]),
        )
        .from(empty()),
    ]
}
