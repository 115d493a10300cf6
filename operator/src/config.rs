//! What the command line says.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

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
    /// Address of this process, to which Services of models that sleep lead: such a model is woken by the first session.
    /// Without it no model is put to sleep.
    #[arg(long)]
    pub wake_address: Option<IpAddr>,
    /// Ports of this process for models that may sleep, one for each.
    #[arg(long, default_value = "9100-9599")]
    pub wake_ports: Ports,
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

/// Ports in a row, written as `9100-9599`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    /// All of them.
    #[must_use]
    pub const fn range(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

/// Not a range of ports.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no range of ports; write the first and the last one, such as 9100-9599")]
pub struct PortsError(String);

impl FromStr for Ports {
    type Err = PortsError;

    fn from_str(text: &str) -> Result<Self, PortsError> {
        let parse = || {
            let (first, last) = text.split_once('-')?;
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            (0 < first && first <= last).then_some(Self { first, last })
        };
        parse().ok_or_else(|| PortsError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_ports_has_a_first_and_a_last_one() {
        assert_eq!("9100-9102".parse::<Ports>().unwrap().range(), 9100..=9102);
        for wrong in ["", "9100", "9102-9100", "0-5", "1-65536", "a-b", "1-2-3"] {
            let error = wrong.parse::<Ports>().unwrap_err().to_string();
            assert!(error.contains("such as 9100-9599"), "{error}");
        }
    }
}
