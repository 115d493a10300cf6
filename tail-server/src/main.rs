//! The command `tail-server`: arguments → [`Config`] → model → [`tail_server::run`] → last words.

use std::io::Write as _;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser as _;
use tail_server::{Args, Config, LastWords, Metrics, telemetry};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::new()?);
    let args = Args::try_parse().unwrap_or_else(|error| {
        // Not for --help. An operator of another version may ask for what this one does not know.
        if error.use_stderr() {
            LastWords::new(None, Arc::clone(&metrics)).write(Some(&error));
        }
        error.exit()
    });
    if args.delivery.print_identity {
        let identity = tail_server::print_identity(&Config::try_from(args)?)?;
        return Ok(writeln!(std::io::stdout(), "{identity}")?);
    }
    let last_words = LastWords::new(args.termination_message.clone(), metrics);
    let last_words = Arc::new(last_words);
    let runtime = Runtime::new()?;
    let telemetry = telemetry::install(&args.telemetry, &runtime)
        .inspect_err(|error| last_words.write(Some(error)))?;
    runtime.spawn(Arc::clone(&last_words).keep());
    let ended = runtime.block_on(load_and_serve(args, Arc::clone(&last_words)));
    last_words.write(ended.as_ref().err().map(AsRef::as_ref));
    runtime.block_on(telemetry.finish());
    // A task that did not end in time must not keep the process.
    runtime.shutdown_background();
    ended
}

async fn load_and_serve(args: Args, last_words: Arc<LastWords>) -> anyhow::Result<()> {
    let config = Config::try_from(args)?;
    headway_model::threads::set_threads(config.threads);
    // Before the address is announced, so that a signal right after that is not lost.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut shutdown = std::pin::pin!(async move {
        tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
    });
    let listener = TcpListener::bind(config.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", config.listen))?;
    let address = listener.local_addr()?;
    let loading = tail_server::load(&listener, &config, last_words.metrics(), shutdown.as_mut());
    let Some(model) = loading.await? else {
        return Ok(());
    };
    let scheme = config.access.scheme();
    // Not through the log, whose filter could hide the line that scripts wait for.
    writeln!(std::io::stderr(), "listening on {scheme}://{address}")?;
    Ok(tail_server::run(listener, config, model, last_words, shutdown).await?)
}
