//! The command `tail-server`: arguments → [`Config`] → model → [`tail_server::run`].

use std::io::{IsTerminal as _, Write as _};

use anyhow::Context as _;
use clap::Parser as _;
use tail_server::{Args, Config, LoadedModel};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> anyhow::Result<()> {
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::Level::INFO.into())
        .from_env_lossy();
    let with_colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(with_colours)
        .with_writer(std::io::stderr)
        .init();

    let config = Config::try_from(Args::parse())?;
    headway_model::threads::set_threads(config.threads);
    // Before the runtime: fetching and loading block.
    let model = LoadedModel::load(&config)?;

    let runtime = tokio::runtime::Runtime::new()?;
    let served = runtime.block_on(serve(config, model));
    // A task that did not end in time must not keep the process.
    runtime.shutdown_background();
    served
}

async fn serve(config: Config, model: LoadedModel) -> anyhow::Result<()> {
    // Before the address is announced, so that a signal right after that is not lost.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}", config.listen))?;
    let scheme = if config.access.tls.is_some() {
        "wss"
    } else {
        "ws"
    };
    // Not through the log, whose filter could hide the line that scripts wait for.
    writeln!(
        std::io::stderr(),
        "listening on {scheme}://{}",
        listener.local_addr()?
    )?;

    tail_server::run(listener, config, model, async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
    .await?;
    Ok(())
}
