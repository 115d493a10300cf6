//! The HTTP listener: a bounded number of connections, and a time limit for the TLS handshake and for request
//! headers.
//!
//! axum's own `serve` has neither limit, so this is the accept loop with them, on the same hyper.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::auth::PeerCertificate;
use crate::config::Timeouts;
use crate::tls::{Tls, peer_certificate};

/// The most connections that speak plain HTTP, those in a TLS handshake included. A WebSocket leaves this
/// count when it is upgraded and is counted among the session sockets. More wait in the kernel's queue.
const MAX_HTTP_CONNECTIONS: usize = 256;

/// The most bytes of a request's line and headers: a token of an issuer can have some thousands.
const MAX_HEADER_BYTES: usize = 32 << 10;

/// The most headers of a request.
const MAX_HEADERS: usize = 64;

/// How long requests under way may go on once the server stops.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// How long to wait where a connection cannot be accepted, for want of file descriptors say.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// What every connection is served with.
pub(crate) struct Service {
    pub(crate) router: Router,
    /// `None`: plain HTTP.
    pub(crate) tls: Option<Tls>,
    pub(crate) timeouts: Timeouts,
}

/// Serves until `stop` is done, then lets the requests under way finish for a moment.
pub(crate) async fn serve(listener: TcpListener, service: Service, stop: impl Future<Output = ()>) {
    let service = Arc::new(service);
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
            Ok((stream, peer)) => {
                let (service, stopping) = (Arc::clone(&service), stopping.subscribe());
                tokio::spawn(async move {
                    let _slot = slot;
                    connection(stream, peer, &service, stopping).await;
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
    if timeout(STOP_GRACE, ended).await.is_err() {
        tracing::warn!("requests were still under way when the server stopped");
    }
}

/// Runs one connection to its end.
async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    service: &Service,
    stopping: watch::Receiver<bool>,
) {
    // A token's frame is small and must not wait for the acknowledgement of the one before it.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY cannot be set");
    }
    let Some(tls) = &service.tls else {
        return drive(stream, None, service, stopping).await;
    };
    // There is always one: the server does not start without.
    let Some(acceptor) = tls.acceptor() else {
        return;
    };
    match timeout(service.timeouts.handshake, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            let certificate = peer_certificate(stream.get_ref().1);
            drive(stream, certificate, service, stopping).await;
        }
        Ok(Err(error)) => tracing::debug!(%peer, %error, "a TLS handshake failed"),
        Err(_) => tracing::debug!(%peer, "a TLS handshake took too long"),
    }
}

/// Answers requests; once the server stops, to the end of the one under way.
async fn drive(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    certificate: Option<PeerCertificate>,
    service: &Service,
    mut stopping: watch::Receiver<bool>,
) {
    let router = TowerToHyperService::new(service.router.clone());
    let answer = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(certificate.clone());
        router.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(service.timeouts.headers)
        .max_buf_size(MAX_HEADER_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), answer)
        .with_upgrades();
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
