//! On whose behalf a device asks.

use std::fmt;
use std::sync::Arc;

/// The longest name of a tenant.
pub(super) const MAX_TENANT_BYTES: usize = 128;

/// How a tenant has shown itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CredentialSource {
    Key,
    Oidc,
    Certificate,
}

/// On whose behalf a device asks. What is kept for one tenant (limits, caches) is for no other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tenant(Arc<str>);

impl Tenant {
    /// Everybody, where nobody has to show who they are.
    pub(crate) fn anonymous() -> Self {
        Self("anonymous".into())
    }

    /// `None` where the name is not one.
    pub(crate) fn named(source: CredentialSource, name: &str) -> Option<Self> {
        let is_name = (1..=MAX_TENANT_BYTES).contains(&name.len())
            && name.bytes().all(|byte| match source {
                CredentialSource::Key => byte.is_ascii_alphanumeric() || b"._-@/".contains(&byte),
                // Issuers use bars and colons.
                _ => byte.is_ascii_graphic(),
            });
        let prefix = match source {
            CredentialSource::Key => "key",
            CredentialSource::Oidc => "oidc",
            CredentialSource::Certificate => "cert",
        };
        is_name.then(|| Self(format!("{prefix}/{name}").into()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}
