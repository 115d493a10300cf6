//! An upgrade brings the new definition, which Helm would not do for one in a chart's `crds/` folder.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::chart::{
    DEFINITION, Namespace, TIMEOUT, await_definition, folder, helm, helm_refuses,
    install_definition, kubectl_refuses, kubectl_with, object, without_definition,
};
use crate::lifecycle::{assert_savings, create_with_savings};

/// A field that the version before did not have.
const NEW_FIELD: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/tail/properties/runtimeClassName";

/// A SplitModel that uses it.
const NEW_SPLITMODEL: &str = r#"{
    "apiVersion": "headway.dev/v1alpha1", "kind": "SplitModel", "metadata": {"name": "new"},
    "spec": {
        "model": {"source": "hf://org/model"}, "auth": {"allowAnonymous": true},
        "tail": {"runtimeClassName": "nvidia"}
    }
}"#;

#[test]
fn upgrade_brings_the_new_definition_and_keeps_savings() -> Result<()> {
    let Some(_guard) = without_definition()? else {
        return Ok(());
    };
    let namespace = Namespace::create("chart-upgrade")?;
    let of = format!("--namespace={}", namespace.0);
    let before = tempfile::tempdir()?;
    make_previous_chart(before.path())?;
    let before = before.path().to_str().context("a path in UTF-8")?;
    let apply = [
        "apply",
        "--server-side",
        "--validate=strict",
        &of,
        "--filename=-",
    ];

    helm(&["install", "headway", before, &of, "--wait", TIMEOUT])?;
    await_definition()?;
    create_with_savings(&of)?;
    let refusal = kubectl_refuses(&apply, NEW_SPLITMODEL)?;
    assert!(refusal.contains("runtimeClassName"), "{refusal}");

    helm(&["upgrade", "headway", "CHART", &of, "--wait", TIMEOUT])?;
    let definition = object(&["crd", DEFINITION])?;
    assert!(definition.pointer(NEW_FIELD).is_some());
    assert_eq!(
        definition["metadata"]["labels"]["helm.sh/chart"],
        "headway-0.1.0"
    );
    assert_savings(&of)?;
    kubectl_with(&apply, NEW_SPLITMODEL)?;

    // And back: what the older definition does not know is not shown any more, the rest stays.
    helm(&["rollback", "headway", "1", &of, "--wait", TIMEOUT])?;
    let definition = object(&["crd", DEFINITION])?;
    assert!(definition.pointer(NEW_FIELD).is_none());
    assert_savings(&of)
}

#[test]
fn definition_installed_by_hand_is_taken_over_when_told_to() -> Result<()> {
    let Some(_guard) = without_definition()? else {
        return Ok(());
    };
    let namespace = Namespace::create("chart-takeover")?;
    let of = format!("--namespace={}", namespace.0);
    let other = tempfile::tempdir()?;
    make_previous_chart(other.path())?;
    let other = other.path().to_str().context("a path in UTF-8")?;

    install_definition()?;
    create_with_savings(&of)?;
    let refusal = helm_refuses(&["install", "headway", "CHART", &of])?;
    assert!(refusal.contains("invalid ownership metadata"), "{refusal}");
    helm(&[
        "install",
        "headway",
        "CHART",
        &of,
        "--set",
        "crds.install=false",
    ])?;
    helm(&[
        "upgrade",
        "headway",
        "CHART",
        &of,
        "--take-ownership",
        "--reset-values",
    ])?;
    let definition = object(&["crd", DEFINITION])?;
    let annotations = &definition["metadata"]["annotations"];
    assert_eq!(annotations["meta.helm.sh/release-name"], "headway");
    // kubectl's fields are still kubectl's, until a definition differs.
    let refusal = helm_refuses(&["upgrade", "headway", other, &of])?;
    assert!(refusal.contains(r#"conflict with "kubectl""#), "{refusal}");
    helm(&["upgrade", "headway", other, &of, "--force-conflicts"])?;
    helm(&["upgrade", "headway", "CHART", &of])?;
    assert_savings(&of)
}

#[test]
fn second_upgrade_to_the_same_chart_changes_no_object() -> Result<()> {
    let Some(_guard) = without_definition()? else {
        return Ok(());
    };
    let namespace = Namespace::create("chart-unchanged")?;
    let of = format!("--namespace={}", namespace.0);
    helm(&["install", "headway", "CHART", &of, "--wait", TIMEOUT])?;
    let generations = || -> Result<Vec<Value>> {
        let objects = [
            object(&["crd", DEFINITION])?,
            object(&["deployment", "headway-operator", &of])?,
        ];
        Ok(objects
            .iter()
            .map(|object| object["metadata"]["generation"].clone())
            .collect())
    };
    let before = generations()?;
    helm(&["upgrade", "headway", "CHART", &of, "--wait", TIMEOUT])?;
    assert_eq!(generations()?, before);
    Ok(())
}

/// Copies the chart, with a lower version and without [`NEW_FIELD`].
fn make_previous_chart(target: &Path) -> Result<()> {
    copy(&folder(), target)?;
    edit(&target.join("Chart.yaml"), |chart| {
        chart["version"] = json!("0.0.9");
        Ok(())
    })?;
    edit(
        &target.join("files/crds/splitmodels.headway.dev.yaml"),
        |definition| {
            let (parent, field) = NEW_FIELD.rsplit_once('/').context("a path")?;
            let fields = definition
                .pointer_mut(parent)
                .and_then(Value::as_object_mut);
            let removed = fields.context("fields of a tail")?.remove(field);
            ensure!(removed.is_some(), "{NEW_FIELD} is not in the definition");
            Ok(())
        },
    )
}

fn copy(source: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target)?;
    for entry in fs::read_dir(source)? {
        let entry = entry?;
        let target = target.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Changes a YAML file. It is written as JSON, which is YAML, too.
fn edit(path: &Path, change: impl FnOnce(&mut Value) -> Result<()>) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut value: Value = serde_saphyr::from_str(&text)?;
    change(&mut value)?;
    Ok(fs::write(path, value.to_string())?)
}
