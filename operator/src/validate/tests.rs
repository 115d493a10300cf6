use super::*;

pub(crate) fn splitmodel(spec: serde_json::Value) -> SplitModel {
    serde_json::from_value(serde_json::json!({
        "apiVersion": "headway.dev/v1alpha1",
        "kind": "SplitModel",
        "metadata": {"name": "smol", "namespace": "models", "uid": "b2c6e0a6-8f5e-4f38-9a57-0c9b3a3c2d11", "generation": 1},
        "spec": spec,
    }))
    .unwrap()
}

fn minimal() -> serde_json::Value {
    serde_json::json!({
        "model": {"source": "hf://org/smol"},
        "auth": {"allowAnonymous": true},
    })
}

#[test]
fn minimal_spec_is_valid_and_gets_defaults() {
    let valid = ValidSpec::check(&splitmodel(minimal())).unwrap();
    assert_eq!(valid.kv_bytes, None);
    assert_eq!(valid.spec.replicas, 1);
    assert_eq!(valid.spec.autoscaling.max, 10);
    assert!(valid.spec.edge.token_upload);
}

#[test]
fn broken_cross_field_rule_is_named_with_what_would_be_right() {
    let mut spec = minimal();
    spec["split"] = serde_json::json!({"min": 9, "max": 3});
    let error = ValidSpec::check(&splitmodel(spec)).unwrap_err().to_string();
    assert!(
        error.contains("lower split.min or raise split.max"),
        "{error}"
    );
}

#[test]
fn every_rule_of_the_definition_compiles() {
    let definition = crd::definition();
    let schema = definition.spec.versions[0].schema.as_ref().unwrap();
    let compiled = compile_schema(&serde_json::to_value(&schema.open_api_v3_schema).unwrap());
    assert!(
        !compiled.has_errors(),
        "{:?}",
        compiled.compilation_errors()
    );
    // Evaluated, too: some functions are known only when a rule runs.
    let mut spec = minimal();
    spec["rollout"] = serde_json::json!({"maxSurge": "25%"});
    let digest = "0".repeat(64);
    spec["model"] =
        serde_json::json!({"source": "https://host.example:8443/model.gguf", "sha256": digest});
    ValidSpec::check(&splitmodel(spec)).unwrap();
}

#[test]
fn sizes_are_parsed_without_overflow() {
    assert_eq!(parse_bytes("512Mi"), Some(512 << 20));
    assert_eq!(parse_bytes("16Gi"), Some(16 << 30));
    for wrong in ["", "Gi", "16", "16GB", "16Ti", "99999999999999Gi", "1é"] {
        assert_eq!(parse_bytes(wrong), None, "{wrong}");
    }
}
