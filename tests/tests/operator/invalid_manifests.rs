//! Manifests that the API server has to refuse, each with the rule that it breaks.
//!
//! A file in `golden/invalid_splitmodels` begins with `# field:` and `# rule:`; both texts must be in the API
//! server's message. Those in `changes/` hold two documents: one to apply, and a change of it to refuse.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use e2e::golden_dir;
use headway_operator::crd::{self, SplitModel};
use headway_operator::validate::ValidSpec;
use kube::api::{Api, Patch, PatchParams};
use kube::core::{DynamicObject, Status};
use serde_json::{Value, json};

use crate::world::{SOMEBODY, World};

/// A file, read.
struct Manifest {
    file: String,
    field: String,
    rule: String,
    documents: Vec<Value>,
}

pub async fn refused(world: World) -> Result<()> {
    let namespace = world.namespace("invalid").await?;
    let manifests = manifests(&golden_dir().join("invalid_splitmodels"), 1)?;
    ensure!(manifests.len() >= 40, "only {} files", manifests.len());
    let rules = cel_rules();
    let mut wrong = Vec::new();
    for manifest in &manifests {
        let tried = check_refused(&world, &namespace, manifest, &manifest.documents[0]).await;
        wrong.extend(
            tried
                .err()
                .map(|error| format!("{}: {error:#}", manifest.file)),
        );
        if rules.contains(&manifest.rule) {
            let tried = check_refused_without_cluster(&namespace, manifest);
            wrong.extend(
                tried
                    .err()
                    .map(|error| format!("{}: {error:#}", manifest.file)),
            );
        }
    }
    for rule in rules
        .iter()
        .filter(|rule| !rule.contains("cannot be changed"))
    {
        if !manifests.iter().any(|manifest| &manifest.rule == rule) {
            wrong.push(format!("no file breaks the rule: {rule}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

pub async fn changes_refused(world: World) -> Result<()> {
    let namespace = world.namespace("invalid-changes").await?;
    let manifests = manifests(&golden_dir().join("invalid_splitmodels/changes"), 2)?;
    ensure!(!manifests.is_empty(), "no files");
    for manifest in &manifests {
        let checked = async {
            let [before, after] = &manifest.documents[..] else {
                anyhow::bail!("two documents");
            };
            apply(&world, &namespace, before)
                .await?
                .context("the first document")?;
            check_refused(&world, &namespace, manifest, after).await
        };
        checked.await.with_context(|| manifest.file.clone())?;
    }
    Ok(())
}

async fn check_refused(
    world: &World,
    namespace: &str,
    manifest: &Manifest,
    document: &Value,
) -> Result<()> {
    let Err(refusal) = apply(world, namespace, document).await? else {
        anyhow::bail!("accepted");
    };
    for text in [&manifest.field, &manifest.rule] {
        ensure!(
            refusal.message.contains(text),
            "{text:?} is not in {:?}",
            refusal.message
        );
    }
    Ok(())
}

/// As `kubectl apply --server-side` does it.
async fn apply(
    world: &World,
    namespace: &str,
    document: &Value,
) -> Result<Result<DynamicObject, Box<Status>>> {
    let api: Api<DynamicObject> = world.raw_splitmodels(namespace);
    let name = document["metadata"]["name"].as_str().context("a name")?;
    let parameters = PatchParams {
        field_validation: Some(kube::api::ValidationDirective::Strict),
        ..PatchParams::apply(SOMEBODY)
    };
    match api.patch(name, &parameters, &Patch::Apply(document)).await {
        Ok(applied) => Ok(Ok(applied)),
        Err(kube::Error::Api(refusal)) => Ok(Err(Box::new(*refusal))),
        Err(error) => Err(error.into()),
    }
}

/// The operator finds the broken rule by itself, should a resource be stored in spite of it.
fn check_refused_without_cluster(namespace: &str, manifest: &Manifest) -> Result<()> {
    let mut document = manifest.documents[0].clone();
    document["metadata"]["namespace"] = namespace.into();
    document["metadata"]["uid"] = "b2c6e0a6-8f5e-4f38-9a57-0c9b3a3c2d11".into();
    let splitmodel: SplitModel = serde_json::from_value(document)?;
    let Err(error) = ValidSpec::check(&splitmodel) else {
        anyhow::bail!("ValidSpec::check accepts it");
    };
    let error = error.to_string();
    ensure!(
        error.contains(&manifest.rule),
        "ValidSpec::check says {error:?}"
    );
    Ok(())
}

/// The messages of all CEL rules of the definition.
fn cel_rules() -> Vec<String> {
    fn collect(schema: &Value, found: &mut Vec<String>) {
        match schema {
            Value::Object(fields) => {
                let rules = fields
                    .get("x-kubernetes-validations")
                    .and_then(Value::as_array);
                let messages = rules
                    .into_iter()
                    .flatten()
                    .filter_map(|rule| rule["message"].as_str());
                found.extend(messages.map(str::to_owned));
                fields.values().for_each(|part| collect(part, found));
            }
            Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    collect(&json!(crd::definition()), &mut found);
    found
}

/// Every file in a folder, in order.
fn manifests(folder: &Path, documents: usize) -> Result<Vec<Manifest>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let paths: std::io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths?;
    paths.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "yaml")
    });
    paths.sort();
    let read = |path: &PathBuf| read(path, documents).with_context(|| path.display().to_string());
    paths.iter().map(read).collect()
}

fn read(path: &Path, count: usize) -> Result<Manifest> {
    let text = fs::read_to_string(path)?;
    let mut lines = text.lines();
    let mut headline = |prefix: &str| {
        let line = lines.next().and_then(|line| line.strip_prefix(prefix));
        anyhow::Ok(
            line.with_context(|| format!("a line with {prefix}"))?
                .to_owned(),
        )
    };
    let (field, rule) = (headline("# field: ")?, headline("# rule: ")?);
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text)?;
    ensure!(documents.len() == count, "{} documents", documents.len());
    Ok(Manifest {
        file: path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        field,
        rule,
        documents,
    })
}
