//! Measures the operator on a cluster of its own and prints Markdown; `cargo xtask bench operator` runs it.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that talks to a person"
)]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use e2e::operator::{Installation, Operator, OperatorOptions};

use crate::appearance::Appearances;
use crate::load::Load;
use crate::usage::Usage;

mod appearance;
mod audit;
mod load;
mod usage;

/// Nodes; each takes 1,000 pods.
const NODES: usize = 8;
/// SplitModels applied one after another at each size.
const SINGLE_SAMPLES: usize = 50;

#[derive(Parser)]
#[command(about = "Measures the operator on a simulated cluster")]
struct Arguments {
    /// Numbers of SplitModels, growing.
    #[arg(long, value_delimiter = ',', default_value = "1,100,1000,5000")]
    sizes: Vec<usize>,
    /// The size at which the cluster is left alone and watched.
    #[arg(long, default_value_t = 1000)]
    steady_size: usize,
    /// For how long.
    #[arg(long, default_value_t = 600)]
    steady_seconds: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    eprintln!("starting a cluster with {NODES} nodes");
    let cluster = cluster_rig::Cluster::start(cluster_rig::Options {
        nodes: NODES,
        crds: true,
    })?;
    let installation = Installation::new(&cluster).await?;
    let operator = start(&installation).await?;
    let load = Load::new(&cluster).await?;
    let appearances = Appearances::watch(&load);

    println!("## From apply to all owned objects\n");
    println!(
        "| SplitModels | added at once | models/s | p50, s | p99, s | one more: p50, ms | p99, ms | operator RSS, MiB | CPU, ms a model |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut steadiness = String::new();
    for &size in &arguments.sizes {
        grow(&load, &appearances, &operator, size).await?;
        if size == arguments.steady_size {
            let pause = Duration::from_secs(arguments.steady_seconds);
            steadiness = steady(&cluster, &installation, &operator, size, pause).await?;
        }
    }
    println!("\n{steadiness}");
    restart(&installation, operator, load.len()).await
}

async fn start(installation: &Installation) -> Result<Operator> {
    let options = OperatorOptions {
        identity: "bench",
        proxy: None,
        otlp_endpoint: None,
        scrape_seconds: 0,
        wake_address: None,
    };
    Operator::start(installation, options).await
}

/// Adds SplitModels at once up to `size`, then some one after another.
async fn grow(
    load: &Load,
    appearances: &Appearances,
    operator: &Operator,
    size: usize,
) -> Result<()> {
    let added = size.saturating_sub(load.len());
    eprintln!("growing to {size}");
    let before = Usage::of(operator)?;
    let started = Instant::now();
    let applied = load.add(added).await?;
    let mut burst = appearances.latencies(&applied).await?;
    let took = started.elapsed().as_secs_f64();
    load.all_ready().await?;
    let used = Usage::of(operator)?;
    let mut single = Vec::new();
    for _ in 0..SINGLE_SAMPLES {
        let applied = load.add(1).await?;
        single.extend(appearances.latencies(&applied).await?);
        load.remove_last().await?;
    }
    let count = u32::try_from(added)?;
    println!(
        "| {size} | {added} | {:.1} | {:.2} | {:.2} | {:.0} | {:.0} | {:.0} | {:.1} |",
        f64::from(count) / took,
        quantile(&mut burst, 0.5).as_secs_f64(),
        quantile(&mut burst, 0.99).as_secs_f64(),
        quantile(&mut single, 0.5).as_secs_f64() * 1e3,
        quantile(&mut single, 0.99).as_secs_f64() * 1e3,
        used.rss_mib,
        (used.cpu - before.cpu).as_secs_f64() * 1e3 / f64::from(count.max(1)),
    );
    Ok(())
}

/// Leaves the cluster alone, and counts what the operator does meanwhile.
async fn steady(
    cluster: &cluster_rig::Cluster,
    installation: &Installation,
    operator: &Operator,
    size: usize,
    pause: Duration,
) -> Result<String> {
    eprintln!("leaving {size} SplitModels alone for {pause:?}");
    // Events of the last transitions are under way no longer than this.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let log = cluster.audit_log()?;
    let skip = std::fs::metadata(&log).context("the audit log")?.len();
    let before = Usage::of(operator)?;
    tokio::time::sleep(pause).await;
    let used = Usage::of(operator)?;
    let requests = audit::requests(&log, skip, &installation.user())?;
    Ok(format!(
        "Steady: {size} SplitModels left alone for {} s: {} writes by the operator besides its lease ({} lease renewals), \
         {} reads (watches that were renewed), {:.2} s of CPU, RSS {:.0} MiB.",
        pause.as_secs(),
        requests.writes,
        requests.lease_writes,
        requests.reads,
        (used.cpu - before.cpu).as_secs_f64(),
        used.rss_mib,
    ))
}

/// Stops the operator, starts it again, and waits until it has looked at everything.
async fn restart(installation: &Installation, operator: Operator, size: usize) -> Result<()> {
    eprintln!("restarting the operator with {size}");
    operator.terminate().await?;
    let started = Instant::now();
    let operator = start(installation).await?;
    loop {
        let looked_at = operator
            .metric("headway_operator_reconciliations_total", "")
            .await?;
        if looked_at >= f64::from(u32::try_from(size)?) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let took = started.elapsed();
    let writes = operator.metric("headway_operator_writes_total", "").await?
        + operator
            .metric("headway_operator_status_writes_total", "")
            .await?;
    let used = Usage::of(&operator)?;
    println!(
        "\nRestart: with {size} SplitModels, all had been looked at {:.2} s after the start, with {writes} writes, \
         {:.2} s of CPU and a peak RSS of {:.0} MiB.",
        took.as_secs_f64(),
        used.cpu.as_secs_f64(),
        used.peak_rss_mib,
    );
    operator.terminate().await?;
    Ok(())
}

/// The value at `share` of the sorted ones, the upper one between two.
fn quantile(values: &mut [Duration], share: f64) -> Duration {
    values.sort();
    let last = values.len().saturating_sub(1);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rank among thousands"
    )]
    let rank = (last as f64 * share).ceil() as usize;
    values.get(rank).copied().unwrap_or_default()
}
