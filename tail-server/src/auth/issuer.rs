//! An OpenID Connect issuer: its keys, from a file or over HTTP, and the check of its tokens.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::Url;
use rustls_platform_verifier::BuilderVerifierExt as _;
use serde::Deserialize;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::jwt::{CheckedJwt, IssuerKeys, JwtError, JwtRules, KeySetError};
use super::{BearerToken, MAX_JWKS_BYTES};
use crate::config::access::is_protected;
use crate::config::{JwksSource, OidcConfig};
use crate::metrics::Metrics;
use crate::reload::Reloaded;

#[cfg(test)]
mod tests;

/// How often the keys are fetched without a reason: a key that is no longer published ends by then.
const REFRESH: Duration = Duration::from_secs(600);

/// How often the keys are fetched because of a token with an unknown key, which anybody can send; and after
/// a failure.
const MIN_REFRESH: Duration = Duration::from_secs(30);

/// For one answer of the issuer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Why an issuer's keys cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IssuerError {
    #[error("the HTTP client for the issuer's keys cannot be set up")]
    Client(#[source] reqwest::Error),
    #[error("TLS towards the issuer cannot be set up")]
    Tls(#[from] rustls::Error),
    #[error("no answer from {url}")]
    Fetch {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("{url} sent more than {MAX_JWKS_BYTES} bytes")]
    TooLarge { url: String },
    #[error("{url} is no OpenID discovery document")]
    Discovery {
        url: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("the discovery document is of the issuer {got}; expected {expected}")]
    OtherIssuer { expected: String, got: String },
    #[error("the discovery document names the keys at {url}, which is not https")]
    Unprotected { url: String },
    #[error("the issuer's key set cannot be used")]
    Keys(#[from] KeySetError),
}

/// Whose tokens are taken.
pub(crate) struct Issuer {
    rules: JwtRules,
    name: String,
    keys: watch::Sender<IssuerKeys>,
    /// `None` where the keys are in a file.
    remote: Option<Remote>,
}

struct Remote {
    client: reqwest::Client,
    url: Url,
    is_discovery: bool,
    /// When the keys were last asked for. Held while they are.
    asked: Mutex<Option<Instant>>,
}

/// The fields that are needed of OpenID Connect Discovery 1.0, section 3.
#[derive(Deserialize)]
struct DiscoveryDocument {
    issuer: String,
    jwks_uri: String,
}

impl Issuer {
    /// Without keys yet.
    pub(crate) fn new(config: &OidcConfig) -> Result<Self, IssuerError> {
        let OidcConfig {
            issuer,
            audience,
            jwks,
            tenant_claim,
        } = config.clone();
        let remote = match jwks {
            JwksSource::File(_) => None,
            JwksSource::Url(url) => Some(Remote::new(url, false)?),
            JwksSource::Discovery(url) => Some(Remote::new(url, true)?),
        };
        Ok(Self {
            name: issuer.clone(),
            rules: JwtRules::new(issuer, audience, tenant_claim),
            keys: watch::Sender::new(IssuerKeys::default()),
            remote,
        })
    }

    /// Follows the keys from now on.
    pub(crate) fn keys(&self) -> watch::Receiver<IssuerKeys> {
        self.keys.subscribe()
    }

    pub(crate) fn replace_keys(&self, json: &[u8]) -> Result<(), KeySetError> {
        let keys = IssuerKeys::parse(json)?;
        tracing::info!(keys = keys.len(), "the issuer's keys read");
        self.keys.send_replace(keys);
        Ok(())
    }

    /// Checks a token; one with an unknown key may be signed with a new one.
    pub(crate) async fn check(
        &self,
        token: &BearerToken<'_>,
        now: SystemTime,
    ) -> Result<CheckedJwt, JwtError> {
        let mut keys = self.keys();
        let checked = self.rules.check(token, &keys.borrow_and_update(), now);
        if checked != Err(JwtError::UnknownKey) {
            return checked;
        }
        if let Some(remote) = &self.remote {
            self.fetch_if_due(remote, MIN_REFRESH).await;
        }
        // Fetched here, or meanwhile by another request.
        if keys.has_changed().unwrap_or(false) {
            return self.rules.check(token, &keys.borrow_and_update(), now);
        }
        checked
    }

    /// Fetches the keys now and again, for as long as it is not dropped.
    pub(crate) async fn keep_fresh(self: Arc<Self>, metrics: Arc<Metrics>) {
        let Some(remote) = &self.remote else { return };
        loop {
            let fetched = self.fetch_if_due(remote, Duration::ZERO).await;
            if let Some(is_good) = fetched {
                metrics.record_reload(Reloaded::OidcJwks, is_good);
            }
            let pause = if fetched == Some(true) {
                REFRESH
            } else {
                MIN_REFRESH
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Whether it went well; `None` where it is too early to ask again.
    async fn fetch_if_due(&self, remote: &Remote, pause: Duration) -> Option<bool> {
        // Others wait here for the answer that this one gets.
        let mut asked = remote.asked.lock().await;
        if asked.is_some_and(|asked| asked.elapsed() < pause) {
            return None;
        }
        let fetched = match remote.fetch(&self.name).await {
            Ok(json) => self.replace_keys(&json).map_err(IssuerError::from),
            Err(error) => Err(error),
        };
        *asked = Some(Instant::now());
        if let Err(error) = &fetched {
            let error = crate::error::format_chain(error);
            tracing::error!(
                error,
                "the issuer's keys cannot be fetched; those of before stay"
            );
        }
        Some(fetched.is_ok())
    }
}

impl Remote {
    fn new(url: Url, is_discovery: bool) -> Result<Self, IssuerError> {
        let builder = rustls::ClientConfig::builder_with_provider(crate::tls::provider())
            .with_safe_default_protocol_versions()?;
        // The trust store is not read for the plain addresses of loopback.
        let tls = if url.scheme() == "https" {
            builder.with_platform_verifier()?.with_no_client_auth()
        } else {
            builder
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth()
        };
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .timeout(FETCH_TIMEOUT)
            // To where it leads, nobody has checked.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(IssuerError::Client)?;
        Ok(Self {
            client,
            url,
            is_discovery,
            asked: Mutex::default(),
        })
    }

    /// The JWK Set's bytes.
    async fn fetch(&self, issuer: &str) -> Result<Vec<u8>, IssuerError> {
        let first = self.bounded(&self.url).await?;
        if !self.is_discovery {
            return Ok(first);
        }
        let document: DiscoveryDocument =
            serde_json::from_slice(&first).map_err(|source| IssuerError::Discovery {
                url: self.url.to_string(),
                source,
            })?;
        if document.issuer != issuer {
            return Err(IssuerError::OtherIssuer {
                expected: issuer.to_owned(),
                got: document.issuer,
            });
        }
        match Url::parse(&document.jwks_uri) {
            Ok(url) if is_protected(&url) => self.bounded(&url).await,
            _ => Err(IssuerError::Unprotected {
                url: document.jwks_uri,
            }),
        }
    }

    async fn bounded(&self, url: &Url) -> Result<Vec<u8>, IssuerError> {
        let failed = |source: reqwest::Error| IssuerError::Fetch {
            url: url.to_string(),
            source: source.without_url(),
        };
        let answer = self.client.get(url.clone()).send().await.map_err(failed)?;
        let mut answer = answer.error_for_status().map_err(failed)?;
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(failed)? {
            if (body.len() + piece.len()) as u64 > MAX_JWKS_BYTES {
                let url = url.to_string();
                return Err(IssuerError::TooLarge { url });
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }
}
