//! The operator's program.

use std::io::Write as _;

use anyhow::{Context as _, ensure};
use clap::Parser as _;
use headway_operator::config::{Arguments, Command};
use headway_operator::{crd, run, telemetry};
use headway_telemetry::Telemetry;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Arguments { command, config } = Arguments::parse();
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok()
        .context("a TLS provider was installed before")?;
    match command {
        Some(Command::Crd) => {
            let yaml = serde_saphyr::to_string(&crd::definition())?;
            std::io::stdout().write_all(yaml.as_bytes())?;
            return Ok(());
        }
        Some(Command::Check { url }) => return check(&url).await,
        None => {}
    }
    let telemetry = Telemetry::install(&telemetry::options(&config))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
        tracing::info!("stopping");
        stopping.cancel();
    });
    let result = run::run(config, stop).await;
    telemetry.finish().await;
    result
}

async fn check(url: &str) -> anyhow::Result<()> {
    // A probe asks over plain HTTP, and in an image that may have no certificate authorities.
    let client = reqwest::Client::builder().tls_certs_only([]).build()?;
    let response = client
        .get(url)
        .send()
        .await
        .with_context(|| format!("asking {url}"))?;
    ensure!(
        response.status() == 200,
        "{url} answers {}",
        response.status()
    );
    Ok(())
}
