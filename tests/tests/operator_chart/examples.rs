//! `examples/` can be applied as it is.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::chart::{
    Namespace, install_definition, kubectl, object, read_from_root, root, without_definition,
};

#[test]
fn every_example_is_taken_without_a_warning() -> Result<()> {
    let Some(_guard) = without_definition()? else {
        return Ok(());
    };
    install_definition()?;
    let namespace = Namespace::create("chart-examples")?;
    for name in names()? {
        let file = format!(
            "--filename={}",
            root().join("examples").join(&name).display()
        );
        kubectl(&[
            "apply",
            "--server-side",
            "--validate=strict",
            "--namespace",
            namespace.0,
            "--warnings-as-errors",
            &file,
        ])
        .with_context(|| name.clone())?;
    }
    let splitmodels = object(&["splitmodels", "--namespace", namespace.0])?;
    let count = splitmodels["items"].as_array().map_or(0, Vec::len);
    assert_eq!(count, names()?.len(), "one SplitModel in each example");
    Ok(())
}

#[test]
fn secrets_and_claims_of_examples_are_in_them() -> Result<()> {
    // Made by others: cert-manager, say.
    let made_by_others = ["llama-tls", "smol-for-all-tls"];
    for name in names()? {
        let text = read_from_root(&format!("examples/{name}"))?;
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text)?;
        let named: BTreeSet<&str> = objects
            .iter()
            .filter_map(|object| object["metadata"]["name"].as_str())
            .collect();
        let mut wanted = Vec::new();
        for object in objects
            .iter()
            .filter(|object| object["kind"] == "SplitModel")
        {
            referred(object, &mut wanted);
        }
        for reference in wanted {
            assert!(
                named.contains(reference) || made_by_others.contains(&reference),
                "{name} refers to {reference}"
            );
        }
    }
    Ok(())
}

#[test]
fn keys_in_examples_open_nothing() -> Result<()> {
    for name in names()? {
        let text = read_from_root(&format!("examples/{name}"))?;
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text)?;
        let keys = objects
            .iter()
            .filter_map(|object| object["stringData"]["keys"].as_str());
        for line in keys
            .flat_map(str::lines)
            .filter(|line| !line.starts_with('#'))
        {
            // Tenant, hash and, where there is one, an end.
            let hash = line.split(':').nth(1).context("a hash")?;
            assert_eq!(hash, "0".repeat(64), "{name}");
        }
    }
    Ok(())
}

#[test]
fn list_of_examples_is_complete() -> Result<()> {
    let readme = read_from_root("examples/README.md")?;
    let rows = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| [")?.split_once(']'));
    let listed: BTreeSet<String> = rows.map(|(name, _)| name.to_owned()).collect();
    assert_eq!(listed, names()?.into_iter().collect());
    Ok(())
}

fn names() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root().join("examples"))? {
        let name = entry?
            .file_name()
            .into_string()
            .ok()
            .context("a name in UTF-8")?;
        if name.ends_with(".yaml") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Names of Secrets and claims that an object refers to.
fn referred<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match key.as_str() {
                    "secretRef" | "credentialsSecretRef" | "tlsSecretRef" => {
                        found.extend(value["name"].as_str())
                    }
                    "claimName" => found.extend(value.as_str()),
                    _ => referred(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| referred(item, found)),
        _ => {}
    }
}
