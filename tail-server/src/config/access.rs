//! Who may use the tail, over what, and how much of it: the options, and what they must mean together.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use reqwest::Url;

use super::{ConfigError, within};
use crate::tenant_limits::MIN_TOKENS_PER_SECOND;

/// The most origins in `--allowed-origins`.
const MAX_ORIGINS: usize = 64;

/// The options for TLS, credentials, tenants and devices, as typed.
#[derive(Clone, Debug, clap::Args)]
pub struct AccessArgs {
    /// Let everybody in: nobody has to show who they are. Needed for an address that is not loopback where
    /// no credentials are asked for.
    #[arg(long)]
    pub allow_anonymous: bool,
    /// Certificate chain in PEM: the tail speaks TLS. Read again when it changes.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert, in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Certificate authorities in PEM: a device with a certificate of theirs may use the tail.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,
    /// Hashes of the bearer tokens that may use the tail, lines of TENANT:SHA256-HEX[:NOT-AFTER]. Read again
    /// when it changes.
    #[arg(long, value_name = "FILE")]
    pub auth_keys: Option<PathBuf>,
    /// Issuer of the JWTs that may use the tail: their `iss`, to the letter.
    #[arg(long, value_name = "URL", requires = "oidc_audience")]
    pub oidc_issuer: Option<String>,
    /// The `aud` that a JWT must have.
    #[arg(long, value_name = "AUD", requires = "oidc_issuer")]
    pub oidc_audience: Option<String>,
    /// The issuer's keys: a file, or an https URL [default: what the issuer's discovery document names].
    #[arg(long, value_name = "FILE_OR_URL", requires = "oidc_issuer")]
    pub oidc_jwks: Option<String>,
    /// The claim that names a JWT's tenant.
    #[arg(long, value_name = "CLAIM", default_value = "sub")]
    pub oidc_tenant_claim: String,
    /// Origins of web pages that may open sessions, as browsers write them: `https://app.example.com`.
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',')]
    pub allowed_origins: Vec<String>,
    /// The most sessions of one tenant at a time; 0 is no limit.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub tenant_max_sessions: usize,
    /// The most rows (prompt and answer tokens) of one tenant a second, on average, 20 or more; 0 is no limit.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub tenant_tokens_per_second: u32,
    /// The most sessions of one device at a time; 0 is no limit. A device is a JWT's `sub`, a client certificate or
    /// a key; anonymous ones cannot be told apart and have no such limit.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub device_max_sessions: usize,
    /// The most rows (prompt and answer tokens) of one device a second, on average, 20 or more; 0 is no limit.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub device_tokens_per_second: u32,
}

/// Who may use the tail, over what, and how much of it.
#[derive(Clone, Debug)]
pub struct AccessConfig {
    /// `None`: plain HTTP.
    pub tls: Option<TlsConfig>,
    /// The file of hashed keys.
    pub keys_file: Option<PathBuf>,
    /// Whose JWTs are taken.
    pub oidc: Option<OidcConfig>,
    /// Origins of web pages that may open sessions.
    pub allowed_origins: Vec<String>,
    /// What one tenant may take, and one of its devices.
    pub tenant_limits: TenantLimits,
}

/// The files of a TLS server.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// Certificate chain, PEM.
    pub certificate_file: PathBuf,
    /// Private key, PEM.
    pub key_file: PathBuf,
    /// Certificate authorities of devices, PEM.
    pub client_ca_file: Option<PathBuf>,
}

/// Whose JWTs are taken.
#[derive(Clone, Debug)]
pub struct OidcConfig {
    /// The `iss` of every token.
    pub issuer: String,
    /// Among the `aud` of every token.
    pub audience: String,
    /// Where the issuer's keys are.
    pub jwks: JwksSource,
    /// The claim that names the tenant.
    pub tenant_claim: String,
}

/// Where an issuer's keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwksSource {
    /// A JWK Set in a file.
    File(PathBuf),
    /// A JWK Set at a URL.
    Url(Url),
    /// A JWK Set at the `jwks_uri` of the OpenID discovery document at this URL.
    Discovery(Url),
}

/// What one tenant may take of this tail, and one of its devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantLimits {
    /// All devices of one tenant together.
    pub tenant: Quota,
    /// One device of a tenant.
    pub device: Quota,
}

/// What somebody may take of this tail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Sessions at a time; `None` is no limit.
    pub max_sessions: Option<usize>,
    /// Rows a second, on average; `None` is no limit.
    pub tokens_per_second: Option<u32>,
}

impl AccessConfig {
    /// The scheme of the tail's address.
    #[must_use]
    pub const fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "wss" } else { "ws" }
    }

    /// True where nobody has to show who they are.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        let by_certificate = self
            .tls
            .as_ref()
            .is_some_and(|tls| tls.client_ca_file.is_some());
        self.keys_file.is_none() && self.oidc.is_none() && !by_certificate
    }

    pub(super) fn new(args: AccessArgs, listen: SocketAddr) -> Result<Self, ConfigError> {
        // Exhaustive, so that an option cannot be added and forgotten.
        let AccessArgs {
            allow_anonymous,
            tls_cert,
            tls_key,
            tls_client_ca,
            auth_keys,
            oidc_issuer,
            oidc_audience,
            oidc_jwks,
            oidc_tenant_claim,
            allowed_origins,
            tenant_max_sessions,
            tenant_tokens_per_second,
            device_max_sessions,
            device_tokens_per_second,
        } = args;
        let tls = tls_cert
            .zip(tls_key)
            .map(|(certificate_file, key_file)| TlsConfig {
                certificate_file,
                key_file,
                client_ca_file: tls_client_ca,
            });
        let oidc = match oidc_issuer.zip(oidc_audience) {
            None => None,
            Some((issuer, audience)) => Some(OidcConfig {
                jwks: jwks_source(&issuer, oidc_jwks.as_deref())?,
                issuer,
                audience,
                tenant_claim: oidc_tenant_claim,
            }),
        };
        let tenant_limits = TenantLimits {
            tenant: Quota::new(
                ("tenant-max-sessions", tenant_max_sessions),
                ("tenant-tokens-per-second", tenant_tokens_per_second),
            )?,
            device: Quota::new(
                ("device-max-sessions", device_max_sessions),
                ("device-tokens-per-second", device_tokens_per_second),
            )?,
        };
        let access = Self {
            tls,
            keys_file: auth_keys,
            oidc,
            allowed_origins: origins(&allowed_origins)?,
            tenant_limits,
        };
        access.check(allow_anonymous, listen)?;
        Ok(access)
    }

    /// Nobody gets in without credentials by oversight.
    fn check(&self, allow_anonymous: bool, listen: SocketAddr) -> Result<(), ConfigError> {
        let is_open = !listen.ip().is_loopback();
        match (self.is_anonymous(), allow_anonymous) {
            (false, true) => return Err(ConfigError::AnonymousWithCredentials),
            (true, false) if is_open => {
                return Err(ConfigError::ListenWithoutCredentials { listen });
            }
            (true, _) if is_open => {
                tracing::warn!(%listen, "--allow-anonymous: anyone who can reach this address may use this tail");
            }
            (true, true) => tracing::warn!("--allow-anonymous: nobody has to show who they are"),
            _ => {}
        }
        if is_open && self.tls.is_none() && !self.is_anonymous() {
            tracing::warn!(
                %listen,
                "no --tls-cert: bearer tokens and prompts can be read on the way, unless TLS ends in front of this tail"
            );
        }
        Ok(())
    }
}

impl Quota {
    /// Of two options, each with its name; 0 is no limit.
    fn new(
        sessions: (&'static str, usize),
        rate: (&'static str, u32),
    ) -> Result<Self, ConfigError> {
        let ((option, max_sessions), (rate_option, tokens_per_second)) = (sessions, rate);
        let max_sessions = within(option, max_sessions, 0, 65_536)?;
        if (1..MIN_TOKENS_PER_SECOND).contains(&tokens_per_second) {
            return Err(ConfigError::Value {
                option: rate_option,
                got: tokens_per_second.to_string(),
                expected: format!("0 for no limit, or {MIN_TOKENS_PER_SECOND} and more"),
            });
        }
        Ok(Self {
            max_sessions: Some(max_sessions).filter(|&limit| limit > 0),
            tokens_per_second: Some(tokens_per_second).filter(|&limit| limit > 0),
        })
    }
}

fn jwks_source(issuer: &str, jwks: Option<&str>) -> Result<JwksSource, ConfigError> {
    match jwks {
        Some(text) if text.contains("://") => Ok(JwksSource::Url(url("oidc-jwks", text)?)),
        Some(path) => Ok(JwksSource::File(Path::new(path).to_owned())),
        None => {
            // OpenID Connect Discovery 1.0, section 4: the path is put behind the issuer's own.
            let document = format!(
                "{}/.well-known/openid-configuration",
                issuer.trim_end_matches('/')
            );
            Ok(JwksSource::Discovery(url("oidc-issuer", &document)?))
        }
    }
}

fn url(option: &'static str, text: &str) -> Result<Url, ConfigError> {
    Url::parse(text)
        .ok()
        .filter(is_protected)
        .ok_or_else(|| ConfigError::Value {
            option,
            got: text.to_owned(),
            expected: "a URL that starts with https:// (http:// for a loopback address only)"
                .to_owned(),
        })
}

/// True for a URL whose answers nobody on the way can change: whoever can, makes the keys.
pub(crate) fn is_protected(url: &Url) -> bool {
    let is_loopback = || match url.host_str() {
        Some("localhost" | "[::1]") => true,
        Some(host) => host
            .parse::<std::net::Ipv4Addr>()
            .is_ok_and(|address| address.is_loopback()),
        None => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && is_loopback())
}

fn origins(texts: &[String]) -> Result<Vec<String>, ConfigError> {
    within("allowed-origins", texts.len(), 0, MAX_ORIGINS)?;
    texts
        .iter()
        .map(|text| {
            let text = text.trim();
            let origin = Url::parse(text)
                .ok()
                .filter(|url| matches!(url.scheme(), "http" | "https"))
                .map(|url| url.origin().ascii_serialization());
            // A path or a trailing slash would never match what a browser sends.
            origin
                .filter(|origin| origin == text)
                .ok_or_else(|| ConfigError::Value {
                    option: "allowed-origins",
                    got: text.to_owned(),
                    expected:
                        "origins as browsers write them, in lower case and without a path: https://app.example.com"
                            .to_owned(),
                })
        })
        .collect()
}
