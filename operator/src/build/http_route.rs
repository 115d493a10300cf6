//! The HTTPRoute of the Gateway API, where a SplitModel asks for one.

use serde_json::{Value, json};

use super::metadata;
use crate::crd::expose::ParentRef;
use crate::kinds::OwnedKind;
use crate::names;
use crate::validate::ValidSpec;

pub(super) fn build(valid: &ValidSpec) -> Option<Value> {
    let route = valid.spec.expose.http_route.as_ref()?;
    let parents: Vec<Value> = route.parent_refs.iter().map(parent).collect();
    Some(json!({
        "metadata": metadata(OwnedKind::HttpRoute, valid),
        "spec": {
            "hostnames": [route.host],
            "parentRefs": parents,
            "rules": [{
                "backendRefs": [{"name": names::owned(&valid.owner.name), "port": names::TAIL_PORT}],
                // 0: none. A session lasts as long as an answer, or a conversation.
                "timeouts": {"request": "0s"},
            }],
        },
    }))
}

fn parent(parent: &ParentRef) -> Value {
    let mut json = json!({"name": parent.name});
    if let Some(namespace) = &parent.namespace {
        json["namespace"] = namespace.clone().into();
    }
    if let Some(section) = &parent.section_name {
        json["sectionName"] = section.clone().into();
    }
    json
}
