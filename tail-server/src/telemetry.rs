//! What the tail logs and traces.

use headway_telemetry::{InstallError, LogFormat, Options, Telemetry};
use tokio::runtime::Runtime;

/// Which logs are written where nobody says.
const DEFAULT_LOG_FILTER: &str = "info";

/// Sessions and what happens in them, whatever the log is asked to show: quieter logs must not cut traces, and
/// louder ones must not fill them.
const TRACE_FILTER: &str = "tail_server=info";

/// The options for logs and traces, as typed.
#[derive(Clone, Debug, clap::Args)]
pub struct TelemetryArgs {
    /// How logs are written.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Which logs are written, such as `warn` or `tail_server=debug,info`.
    #[arg(long, value_name = "FILTER", env = "RUST_LOG", default_value = DEFAULT_LOG_FILTER)]
    pub log_filter: String,
    /// Send traces by OTLP over HTTP to this address, such as `http://collector:4318`.
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
}

/// Installs logging and tracing for the whole process; traces are sent on `runtime`. To be called once.
///
/// # Errors
/// Where the filter or the endpoint makes no sense, or logging was installed before.
pub fn install(args: &TelemetryArgs, runtime: &Runtime) -> Result<Telemetry, InstallError> {
    let _entered = runtime.enter();
    Telemetry::install(&options(args))
}

/// A variable of the environment that is empty is one that is not set.
fn options(args: &TelemetryArgs) -> Options {
    let log_filter = match args.log_filter.as_str() {
        "" => DEFAULT_LOG_FILTER,
        filter => filter,
    };
    Options {
        service_name: "headway-tail-server",
        log_filter: log_filter.to_owned(),
        log_format: args.log_format,
        trace_filter: TRACE_FILTER.to_owned(),
        otlp_endpoint: args.otlp_endpoint.clone().filter(|url| !url.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        args: TelemetryArgs,
    }

    fn parsed(options: &[&str]) -> Options {
        let program = ["tail-server"];
        let alone = Alone::try_parse_from(program.iter().chain(options)).unwrap();
        super::options(&alone.args)
    }

    #[test]
    fn logs_and_traces_are_those_asked_for() {
        let options = parsed(&[
            "--log-format=json",
            "--log-filter=tail_server=debug",
            "--otlp-endpoint=http://collector:4318",
        ]);
        assert_eq!(options.log_format, LogFormat::Json);
        assert_eq!(options.log_filter, "tail_server=debug");
        let endpoint = options.otlp_endpoint.as_deref();
        assert_eq!(endpoint, Some("http://collector:4318"));
    }

    #[test]
    fn an_empty_option_is_none() {
        let options = parsed(&["--log-filter=", "--otlp-endpoint="]);
        assert_eq!(options.log_format, LogFormat::Text);
        assert_eq!(options.log_filter, "info");
        assert_eq!(options.otlp_endpoint, None);
    }
}
