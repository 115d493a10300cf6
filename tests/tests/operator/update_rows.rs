//! Fields of the spec, and where a change of each shows.

use headway_operator::kinds::OwnedKind;
use serde_json::{Value, json};

use OwnedKind::{Deployment, HttpRoute, PodMonitor, ScaledObject, Service};

mod auth;
mod model;
mod tail;

/// A change and its effect.
pub struct Row {
    /// The changed field.
    pub leaf: &'static str,
    /// What the spec holds beyond [`crate::specs::asleep`] before.
    pub before: Value,
    /// The change, a merge patch of the spec.
    pub after: Value,
    /// Where it shows.
    pub kind: OwnedKind,
    /// JSON pointer into the object.
    pub pointer: &'static str,
    /// What is there after the change and not before; `None`: nothing any more.
    pub expected: Option<Value>,
}

const ARGUMENTS: &str = "/spec/template/spec/containers/0/args";
const LIMITS: &str = "/spec/template/spec/containers/0/resources/limits";
const VOLUMES: &str = "/spec/template/spec/volumes";

/// At least one row for each leaf of the spec's schema.
pub fn all() -> Vec<Row> {
    let groups = [
        model::model(),
        model::split_and_edge(),
        tail::tail(),
        tail::limits(),
        tail::telemetry(),
        tail::placement(),
        tail::volumes(),
        autoscaling(),
        expose(),
        auth::auth(),
        rest(),
    ];
    groups.into_iter().flatten().collect()
}

fn row(
    leaf: &'static str,
    after: Value,
    kind: OwnedKind,
    pointer: &'static str,
    expected: Value,
) -> Row {
    Row {
        leaf,
        before: json!({}),
        after,
        kind,
        pointer,
        expected: Some(expected),
    }
}

fn argument(leaf: &'static str, after: Value, expected: &str) -> Row {
    row(leaf, after, Deployment, ARGUMENTS, json!([expected]))
}

/// The change removes what was there.
fn removal(
    leaf: &'static str,
    before: Value,
    after: Value,
    kind: OwnedKind,
    pointer: &'static str,
) -> Row {
    Row {
        leaf,
        before,
        after,
        kind,
        pointer,
        expected: None,
    }
}

impl Row {
    fn from(mut self, before: Value) -> Self {
        self.before = before;
        self
    }
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn autoscaling() -> Vec<Row> {
    let keda = || json!({"autoscaling": {"provider": "keda", "keda": {"prometheusAddress": "http://prometheus:9090"}}});
    let scaled = |leaf, after: Value, pointer, expected: Value| {
        row(
            leaf,
            json!({"autoscaling": after}),
            ScaledObject,
            pointer,
            expected,
        )
        .from(keda())
    };
    let threshold = |value: &str| json!([{"metadata": {"threshold": value}}]);
    vec![
        row(
            "autoscaling.provider",
            keda(),
            ScaledObject,
            "/kind",
            json!("ScaledObject"),
        ),
        removal(
            "autoscaling.provider",
            keda(),
            json!({"autoscaling": {"provider": "operator", "keda": null}}),
            ScaledObject,
            "",
        ),
        row(
            "autoscaling.provider",
            json!({"autoscaling": {"provider": "none"}}),
            Deployment,
            "/spec/replicas",
            json!(0),
        )
        .from(json!({"autoscaling": {"min": 1}})),
        row(
            "autoscaling.min",
            json!({"autoscaling": {"min": 2}}),
            Deployment,
            "/spec/replicas",
            json!(2),
        ),
        scaled(
            "autoscaling.min",
            json!({"min": 2}),
            "/spec/minReplicaCount",
            json!(2),
        ),
        row(
            "autoscaling.max",
            json!({"autoscaling": {"max": 1}}),
            Deployment,
            "/spec/replicas",
            json!(1),
        )
        .from(json!({"replicas": 2})),
        scaled(
            "autoscaling.max",
            json!({"max": 3}),
            "/spec/maxReplicaCount",
            json!(3),
        ),
        scaled(
            "autoscaling.targets.sessionsPercent",
            json!({"targets": {"sessionsPercent": 50}}),
            "/spec/triggers",
            threshold("32"),
        ),
        scaled(
            "autoscaling.targets.kvPercent",
            json!({"targets": {"kvPercent": 50}}),
            "/spec/triggers",
            threshold("50"),
        ),
        scaled(
            "autoscaling.targets.queueDelayMs",
            json!({"targets": {"queueDelayMs": 250}}),
            "/spec/triggers",
            threshold("250"),
        ),
        scaled(
            "autoscaling.windows.stableSeconds",
            json!({"windows": {"stableSeconds": 120}}),
            "/spec/triggers",
            json!([{"metadata": {"query": "~[120s]"}}]),
        ),
        scaled(
            "autoscaling.windows.panicSeconds",
            json!({"windows": {"panicSeconds": 9}}),
            "/spec/pollingInterval",
            json!(9),
        ),
        scaled(
            "autoscaling.windows.scaleDownDelaySeconds",
            json!({"windows": {"scaleDownDelaySeconds": 60}}),
            "/spec/cooldownPeriod",
            json!(60),
        ),
        scaled(
            "autoscaling.keda.prometheusAddress",
            json!({"keda": {"prometheusAddress": "http://other:9090"}}),
            "/spec/triggers",
            json!([{"metadata": {"serverAddress": "http://other:9090"}}]),
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn expose() -> Vec<Row> {
    let route = |parent: Value| json!({"expose": {"httpRoute": {"host": "smol.example.com", "parentRefs": [parent]}}});
    let parent = |leaf, reference: Value| {
        let expected = json!([reference]);
        row(
            leaf,
            route(reference),
            HttpRoute,
            "/spec/parentRefs",
            expected,
        )
        .from(route(json!({"name": "gateway"})))
    };
    let tls = || json!({"expose": {"tlsSecretRef": {"name": "certificate"}}});
    let annotated = || json!({"expose": {"serviceAnnotations": {"example.com/a": "b"}}});
    vec![
        row(
            "expose.serviceType",
            json!({"expose": {"serviceType": "LoadBalancer"}}),
            Service,
            "/spec/type",
            json!("LoadBalancer"),
        ),
        row(
            "expose.serviceType",
            json!({"expose": {"serviceType": "ClusterIP"}}),
            Service,
            "/spec/type",
            json!("ClusterIP"),
        )
        .from(json!({"expose": {"serviceType": "NodePort"}})),
        row(
            "expose.serviceAnnotations",
            annotated(),
            Service,
            "/metadata/annotations",
            json!({"example.com/a": "b"}),
        ),
        removal(
            "expose.serviceAnnotations",
            annotated(),
            json!({"expose": {"serviceAnnotations": null}}),
            Service,
            "/metadata/annotations/example.com~1a",
        ),
        row(
            "expose.httpRoute.host",
            route(json!({"name": "gateway"})),
            HttpRoute,
            "/spec/hostnames",
            json!(["smol.example.com"]),
        ),
        removal(
            "expose.httpRoute.host",
            route(json!({"name": "gateway"})),
            json!({"expose": {"httpRoute": null}}),
            HttpRoute,
            "",
        ),
        parent(
            "expose.httpRoute.parentRefs[].name",
            json!({"name": "other"}),
        ),
        parent(
            "expose.httpRoute.parentRefs[].namespace",
            json!({"name": "gateway", "namespace": "gateways"}),
        ),
        parent(
            "expose.httpRoute.parentRefs[].sectionName",
            json!({"name": "gateway", "sectionName": "https"}),
        ),
        row(
            "expose.tlsSecretRef.name",
            tls(),
            Deployment,
            VOLUMES,
            json!([{"name": "headway-tls", "secret": {"secretName": "certificate"}}]),
        ),
        row(
            "expose.tlsSecretRef.name",
            tls(),
            PodMonitor,
            "/spec/podMetricsEndpoints",
            json!([{"scheme": "https"}]),
        ),
    ]
}

fn rest() -> Vec<Row> {
    vec![
        row(
            "replicas",
            json!({"replicas": 2}),
            Deployment,
            "/spec/replicas",
            json!(2),
        ),
        row(
            "rollout.maxSurge",
            json!({"rollout": {"maxSurge": "50%"}}),
            Deployment,
            "/spec/strategy/rollingUpdate",
            json!({"maxSurge": "50%", "maxUnavailable": 0}),
        ),
        row(
            "rollout.maxSurge",
            json!({"rollout": {"maxSurge": 0}}),
            Deployment,
            "/spec/strategy/rollingUpdate",
            json!({"maxSurge": 0, "maxUnavailable": 1}),
        ),
        row(
            "rollout.drainSeconds",
            json!({"rollout": {"drainSeconds": 5}}),
            Deployment,
            "/spec/template/spec/terminationGracePeriodSeconds",
            json!(18),
        ),
    ]
}
