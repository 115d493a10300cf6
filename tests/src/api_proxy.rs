//! A proxy in front of the API server that counts writes, and can end whoever writes at one of them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderName, Method, StatusCode, Version, header};
use axum::response::{IntoResponse as _, Response};
use kube::config::AuthInfo;
use kube::{Client, Config};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// No request to the API server may be larger; etcd takes 1.5 MiB.
const MAX_BODY_BYTES: usize = 4 << 20;

/// What belongs to one connection, not to the request.
const CONNECTION_HEADERS: [HeaderName; 4] = [
    header::HOST,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
];

/// When the writer is ended, as seen from a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The API server never sees the write.
    BeforeForward,
    /// The write has happened, and the writer does not learn of it.
    AfterForward,
}

/// Listens with plain HTTP on loopback and forwards to the API server with TLS. Credentials of requests pass
/// through, and there are no others. Stops when dropped.
pub struct ApiProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

struct Shared {
    client: Client,
    writes: Mutex<Writes>,
}

#[derive(Default)]
struct Writes {
    seen: usize,
    interruption: Option<Interruption>,
}

struct Interruption {
    at_write: usize,
    moment: Moment,
    end_writer: Box<dyn FnOnce() + Send>,
}

impl ApiProxy {
    /// Starts a proxy for the cluster of `config`, whose credentials are not used.
    ///
    /// # Errors
    /// Where the port cannot be had, or the cluster's certificate authority cannot be read.
    pub async fn start(mut config: Config) -> Result<Self> {
        config.auth_info = AuthInfo::default();
        // What the API server answers is the writer's to handle, and each write counts once.
        config.default_retry = false;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            client: Client::try_from(config).context("a client for the proxy")?,
            writes: Mutex::default(),
        });
        let router = Router::new()
            .fallback(handle)
            .with_state(Arc::clone(&shared));
        let serving = tokio::spawn(async move {
            // Ends with the task only.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self {
            address,
            shared,
            serving,
        })
    }

    /// The URL for a kubeconfig.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Counts from zero again and calls `end_writer` at the write with number `at_write`, the first being 1. The
    /// writer gets no answer. Leases and events are not counted: they are about the writer, not its work.
    pub fn interrupt(
        &self,
        at_write: usize,
        moment: Moment,
        end_writer: impl FnOnce() + Send + 'static,
    ) {
        *self.shared.writes() = Writes {
            seen: 0,
            interruption: Some(Interruption {
                at_write,
                moment,
                end_writer: Box::new(end_writer),
            }),
        };
    }

    /// Calls off an interruption that has not come about; returns whether there was one.
    pub fn call_off(&self) -> bool {
        self.shared.writes().interruption.take().is_some()
    }

    /// Writes seen since the count began.
    #[must_use]
    pub fn writes(&self) -> usize {
        self.shared.writes().seen
    }
}

impl Drop for ApiProxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Shared {
    fn writes(&self) -> MutexGuard<'_, Writes> {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a write; the interruption if it is due.
    fn count(&self) -> Option<Interruption> {
        let mut writes = self.writes();
        writes.seen += 1;
        let seen = writes.seen;
        writes
            .interruption
            .take_if(|interruption| interruption.at_write <= seen)
    }
}

async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let interruption = if is_counted(&request) {
        shared.count()
    } else {
        None
    };
    let answer = match interruption {
        None => forward(&shared.client, request).await,
        Some(interruption) => {
            if interruption.moment == Moment::AfterForward
                && let Ok(answer) = forward(&shared.client, request).await
            {
                // The write is done when the whole answer has come.
                let _ = to_bytes(answer.into_body(), MAX_BODY_BYTES).await;
            }
            (interruption.end_writer)();
            // Until the connection is closed.
            std::future::pending().await
        }
    };
    answer.unwrap_or_else(|error| (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response())
}

fn is_counted(request: &Request) -> bool {
    let path = request.uri().path();
    let is_about_the_writer = path.contains("/leases") || path.contains("/events");
    let is_dry_run = request
        .uri()
        .query()
        .is_some_and(|query| query.contains("dryRun"));
    let is_write =
        [Method::POST, Method::PUT, Method::PATCH, Method::DELETE].contains(request.method());
    is_write && !is_about_the_writer && !is_dry_run
}

/// The answer's body is passed on as it comes: a watch has no end.
async fn forward(client: &Client, request: Request) -> Result<Response> {
    let (mut parts, body) = request.into_parts();
    for name in CONNECTION_HEADERS {
        parts.headers.remove(name);
    }
    // The client adds the address of the API server.
    let path = parts.uri.path_and_query().context("a path")?;
    parts.uri = path.as_str().parse()?;
    let body = to_bytes(body, MAX_BODY_BYTES).await?;
    let request = axum::http::Request::from_parts(parts, kube::client::Body::from(body));
    let (mut parts, body) = client.send(request).await?.into_parts();
    for name in CONNECTION_HEADERS {
        parts.headers.remove(name);
    }
    parts.version = Version::HTTP_11;
    Ok(Response::from_parts(parts, Body::new(body)))
}
