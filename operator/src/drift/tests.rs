use serde_json::json;

use super::*;
use crate::kinds::OwnedKind;

fn body() -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "smol-tail",
            "namespace": "models",
            "labels": {"app": "tail"},
            "annotations": {names::APPLIED_ANNOTATION: "d1"},
            "ownerReferences": [{"uid": "u1", "kind": "SplitModel", "name": "smol"}],
        },
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "tail"}},
            "strategy": null,
            "template": {"spec": {
                "containers": [{
                    "name": "tail",
                    "args": ["--model=x"],
                    "ports": [{"containerPort": 8089}],
                }],
                "volumes": [{"name": "cache", "emptyDir": {}}],
            }},
        },
    })
}

fn fields() -> Value {
    json!({
        "f:metadata": {
            "f:labels": {"f:app": {}},
            "f:annotations": {"f:headway.dev/applied": {}},
            "f:ownerReferences": {"k:{\"uid\":\"u1\"}": {}},
        },
        "f:spec": {
            "f:replicas": {},
            "f:selector": {},
            "f:template": {"f:spec": {
                "f:containers": {"k:{\"name\":\"tail\"}": {
                    ".": {},
                    "f:name": {},
                    "f:args": {},
                    "f:ports": {"k:{\"containerPort\":8089,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
                }},
                "f:volumes": {"k:{\"name\":\"cache\"}": {".": {}, "f:emptyDir": {}, "f:name": {}}},
            }},
        },
    })
}

fn metadata(fields: Value, digest: &str) -> ObjectMeta {
    serde_json::from_value(json!({
        "name": "smol-tail",
        "annotations": {names::APPLIED_ANNOTATION: digest},
        "managedFields": [
            {"manager": "kubectl-edit", "operation": "Update", "fieldsV1": {"f:spec": {"f:paused": {}}}},
            {"manager": names::OBJECTS_MANAGER, "operation": "Apply", "fieldsV1": fields},
        ],
    }))
    .unwrap()
}

fn desired() -> DesiredObject {
    DesiredObject {
        kind: OwnedKind::Deployment,
        name: "smol-tail".to_owned(),
        manifest: body(),
        digest: "d1".to_owned(),
    }
}

#[test]
fn untouched_object_is_current() {
    assert!(is_current(&metadata(fields(), "d1"), &desired()));
}

#[test]
fn another_digest_is_not_current() {
    assert!(!is_current(&metadata(fields(), "d2"), &desired()));
}

#[test]
fn object_of_another_manager_is_not_current() {
    let mut metadata = metadata(fields(), "d1");
    metadata.managed_fields.as_mut().unwrap().pop();
    assert!(!is_current(&metadata, &desired()));
}

#[test]
fn every_single_lost_field_is_noticed() {
    // Each path below the root is what is lost when somebody changes that field.
    let pointers = [
        "/f:metadata/f:labels/f:app",
        "/f:metadata/f:annotations/f:headway.dev~1applied",
        "/f:metadata/f:ownerReferences/k:{\"uid\":\"u1\"}",
        "/f:spec/f:replicas",
        "/f:spec/f:selector",
        "/f:spec/f:template/f:spec/f:containers/k:{\"name\":\"tail\"}",
        "/f:spec/f:template/f:spec/f:containers/k:{\"name\":\"tail\"}/f:args",
        "/f:spec/f:template/f:spec/f:volumes/k:{\"name\":\"cache\"}/f:emptyDir",
    ];
    for pointer in pointers {
        let mut fields = fields();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = fields.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        assert!(
            parent.remove(&key.replace("~1", "/")).is_some(),
            "{pointer}"
        );
        // A parent without children is a leaf for the reader, so another child keeps it a map.
        parent.insert("f:other".to_owned(), json!({}));
        assert!(
            !is_current(&metadata(fields, "d1"), &desired()),
            "{pointer}"
        );
    }
}

#[test]
fn cached_metadata_says_the_same() {
    let mut cached = metadata(fields(), "d1");
    keep_own_fields(&mut cached);
    assert_eq!(cached.managed_fields.as_ref().unwrap().len(), 1);
    assert!(is_current(&cached, &desired()));
    keep_own_fields(&mut cached);
    assert!(is_current(&cached, &desired()));
}

#[test]
fn sets_are_compared_by_item() {
    let own = json!({"v:\"a\"": {}, "v:\"b\"": {}});
    assert!(owns_value(&json!(["a", "b"]), &own));
    assert!(!owns_value(&json!(["a", "c"]), &own));
}
