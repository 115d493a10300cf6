//! The tail of a split model: serves the layers `[k, L)`, final norm, lm_head and sampler to devices that
//! run the layers `[0, k)`.
//!
//! Place on the path:
//!
//! ```text
//! TLS, auth ─ WebSocket ─ session ─ admission, capacity ─► engine: batcher ─ tail layers ─ lm_head ─ sampler ─► session
//! ```
//!
//! [`run`] is the whole server. `main.rs` calls it with the process's signals; a test calls it with a
//! listener on port 0 and a future of its own.
//!
//! The formats of keys, tokens and certificates are in the module `auth`, and for those who run a tail in
//! `docs/security.md`.
//!
//! Invariants:
//! - Nobody is let in without credentials unless the command line says so or the address is loopback.
//! - Everything a peer can make grow has a named limit, and a peer's fault ends that peer's session only.
//! - Device work happens on the engine's thread alone, and all of its time is attributed to sessions. A fault in
//!   it ends the sessions of its batch only; a device that hangs makes the tail not ready.
//! - The KV cache is only a cache: nothing here must outlive the process.

#[cfg(test)]
extern crate self as tail_server;

mod accounting;
mod admission;
mod api;
mod auth;
mod batcher;
mod capacity;
pub mod config;
mod delivery;
mod drain;
mod engine;
mod error;
mod head_artifacts;
mod kv_pool;
mod last_words;
mod live_sessions;
mod loaded_model;
mod loading;
mod metrics;
mod on_device;
mod rebalance;
mod reload;
mod savings;
mod serve;
mod session;
mod tail_layers;
pub mod telemetry;
mod tenant_limits;
#[cfg(test)]
mod tests;
mod tls;
mod trace;
mod watchdog;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

pub use self::config::{Args, Config, ConfigError, Timeouts};
pub use self::last_words::LastWords;
pub use self::loaded_model::{LoadModelError, LoadedModel, print_identity};
pub use self::loading::{LoadingError, load};
pub use self::metrics::Metrics;

use self::admission::Admission;
use self::api::{Api, LoadLimits};
use self::auth::Authenticator;
use self::batcher::Batcher;
use self::capacity::{Capacity, KvLimits, PoolPart, PromptQueue};
use self::delivery::Report;
use self::drain::Drain;
use self::engine::{CpuDevice, Device, EngineHandle};
use self::head_artifacts::HeadArtifacts;
use self::live_sessions::LiveSessions;
use self::loaded_model::DeviceLimits;
use self::on_device::OnDeviceAnswers;
use self::reload::Reloads;
use self::savings::Savings;
use self::session::{Room, SessionService};
use self::tail_layers::TailLayers;
use self::tenant_limits::Tenants;
use self::tls::Tls;
use self::watchdog::Watchdog;

/// Session sockets that have not opened their session yet, or that linger after it.
const EXTRA_SOCKETS: usize = 64;

/// How long the engine may take to end its last step once all sessions are gone.
const ENGINE_GRACE: Duration = Duration::from_secs(5);

/// Why a server does not start, or does not end well.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The manifest has no JSON form.
    #[error("the manifest cannot be written as JSON")]
    Manifest(#[from] serde_json::Error),
    /// A certificate, a file of keys or an issuer's keys cannot be used; the cause says which and why.
    #[error("credentials cannot be set up")]
    Access(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The device has no room for the KV cache and the steps.
    #[error(
        "the device cannot be set up; --max-kv-bytes and --step-tokens say what it is asked for"
    )]
    Device(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The listener cannot be used.
    #[error("the address cannot be listened on")]
    Listener(#[source] std::io::Error),
    /// The engine's thread could not be started.
    #[error("the engine thread cannot be started")]
    Engine(#[source] std::io::Error),
    /// The accept loop panicked.
    #[error("the HTTP server has failed")]
    Server(#[source] tokio::task::JoinError),
}

/// Serves `model` on `listener`, counting in the metrics of `last_words`, until `shutdown` is done and the sessions have
/// left or `config.drain` has passed.
///
/// The listener is ready for connections before this is called; the tail is ready when it is.
///
/// # Errors
/// [`RunError`] where the server cannot start, or its accept loop fails.
pub async fn run(
    listener: TcpListener,
    config: Config,
    model: LoadedModel,
    last_words: Arc<LastWords>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let steps = Steps {
        most_rows: model.limits.step_tokens,
        are_deterministic: config.deterministic,
    };
    let device = move |layers, kv_parts: &[PoolPart]| on_its_device(layers, kv_parts, steps);
    run_on(device, listener, config, model, last_words, shutdown).await
}

/// [`run`] on the device that `device` makes of the tail layers and numbers of blocks of KV cache.
async fn run_on<D: Device>(
    device: impl FnOnce(TailLayers, &[PoolPart]) -> Result<D, RunError>,
    listener: TcpListener,
    config: Config,
    model: LoadedModel,
    last_words: Arc<LastWords>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let metrics = Arc::clone(last_words.metrics());
    let Guarded {
        authenticator,
        tls,
        mut background,
        mut reloads,
    } = guard(&config, &metrics)?;
    let max_sockets = config.max_sessions + EXTRA_SOCKETS;
    let drain = Arc::new(Drain::new(max_sockets, Arc::clone(&metrics)));

    let LoadedModel {
        weights,
        layers,
        limits,
        kv_limits,
        manifest,
        tokenizer_json,
        commit,
    } = model;
    let report = announce(&metrics, &manifest.model_digest, commit.as_deref());
    let weight_bytes = capacity::gauge_value(layers.weight_bytes());
    metrics.weight_bytes.set(weight_bytes);
    let watchdog = Arc::new(Watchdog::new(config.stall, Arc::clone(&metrics)));
    let savings = Arc::new(Savings::new(layers.num_layers(), Arc::clone(&metrics)));
    let (engine, engine_thread) = EngineHandle::start(
        device(layers, &kv_limits.parts)?,
        limits.step_tokens,
        config.max_sessions,
        Arc::clone(&watchdog),
        Arc::clone(&savings),
    )
    .map_err(RunError::Engine)?;
    let artifacts = HeadArtifacts::new(weights, &manifest, &config.cache_dir);
    let manifest_json = serde_json::to_vec(&manifest)?.into();
    let tokenizer_digest = manifest.identity.tokenizer.digest.clone();
    let room = room(&config, kv_limits, &metrics);
    background.spawn(room.capacity.clone().forget_old_prefixes());
    watch_session_target(&config, &room, &metrics, &mut reloads);
    background.spawn(reloads.run(config.timeouts.reload, Arc::clone(&metrics)));
    let max_draft_tokens = max_draft_tokens(&config, limits);
    let load_limits = load_limits(&config, limits, max_draft_tokens);
    let on_device_answers =
        OnDeviceAnswers::new(&manifest, &savings, last_words, config.timeouts.headers);
    let sessions = SessionService {
        admission: Admission::new(manifest, config.codecs, max_draft_tokens),
        room,
        engine,
        drain: Arc::clone(&drain),
        watchdog: Arc::clone(&watchdog),
        metrics: Arc::clone(&metrics),
        timeouts: config.timeouts,
        queued_rows_kib: session::queued_rows(),
    };
    let api = Api {
        report_json: serde_json::to_vec(&report)?.into(),
        manifest_json,
        tokenizer_json,
        tokenizer_digest,
        artifacts,
        on_device_answers,
        sessions,
        drain: Arc::clone(&drain),
        watchdog,
        metrics,
        savings,
        load_limits,
        max_sockets,
        authenticator,
        allowed_origins: config.access.allowed_origins,
    };
    let service = serve::Service {
        router: api::router(Arc::new(api)),
        tls,
        timeouts: config.timeouts,
    };

    let left = shutdown.then(|()| drain.run(config.drain));
    serve_until(left, listener, service).await?;
    join_engine(engine_thread).await;
    Ok(())
}

/// Shows which model is served, and gives what is said of it.
fn announce(metrics: &Metrics, digest: &str, commit: Option<&str>) -> Report {
    metrics.show_model(digest, commit);
    Report::ready(digest, commit)
}

/// Answers requests until the sessions have `left`, and then to the end of those under way.
async fn serve_until(
    left: impl Future<Output = ()>,
    listener: TcpListener,
    service: serve::Service,
) -> Result<(), RunError> {
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve::serve(listener, service, async {
        // An error means that `run` was dropped: stop as well.
        let _ = stopped.await;
    }));
    left.await;
    // The receiver is gone only where the server has failed, which is returned below.
    let _ = stop.send(());
    server.await.map_err(RunError::Server)
}

/// What a device must know of steps before the first one.
#[derive(Clone, Copy)]
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "a GPU's need"))]
struct Steps {
    most_rows: usize,
    are_deterministic: bool,
}

/// The device that the layers were loaded for.
fn on_its_device(
    layers: TailLayers,
    kv_parts: &[PoolPart],
    #[cfg_attr(
        not(feature = "cuda"),
        expect(unused_variables, reason = "a GPU's need")
    )]
    steps: Steps,
) -> Result<Box<dyn Device>, RunError> {
    match layers {
        TailLayers::Cpu(decoder) => {
            let kv_blocks = kv_parts.iter().map(|part| part.blocks).sum();
            Ok(Box::new(CpuDevice::new(decoder, kv_blocks)))
        }
        #[cfg(feature = "cuda")]
        TailLayers::Cuda(stages) => {
            let kv_blocks: Vec<usize> = kv_parts.iter().map(|part| part.blocks).collect();
            let device = engine::CudaDevice::new(
                stages,
                &kv_blocks,
                steps.most_rows,
                steps.are_deterministic,
            );
            let device = device.map_err(|error| RunError::Device(error.into()))?;
            Ok(Box::new(device))
        }
    }
}

/// Who may come in, and how.
struct Guarded {
    authenticator: Arc<Authenticator>,
    tls: Option<Tls>,
    /// Fetches keys, until it is dropped.
    background: JoinSet<()>,
    /// The files that are read again when they change.
    reloads: Reloads,
}

/// A draft and the token before it go into one engine step.
fn max_draft_tokens(config: &Config, limits: DeviceLimits) -> u32 {
    let most = Batcher::new(limits.step_tokens).max_whole_rows() - 1;
    let most = u32::try_from(most).unwrap_or(u32::MAX);
    config.sessions.max_draft_tokens.min(most)
}

const fn load_limits(config: &Config, limits: DeviceLimits, max_draft_tokens: u32) -> LoadLimits {
    LoadLimits {
        max_sessions: config.max_sessions,
        step_rows: limits.step_tokens,
        max_draft_tokens: max_draft_tokens as usize,
    }
}

/// Asks sessions to move where this tail has more than it should.
fn watch_session_target(
    config: &Config,
    room: &Room,
    metrics: &Arc<Metrics>,
    reloads: &mut Reloads,
) {
    if let Some(rebalance) = config.sessions.rebalance.clone() {
        let metrics = Arc::clone(metrics);
        let record = move |asked| metrics.record_rebalanced(asked);
        rebalance::watch_target(rebalance, room.live.clone(), record, reloads);
    }
}

fn room(config: &Config, kv_limits: KvLimits, metrics: &Arc<Metrics>) -> Room {
    Room {
        capacity: Capacity::new(config.max_sessions, kv_limits, Arc::clone(metrics)),
        queue: PromptQueue::new(config.max_queue, Arc::clone(metrics)),
        tenants: Tenants::new(config.access.tenant_limits),
        live: LiveSessions::new(),
        evict_idle: config.sessions.evict_idle,
    }
}

fn guard(config: &Config, metrics: &Arc<Metrics>) -> Result<Guarded, RunError> {
    let mut reloads = Reloads::default();
    let tls = config.access.tls.as_ref();
    let tls = tls
        .map(|files| Tls::new(files, &mut reloads))
        .transpose()
        .map_err(|error| RunError::Access(error.into()))?;
    let authenticator = Authenticator::new(&config.access, &mut reloads)
        .map_err(|error| RunError::Access(error.into()))?;
    let mut background = JoinSet::new();
    if let Some(issuer) = authenticator.issuer() {
        background.spawn(Arc::clone(issuer).keep_fresh(Arc::clone(metrics)));
    }
    Ok(Guarded {
        authenticator: Arc::new(authenticator),
        tls,
        background,
        reloads,
    })
}

/// The engine's thread ends once the last session and the router have dropped their way to it.
async fn join_engine(thread: std::thread::JoinHandle<()>) {
    let joined = tokio::task::spawn_blocking(move || thread.join());
    match tokio::time::timeout(ENGINE_GRACE, joined).await {
        Ok(Ok(Ok(()))) => tracing::info!("stopped"),
        Ok(_) => tracing::error!("the engine thread has failed"),
        Err(_) => tracing::warn!("the engine was still busy when the server stopped"),
    }
}
