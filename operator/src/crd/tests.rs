use super::*;

/// Calls `visit` with the path and schema of every field below `schema`, items of lists included.
fn walk(path: &str, schema: &serde_json::Value, visit: &mut impl FnMut(&str, &serde_json::Value)) {
    visit(path, schema);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), field, visit);
    }
    if schema["items"].is_object() {
        walk(&format!("{path}[]"), &schema["items"], visit);
    }
}

fn spec_schema() -> serde_json::Value {
    let json = serde_json::to_value(definition()).unwrap();
    json["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()
}

/// Below these, the schema is Kubernetes' own.
const FOREIGN: [&str; 6] = [
    ".tail.affinity",
    ".tail.extraVolumes[].",
    ".tail.extraVolumeMounts[]",
    ".tail.imagePullSecrets[]",
    ".tail.tolerations[]",
    ".tail.topologySpreadConstraints[]",
];

fn is_foreign(path: &str) -> bool {
    FOREIGN.iter().any(|foreign| path.starts_with(foreign))
}

#[test]
fn every_field_is_documented() {
    walk("", &spec_schema(), &mut |path, schema| {
        let described = schema["description"]
            .as_str()
            .is_some_and(|text| text.len() > 10);
        assert!(
            described || path.is_empty() || path.ends_with("[]") || is_foreign(path),
            "{path}"
        );
    });
}

#[test]
fn every_own_field_is_bounded() {
    walk("", &spec_schema(), &mut |path, schema| {
        if is_foreign(path) {
            return;
        }
        let has = |bound: &str| !schema[bound].is_null();
        let is_bounded = match schema["type"].as_str() {
            Some("integer") => has("minimum") && has("maximum"),
            Some("string") => has("maxLength") || has("enum"),
            Some("array") => has("maxItems"),
            Some("object") => has("properties") || has("maxProperties"),
            _ => true,
        };
        assert!(is_bounded, "{path}: {schema}");
    });
}

#[test]
fn no_format_is_unknown_to_kubernetes() {
    walk("", &spec_schema(), &mut |path, schema| {
        let format = schema["format"].as_str();
        let is_known = matches!(
            format,
            None | Some("int32" | "int64" | "double" | "date-time")
        );
        assert!(is_known, "{path}: {format:?}");
    });
}

#[test]
fn committed_definition_is_the_generated_one() {
    let generated = serde_saphyr::to_string(&definition()).unwrap();
    let committed = include_str!("../../../crds/splitmodels.headway.dev.yaml");
    let in_chart = include_str!("../../../charts/headway/files/crds/splitmodels.headway.dev.yaml");
    assert!(generated == committed, "run `cargo xtask crds`");
    assert!(generated == in_chart, "run `cargo xtask crds`");
}
