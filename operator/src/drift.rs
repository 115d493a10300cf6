//! Whether a live object still is what was applied, from its metadata alone. Pure.
//!
//! Comparing values would mean to know how the API server writes each of them (`1000m` is stored as `1`) and
//! which defaults it adds. Two facts in the metadata say the same without that:
//!
//! - the annotation with the digest of the last applied body: whether *we* want something else now;
//! - `managedFields`: the API server takes a field from our manager's list as soon as anybody else gives it
//!   another value or removes it. As long as every field of the body is in the list, all have our values.
//!
//! Format of `fieldsV1`: <https://kubernetes.io/docs/reference/using-api/server-side-apply/>; a map whose keys
//! are `f:` and a field's name, `k:` and the key fields of a list's item as JSON, `v:` and an item of a set, or
//! `.` for the parent itself; an empty map is a leaf.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry, ObjectMeta};
use serde_json::Value;

use crate::build::DesiredObject;
use crate::names;

#[cfg(test)]
mod tests;

/// Whether the live object with `metadata` needs no write to be `desired`.
#[must_use]
pub fn is_current(metadata: &ObjectMeta, desired: &DesiredObject) -> bool {
    let applied = metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(names::APPLIED_ANNOTATION));
    applied == Some(&desired.digest)
        && own_fields(metadata).is_some_and(|fields| owns_all(&desired.manifest, &fields))
}

/// Whether the number of pods of the live Deployment with `metadata` is ours.
#[must_use]
pub fn owns_replicas(metadata: &ObjectMeta) -> bool {
    own_fields(metadata).is_some_and(|fields| fields.pointer("/f:spec/f:replicas").is_some())
}

/// Drops what [`is_current`] does not look at; caches hold thousands of objects.
pub fn keep_own_fields(metadata: &mut ObjectMeta) {
    let own = metadata.managed_fields.take();
    let own = own.and_then(|entries| entries.into_iter().find(is_own_entry));
    metadata.managed_fields = own.map(|mut entry| {
        // As text: a tree of maps takes ten times the memory.
        entry.fields_v1 = entry.fields_v1.map(|fields| match fields.0 {
            Value::Object(tree) => FieldsV1(Value::String(Value::Object(tree).to_string())),
            text => FieldsV1(text),
        });
        vec![entry]
    });
}

fn is_own_entry(entry: &ManagedFieldsEntry) -> bool {
    entry.manager.as_deref() == Some(names::OBJECTS_MANAGER)
        && entry.operation.as_deref() == Some("Apply")
        && entry.subresource.as_deref().unwrap_or_default().is_empty()
}

fn own_fields(metadata: &ObjectMeta) -> Option<Value> {
    let entries = metadata.managed_fields.as_ref()?;
    let fields = &entries.iter().find(|entry| is_own_entry(entry))?.fields_v1;
    match &fields.as_ref()?.0 {
        Value::String(text) => serde_json::from_str(text).ok(),
        tree => Some(tree.clone()),
    }
}

/// Whether `fields` holds every field of an applied body.
fn owns_all(body: &Value, fields: &Value) -> bool {
    let Value::Object(body) = body else {
        return false;
    };
    // What identifies an object is nobody's field.
    let parts = body
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "apiVersion" | "kind" | "metadata"));
    let metadata = body["metadata"].as_object().into_iter().flatten();
    let metadata_fields = fields.get("f:metadata");
    parts
        .into_iter()
        .all(|(name, value)| owns_field(name, value, fields))
        && metadata
            .filter(|(name, _)| !matches!(name.as_str(), "name" | "namespace"))
            .all(|(name, value)| metadata_fields.is_some_and(|own| owns_field(name, value, own)))
}

fn owns_field(name: &str, value: &Value, parent: &Value) -> bool {
    // A null is "no opinion"; it is applied as if it were not there.
    value.is_null()
        || parent
            .get(format!("f:{name}"))
            .is_some_and(|own| owns_value(value, own))
}

fn owns_value(value: &Value, own: &Value) -> bool {
    // A leaf: a scalar, or a map or list that is replaced as a whole.
    let Some(own_parts) = own.as_object().filter(|parts| !parts.is_empty()) else {
        return true;
    };
    match value {
        Value::Object(parts) => parts.iter().all(|(name, part)| owns_field(name, part, own)),
        Value::Array(items) => items
            .iter()
            .all(|item| own_parts.iter().any(|(key, own)| owns_item(item, key, own))),
        _ => true,
    }
}

/// Whether `key` of a list's fields stands for `item`, with all of its fields.
fn owns_item(item: &Value, key: &str, own: &Value) -> bool {
    if let Some(text) = key.strip_prefix("k:") {
        let Ok(Value::Object(key_fields)) = serde_json::from_str(text) else {
            return false;
        };
        // A key field that the body leaves out was filled in by the API server, such as a port's protocol.
        key_fields
            .iter()
            .all(|(name, value)| item.get(name).is_none_or(|given| given == value))
            && owns_value(item, own)
    } else if let Some(text) = key.strip_prefix("v:") {
        serde_json::from_str::<Value>(text).is_ok_and(|value| &value == item)
    } else {
        false
    }
}
