//! Measures what each part of a large fleet's control plane costs, and prints Markdown: `cargo xtask bench fleet --costs`
//! runs it. The simulation of `cargo xtask bench fleet` counts with these costs.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that talks to a person"
)]

use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::Parser;

mod books;
mod cluster;
mod scrapes;
mod sessions;
mod slices;
mod writes;

#[derive(Parser)]
#[command(about = "Measures what parts of a large fleet's control plane cost")]
struct Arguments {
    /// Scrapes of a tail that are measured.
    #[arg(long, default_value_t = 10_000)]
    scrapes: usize,
    /// Numbers of pods in a SplitModel's status.
    #[arg(long, value_delimiter = ',', default_value = "1,100,400,1200")]
    pods: Vec<usize>,
    /// Status writes at each number.
    #[arg(long, default_value_t = 20)]
    writes: usize,
    /// Endpoints of a Service whose pods are restarted; 1,000 nodes' pods are simulated.
    #[arg(long, default_value_t = 300)]
    endpoints: usize,
    /// Numbers of open sessions of one tail.
    #[arg(long, value_delimiter = ',', default_value = "0,64,256,1024")]
    sessions: Vec<usize>,
    /// Leaves out what takes a Kubernetes control plane.
    #[arg(long)]
    without_cluster: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    // As the operator's main does.
    let provider = tokio_rustls::rustls::crypto::ring::default_provider();
    provider
        .install_default()
        .map_err(|_| anyhow!("there is a TLS provider already"))?;
    eprintln!("asking a tail");
    scrapes::measure(arguments.scrapes, &mut |line| println!("{line}")).await?;
    eprintln!("opening sessions");
    sessions::measure(&arguments.sessions, &mut |line| println!("{line}")).await?;
    eprintln!("looking at books");
    books::measure(&arguments.pods, &mut |line| println!("{line}"));
    if arguments.without_cluster {
        return Ok(());
    }
    eprintln!("starting a cluster");
    let cluster = cluster::Cluster::start().await?;
    writes::measure(&cluster, &arguments.pods, arguments.writes, &mut |line| {
        println!("{line}")
    })
    .await?;
    slices::measure(&cluster, arguments.endpoints, &mut |line| {
        println!("{line}")
    })
    .await
}

/// In milliseconds.
fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The value at `share` of the sorted ones, the upper one between two.
fn quantile(times: &mut [Duration], share: f64) -> Duration {
    times.sort();
    let last = times.len().saturating_sub(1);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rank among thousands"
    )]
    let rank = (last as f64 * share).ceil() as usize;
    times.get(rank).copied().unwrap_or_default()
}

/// Of something small.
#[expect(clippy::cast_precision_loss, reason = "counts and sizes of tests")]
fn number(count: usize) -> f64 {
    count as f64
}
