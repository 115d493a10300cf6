//! What the operator logs and traces.

use headway_telemetry::Options;

use crate::config::Config;

/// Logs and traces as the command line says; one filter is for both.
#[must_use]
pub fn options(config: &Config) -> Options {
    Options {
        service_name: "headway-operator",
        log_filter: config.log_filter.clone(),
        log_format: config.log_format,
        trace_filter: config.log_filter.clone(),
        otlp_endpoint: config.otlp_endpoint.clone(),
    }
}
