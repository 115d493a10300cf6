//! Every field of the spec has an effect: each leaf of the definition's schema has a row in [`update_rows`].

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use headway_operator::crd;
use headway_operator::kinds::OwnedKind;
use serde_json::{Value, json};

use crate::objects;
use crate::specs::{asleep, merged};
use crate::update_rows::{self, Row};
use crate::wait::eventually;
use crate::world::World;

/// Rows that are tried at the same time.
const CONCURRENCY: usize = 8;

/// Parts of the schema that are Kubernetes' own: passed on as a whole.
const KUBERNETES_OWN: [&str; 11] = [
    "tail.affinity",
    "tail.imagePullSecrets[]",
    "tail.tolerations[]",
    "tail.topologySpreadConstraints[]",
    "tail.extraVolumeMounts[]",
    "tail.extraVolumes[].configMap",
    "tail.extraVolumes[].csi",
    "tail.extraVolumes[].emptyDir",
    "tail.extraVolumes[].persistentVolumeClaim",
    "tail.extraVolumes[].projected",
    "tail.extraVolumes[].secret",
];

/// Leaves that show in the status alone, or in what becomes of pods that fail.
const IN_STATUS: [&str; 3] = [
    "pricing.gpuHour",
    "pricing.currency",
    "rollout.stopAfterSeconds",
];

pub async fn every_field(world: World) -> Result<()> {
    let rows = update_rows::all();
    let mut in_schema = leaves()?;
    for leaf in IN_STATUS {
        ensure!(in_schema.remove(leaf), "{leaf} is no field of the spec");
    }
    let in_table: BTreeSet<String> = rows.iter().map(|row| row.leaf.to_owned()).collect();
    let without_row: Vec<_> = in_schema.difference(&in_table).collect();
    ensure!(
        without_row.is_empty(),
        "fields of the spec without a row: {without_row:?}"
    );
    let without_field: Vec<_> = in_table.difference(&in_schema).collect();
    ensure!(
        without_field.is_empty(),
        "rows without a field of the spec: {without_field:?}"
    );

    let namespace = world.namespace("updates").await?;
    let tried = futures_util::stream::iter(rows.into_iter().enumerate().map(|(index, row)| {
        let (world, namespace) = (world.clone(), namespace.clone());
        async move {
            let tried = try_row(&world, &namespace, &format!("row-{index}"), &row).await;
            tried
                .err()
                .map(|error| format!("{} by {}: {error:#}", row.leaf, row.after))
        }
    }));
    let failed: Vec<Option<String>> = tried.buffer_unordered(CONCURRENCY).collect().await;
    let failed: Vec<String> = failed.into_iter().flatten().collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

async fn try_row(world: &World, namespace: &str, name: &str, row: &Row) -> Result<()> {
    world
        .create(namespace, name, &merged(asleep(), &row.before))
        .await?;
    eventually("the objects exist", async || {
        objects::existing(world, namespace, name, OwnedKind::Deployment).await
    })
    .await?;
    let has_effect = async || {
        let object = objects::owned(world, namespace, name, row.kind).await?;
        let object = object.map(|object| json!(object)).unwrap_or_default();
        let found = object.pointer(row.pointer).unwrap_or(&Value::Null);
        let holds = row
            .expected
            .as_ref()
            .map_or(found.is_null(), |expected| contains(found, expected));
        anyhow::Ok((holds, found.to_string()))
    };
    let (holds, found) = has_effect().await?;
    ensure!(
        !holds,
        "{:?}{} is {found} before the change",
        row.kind,
        row.pointer
    );
    world
        .change(namespace, name, &json!({"spec": row.after}))
        .await?;
    eventually("the change is seen", async || {
        let (holds, found) = has_effect().await?;
        ensure!(
            holds,
            "{:?}{} is {found}, not {:?}",
            row.kind,
            row.pointer,
            row.expected
        );
        Ok(())
    })
    .await
}

/// Whether every part of `expected` is somewhere in `found`; a text that begins with `~` is a part of a text.
fn contains(found: &Value, expected: &Value) -> bool {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => expected
            .iter()
            .all(|(name, part)| found.get(name).is_some_and(|found| contains(found, part))),
        (Value::Array(found), Value::Array(expected)) => expected
            .iter()
            .all(|item| found.iter().any(|found| contains(found, item))),
        (Value::String(found), Value::String(expected)) => match expected.strip_prefix('~') {
            Some(part) => found.contains(part),
            None => found == expected,
        },
        _ => found == expected,
    }
}

/// The leaves below `spec`, such as `model.cache.sizeLimit` and `expose.httpRoute.parentRefs[].name`.
fn leaves() -> Result<BTreeSet<String>> {
    let definition = json!(crd::definition());
    let schema = definition
        .pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec")
        .context("the definition has a schema of the spec")?;
    let mut found = BTreeSet::new();
    collect_leaves(schema, "", &mut found);
    Ok(found)
}

fn collect_leaves(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    let (fields, path) = match schema.pointer("/items/properties") {
        Some(fields) => (Some(fields), format!("{path}[]")),
        None => (schema.get("properties"), path.to_owned()),
    };
    match fields.and_then(Value::as_object) {
        Some(fields) if !KUBERNETES_OWN.contains(&path.as_str()) => {
            for (name, schema) in fields {
                let separator = if path.is_empty() { "" } else { "." };
                collect_leaves(schema, &format!("{path}{separator}{name}"), found);
            }
        }
        _ => {
            found.insert(path);
        }
    }
}
