//! Traces on their way to a collector: OTLP over HTTP, in batches, on Tokio.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry_otlp::{
    ExporterBuildError, SpanExporter, WithExportConfig as _, WithHttpConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::runtime::Tokio;
use opentelemetry_sdk::trace::SdkTracerProvider;
use opentelemetry_sdk::trace::span_processor_with_async_runtime::BatchSpanProcessor;
use reqwest::Url;
use rustls_platform_verifier::BuilderVerifierExt as _;

/// For one batch to be taken by the collector.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why traces cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    /// An endpoint that is no base URL.
    #[error("{got:?} is no collector's address; expected one such as http://collector:4318")]
    Endpoint {
        /// What was given.
        got: String,
    },
    /// The system's certificate authorities cannot be used.
    #[error("TLS towards the collector cannot be set up")]
    Tls(#[from] rustls::Error),
    /// There is no HTTP client.
    #[error("the HTTP client for the collector cannot be set up")]
    Client(#[from] reqwest::Error),
    /// The exporter refuses its settings.
    #[error("the exporter cannot be set up")]
    Exporter(#[from] ExporterBuildError),
}

/// Sends to `endpoint`, a base URL, under the `service.name` `service_name`. Traces begun elsewhere are sent
/// where they are sampled there, and all that begin here. The exporter's client needs Tokio, and the SDK's
/// default processor has a thread without it.
pub(crate) fn provider(
    endpoint: &str,
    service_name: &'static str,
) -> Result<SdkTracerProvider, ExporterError> {
    let is_https = is_https(endpoint)?;
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client(is_https)?)
        .with_timeout(EXPORT_TIMEOUT)
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .build()?;
    let resource = Resource::builder().with_service_name(service_name).build();
    Ok(SdkTracerProvider::builder()
        .with_span_processor(BatchSpanProcessor::builder(exporter, Tokio).build())
        .with_resource(resource)
        .build())
}

fn is_https(endpoint: &str) -> Result<bool, ExporterError> {
    match Url::parse(endpoint).as_ref().map(Url::scheme) {
        Ok("https") => Ok(true),
        Ok("http") => Ok(false),
        _ => Err(ExporterError::Endpoint {
            got: endpoint.to_owned(),
        }),
    }
}

/// With ring's cryptography, whatever the process has installed as its default.
fn client(is_https: bool) -> Result<reqwest::Client, ExporterError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?;
    // The trust store is not read where nobody asks for it.
    let tls = if is_https {
        builder.with_platform_verifier()?.with_no_client_auth()
    } else {
        builder
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth()
    };
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .timeout(EXPORT_TIMEOUT)
        .build()?)
}
