//! SplitModel → [`ValidSpec`]: what the API server's rules say, checked again.
//!
//! A stored resource may be older than the rules, or the definition may have been installed by hand. The rules
//! are not written twice: the ones of the definition itself are evaluated here.

use std::sync::LazyLock;

use kube::ResourceExt as _;
use kube::core::cel::{CompiledSchema, Validator, compile_schema};

use crate::crd::{self, SplitModel, SplitModelSpec};

#[cfg(test)]
pub(crate) mod tests;

/// Which SplitModel it is.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Name of the SplitModel.
    pub name: String,
    /// Namespace of the SplitModel and of everything it owns.
    pub namespace: String,
    /// Distinguishes it from another one that had its name before.
    pub uid: String,
}

impl Owner {
    /// Which one `splitmodel` is.
    ///
    /// # Errors
    /// [`InvalidSpec::Metadata`] where it was never stored.
    pub fn of(splitmodel: &SplitModel) -> Result<Self, InvalidSpec> {
        Ok(Self {
            name: splitmodel.name_any(),
            namespace: splitmodel
                .namespace()
                .ok_or(InvalidSpec::Metadata("namespace"))?,
            uid: splitmodel.uid().ok_or(InvalidSpec::Metadata("uid"))?,
        })
    }
}

/// A SplitModel that can be built.
#[derive(Clone, Debug)]
pub struct ValidSpec {
    /// Which one it is.
    pub owner: Owner,
    /// The spec, with its rules known to hold.
    pub spec: SplitModelSpec,
    /// `spec.tail.limits.kvMemory` in bytes.
    pub kv_bytes: Option<u64>,
}

/// Why a SplitModel cannot be built. Trying again does not help until it changes.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSpec {
    /// A rule of the definition does not hold.
    #[error("{0}")]
    Rule(String),
    /// The API server gave an object without the metadata that every stored object has.
    #[error("metadata.{0} is missing")]
    Metadata(&'static str),
    /// Not a size.
    #[error("spec.tail.limits.kvMemory {0:?} is not a size; write it as 512Mi or 16Gi")]
    KvMemory(String),
}

impl ValidSpec {
    /// Checks `splitmodel`.
    ///
    /// # Errors
    /// The first rule that does not hold.
    pub fn check(splitmodel: &SplitModel) -> Result<Self, InvalidSpec> {
        rules_hold(splitmodel)?;
        let kv_memory = &splitmodel.spec.tail.limits.kv_memory;
        Ok(Self {
            owner: Owner::of(splitmodel)?,
            kv_bytes: kv_memory
                .as_ref()
                .map(|size| parse_bytes(size).ok_or_else(|| InvalidSpec::KvMemory(size.clone())))
                .transpose()?,
            spec: splitmodel.spec.clone(),
        })
    }
}

/// Evaluates the CEL rules of the definition on `splitmodel`; those on changes are the API server's alone.
fn rules_hold(splitmodel: &SplitModel) -> Result<(), InvalidSpec> {
    static RULES: LazyLock<CompiledSchema> = LazyLock::new(|| {
        let definition = crd::definition();
        let schema = definition.spec.versions[0].schema.as_ref();
        let schema = schema.and_then(|schema| schema.open_api_v3_schema.as_ref());
        compile_schema(&serde_json::to_value(schema).expect("a schema is JSON"))
    });
    let object = serde_json::to_value(splitmodel).expect("a resource is JSON");
    let violations = Validator::new().validate_compiled(&RULES, &object, None);
    match violations
        .err()
        .and_then(|all| all.into_vec().into_iter().next())
    {
        None => Ok(()),
        Some(violation) => Err(InvalidSpec::Rule(violation.to_string())),
    }
}

/// `512Mi` → 536,870,912. The suffixes are those the definition allows.
fn parse_bytes(size: &str) -> Option<u64> {
    let (digits, shift) = match size.split_at_checked(size.len().checked_sub(2)?)? {
        (digits, "Mi") => (digits, 20),
        (digits, "Gi") => (digits, 30),
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}
