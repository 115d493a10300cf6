//! A certificate authority and a file of bearer tokens, both of which can be replaced while a tail uses them.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// Tenants whose sessions must go well.
pub const STEADY_TENANTS: [&str; 3] = ["alpha", "beta", "gamma"];
/// The tenant that opens more sessions than one may have.
pub const CROWD_TENANT: &str = "crowd";
/// The tenant of which there is a session when nobody else has one.
pub const QUIET_TENANT: &str = "quiet";
/// The tenant whose token is replaced again and again.
pub const ROTATING_TENANT: &str = "rotating";

/// The files that a tail reads: `tls.crt`, `tls.key`, `keys`, beside the `ca.crt` that devices read.
pub struct Credentials {
    folder: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
    rotation: Mutex<u32>,
}

impl Credentials {
    /// Makes them, in a folder that goes with them.
    ///
    /// # Errors
    /// Where files cannot be written.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let credentials = Self {
            folder: tempfile::tempdir()?,
            authority: CertifiedIssuer::self_signed(params, KeyPair::generate()?)?,
            rotation: Mutex::new(0),
        };
        replace(&credentials.ca_file(), &credentials.authority.pem())?;
        credentials.renew_certificate()?;
        credentials.write_keys(0)?;
        Ok(credentials)
    }

    /// The authority's certificate.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.file("ca.crt")
    }

    /// The options that make a tail use them.
    #[must_use]
    pub fn tail_options(&self) -> Vec<String> {
        [
            ("--tls-cert", "tls.crt"),
            ("--tls-key", "tls.key"),
            ("--auth-keys", "keys"),
        ]
        .into_iter()
        .flat_map(|(option, name)| [option.to_owned(), self.file(name).display().to_string()])
        .collect()
    }

    /// The token that a tenant has now.
    #[must_use]
    pub fn token(&self, tenant: &str) -> String {
        let rotation = if tenant == ROTATING_TENANT {
            *self.rotation()
        } else {
            0
        };
        token(tenant, rotation)
    }

    /// Writes another certificate of the same authority over the tail's.
    ///
    /// # Errors
    /// Where files cannot be written.
    pub fn renew_certificate(&self) -> Result<()> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.authority)?;
        // For a moment the two do not fit each other, as when a person copies them.
        replace(&self.file("tls.key"), &key.serialize_pem())?;
        replace(&self.file("tls.crt"), &certificate.pem())
    }

    /// Gives [`ROTATING_TENANT`] another token, and withdraws the one it had.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn rotate_token(&self) -> Result<()> {
        let mut rotation = self.rotation();
        *rotation += 1;
        self.write_keys(*rotation)
    }

    fn write_keys(&self, rotation: u32) -> Result<()> {
        let mut lines = String::new();
        let steady = STEADY_TENANTS
            .into_iter()
            .chain([CROWD_TENANT, QUIET_TENANT]);
        for (tenant, rotation) in steady
            .map(|tenant| (tenant, 0))
            .chain([(ROTATING_TENANT, rotation)])
        {
            let digest = Sha256::digest(token(tenant, rotation));
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            lines += &format!("{tenant}:{hex}\n");
        }
        replace(&self.file("keys"), &lines)
    }

    fn rotation(&self) -> MutexGuard<'_, u32> {
        self.rotation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// A word that nobody has to guess: these tails live on loopback, for the time of a test.
fn token(tenant: &str, rotation: u32) -> String {
    let digest = Sha256::digest(format!("{tenant} {rotation}"));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes beside the file and renames, so that nobody reads half of it.
fn replace(path: &Path, text: &str) -> Result<()> {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text)?;
    Ok(std::fs::rename(beside, path)?)
}
