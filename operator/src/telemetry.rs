//! Logs to stderr, and traces by OTLP where an endpoint is given.

use std::io::IsTerminal as _;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::runtime::Tokio;
use opentelemetry_sdk::trace::SdkTracerProvider;
use opentelemetry_sdk::trace::span_processor_with_async_runtime::BatchSpanProcessor;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::config::{Config, LogFormat};

const SERVICE_NAME: &str = "headway-operator";

/// Sends what is left when the program ends.
#[must_use = "traces are lost without it"]
pub struct Telemetry(Option<SdkTracerProvider>);

impl Telemetry {
    /// Installs logging and tracing for the whole process.
    ///
    /// # Errors
    /// Where the exporter cannot be built, or logging was installed before.
    pub fn install(config: &Config) -> anyhow::Result<Self> {
        let format = tracing_subscriber::fmt::layer()
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr);
        let logs = match config.log_format {
            LogFormat::Text => format.boxed(),
            LogFormat::Json => format.json().flatten_event(true).boxed(),
        };
        let provider = config.otlp_endpoint.as_deref().map(provider).transpose()?;
        let traces = provider.as_ref().map(|provider| {
            tracing_opentelemetry::layer().with_tracer(provider.tracer(SERVICE_NAME))
        });
        tracing_subscriber::registry()
            .with(EnvFilter::try_new(&config.log_filter)?)
            .with(logs)
            .with(traces)
            .try_init()?;
        Ok(Self(provider))
    }

    /// Sends what is left.
    pub async fn finish(self) {
        let Some(provider) = self.0 else { return };
        // It waits for the exporter, which runs on the threads of this runtime.
        let shutdown = tokio::task::spawn_blocking(move || provider.shutdown()).await;
        match shutdown {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last traces could not be sent"),
            Err(error) => tracing::warn!(%error, "sending the last traces failed"),
        }
    }
}

/// OTLP over HTTP, in batches, on Tokio: the exporter's client needs it, and the default processor has a thread
/// without it.
fn provider(endpoint: &str) -> anyhow::Result<SdkTracerProvider> {
    let exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .build()?;
    let resource = Resource::builder().with_service_name(SERVICE_NAME).build();
    Ok(SdkTracerProvider::builder()
        .with_span_processor(BatchSpanProcessor::builder(exporter, Tokio).build())
        .with_resource(resource)
        .build())
}
