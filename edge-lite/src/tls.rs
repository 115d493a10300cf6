//! One TLS configuration for HTTP and WebSocket: the system's trust store, and ring for the arithmetic.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt as _;

use crate::error::DeviceError;

/// `needed` is false for a plain address: the trust store is then not read, which takes time and memory
/// and can fail on a bare container.
pub(crate) fn client_config(needed: bool) -> Result<Arc<ClientConfig>, DeviceError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = if needed {
        builder.with_platform_verifier()?.with_no_client_auth()
    } else {
        builder
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth()
    };
    Ok(Arc::new(config))
}
