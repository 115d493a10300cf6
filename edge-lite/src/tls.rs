//! One TLS configuration for HTTP and WebSocket: the system's trust store or the caller's, and ring for the
//! arithmetic.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt as _;

use crate::credentials::{ClientCertificate, Credentials};
use crate::error::DeviceError;

/// `needed` is false for a plain address: the trust store is then not read, which takes time and memory
/// and can fail on a bare container.
pub(crate) fn client_config(
    needed: bool,
    credentials: &Credentials,
) -> Result<Arc<ClientConfig>, DeviceError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    if !needed {
        let builder = builder.with_root_certificates(RootCertStore::empty());
        return Ok(Arc::new(builder.with_no_client_auth()));
    }
    let builder = match &credentials.ca_file {
        None => builder.with_platform_verifier()?,
        Some(path) => builder.with_root_certificates(roots(path)?),
    };
    let config = match &credentials.client_certificate {
        None => builder.with_no_client_auth(),
        Some(ClientCertificate {
            certificate_file,
            key_file,
        }) => {
            let key = PrivateKeyDer::from_pem_file(key_file).map_err(DeviceError::pem(key_file))?;
            builder.with_client_auth_cert(certificates(certificate_file)?, key)?
        }
    };
    Ok(Arc::new(config))
}

fn roots(path: &Path) -> Result<RootCertStore, DeviceError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

/// All certificates of a PEM file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, DeviceError> {
    use rustls::pki_types::pem::Error;
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(DeviceError::pem(path))?;
    if certificates.is_empty() {
        return Err(DeviceError::pem(path)(Error::NoItemsFound));
    }
    Ok(certificates)
}
