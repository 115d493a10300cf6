//! One HTTP client for all sources: which addresses are asked, how far redirects are followed, and who gets the token.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url, redirect};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls_platform_verifier::{BuilderVerifierExt as _, Verifier};

use crate::error::HubError;

/// A hub sends to its store and the store perhaps to a mirror.
const MAX_REDIRECTS: usize = 5;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// Between two pieces of a body: a server that stalls is left. Shorter than a lease.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

/// What a server may ask for at most before the next attempt.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// A client, and the token with the only server that gets it.
pub(crate) struct Transport {
    client: Client,
    token: Option<(Url, HeaderValue)>,
}

impl Transport {
    /// `first`: the address that will be asked first. `ca_file`: certificate authorities beside the system's.
    /// `token`: goes to the server of `first` and to no other.
    pub(crate) fn new(
        first: &Url,
        ca_file: Option<&Path>,
        token: Option<&str>,
    ) -> Result<Self, HubError> {
        let client_error = |error: &dyn std::error::Error| HubError::Client {
            reason: chain(error),
        };
        let mut builder = Client::builder()
            .tls_backend_preconfigured(tls(first, ca_file)?)
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(concat!("headway/", env!("CARGO_PKG_VERSION")));
        if is_loopback(first) {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| client_error(&error))?;
        let token = token.map(|token| {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|error| client_error(&error))?;
            value.set_sensitive(true);
            Ok((first.clone(), value))
        });
        Ok(Self {
            client,
            token: token.transpose()?,
        })
    }

    /// Whether a token is sent.
    pub(crate) const fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Asks for `url` and follows redirects. Any status that is no redirect is an answer.
    ///
    /// `what`: the file or repository, for errors; an address can hold secrets in its query.
    pub(crate) async fn get(
        &self,
        url: &Url,
        headers: &HeaderMap,
        what: &str,
    ) -> Result<Response, HubError> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.client.get(url.clone()).headers(headers.clone());
            if let Some((server, token)) = &self.token
                && server.origin() == url.origin()
            {
                request = request.header(AUTHORIZATION, token.clone());
            }
            let response = request
                .send()
                .await
                .map_err(|error| unreachable(what, error))?;
            if !is_redirect(response.status()) {
                return Ok(response);
            }
            url = next(&url, &response, what)?;
        }
        Err(refused(what, &url, "that was one redirect too many"))
    }
}

/// Whether an address is safe to ask: encrypted, or on this machine.
pub(crate) fn is_protected(url: &Url) -> bool {
    url.scheme() == "https" || (url.scheme() == "http" && is_loopback(url))
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn next(url: &Url, response: &Response, what: &str) -> Result<Url, HubError> {
    let location = response.headers().get(LOCATION);
    let location = location.and_then(|location| location.to_str().ok());
    let to = location.and_then(|location| url.join(location).ok());
    let Some(to) = to else {
        return Err(refused(what, url, "it does not say where to"));
    };
    if !is_protected(&to) || (url.scheme() == "https" && to.scheme() != "https") {
        return Err(refused(what, &to, "only https:// is followed"));
    }
    Ok(to)
}

fn refused(what: &str, to: &Url, reason: &'static str) -> HubError {
    HubError::Redirect {
        what: what.to_owned(),
        to: shown(to),
        reason,
    }
}

/// An address without what may be secret in it.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Fails where the address can have none.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}

/// The connection failed or broke off.
pub(crate) fn unreachable(what: &str, error: reqwest::Error) -> HubError {
    HubError::Unreachable {
        what: what.to_owned(),
        reason: chain(&error.without_url()),
    }
}

/// What an answer that is no success means.
pub(crate) fn status_error(response: &Response, what: &str, has_token: bool) -> HubError {
    let what = what.to_owned();
    match response.status().as_u16() {
        status @ (401 | 403) => HubError::Unauthorized {
            what,
            status,
            hint: match (status, has_token) {
                (_, false) => "it may be private; give an access token",
                (401, true) => "the access token is not valid here; give another one",
                (_, true) => {
                    "the access token's owner may not read it; ask for access, or give another token"
                }
            },
        },
        status @ (404 | 410) => HubError::NotFound { what, status },
        status => HubError::Status {
            what,
            status,
            retry_after: retry_after(response),
        },
    }
}

/// Seconds; the form with a date is rare and left to the usual backoff.
fn retry_after(response: &Response) -> Option<Duration> {
    let text = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    let seconds = text.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

fn tls(first: &Url, ca_file: Option<&Path>) -> Result<rustls::ClientConfig, HubError> {
    let client_error = |error: rustls::Error| HubError::Client {
        reason: chain(&error),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(client_error)?;
    let Some(ca_file) = ca_file else {
        // The trust store is not read for the plain addresses of loopback.
        if first.scheme() == "http" {
            let none = rustls::RootCertStore::empty();
            return Ok(builder.with_root_certificates(none).with_no_client_auth());
        }
        let builder = builder.with_platform_verifier().map_err(client_error)?;
        return Ok(builder.with_no_client_auth());
    };
    let certificates = CertificateDer::pem_file_iter(ca_file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| credentials(ca_file, &error.to_string()))?;
    if certificates.is_empty() {
        return Err(credentials(ca_file, "there is no certificate in it"));
    }
    let verifier = Verifier::new_with_extra_roots(certificates, provider)
        .map_err(|error| credentials(ca_file, &error.to_string()))?;
    Ok(builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

fn credentials(path: &Path, reason: &str) -> HubError {
    HubError::Credentials {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

/// The error and its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}
