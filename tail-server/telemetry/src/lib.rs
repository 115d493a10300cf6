//! What a program tells of itself while it runs: logs to stderr, and traces by OTLP where an endpoint is given.
//!
//! The tail server and the operator install it at their start and finish it at their end. Metrics are not here:
//! each program has its own, and they are asked for instead of sent.

mod exporter;

use std::io::IsTerminal as _;
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry};

pub use self::exporter::ExporterError;

/// For the traces that are left when the program ends. A collector that does not answer holds it no longer.
const FINISH_PATIENCE: Duration = Duration::from_secs(5);

/// What is logged and traced, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The traces' `service.name`.
    pub service_name: &'static str,
    /// Which logs are written, such as `info` or `tail_server=debug,info`.
    pub log_filter: String,
    /// How logs are written.
    pub log_format: LogFormat,
    /// Which spans, and which logs within them, become traces; in the form of `log_filter`.
    pub trace_filter: String,
    /// Base URL of an OTLP/HTTP collector, such as `http://collector:4318`; `None` sends no traces.
    pub otlp_endpoint: Option<String>,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why logging or tracing cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A filter that cannot be parsed.
    #[error("the filter {got:?} cannot be parsed")]
    Filter {
        /// The filter.
        got: String,
        /// Where it is wrong.
        #[source]
        source: ParseError,
    },
    /// Traces cannot be sent.
    #[error("traces cannot be set up")]
    Exporter(#[from] ExporterError),
    /// A process has one log.
    #[error("logging was installed before")]
    InstalledBefore(#[from] TryInitError),
}

/// Sends what is left when the program ends.
#[derive(Debug)]
#[must_use = "traces are lost without it"]
pub struct Telemetry(Option<SdkTracerProvider>);

impl Telemetry {
    /// Installs logging and tracing for the whole process. Spans of `tracing` become traces, and so do those of
    /// `opentelemetry`'s global tracer. To be called once, where `otlp_endpoint` is set within a Tokio runtime,
    /// which then sends the traces.
    ///
    /// # Errors
    /// Where a filter or the endpoint makes no sense, or logging was installed before.
    pub fn install(options: &Options) -> Result<Self, InstallError> {
        let format = tracing_subscriber::fmt::layer()
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr);
        let logs = match options.log_format {
            LogFormat::Text => format.boxed(),
            LogFormat::Json => format.json().flatten_event(true).boxed(),
        };
        let logs = logs.with_filter(filter(&options.log_filter)?);
        let provider = options
            .otlp_endpoint
            .as_deref()
            .map(|endpoint| exporter::provider(endpoint, options.service_name))
            .transpose()?;
        let mut layers: Vec<Box<dyn Layer<Registry> + Send + Sync>> = vec![logs.boxed()];
        if let Some(provider) = &provider {
            let traces =
                tracing_opentelemetry::layer().with_tracer(provider.tracer(options.service_name));
            layers.push(traces.with_filter(filter(&options.trace_filter)?).boxed());
        }
        if let Some(provider) = &provider {
            // Before the log, which need not tell of it.
            opentelemetry::global::set_tracer_provider(provider.clone());
        }
        tracing_subscriber::registry().with(layers).try_init()?;
        Ok(Self(provider))
    }

    /// Sends what is left. Takes 5 s at the most; then what is still left is lost, and a log says so.
    pub async fn finish(self) {
        let Some(provider) = self.0 else { return };
        if let Err(error) = shut_down(provider, FINISH_PATIENCE).await {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

fn filter(text: &str) -> Result<EnvFilter, InstallError> {
    EnvFilter::try_new(text).map_err(|source| InstallError::Filter {
        got: text.to_owned(),
        source,
    })
}

async fn shut_down(provider: SdkTracerProvider, patience: Duration) -> Result<(), OTelSdkError> {
    // It waits for the exporter, which runs on the threads of this runtime, and knows no time limit of its own.
    let shutdown = tokio::task::spawn_blocking(move || provider.shutdown());
    match tokio::time::timeout(patience, shutdown).await {
        Ok(Ok(shut_down)) => shut_down,
        Ok(Err(error)) => Err(OTelSdkError::InternalFailure(error.to_string())),
        Err(_) => Err(OTelSdkError::Timeout(patience)),
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::Tracer as _;
    use tokio::net::TcpListener;

    use super::*;

    fn options() -> Options {
        Options {
            service_name: "test",
            log_filter: "info".to_owned(),
            log_format: LogFormat::Text,
            trace_filter: "info".to_owned(),
            otlp_endpoint: None,
        }
    }

    #[test]
    fn a_filter_that_cannot_be_parsed_is_named() {
        let options = Options {
            log_filter: "tail_server=loud".to_owned(),
            ..options()
        };
        let error = Telemetry::install(&options).unwrap_err();
        assert!(matches!(&error, InstallError::Filter { got, .. } if got == "tail_server=loud"));
    }

    #[test]
    fn an_endpoint_that_is_no_url_is_refused() {
        for endpoint in ["collector:4318", "", "ftp://collector", "/v1/traces"] {
            let options = Options {
                otlp_endpoint: Some(endpoint.to_owned()),
                ..options()
            };
            let error = Telemetry::install(&options).unwrap_err();
            assert!(
                matches!(
                    error,
                    InstallError::Exporter(ExporterError::Endpoint { .. })
                ),
                "{endpoint}: {error:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_collector_that_does_not_answer_does_not_hold_the_end() {
        // Connections wait in its queue and are never taken.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", silent.local_addr().unwrap());
        let provider = exporter::provider(&endpoint, "test").unwrap();
        drop(provider.tracer("test").start("lost"));
        let patience = Duration::from_millis(50);
        let error = shut_down(provider, patience).await.unwrap_err();
        assert!(
            matches!(error, OTelSdkError::Timeout(limit) if limit == patience),
            "{error}"
        );
    }
}
