//! The file of hashed keys, and the look-up of a bearer token in it. Pure: text and time come in.
//!
//! The format is documented in [`crate::auth`].

use std::time::SystemTime;

use sha2::{Digest as _, Sha256};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{BearerToken, CredentialSource, Tenant};

#[cfg(test)]
mod tests;

/// The largest file of keys, in bytes.
pub(crate) const MAX_FILE_BYTES: u64 = 2 << 20;

/// The most keys in a file. A look-up compares with every one.
const MAX_KEYS: usize = 10_000;

/// Bytes of a SHA-256.
const DIGEST_BYTES: usize = 32;

/// Why a file of keys cannot be used. No message repeats what the line holds.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyFileError {
    #[error("the file is not UTF-8")]
    Utf8,
    #[error("line {line}: expected TENANT:SHA256-HEX or TENANT:SHA256-HEX:NOT-AFTER")]
    Form { line: usize },
    #[error(
        "line {line}: a tenant is 1 to {} letters, digits and . _ - @ /",
        super::tenant::MAX_TENANT_BYTES
    )]
    Tenant { line: usize },
    #[error("line {line}: a SHA-256 is 64 hexadecimal digits")]
    Digest { line: usize },
    #[error("line {line}: the end is not a time as in RFC 3339: 2030-01-31T00:00:00Z")]
    NotAfter { line: usize },
    #[error("line {line}: the same key is on line {first}")]
    Twice { line: usize, first: usize },
    #[error("line {line}: there are more than {MAX_KEYS} keys")]
    TooMany { line: usize },
}

/// The SHA-256 of a bearer token. Of a random 256-bit key it gives nothing away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyDigest([u8; DIGEST_BYTES]);

impl KeyDigest {
    pub(crate) fn of(token: &BearerToken<'_>) -> Self {
        Self(Sha256::digest(token.reveal().as_bytes()).into())
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// One line of the file.
#[derive(Debug)]
pub(crate) struct Key {
    digest: KeyDigest,
    pub(crate) tenant: Tenant,
    /// `None`: until it is removed.
    pub(crate) not_after: Option<SystemTime>,
}

impl Key {
    pub(crate) fn has_expired(&self, now: SystemTime) -> bool {
        self.not_after.is_some_and(|not_after| now > not_after)
    }
}

/// The keys of one file.
#[derive(Debug, Default)]
pub(crate) struct KeySet {
    keys: Vec<Key>,
}

impl KeySet {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, KeyFileError> {
        let text = std::str::from_utf8(bytes).map_err(|_| KeyFileError::Utf8)?;
        let mut keys: Vec<Key> = Vec::new();
        let mut lines_by_digest = std::collections::HashMap::new();
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            if keys.len() == MAX_KEYS {
                return Err(KeyFileError::TooMany { line });
            }
            let key = parse_line(line, text)?;
            if let Some(first) = lines_by_digest.insert(key.digest.0, line) {
                return Err(KeyFileError::Twice { line, first });
            }
            keys.push(key);
        }
        Ok(Self { keys })
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The key with this digest. Takes the same time wherever it is in the file, and how much of a wrong
    /// digest is right does not show.
    pub(crate) fn find(&self, digest: &KeyDigest) -> Option<&Key> {
        let mut found = u64::MAX;
        for (index, key) in (0_u64..).zip(&self.keys) {
            found.conditional_assign(&index, key.digest.0.ct_eq(&digest.0));
        }
        self.keys.get(usize::try_from(found).ok()?)
    }
}

fn parse_line(line: usize, text: &str) -> Result<Key, KeyFileError> {
    // The time has colons of its own.
    let mut fields = text.splitn(3, ':');
    let (Some(tenant), Some(digest)) = (fields.next(), fields.next()) else {
        return Err(KeyFileError::Form { line });
    };
    let not_after = match fields.next() {
        None => None,
        Some(text) => {
            let parsed = OffsetDateTime::parse(text.trim(), &Rfc3339);
            Some(SystemTime::from(
                parsed.map_err(|_| KeyFileError::NotAfter { line })?,
            ))
        }
    };
    Ok(Key {
        digest: parse_digest(digest.trim()).ok_or(KeyFileError::Digest { line })?,
        tenant: Tenant::named(CredentialSource::Key, tenant.trim())
            .ok_or(KeyFileError::Tenant { line })?,
        not_after,
    })
}

fn parse_digest(hex: &str) -> Option<KeyDigest> {
    if hex.len() != 2 * DIGEST_BYTES || !hex.is_ascii() {
        return None;
    }
    let mut digest = [0; DIGEST_BYTES];
    for (byte, index) in digest.iter_mut().zip((0..).step_by(2)) {
        let digits = &hex[index..index + 2];
        // `from_str_radix` would take a sign.
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    Some(KeyDigest(digest))
}
