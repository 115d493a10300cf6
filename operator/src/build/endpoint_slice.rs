//! The EndpointSlice that leads the Service to the operator while no tail is ready. It stands beside those that
//! Kubernetes makes of the pods: a Service leads to the endpoints of all its slices.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use super::metadata;
use crate::kinds::OwnedKind;
use crate::names;
use crate::validate::ValidSpec;

pub(super) fn build(valid: &ValidSpec, door: SocketAddr) -> Value {
    let mut metadata = metadata(OwnedKind::EndpointSlice, valid);
    let labels = metadata.labels.get_or_insert_default();
    for (name, value) in [
        (
            "kubernetes.io/service-name",
            names::owned(&valid.owner.name),
        ),
        (
            "endpointslice.kubernetes.io/managed-by",
            names::MANAGED_BY.to_owned(),
        ),
    ] {
        labels.insert(name.to_owned(), value);
    }
    let address_type = match door.ip() {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    };
    json!({
        "metadata": metadata,
        "addressType": address_type,
        "endpoints": [{"addresses": [door.ip()], "conditions": {"ready": true}}],
        // The name is that of the Service's port.
        "ports": [{"name": names::TAIL, "port": door.port(), "protocol": "TCP"}],
    })
}
