//! Which of a tenant's devices asks, as far as its credential tells.

use std::fmt;

use sha2::{Digest as _, Sha256};

use super::Tenant;
use super::keys::KeyDigest;

/// What tells one device of a tenant from another: a SHA-256 over the tenant and what the credential says of the
/// device, so that it has the same size whatever that is. It is shown nowhere, because a key's can be checked
/// against guesses of the key's digest.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Device([u8; 32]);

impl Device {
    /// The device that holds this key of `tenant`.
    pub(super) fn of_key(tenant: &Tenant, key: &KeyDigest) -> Self {
        Self::new(b"key", tenant, key.as_bytes())
    }

    /// The device that a JWT's `sub` names. Tokens of `tenant` without one are one device together: whoever
    /// leaves it out gets no further than who does not.
    pub(super) fn of_subject(tenant: &Tenant, subject: Option<&str>) -> Self {
        match subject {
            Some(subject) => Self::new(b"subject", tenant, subject.as_bytes()),
            None => Self::new(b"no subject", tenant, b""),
        }
    }

    /// The device with the certificate of this SHA-256 fingerprint.
    pub(super) fn of_certificate(tenant: &Tenant, fingerprint: &[u8; 32]) -> Self {
        Self::new(b"certificate", tenant, fingerprint)
    }

    fn new(kind: &[u8], tenant: &Tenant, name: &[u8]) -> Self {
        let tenant = tenant.as_str().as_bytes();
        let mut hasher = Sha256::new();
        // With their lengths, so that what is of one field cannot pass for the end of another.
        for field in [kind, tenant, name] {
            hasher.update((field.len() as u64).to_le_bytes());
            hasher.update(field);
        }
        Self(hasher.finalize().into())
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Device(redacted)")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::auth::CredentialSource;

    /// A device for tests of what is counted against devices.
    pub(crate) fn device(tenant: &Tenant, name: &str) -> Device {
        Device::of_subject(tenant, Some(name))
    }

    fn tenant(source: CredentialSource, name: &str) -> Tenant {
        Tenant::named(source, name).unwrap()
    }

    #[test]
    fn a_subject_is_a_device_within_its_tenant() {
        let (acme, globex) = (
            tenant(CredentialSource::Oidc, "acme"),
            tenant(CredentialSource::Oidc, "globex"),
        );
        assert_eq!(device(&acme, "phone"), device(&acme, "phone"));
        assert_ne!(device(&acme, "phone"), device(&acme, "tablet"));
        assert_ne!(device(&acme, "phone"), device(&globex, "phone"));
        // The end of the tenant's name is not the beginning of the subject.
        let ac = tenant(CredentialSource::Oidc, "ac");
        assert_ne!(device(&acme, "phone"), device(&ac, "mephone"));
    }

    #[test]
    fn tokens_without_a_subject_are_one_device_of_their_tenant() {
        let acme = tenant(CredentialSource::Oidc, "acme");
        let nameless = Device::of_subject(&acme, None);
        assert_eq!(nameless, Device::of_subject(&acme, None));
        assert_ne!(nameless, device(&acme, ""));
        let globex = tenant(CredentialSource::Oidc, "globex");
        assert_ne!(nameless, Device::of_subject(&globex, None));
    }

    #[test]
    fn a_device_is_shown_nowhere() {
        let acme = tenant(CredentialSource::Key, "acme");
        assert_eq!(format!("{:?}", device(&acme, "phone")), "Device(redacted)");
    }
}
