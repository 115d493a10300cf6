//! The PodMonitor of the Prometheus operator.

use serde_json::{Value, json};

use super::{metadata, selector};
use crate::kinds::OwnedKind;
use crate::names;
use crate::validate::ValidSpec;

pub(super) fn build(valid: &ValidSpec) -> Value {
    let mut endpoint = json!({"port": names::TAIL, "path": "/metrics"});
    if valid.spec.expose.tls_secret_ref.is_some() {
        endpoint["scheme"] = "https".into();
        // The certificate is for the name that devices use; Prometheus comes by a pod's address.
        endpoint["tlsConfig"] = json!({"insecureSkipVerify": true});
    }
    json!({
        "metadata": metadata(OwnedKind::PodMonitor, valid),
        "spec": {
            "selector": {"matchLabels": selector(valid)},
            "podMetricsEndpoints": [endpoint],
            "podTargetLabels": [names::SPLITMODEL_LABEL],
        },
    })
}
