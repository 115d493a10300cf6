//! The time before there is a model: it is fetched and loaded, and whoever asks meanwhile is told how far that is.
//!
//! Health and metrics answer as they will later. `/readyz` fails with a [`Report`](crate::delivery::Report), and
//! everything else with a refusal that says when to come back.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use headway_wire::message::RefusalCode;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::RunError;
use crate::config::Config;
use crate::delivery::{Delivery, pause};
use crate::error::{Error, code_name, format_chain};
use crate::loaded_model::{LoadModelError, LoadedModel};
use crate::metrics::Metrics;
use crate::reload::Reloads;
use crate::serve::{self, Service};
use crate::tls::Tls;

/// Why there is no model to serve.
#[derive(Debug, thiserror::Error)]
pub enum LoadingError {
    /// The model could not be fetched or loaded.
    #[error(transparent)]
    Model(#[from] LoadModelError),
    /// Nobody could be answered meanwhile.
    #[error(transparent)]
    Serve(#[from] RunError),
    /// The thread that loads has panicked.
    #[error("loading the model has failed")]
    Panicked(#[source] tokio::task::JoinError),
}

/// Fetches and loads the model of `config`, and answers on `listener` meanwhile. Returns `None` where `shutdown` was
/// done before.
///
/// # Errors
/// [`LoadingError`] where the model cannot be had and `config.delivery.retry` does not say to try again, or where
/// another attempt would end in the same way.
pub async fn load(
    listener: &TcpListener,
    config: &Config,
    metrics: &Arc<Metrics>,
    shutdown: impl Future<Output = ()>,
) -> Result<Option<LoadedModel>, LoadingError> {
    let delivery = Delivery::new(Arc::clone(metrics));
    let (stop, stopped) = oneshot::channel::<()>();
    let mut background = JoinSet::new();
    let service = Service {
        router: router(Arc::clone(&delivery), Arc::clone(metrics)),
        tls: tls(config, metrics, &mut background)?,
        timeouts: config.timeouts,
    };
    let listener = second(listener).map_err(RunError::Listener)?;
    // For scripts, which a filter of the log would hide it from.
    let address = listener.local_addr().map_err(RunError::Listener)?;
    let _ = writeln!(std::io::stderr(), "loading; health is at {address}");
    let server = tokio::spawn(serve::serve(listener, service, async {
        // An error means that loading was given up: stop as well.
        let _ = stopped.await;
    }));
    let ended = tokio::select! {
        model = attempts(config, &delivery) => model.map(Some),
        () = shutdown => Ok(None),
    };
    drop(stop);
    // Whoever comes from now on is the server's: nobody may be told any more that there is no model.
    let _ = server.await;
    ended
}

async fn attempts(config: &Config, delivery: &Arc<Delivery>) -> Result<LoadedModel, LoadingError> {
    let mut failures = 0;
    loop {
        let (own_config, own_delivery) = (config.clone(), Arc::clone(delivery));
        let attempt = move || LoadedModel::load_telling(&own_config, &own_delivery);
        let loaded = tokio::task::spawn_blocking(attempt).await;
        let error = match loaded.map_err(LoadingError::Panicked)? {
            Ok(model) => return Ok(model),
            Err(error) => error,
        };
        let (Some(first), Some(reason)) = (config.delivery.retry, error.reason()) else {
            return Err(error.into());
        };
        failures += 1;
        let pause = pause(first, failures);
        let message = format_chain(&error);
        tracing::error!(error = message, reason, failures, "the model is not here");
        delivery.failed(reason, &message, pause);
        tokio::time::sleep(pause).await;
    }
}

/// The same socket once more: a connection that nobody has taken when loading ends is the server's.
fn second(listener: &TcpListener) -> std::io::Result<TcpListener> {
    let socket = listener.as_fd().try_clone_to_owned()?;
    TcpListener::from_std(socket.into())
}

fn tls(
    config: &Config,
    metrics: &Arc<Metrics>,
    background: &mut JoinSet<()>,
) -> Result<Option<Tls>, RunError> {
    let mut reloads = Reloads::default();
    let tls = config.access.tls.as_ref();
    let tls = tls
        .map(|files| Tls::new(files, &mut reloads))
        .transpose()
        .map_err(|error| RunError::Access(error.into()))?;
    background.spawn(reloads.run(config.timeouts.reload, Arc::clone(metrics)));
    Ok(tls)
}

#[derive(Clone)]
struct Loading {
    delivery: Arc<Delivery>,
    metrics: Arc<Metrics>,
}

fn router(delivery: Arc<Delivery>, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(rendered))
        .fallback(refuse)
        .with_state(Loading { delivery, metrics })
}

async fn readyz(State(loading): State<Loading>) -> Response {
    let report = Json(loading.delivery.report());
    // The next request may be for the server that has the model.
    (
        StatusCode::SERVICE_UNAVAILABLE,
        [(header::CONNECTION, "close")],
        report,
    )
        .into_response()
}

async fn rendered(State(loading): State<Loading>) -> Result<Response, Error> {
    let content_type = [(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)];
    Ok((content_type, loading.metrics.render()?).into_response())
}

async fn refuse(State(loading): State<Loading>) -> Response {
    loading
        .metrics
        .record_refusal(code_name(RefusalCode::NoCapacity));
    let refusal = Error::Loading.into_response();
    ([(header::CONNECTION, "close")], refusal).into_response()
}

/// After how long a device should ask again.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(5);
