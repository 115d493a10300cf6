//! Health and metrics over HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::metrics::Metrics;

/// What the routes answer from.
pub struct Health {
    /// The operator's metrics.
    pub metrics: Arc<Metrics>,
    /// Whether the API server has answered, so that this replica can take over at any time.
    pub is_ready: AtomicBool,
}

/// Serves until `stop` ends.
///
/// # Errors
/// Where the listener fails.
pub async fn serve(
    listener: TcpListener,
    health: Arc<Health>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(health);
    axum::serve(listener, router)
        .with_graceful_shutdown(stop)
        .await
}

async fn readyz(State(health): State<Arc<Health>>) -> Response {
    if health.is_ready.load(Ordering::Relaxed) {
        "ok\n".into_response()
    } else {
        let message = "the API server has not answered yet\n";
        (StatusCode::SERVICE_UNAVAILABLE, message).into_response()
    }
}

async fn metrics(State(health): State<Arc<Health>>) -> Response {
    match health.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
