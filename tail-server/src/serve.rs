//! The HTTP listener: a bounded number of connections, and a time limit for their request headers.
//!
//! axum's own `serve` has neither limit, so this is the accept loop with them, on the same hyper.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

/// The most connections that speak plain HTTP. A WebSocket leaves this count when it is upgraded and is
/// counted among the session sockets. More wait in the kernel's queue.
const MAX_HTTP_CONNECTIONS: usize = 256;

/// How long a connection may take for a request's headers, and how long it may be idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long requests under way may go on once the server stops.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// How long to wait where a connection cannot be accepted, for want of file descriptors say.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// Serves until `stop` is done, then lets the requests under way finish for a moment.
pub(crate) async fn serve(listener: TcpListener, router: Router, stop: impl Future<Output = ()>) {
    let slots = Arc::new(Semaphore::new(MAX_HTTP_CONNECTIONS));
    let stopping = watch::Sender::new(false);
    tokio::pin!(stop);
    loop {
        let accepted = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            () = &mut stop => break,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (connection, stopping) =
                    (connection(stream, router.clone()), stopping.subscribe());
                tokio::spawn(async move {
                    let _slot = slot;
                    drive(connection, stopping).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
    drop(listener);
    stopping.send_replace(true);
    // All slots are free when the last connection has ended.
    let ended = slots.acquire_many(u32::try_from(MAX_HTTP_CONNECTIONS).unwrap_or(u32::MAX));
    if tokio::time::timeout(STOP_GRACE, ended).await.is_err() {
        tracing::warn!("requests were still under way when the server stopped");
    }
}

/// Runs one connection to its end; once the server stops, to the end of the request under way.
async fn drive(connection: Connection, mut stopping: watch::Receiver<bool>) {
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        // An error means that the server is gone altogether.
        _ = stopping.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection broke");
    }
}

type Connection = http1::UpgradeableConnection<TokioIo<TcpStream>, TowerToHyperService<Router>>;

fn connection(stream: TcpStream, router: Router) -> Connection {
    // A token's frame is small and must not wait for the acknowledgement of the one before it.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY cannot be set");
    }
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .with_upgrades()
}
