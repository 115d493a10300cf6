//! Real HTTP servers on loopback: a model hub, its store on another address, and a plain web server, with the
//! habits and faults of real ones.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::Hub;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A file that is served.
#[derive(Clone)]
pub struct Served {
    pub bytes: Vec<u8>,
    pub etag: Option<String>,
}

/// What a server does with the requests for files.
#[derive(Clone, Default)]
pub struct Behaviour {
    /// By path.
    pub files: BTreeMap<String, Served>,
    /// Bodies break off after so many bytes, one after the other; then they are whole.
    pub breaks: Vec<usize>,
    pub ignores_ranges: bool,
    /// Answered instead, one after the other; then as usual.
    pub statuses: Vec<(u16, Option<&'static str>)>,
    /// Asked for on every file and listing.
    pub token: Option<&'static str>,
    /// Where files really are.
    pub sends_to: Option<String>,
    /// What the listing says of sizes and digests; `None`: nothing.
    pub lists_digests: bool,
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

#[derive(Clone, Default)]
struct Shared {
    behaviour: Arc<Mutex<Behaviour>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

pub struct Server {
    pub address: SocketAddr,
    scheme: &'static str,
    shared: Shared,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    pub fn start(behaviour: Behaviour) -> Self {
        Self::start_as(behaviour, None)
    }

    /// With a certificate for `localhost`, made by the authority that is returned in PEM.
    pub fn start_with_tls(behaviour: Behaviour) -> (Self, String) {
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = authority.self_signed(&authority_key).unwrap().pem();
        let issuer = rcgen::Issuer::new(authority, authority_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned()];
        let certificate = rcgen::CertificateParams::new(names).unwrap();
        let certificate = certificate.signed_by(&key, &issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        (Self::start_as(behaviour, Some(acceptor)), pem)
    }

    fn start_as(behaviour: Behaviour, tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let shared = Shared {
            behaviour: Arc::new(Mutex::new(behaviour)),
            seen: Arc::default(),
        };
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let address = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        match tls {
            None => drop(runtime.spawn(async move { axum::serve(listener, router).await })),
            Some(acceptor) => {
                let listener = TlsListener { listener, acceptor };
                runtime.spawn(async move { axum::serve(listener, router).await });
            }
        }
        Self {
            address,
            scheme,
            shared,
            _runtime: runtime,
        }
    }

    /// The address of `path`, by name.
    pub fn url(&self, path: &str) -> String {
        format!("{}://localhost:{}/{path}", self.scheme, self.address.port())
    }

    pub fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.shared.behaviour.lock().unwrap());
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// The ranges that were asked for of `path`; empty where all of it was.
    pub fn ranges(&self, path: &str) -> Vec<String> {
        let seen = self.seen();
        let of_path = seen
            .into_iter()
            .filter(|seen| seen.path == format!("/{path}"));
        of_path.map(|seen| seen.range.unwrap_or_default()).collect()
    }

    /// A client that does not wait long, with this server for its hub.
    pub fn hub(&self, cache_dir: &Path) -> Hub {
        let mut hub = Hub::new(cache_dir).with_endpoint(self.url(""));
        hub.patience.first_wait = std::time::Duration::from_millis(1);
        hub.patience.max_wait = std::time::Duration::from_millis(5);
        hub
    }
}

impl Behaviour {
    pub fn with(files: &[(&str, &[u8])]) -> Self {
        let served = |bytes: &[u8]| Served {
            bytes: bytes.to_vec(),
            etag: Some(format!("\"{}\"", sha256(bytes))),
        };
        Self {
            files: files
                .iter()
                .map(|(path, bytes)| ((*path).to_owned(), served(bytes)))
                .collect(),
            ..Self::default()
        }
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest as _, Sha256};
    crate::download::hex(&Sha256::digest(bytes))
}

/// Every file below `folder`.
pub fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            paths.extend(walk(&path));
        } else {
            paths.push(path);
        }
    }
    paths
}

async fn answer(State(shared): State<Shared>, request: Request) -> Response {
    let headers = request.headers();
    let text = |name: header::HeaderName| {
        let value = headers.get(name)?;
        Some(value.to_str().unwrap().to_owned())
    };
    let seen = Seen {
        path: request.uri().path().to_owned(),
        range: text(header::RANGE),
        authorization: text(header::AUTHORIZATION),
    };
    shared.seen.lock().unwrap().push(seen.clone());
    let mut behaviour = shared.behaviour.lock().unwrap();
    if !behaviour.statuses.is_empty() {
        let (status, retry_after) = behaviour.statuses.remove(0);
        let mut response = StatusCode::from_u16(status).unwrap().into_response();
        if let Some(seconds) = retry_after {
            let seconds = seconds.parse().unwrap();
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        return response;
    }
    if let Some(token) = behaviour.token
        && seen.authorization != Some(format!("Bearer {token}"))
    {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let path = seen.path.trim_start_matches('/');
    if let Some(rest) = path.strip_prefix("api/models/org/repo/revision/") {
        return listing(&behaviour, rest);
    }
    let name = path
        .strip_prefix("org/repo/resolve/")
        .and_then(|path| path.split_once('/'));
    let file = match name {
        Some((commit, file)) if commit == COMMIT => file,
        Some(_) => return StatusCode::NOT_FOUND.into_response(),
        None => path,
    };
    if let Some(elsewhere) = &behaviour.sends_to {
        let location = format!("{elsewhere}{file}?signature=secret");
        return (StatusCode::FOUND, [(header::LOCATION, location)]).into_response();
    }
    let Some(served) = behaviour.files.get(file).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let breaks = &mut behaviour.breaks;
    let end = (!breaks.is_empty()).then(|| breaks.remove(0));
    let ignores_ranges = behaviour.ignores_ranges;
    file_response(&served, headers, ignores_ranges, end)
}

fn listing(behaviour: &Behaviour, revision: &str) -> Response {
    if revision != "main" && revision != COMMIT {
        return StatusCode::NOT_FOUND.into_response();
    }
    let entry = |(name, served): (&String, &Served)| {
        let mut entry = serde_json::json!({ "rfilename": name });
        if behaviour.lists_digests {
            entry["size"] = served.bytes.len().into();
            entry["lfs"] = serde_json::json!({
                "sha256": sha256(&served.bytes), "size": served.bytes.len()
            });
        }
        entry
    };
    let siblings: Vec<_> = behaviour.files.iter().map(entry).collect();
    axum::Json(serde_json::json!({ "sha": COMMIT, "siblings": siblings })).into_response()
}

fn file_response(
    served: &Served,
    headers: &HeaderMap,
    ignores_ranges: bool,
    break_at: Option<usize>,
) -> Response {
    let total = served.bytes.len();
    let if_range = headers
        .get(header::IF_RANGE)
        .map(|etag| etag.to_str().unwrap());
    let is_same = if_range.is_none() || if_range == served.etag.as_deref();
    let range = headers
        .get(header::RANGE)
        .filter(|_| is_same && !ignores_ranges);
    let mut builder = Response::builder();
    if let Some(etag) = &served.etag {
        builder = builder.header(header::ETAG, etag);
    }
    let body = match range {
        None => &served.bytes[..],
        Some(range) => {
            let range = range.to_str().unwrap().strip_prefix("bytes=").unwrap();
            let (start, end) = range.split_once('-').unwrap();
            let start: usize = start.parse().unwrap();
            let end = end.parse::<usize>().map_or(total, |end| end + 1).min(total);
            if start >= total {
                return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
            }
            let content_range = format!("bytes {start}-{}/{total}", end - 1);
            builder = builder
                .status(StatusCode::PARTIAL_CONTENT)
                .header(header::CONTENT_RANGE, content_range);
            &served.bytes[start..end]
        }
    };
    let body = body.to_vec();
    let body = match break_at {
        Some(end) if end < body.len() => Body::new(Broken {
            whole_bytes: body.len() as u64,
            rest: Some(Bytes::from(body[..end].to_vec())),
        }),
        _ => Body::from(body),
    };
    builder.body(body).unwrap()
}

/// Says how long it is, and breaks off before.
struct Broken {
    whole_bytes: u64,
    rest: Option<Bytes>,
}

impl http_body::Body for Broken {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        Poll::Ready(Some(match self.rest.take() {
            Some(bytes) if !bytes.is_empty() => Ok(http_body::Frame::data(bytes)),
            _ => Err(std::io::ErrorKind::ConnectionReset.into()),
        }))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.whole_bytes)
    }
}

struct TlsListener {
    listener: tokio::net::TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
}

impl axum::serve::Listener for TlsListener {
    type Io = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok((stream, address)) = self.listener.accept().await else {
                continue;
            };
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
