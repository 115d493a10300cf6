//! TLS of the listener: the server's certificate, read again when it changes, and the names of clients'.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConfig, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConnection};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::auth::{CredentialSource, PeerCertificate, Tenant};
use crate::config::TlsConfig;
use crate::reload::{FileError, Reloaded, Reloads};

/// The largest of the files, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The only protocol that is spoken: WebSockets are upgraded from it.
const ALPN: &[u8] = b"http/1.1";

/// Why PEM files are not a server's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("the certificate file holds no certificate chain in PEM")]
    Certificates(#[source] pem::Error),
    #[error("the certificate file holds no certificate")]
    NoCertificate,
    #[error("the key file holds no private key in PEM")]
    Key(#[source] pem::Error),
    #[error("the file of certificate authorities is not in PEM")]
    Authorities(#[source] pem::Error),
    #[error("the file of certificate authorities holds none")]
    NoAuthority(#[from] VerifierBuilderError),
    #[error("certificate and key cannot be used")]
    Pair(#[from] rustls::Error),
}

/// Ring's cryptography, for the listener and for what the tail asks of others.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The TLS side of the listener.
pub(crate) struct Tls {
    config: Arc<watch::Sender<Option<Arc<ServerConfig>>>>,
}

impl Tls {
    /// Reads the files, and registers them to be read again. Blocks.
    pub(crate) fn new(files: &TlsConfig, reloads: &mut Reloads) -> Result<Self, FileError> {
        let TlsConfig {
            certificate_file,
            key_file,
            client_ca_file,
        } = files;
        let mut paths = vec![certificate_file.clone(), key_file.clone()];
        paths.extend(client_ca_file.clone());
        let config = Arc::new(watch::Sender::new(None));
        let changed = Arc::clone(&config);
        reloads.watch(Reloaded::Tls, paths, MAX_FILE_BYTES, move |files| {
            let authorities = files.get(2).map(Vec::as_slice);
            let config = server_config(&files[0], &files[1], authorities)?;
            changed.send_replace(Some(Arc::new(config)));
            Ok(())
        })?;
        Ok(Self { config })
    }

    /// For the next connection. Those that are open keep what they have begun with.
    pub(crate) fn acceptor(&self) -> Option<TlsAcceptor> {
        self.config.borrow().clone().map(TlsAcceptor::from)
    }
}

/// TLS 1.3 and 1.2, with the suites that rustls holds to be safe.
fn server_config(
    certificates: &[u8],
    key: &[u8],
    authorities: Option<&[u8]>,
) -> Result<ServerConfig, TlsError> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificates)
        .collect::<Result<_, _>>()
        .map_err(TlsError::Certificates)?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate);
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(TlsError::Key)?;
    let builder =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match authorities {
        None => builder.with_no_client_auth(),
        Some(authorities) => {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(authorities) {
                roots.add(certificate.map_err(TlsError::Authorities)?)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
                // Probes and scrapes have none; what is guarded asks for one later.
                .allow_unauthenticated()
                .build()?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    // Refuses a key that is not the certificate's.
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// The client's certificate, which the handshake has checked, if it came with one.
pub(crate) fn peer_certificate(connection: &ServerConnection) -> Option<PeerCertificate> {
    let certificate = connection.peer_certificates()?.first()?;
    Some(PeerCertificate::new(tenant(certificate), certificate))
}

/// The first URI among the subject alternative names, or else the first DNS name.
fn tenant(certificate: &CertificateDer<'_>) -> Option<Tenant> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    let name = certificate
        .valid_uri_names()
        .next()
        .or_else(|| certificate.valid_dns_names().next())?;
    Tenant::named(CredentialSource::Certificate, name)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn certificate(names: &[SanType]) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        let key = KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap(), key)
    }

    fn dns(name: &str) -> SanType {
        SanType::DnsName(name.try_into().unwrap())
    }

    fn uri(name: &str) -> SanType {
        SanType::URI(name.try_into().unwrap())
    }

    #[test]
    fn a_certificates_tenant_is_its_first_uri_or_else_its_first_dns_name() {
        let tenant = |names: &[SanType]| {
            let (certificate, _) = certificate(names);
            super::tenant(certificate.der()).map(|tenant| tenant.to_string())
        };
        let both = [dns("phone.example"), uri("spiffe://example/acme")];
        assert_eq!(tenant(&both).unwrap(), "cert/spiffe://example/acme");
        assert_eq!(tenant(&both[..1]).unwrap(), "cert/phone.example");
        assert_eq!(tenant(&[]), None);
    }

    #[test]
    fn a_pair_is_taken_and_anything_else_is_refused() {
        let (certificate, key) = certificate(&[dns("tail.example")]);
        let (certificate, key) = (certificate.pem(), key.serialize_pem());
        let other = KeyPair::generate().unwrap().serialize_pem();
        let config = |certificate: &str, key: &str| {
            server_config(certificate.as_bytes(), key.as_bytes(), None)
        };
        assert_eq!(config(&certificate, &key).unwrap().alpn_protocols, [ALPN]);
        assert!(matches!(config("", &key), Err(TlsError::NoCertificate)));
        assert!(matches!(config(&certificate, ""), Err(TlsError::Key(_))));
        assert!(matches!(
            config(&certificate, &other),
            Err(TlsError::Pair(_))
        ));
        let half = &certificate[..certificate.len() / 2];
        assert!(config(half, &key).is_err());
        let authorities = server_config(certificate.as_bytes(), key.as_bytes(), Some(b""));
        assert!(matches!(authorities, Err(TlsError::NoAuthority(_))));
    }
}
