//! The NetworkPolicy: in only on the tail's port, out only to where weights come from.

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::{json, metadata, selector};
use crate::kinds::OwnedKind;
use crate::names;
use crate::validate::ValidSpec;

const DNS_PORT: i32 = 53;
const HTTPS_PORT: i32 = 443;

pub(super) fn build(valid: &ValidSpec) -> Value {
    json(&NetworkPolicy {
        metadata: metadata(OwnedKind::NetworkPolicy, valid),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector {
                match_labels: Some(selector(valid)),
                ..LabelSelector::default()
            }),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(vec![NetworkPolicyIngressRule {
                ports: Some(vec![port(
                    "TCP",
                    IntOrString::String(names::TAIL.to_owned()),
                )]),
                ..NetworkPolicyIngressRule::default()
            }]),
            egress: Some(egress(&valid.spec.model.source)),
        }),
    })
}

/// Weights on a volume need no network at all.
fn egress(source: &str) -> Vec<NetworkPolicyEgressRule> {
    if source.starts_with("pvc://") {
        return Vec::new();
    }
    vec![NetworkPolicyEgressRule {
        ports: Some(vec![
            port("UDP", IntOrString::Int(DNS_PORT)),
            port("TCP", IntOrString::Int(DNS_PORT)),
            port("TCP", IntOrString::Int(https_port(source))),
        ]),
        ..NetworkPolicyEgressRule::default()
    }]
}

/// The port in `https://host:port/path`.
fn https_port(source: &str) -> i32 {
    let authority = source
        .strip_prefix("https://")
        .and_then(|rest| rest.split('/').next());
    authority
        .and_then(|authority| authority.rsplit_once(':'))
        .and_then(|(_, port)| port.parse::<u16>().ok())
        .map_or(HTTPS_PORT, i32::from)
}

fn port(protocol: &str, port: IntOrString) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some(protocol.to_owned()),
        port: Some(port),
        end_port: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_of_the_source_is_let_out() {
        assert_eq!(https_port("https://host/model.gguf"), 443);
        assert_eq!(https_port("https://host:8443/model.gguf"), 8443);
        assert_eq!(https_port("hf://org/model"), 443);
    }
}
