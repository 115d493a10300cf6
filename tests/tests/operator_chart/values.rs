//! Values are refused where they are wrong, and documented where they are right.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::chart::{read, render_refuses};

#[test]
fn unknown_keys_are_refused_by_name_at_every_level() -> Result<()> {
    let schema = schema()?;
    let mut objects = Vec::new();
    closed_objects("", &schema, &mut objects);
    assert!(objects.len() > 15, "{objects:?}");
    for path in objects {
        let value = format!("{path}replcias=2");
        let refusal = render_refuses(&["--set", &value])?;
        assert!(
            refusal.contains("'replcias' not allowed"),
            "{value}: {refusal}"
        );
    }
    Ok(())
}

#[test]
fn values_of_the_wrong_kind_are_refused_by_name() -> Result<()> {
    // What is set; where it is wrong.
    let cases = [
        ("replicas=two", "/replicas"),
        ("replicas=11", "/replicas"),
        ("concurrency=0", "/concurrency"),
        ("scrapeSeconds=301", "/scrapeSeconds"),
        ("wake.firstPort=80", "/wake/firstPort"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("image.digest=latest", "/image/digest"),
        ("image.repository=Upper/Case", "/image/repository"),
        ("tail.podMonitors=1", "/tail/podMonitors"),
        ("crds.keep=maybe", "/crds/keep"),
        ("podSecurity.runAsUser=0", "/podSecurity/runAsUser"),
        (
            "podDisruptionBudget.maxUnavailable=half",
            "/podDisruptionBudget/maxUnavailable",
        ),
        (
            "tracing.otlpEndpoint=collector:4318",
            "/tracing/otlpEndpoint",
        ),
        (
            "networkPolicy.apiServerCidrs={all}",
            "/networkPolicy/apiServerCidrs/0",
        ),
        (
            "monitoring.prometheusRule.disabledAlerts={NoSuchAlert}",
            "/monitoring/prometheusRule/disabledAlerts/0",
        ),
        (
            "podLabels.app\\.kubernetes\\.io/name=other",
            "/podLabels/app.kubernetes.io~1name",
        ),
        ("imagePullSecrets={secret}", "/imagePullSecrets/0"),
    ];
    for (value, place) in cases {
        let refusal = render_refuses(&["--set", value])?;
        assert!(
            refusal.contains(&format!("'{place}'")),
            "{value}: {refusal}"
        );
    }
    Ok(())
}

#[test]
fn every_value_is_in_the_schema_with_a_description() -> Result<()> {
    let values: Value = serde_saphyr::from_str(&read("values.yaml")?)?;
    let mut given = BTreeSet::new();
    key_paths("", &values, &schema()?, &mut given);
    let mut described = BTreeMap::new();
    schema_paths("", &schema()?, &mut described);
    let known: BTreeSet<String> = described.keys().cloned().collect();
    assert_eq!(given, known);
    for (path, description) in described {
        assert!(!description.is_empty(), "{path} has no description");
    }
    Ok(())
}

#[test]
fn every_value_has_a_comment_above_it() -> Result<()> {
    let text = read("values.yaml")?;
    let schema = schema()?;
    let mut described = BTreeMap::new();
    schema_paths("", &schema, &mut described);
    let mut above = "";
    let mut path: Vec<&str> = Vec::new();
    let mut seen = 0;
    for line in text.lines() {
        let key = line.trim_start();
        if let Some((name, _)) = key.split_once(':').filter(|_| !key.starts_with(['#', '-'])) {
            path.truncate((line.len() - key.len()) / 2);
            path.push(name);
            // Below a free-form map are examples of its content.
            if described.contains_key(&path.join(".")) {
                seen += 1;
                assert!(
                    above.trim_start().starts_with("# "),
                    "{} has no comment",
                    path.join(".")
                );
            }
        }
        above = line;
    }
    assert_eq!(seen, described.len());
    Ok(())
}

#[test]
fn table_of_values_is_complete_and_names_the_defaults() -> Result<()> {
    let values: Value = serde_saphyr::from_str(&read("values.yaml")?)?;
    let mut described = BTreeMap::new();
    schema_paths("", &schema()?, &mut described);
    let leaves: BTreeMap<String, String> = described
        .keys()
        .filter(|path| {
            !described
                .keys()
                .any(|other| other.starts_with(&format!("{path}.")))
        })
        .map(|path| {
            let value = values.pointer(&format!("/{}", path.replace('.', "/")));
            Ok((path.clone(), value.context("a default")?.to_string()))
        })
        .collect::<Result<_>>()?;
    let readme = read("README.md")?;
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `"));
    let documented: BTreeMap<String, String> = rows
        .filter_map(|row| {
            let mut cells = row.split(" | ");
            let path = cells.next()?.trim_end_matches('`');
            Some((path.to_owned(), cells.next()?.trim_matches('`').to_owned()))
        })
        .collect();
    assert_eq!(leaves, documented);
    Ok(())
}

fn schema() -> Result<Value> {
    Ok(serde_json::from_str(&read("values.schema.json")?)?)
}

/// Properties of a schema that take no others.
fn properties(schema: &Value) -> Option<&serde_json::Map<String, Value>> {
    schema["properties"]
        .as_object()
        .filter(|_| schema["additionalProperties"] == false)
}

/// `""` and `"a.b."` for each object in which only certain keys are known.
fn closed_objects(prefix: &str, schema: &Value, found: &mut Vec<String>) {
    let Some(properties) = properties(schema) else {
        return;
    };
    found.push(prefix.to_owned());
    for (name, schema) in properties {
        closed_objects(&format!("{prefix}{name}."), schema, found);
    }
}

/// `a.b` and its description, for each property.
fn schema_paths(prefix: &str, schema: &Value, found: &mut BTreeMap<String, String>) {
    for (name, schema) in properties(schema).into_iter().flatten() {
        let description = schema["description"].as_str().unwrap_or_default();
        found.insert(format!("{prefix}{name}"), description.to_owned());
        schema_paths(&format!("{prefix}{name}."), schema, found);
    }
}

/// `a.b` for each key, but not for those in maps that take any key.
fn key_paths(prefix: &str, values: &Value, schema: &Value, found: &mut BTreeSet<String>) {
    let values = values.as_object().filter(|_| properties(schema).is_some());
    for (name, value) in values.into_iter().flatten() {
        found.insert(format!("{prefix}{name}"));
        key_paths(
            &format!("{prefix}{name}."),
            value,
            &schema["properties"][name],
            found,
        );
    }
}
