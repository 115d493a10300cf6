//! Who is asking: bearer tokens, JWTs and client certificates, and the tenant that each stands for.
//!
//! Guarded is everything but `/healthz`, `/readyz` and `/metrics`, which the cluster reads. A device sends
//! `Authorization: Bearer TOKEN` with each request, the one that opens a session included, or connects with
//! a client certificate. Where it sends a token, the token decides.
//!
//! # Keys: `--auth-keys FILE`
//! One key a line, `TENANT:SHA256-HEX` or `TENANT:SHA256-HEX:NOT-AFTER`:
//!
//! ```text
//! # phones of the field team
//! acme:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
//! acme:60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752:2030-01-31T00:00:00Z
//! ```
//!
//! The hash is the SHA-256 of the token's bytes, as `printf %s "$token" | sha256sum` prints it. Tokens must
//! be random, of 256 bits (`openssl rand -hex 32`). There is nothing to guess in such a token, so a slow hash
//! as for passwords would protect nothing and cost each request; the hash keeps a leaked file from being a
//! list of tokens. A tenant has up to 128 letters, digits and `. _ - @ /`, and as many keys as it likes. Empty
//! lines and lines that start with `#` say nothing. The limits are 2 MiB and 10 000 keys.
//!
//! # JWTs: `--oidc-issuer`, `--oidc-audience`
//! Signed with RS256, ES256 or EdDSA by a key of the issuer's JWK Set; `iss`, `aud` and `exp` must be there
//! and right, `nbf` right where it is there, all with 30 s for clocks that differ. The claim
//! `--oidc-tenant-claim` names the tenant.
//!
//! # Client certificates: `--tls-client-ca`
//! The tenant is the first URI among the certificate's subject alternative names (a SPIFFE ID, say), or else
//! the first DNS name. The subject's common name is not looked at.
//!
//! # Tenants
//! A tenant is known by how it showed itself, and by its name: `key/acme`, `oidc/acme` and `cert/acme` are
//! three, so that nobody becomes another by choosing a name elsewhere.
//!
//! # Devices
//! A device of a tenant is known by its key, its JWT's `sub` or its certificate's fingerprint; an anonymous one is
//! not known at all. Each has limits of its own, see [`crate::tenant_limits`].
//!
//! # Revocation
//! The files are read again when they change; what is broken is logged, counted
//! (`headway_tail_reloads_total`) and not taken, and the last good content stays. A session ends with
//! `unauthenticated` when its key is removed or has expired, and when its JWT has expired or the key that
//! signed it is no longer published. A session on a client certificate lives on: certificates are checked
//! at the handshake.

mod device;
mod issuer;
mod jwt;
mod keys;
mod ring_provider;
mod tenant;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::http::{HeaderMap, header};
use jsonwebtoken::Algorithm;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

pub(crate) use self::device::Device;
#[cfg(test)]
pub(crate) use self::device::tests::device;
pub(crate) use self::issuer::{Issuer, IssuerError};
pub(crate) use self::jwt::JwtError;
use self::keys::{KeyDigest, KeySet};
pub(crate) use self::tenant::{CredentialSource, Tenant};
use crate::config::{AccessConfig, JwksSource};
use crate::reload::{FileError, Reloaded, Reloads};

#[cfg(test)]
mod tests;

/// The largest JWK Set, in bytes.
const MAX_JWKS_BYTES: u64 = 256 << 10;

/// The longest sleep before a credential's end is looked at again: the system's clock may be set.
const MAX_SLEEP: Duration = Duration::from_secs(600);

/// A bearer token as it came. It is shown nowhere.
#[derive(Clone, Copy)]
pub(crate) struct BearerToken<'a>(&'a str);

impl<'a> BearerToken<'a> {
    pub(crate) fn new(token: &'a str) -> Self {
        Self(token)
    }

    /// The token itself, for its check alone.
    fn reveal(&self) -> &'a str {
        self.0
    }
}

impl fmt::Debug for BearerToken<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("BearerToken(redacted)")
    }
}

/// A client certificate that a trusted authority has signed.
#[derive(Clone, Debug)]
pub(crate) struct PeerCertificate {
    /// The tenant and the device; `None` where it names no tenant.
    owner: Option<(Tenant, Device)>,
}

impl PeerCertificate {
    /// `tenant`: whom the certificate names. `der`: the whole certificate, whose SHA-256 is its fingerprint.
    pub(crate) fn new(tenant: Option<Tenant>, der: &[u8]) -> Self {
        let owner = tenant.map(|tenant| {
            let device = Device::of_certificate(&tenant, &Sha256::digest(der).into());
            (tenant, device)
        });
        Self { owner }
    }
}

/// Who a request or a session is.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) tenant: Tenant,
    /// `None` where nothing tells one device from another.
    pub(crate) device: Option<Device>,
    credential: Credential,
}

/// By what; as much as it takes to see that it is still good.
#[derive(Clone, Debug)]
enum Credential {
    Anonymous,
    Key(KeyDigest),
    Jwt {
        key_id: Option<String>,
        algorithm: Algorithm,
        expires: SystemTime,
    },
    Certificate,
}

/// Why somebody is not let in.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthError {
    #[error("no credentials came; this tail takes {accepted}")]
    Missing { accepted: String },
    #[error("the Authorization header is not one `Bearer` and a token")]
    Scheme,
    #[error("the bearer token is not known here")]
    UnknownKey,
    #[error("the bearer token has expired")]
    Expired,
    #[error("the bearer token is not accepted")]
    Jwt(#[from] JwtError),
    #[error(
        "the client certificate names no tenant: it needs a URI or a DNS name as subject alternative name"
    )]
    CertificateName,
}

/// Why credentials cannot be checked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthSetupError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Issuer(#[from] IssuerError),
}

/// Lets in who may come.
pub(crate) struct Authenticator {
    is_anonymous: bool,
    keys: Option<Arc<watch::Sender<KeySet>>>,
    issuer: Option<Arc<Issuer>>,
    takes_certificates: bool,
}

impl Authenticator {
    /// Reads the files, and registers them to be read again. Blocks.
    pub(crate) fn new(
        config: &AccessConfig,
        reloads: &mut Reloads,
    ) -> Result<Self, AuthSetupError> {
        let mut authenticator = Self {
            is_anonymous: config.is_anonymous(),
            keys: None,
            issuer: None,
            takes_certificates: config
                .tls
                .as_ref()
                .is_some_and(|tls| tls.client_ca_file.is_some()),
        };
        if let Some(path) = &config.keys_file {
            let keys = Arc::new(watch::Sender::new(KeySet::default()));
            let changed = Arc::clone(&keys);
            reloads.watch(
                Reloaded::AuthKeys,
                vec![path.clone()],
                keys::MAX_FILE_BYTES,
                move |files| {
                    let set = KeySet::parse(&files[0])?;
                    tracing::info!(keys = set.len(), "keys read");
                    changed.send_replace(set);
                    Ok(())
                },
            )?;
            authenticator.keys = Some(keys);
        }
        if let Some(oidc) = &config.oidc {
            let issuer = Arc::new(Issuer::new(oidc)?);
            if let JwksSource::File(path) = &oidc.jwks {
                let changed = Arc::clone(&issuer);
                reloads.watch(
                    Reloaded::OidcJwks,
                    vec![path.clone()],
                    MAX_JWKS_BYTES,
                    move |files| Ok(changed.replace_keys(&files[0])?),
                )?;
            }
            authenticator.issuer = Some(issuer);
        }
        Ok(authenticator)
    }

    /// The issuer whose JWTs are taken, if there is one.
    pub(crate) fn issuer(&self) -> Option<&Arc<Issuer>> {
        self.issuer.as_ref()
    }

    /// Who sends a request with these headers over a connection with this certificate.
    pub(crate) async fn identify(
        &self,
        headers: &HeaderMap,
        certificate: Option<&PeerCertificate>,
        now: SystemTime,
    ) -> Result<Identity, AuthError> {
        if self.is_anonymous {
            return Ok(Identity {
                tenant: Tenant::anonymous(),
                // Behind a proxy all have the same address.
                device: None,
                credential: Credential::Anonymous,
            });
        }
        let takes_tokens = self.keys.is_some() || self.issuer.is_some();
        if takes_tokens && let Some(token) = bearer_token(headers)? {
            return self.identify_token(&token, now).await;
        }
        match certificate.map(|certificate| &certificate.owner) {
            Some(Some((tenant, device))) => Ok(Identity {
                tenant: tenant.clone(),
                device: Some(device.clone()),
                credential: Credential::Certificate,
            }),
            Some(None) => Err(AuthError::CertificateName),
            None => Err(AuthError::Missing {
                accepted: self.accepted(),
            }),
        }
    }

    /// A key is looked up first: what is in the file may look like anything.
    async fn identify_token(
        &self,
        token: &BearerToken<'_>,
        now: SystemTime,
    ) -> Result<Identity, AuthError> {
        if let Some(keys) = &self.keys {
            let digest = KeyDigest::of(token);
            if let Some(key) = keys.borrow().find(&digest) {
                return if key.has_expired(now) {
                    Err(AuthError::Expired)
                } else {
                    Ok(Identity {
                        tenant: key.tenant.clone(),
                        device: Some(Device::of_key(&key.tenant, &digest)),
                        credential: Credential::Key(digest),
                    })
                };
            }
        }
        let Some(issuer) = &self.issuer else {
            return Err(AuthError::UnknownKey);
        };
        let checked = issuer.check(token, now).await?;
        Ok(Identity {
            tenant: checked.tenant,
            device: Some(checked.device),
            credential: Credential::Jwt {
                key_id: checked.key_id,
                algorithm: checked.algorithm,
                expires: checked.expires,
            },
        })
    }

    /// Waits until the credential is no longer good; for ever where it cannot end.
    pub(crate) async fn ended(&self, identity: &Identity) {
        match (&identity.credential, &self.keys, &self.issuer) {
            (Credential::Key(digest), Some(keys), _) => {
                let until = |keys: &KeySet| match keys.find(digest) {
                    Some(key) if key.tenant == identity.tenant => Validity::until(key.not_after),
                    _ => Validity::Over,
                };
                wait_for_end(keys.subscribe(), until).await;
            }
            (
                Credential::Jwt {
                    key_id,
                    algorithm,
                    expires,
                },
                _,
                Some(issuer),
            ) => {
                let until = |keys: &jwt::IssuerKeys| {
                    if keys.has(key_id.as_deref(), *algorithm) {
                        Validity::until(Some(*expires))
                    } else {
                        Validity::Over
                    }
                };
                wait_for_end(issuer.keys(), until).await;
            }
            _ => std::future::pending().await,
        }
    }

    fn accepted(&self) -> String {
        let ways = [
            (self.keys.is_some(), "a key as `Authorization: Bearer`"),
            (self.issuer.is_some(), "a JWT as `Authorization: Bearer`"),
            (self.takes_certificates, "a client certificate"),
        ];
        let ways: Vec<&str> = ways
            .into_iter()
            .filter_map(|(is_taken, way)| is_taken.then_some(way))
            .collect();
        ways.join(", or ")
    }
}

/// How long a credential is good.
enum Validity {
    Over,
    Until(SystemTime),
    Unlimited,
}

impl Validity {
    fn until(end: Option<SystemTime>) -> Self {
        end.map_or(Self::Unlimited, Self::Until)
    }
}

/// Looks again whenever the source changes, and when the time has come.
async fn wait_for_end<T>(mut source: watch::Receiver<T>, validity: impl Fn(&T) -> Validity) {
    loop {
        let validity = validity(&source.borrow_and_update());
        let sleep = match validity {
            Validity::Over => return,
            Validity::Unlimited => MAX_SLEEP,
            Validity::Until(end) => match end.duration_since(SystemTime::now()) {
                // A little more than what is left: an end is passed, not reached.
                Ok(left) => left.min(MAX_SLEEP) + Duration::from_millis(1),
                Err(_) => return,
            },
        };
        // Whether it slept or was woken, it looks again. The sender outlives the sessions.
        let _ = tokio::time::timeout(sleep, source.changed()).await;
    }
}

/// The token of the one `Authorization` header, where there is one.
fn bearer_token(headers: &HeaderMap) -> Result<Option<BearerToken<'_>>, AuthError> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let text = value.to_str().map_err(|_| AuthError::Scheme)?;
    match text.split_once(' ') {
        Some((scheme, token))
            if scheme.eq_ignore_ascii_case("bearer")
                && !token.trim().is_empty()
                && values.next().is_none() =>
        {
            Ok(Some(BearerToken::new(token.trim())))
        }
        _ => Err(AuthError::Scheme),
    }
}
