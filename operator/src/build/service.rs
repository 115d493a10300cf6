//! The ServiceAccount and the two Services.

use k8s_openapi::api::core::v1::{Service, ServiceAccount, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::{json, metadata, selector};
use crate::kinds::OwnedKind;
use crate::names;
use crate::validate::ValidSpec;

/// Tails speak to no API server, so their account has no token mounted and no role bound.
pub(super) fn account(valid: &ValidSpec) -> Value {
    json(&ServiceAccount {
        metadata: metadata(OwnedKind::ServiceAccount, valid),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    })
}

/// What devices connect to.
pub(super) fn service(valid: &ValidSpec) -> Value {
    let expose = &valid.spec.expose;
    let mut metadata = metadata(OwnedKind::Service, valid);
    if !expose.service_annotations.is_empty() {
        metadata.annotations = Some(expose.service_annotations.clone());
    }
    json(&Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(expose.service_type.name().to_owned()),
            selector: Some(selector(valid)),
            ports: Some(vec![port()]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    })
}

/// One address for each pod, also for pods that drain: the operator reads each pod's metrics.
pub(super) fn headless(valid: &ValidSpec) -> Value {
    json(&Service {
        metadata: metadata(OwnedKind::HeadlessService, valid),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(selector(valid)),
            ports: Some(vec![port()]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    })
}

fn port() -> ServicePort {
    ServicePort {
        name: Some(names::TAIL.to_owned()),
        // Gateways treat the connection as a WebSocket from the start.
        app_protocol: Some("kubernetes.io/ws".to_owned()),
        port: names::TAIL_PORT,
        target_port: Some(IntOrString::String(names::TAIL.to_owned())),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}
