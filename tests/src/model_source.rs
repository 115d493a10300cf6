//! A web server with a model's files: byte ranges, ETags, and a gate at which bodies wait.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::stream;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, crypto};
use tokio_rustls::server::TlsStream;

/// What a body is sent in.
const PIECE_BYTES: usize = 64 << 10;

/// After a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The longest that a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A web server with the files of one folder; it ends with the runtime.
pub struct ModelSource {
    /// Where it listens.
    pub address: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
}

struct Shared {
    folder: PathBuf,
    /// Nothing behind this byte of a file is sent until it is raised.
    gate: watch::Sender<u64>,
    sent_bytes: AtomicU64,
    /// Path and range of each request.
    requests: Mutex<Vec<(String, String)>>,
}

impl ModelSource {
    /// Serves the files of `folder`, plain, on a free port of loopback.
    ///
    /// # Errors
    /// Where there is no port.
    pub async fn start(folder: &Path) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let source = Self::new(folder, "http", address);
        let router = source.router();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(source)
    }

    /// The same over TLS, on a free port of `host`; and the authority of its certificate, in PEM.
    ///
    /// # Errors
    /// Where there is no port.
    pub async fn start_tls(folder: &Path, host: IpAddr) -> Result<(Self, String)> {
        let listener = TcpListener::bind((host, 0)).await?;
        let source = Self::new(folder, "https", listener.local_addr()?);
        let (config, authority) = tls_config(host)?;
        let listener = TlsListener {
            listener,
            acceptor: TlsAcceptor::from(Arc::new(config)),
        };
        let router = source.router();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok((source, authority))
    }

    fn new(folder: &Path, scheme: &'static str, address: SocketAddr) -> Self {
        let shared = Shared {
            folder: folder.to_owned(),
            gate: watch::Sender::new(u64::MAX),
            sent_bytes: AtomicU64::new(0),
            requests: Mutex::default(),
        };
        Self {
            address,
            scheme,
            shared: Arc::new(shared),
        }
    }

    fn router(&self) -> Router {
        Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&self.shared))
    }

    /// The address of a file; of the folder where `file` is empty.
    #[must_use]
    pub fn url(&self, file: &str) -> String {
        format!("{}://{}/{file}", self.scheme, self.address)
    }

    /// Lets nothing behind this byte of a file through.
    pub fn close_at(&self, byte: u64) {
        self.shared.gate.send_replace(byte);
    }

    /// Lets everything through.
    pub fn open(&self) {
        self.close_at(u64::MAX);
    }

    /// Bytes of bodies that were sent.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.shared.sent_bytes.load(Ordering::Relaxed)
    }

    /// Path and range of each request so far.
    #[must_use]
    pub fn requests(&self) -> Vec<(String, String)> {
        let requests = self.shared.requests.lock();
        requests.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Of a server at `host`; and the authority of its certificate, in PEM.
fn tls_config(host: IpAddr) -> Result<(ServerConfig, String)> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::IpAddress(host)];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &authority)?;
    let certificate = CertificateDer::from_pem_slice(certificate.pem().as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes())?;
    let provider = Arc::new(crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    Ok((config, authority.pem()))
}

struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok((stream, address)) = self.listener.accept().await else {
                sleep(ACCEPT_PAUSE).await;
                continue;
            };
            if let Ok(Ok(stream)) = timeout(HANDSHAKE, self.acceptor.accept(stream)).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    respond(&shared, &request).unwrap_or_else(|_| StatusCode::NOT_FOUND.into_response())
}

fn respond(shared: &Arc<Shared>, request: &Request) -> Result<Response> {
    let name = request.uri().path().trim_start_matches('/').to_owned();
    let range = request.headers().get(header::RANGE);
    let range = range.map(|range| range.to_str()).transpose()?;
    let text = range.unwrap_or_default().to_owned();
    let mut requests = shared
        .requests
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    requests.push((name.clone(), text));
    drop(requests);
    let bytes = Bytes::from(std::fs::read(shared.folder.join(&name))?);
    let total = bytes.len();
    let mut response = Response::builder().header(header::ETAG, "\"one\"");
    let (start, end) = match range {
        None => (0, total),
        Some(range) => {
            let (start, end) = range
                .strip_prefix("bytes=")
                .and_then(|range| range.split_once('-'))
                .context("a range")?;
            let start: usize = start.parse()?;
            let end = end.parse::<usize>().map_or(total, |end| end + 1).min(total);
            let content_range = format!("bytes {start}-{}/{total}", end - 1);
            response = response
                .status(StatusCode::PARTIAL_CONTENT)
                .header(header::CONTENT_RANGE, content_range);
            (start, end)
        }
    };
    let response = response.header(header::CONTENT_LENGTH, end - start);
    let gated = (Arc::clone(shared), shared.gate.subscribe(), start);
    let body = stream::unfold(gated, move |(shared, mut gate, at)| {
        let bytes = bytes.clone();
        async move {
            if at == end {
                return None;
            }
            let next = end.min(at + PIECE_BYTES);
            // The sender is in `shared`.
            let _ = gate.wait_for(|open| *open >= next as u64).await;
            shared
                .sent_bytes
                .fetch_add((next - at) as u64, Ordering::Relaxed);
            let piece = Ok::<_, Infallible>(bytes.slice(at..next));
            Some((piece, (shared, gate, next)))
        }
    });
    Ok(response.body(Body::from_stream(body))?)
}
