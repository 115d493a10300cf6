use std::path::Path;

use axum::http::HeaderValue;

use super::*;
use crate::config::{AccessConfig, TenantLimits};

/// Credentials from a file of keys, and nothing else.
struct Rig {
    folder: tempfile::TempDir,
    reloads: Option<Reloads>,
    authenticator: Arc<Authenticator>,
    metrics: Arc<crate::metrics::Metrics>,
}

fn line(tenant: &str, token: &str) -> String {
    use sha2::{Digest as _, Sha256};
    let hex: String = Sha256::digest(token)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{tenant}:{hex}\n")
}

fn config(keys_file: Option<&Path>) -> AccessConfig {
    AccessConfig {
        tls: None,
        keys_file: keys_file.map(Path::to_owned),
        oidc: None,
        allowed_origins: Vec::new(),
        tenant_limits: TenantLimits::default(),
    }
}

/// A certificate's name for its tenant.
fn certificate_tenant() -> Option<Tenant> {
    Tenant::named(CredentialSource::Certificate, "acme")
}

impl Rig {
    fn new(keys: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, keys).unwrap();
        let mut reloads = Reloads::default();
        let authenticator = Authenticator::new(&config(Some(&path)), &mut reloads).unwrap();
        Self {
            folder,
            reloads: Some(reloads),
            authenticator: Arc::new(authenticator),
            metrics: Arc::new(crate::metrics::Metrics::new().unwrap()),
        }
    }

    fn write(&self, keys: &str) {
        std::fs::write(self.folder.path().join("keys"), keys).unwrap();
    }

    async fn identify(&self, values: &[&str]) -> Result<Identity, AuthError> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        self.authenticator
            .identify(&headers, None, SystemTime::now())
            .await
    }
}

#[tokio::test]
async fn a_known_key_is_its_tenant_and_an_unknown_one_nobody() {
    let rig = Rig::new(&line("acme", "one"));
    for header in ["Bearer one", "bearer one", "BEARER  one "] {
        let identity = rig.identify(&[header]).await.unwrap();
        assert_eq!(identity.tenant.to_string(), "key/acme");
    }
    assert_eq!(
        rig.identify(&["Bearer two"]).await.unwrap_err(),
        AuthError::UnknownKey
    );
    let missing = rig.identify(&[]).await.unwrap_err();
    assert!(missing.to_string().contains("a key"), "{missing}");
}

#[tokio::test]
async fn a_header_that_is_not_one_bearer_token_is_refused() {
    let rig = Rig::new(&line("acme", "one"));
    for headers in [
        &["Basic b25lOm9uZQ=="][..],
        &["one"],
        &["Bearer"],
        &["Bearer "],
        &["Bearer one", "Bearer one"],
    ] {
        assert_eq!(
            rig.identify(headers).await.unwrap_err(),
            AuthError::Scheme,
            "{headers:?}"
        );
    }
}

#[tokio::test]
async fn an_expired_key_is_told_so() {
    let keys = line("acme", "one").trim().to_owned() + ":2001-09-09T01:46:40Z";
    let rig = Rig::new(&keys);
    assert_eq!(
        rig.identify(&["Bearer one"]).await.unwrap_err(),
        AuthError::Expired
    );
}

#[tokio::test]
async fn a_removed_key_ends_what_was_begun_with_it_and_nothing_else() {
    let mut rig = Rig::new(&(line("acme", "one") + &line("acme", "two")));
    let one = rig.identify(&["Bearer one"]).await.unwrap();
    let two = rig.identify(&["Bearer two"]).await.unwrap();
    let reloads = rig.reloads.take().unwrap();
    tokio::spawn(reloads.run(Duration::from_millis(1), Arc::clone(&rig.metrics)));
    rig.write(&line("acme", "two"));
    tokio::time::timeout(Duration::from_secs(60), rig.authenticator.ended(&one))
        .await
        .unwrap();
    tokio::select! {
        biased;
        () = rig.authenticator.ended(&two) => panic!("a key that is there ended"),
        () = std::future::ready(()) => {}
    }
}

#[tokio::test]
async fn a_key_that_expires_ends_what_was_begun_with_it() {
    let soon = time::OffsetDateTime::now_utc() + Duration::from_secs(1);
    let soon = soon
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap();
    let rig = Rig::new(&format!("{}:{soon}", line("acme", "one").trim()));
    let identity = rig.identify(&["Bearer one"]).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), rig.authenticator.ended(&identity))
        .await
        .unwrap();
    assert_eq!(
        rig.identify(&["Bearer one"]).await.unwrap_err(),
        AuthError::Expired
    );
}

#[tokio::test]
async fn everybody_is_one_tenant_where_nobody_has_to_show_who_they_are() {
    let authenticator = Authenticator::new(&config(None), &mut Reloads::default()).unwrap();
    let headers = HeaderMap::from_iter([(
        header::AUTHORIZATION,
        HeaderValue::from_static("Bearer whatever"),
    )]);
    let identity = authenticator
        .identify(&headers, None, SystemTime::now())
        .await
        .unwrap();
    assert_eq!(identity.tenant, Tenant::anonymous());
    assert_eq!(identity.device, None);
}

#[tokio::test]
async fn each_key_of_a_tenant_is_a_device() {
    let rig = Rig::new(&(line("acme", "one") + &line("acme", "two")));
    let one = rig.identify(&["Bearer one"]).await.unwrap();
    let again = rig.identify(&["Bearer one"]).await.unwrap();
    let two = rig.identify(&["Bearer two"]).await.unwrap();
    assert!(one.device.is_some());
    assert_eq!(one.device, again.device);
    assert_ne!(one.device, two.device);
    assert_eq!(one.tenant, two.tenant);
}

#[tokio::test]
async fn each_certificate_of_a_tenant_is_a_device_and_one_without_a_tenant_is_nobody() {
    let authenticator = Authenticator {
        is_anonymous: false,
        keys: None,
        issuer: None,
        takes_certificates: true,
    };
    let identify = async |certificate: PeerCertificate| {
        let (headers, now) = (HeaderMap::new(), SystemTime::now());
        authenticator
            .identify(&headers, Some(&certificate), now)
            .await
    };
    let device = async |der: &[u8]| {
        let certificate = PeerCertificate::new(certificate_tenant(), der);
        identify(certificate).await.unwrap().device
    };
    assert!(device(b"one").await.is_some());
    assert_eq!(device(b"one").await, device(b"one").await);
    assert_ne!(device(b"one").await, device(b"two").await);
    let nameless = identify(PeerCertificate::new(None, b"one")).await;
    assert_eq!(nameless.unwrap_err(), AuthError::CertificateName);
}

#[test]
fn tenants_of_different_sources_are_different() {
    let named = |source| Tenant::named(source, "acme").unwrap();
    let key = named(CredentialSource::Key);
    assert_ne!(key, named(CredentialSource::Oidc));
    assert_ne!(key, named(CredentialSource::Certificate));
    assert_eq!(key, named(CredentialSource::Key));
}

#[test]
fn a_token_is_shown_nowhere() {
    let token = BearerToken::new("hunter2");
    assert!(!format!("{token:?}").contains("hunter2"));
}
