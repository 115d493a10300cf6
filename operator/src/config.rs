//! What the command line says.

use std::net::SocketAddr;

use headway_telemetry::LogFormat;

/// Keeps the tail-server pods that SplitModels ask for.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "headway-operator", version, about)]
pub struct Arguments {
    /// Something else than running.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to run.
    #[command(flatten)]
    pub config: Config,
}

/// Something else than running.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Prints the definition of SplitModels as YAML, for `kubectl apply --server-side`.
    Crd,
    /// Ends with 0 if a URL answers with 200: a probe that needs no shell.
    Check {
        /// The URL, http only.
        #[arg(long)]
        url: String,
    },
}

/// How to run.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Image of tail-server where a SplitModel names none.
    #[arg(long, default_value = concat!("headway-tail-server:", env!("CARGO_PKG_VERSION")))]
    pub tail_image: String,
    /// Address for health and metrics; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Name of the Lease by which replicas elect their leader.
    #[arg(long, default_value = "headway-operator")]
    pub lease_name: String,
    /// Namespace of the Lease [default: that of the client's configuration].
    #[arg(long)]
    pub lease_namespace: Option<String>,
    /// Reconcile without an election. Only for a single replica.
    #[arg(long)]
    pub no_leader_election: bool,
    /// Name of this replica in the election and in events [default: a random one].
    #[arg(long)]
    pub identity: Option<String>,
    /// The most reconciliations at a time.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub concurrency: u16,
    /// Give each SplitModel a PodMonitor of the Prometheus operator.
    #[arg(long)]
    pub pod_monitors: bool,
    /// Seconds between two times that a tail is asked what it has used and saved; 0 adds nothing up.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(0..=300))]
    pub scrape_seconds: u16,
    /// How logs are written.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Which logs are written, such as `info` or `headway_operator=debug,info`.
    #[arg(long, default_value = "info")]
    pub log_filter: String,
    /// Send traces by OTLP over HTTP to this address, such as `http://collector:4318`.
    #[arg(long)]
    pub otlp_endpoint: Option<String>,
}
