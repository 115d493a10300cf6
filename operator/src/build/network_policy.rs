//! The NetworkPolicy: in only on the tail's port, out only on the ports of what tails ask for.

use std::collections::BTreeSet;

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::{json, metadata, selector};
use crate::crd::SplitModelSpec;
use crate::kinds::OwnedKind;
use crate::names;
use crate::validate::ValidSpec;

const DNS_PORT: i32 = 53;
const HTTP_PORT: i32 = 80;
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
            egress: Some(egress(&valid.spec)),
        }),
    })
}

/// Weights on a volume need no network at all.
fn egress(spec: &SplitModelSpec) -> Vec<NetworkPolicyEgressRule> {
    let ports: BTreeSet<i32> = addresses(spec).filter_map(port_of).collect();
    if ports.is_empty() {
        return Vec::new();
    }
    let dns = ["UDP", "TCP"].map(|protocol| port(protocol, IntOrString::Int(DNS_PORT)));
    let others = ports
        .into_iter()
        .map(|number| port("TCP", IntOrString::Int(number)));
    vec![NetworkPolicyEgressRule {
        ports: Some(dns.into_iter().chain(others).collect()),
        ..NetworkPolicyEgressRule::default()
    }]
}

/// What tails ask for: weights, an issuer's keys, a collector of traces.
fn addresses(spec: &SplitModelSpec) -> impl Iterator<Item = &str> {
    let oidc = spec.auth.oidc.as_ref();
    [
        Some(spec.model.source.as_str()),
        oidc.map(|oidc| oidc.issuer.as_str()),
        oidc.and_then(|oidc| oidc.jwks_url.as_deref()),
        spec.tail.tracing.otlp_endpoint.as_deref(),
    ]
    .into_iter()
    .flatten()
}

/// The port in `https://host:port/path`; `None` for a volume, which has none.
fn port_of(address: &str) -> Option<i32> {
    let (scheme, rest) = address.split_once("://")?;
    let default = match scheme {
        "https" | "hf" => HTTPS_PORT,
        "http" => HTTP_PORT,
        _ => return None,
    };
    let given = rest
        .split('/')
        .next()
        .and_then(|authority| authority.rsplit_once(':'))
        .and_then(|(_, port)| port.parse::<u16>().ok());
    Some(given.map_or(default, i32::from))
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
    fn ports_of_addresses() {
        assert_eq!(port_of("https://host/model.gguf"), Some(443));
        assert_eq!(port_of("https://host:8443/model.gguf"), Some(8443));
        assert_eq!(port_of("hf://org/model"), Some(443));
        assert_eq!(port_of("http://collector:4318"), Some(4318));
        assert_eq!(port_of("http://collector"), Some(80));
        assert_eq!(port_of("pvc://claim/model.gguf"), None);
    }
}
