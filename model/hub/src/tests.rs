use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::{Hub, HubError, Source, resolve};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A model hub with one repository, `org/repo`.
#[derive(Clone)]
struct FakeHub {
    files: Arc<Vec<(&'static str, Vec<u8>)>>,
    requests: Arc<AtomicUsize>,
    ranges: Arc<Mutex<Vec<String>>>,
    /// The first answer with a file's bytes breaks off after so many.
    break_after_bytes: Option<usize>,
}

impl FakeHub {
    fn new(files: &[(&'static str, &[u8])]) -> Self {
        let files = files
            .iter()
            .map(|(name, bytes)| (*name, bytes.to_vec()))
            .collect();
        Self {
            files: Arc::new(files),
            requests: Arc::default(),
            ranges: Arc::default(),
            break_after_bytes: None,
        }
    }

    fn serve(&self) -> Server {
        let router = Router::new()
            .route("/api/models/org/repo/revision/{revision}", get(info))
            .route("/org/repo/resolve/{revision}/{*file}", get(file))
            .route("/plain/{*file}", get(plain))
            .with_state(self.clone());
        Server::start(router)
    }
}

async fn info(State(hub): State<FakeHub>, UrlPath(revision): UrlPath<String>) -> Response {
    if revision != "main" && revision != COMMIT {
        return StatusCode::NOT_FOUND.into_response();
    }
    let siblings: Vec<_> = hub
        .files
        .iter()
        .map(|(name, _)| serde_json::json!({ "rfilename": name }))
        .collect();
    axum::Json(serde_json::json!({ "sha": COMMIT, "siblings": siblings })).into_response()
}

async fn file(
    State(hub): State<FakeHub>,
    UrlPath((_, file)): UrlPath<(String, String)>,
    headers: HeaderMap,
) -> Response {
    plain(State(hub), UrlPath(file), headers).await
}

async fn plain(
    State(hub): State<FakeHub>,
    UrlPath(file): UrlPath<String>,
    headers: HeaderMap,
) -> Response {
    let Some((_, bytes)) = hub.files.iter().find(|(name, _)| *name == file) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let request = hub.requests.fetch_add(1, Ordering::Relaxed);
    let range = headers
        .get("range")
        .map(|range| range.to_str().unwrap().to_owned());
    hub.ranges
        .lock()
        .unwrap()
        .push(range.clone().unwrap_or_default());
    let builder = Response::builder()
        .header("etag", format!("\"etag-of-{file}\""))
        .header("x-repo-commit", COMMIT);
    let (start, end) = match &range {
        None => (0, bytes.len()),
        Some(range) => {
            let (start, end) = range
                .strip_prefix("bytes=")
                .unwrap()
                .split_once('-')
                .unwrap();
            let end = end.parse::<usize>().map_or(bytes.len(), |end| end + 1);
            (start.parse::<usize>().unwrap(), end.min(bytes.len()))
        }
    };
    let body = bytes[start..end].to_vec();
    let builder = match range {
        None => builder,
        Some(_) => builder.status(StatusCode::PARTIAL_CONTENT).header(
            "content-range",
            format!("bytes {start}-{}/{}", end.max(1) - 1, bytes.len()),
        ),
    };
    let builder = builder.header("content-length", body.len());
    match hub.break_after_bytes.filter(|_| request == 0) {
        None => builder.body(Body::from(body)).unwrap(),
        Some(most) => builder
            .body(Body::new(Broken(vec![
                None,
                Some(body[..most].to_vec().into()),
            ])))
            .unwrap(),
    }
}

/// A body that gives its pieces, the last of the list first, and then fails. `None` is a pause in which the
/// server sends what it has.
struct Broken(Vec<Option<axum::body::Bytes>>);

impl axum::body::HttpBody for Broken {
    type Data = axum::body::Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        use std::task::Poll;
        match self.0.pop() {
            Some(Some(piece)) => Poll::Ready(Some(Ok(http_body::Frame::data(piece)))),
            Some(None) => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
            None => Poll::Ready(Some(Err(std::io::Error::other("broken on purpose")))),
        }
    }
}

/// An HTTP server on a thread of its own: the code under test blocks.
struct Server {
    address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    fn start(router: Router) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self {
            address,
            _runtime: runtime,
        }
    }

    fn hub(&self, cache_dir: &Path) -> Hub {
        Hub::new(cache_dir).with_endpoint(format!("http://{}/", self.address))
    }
}

const FOLDER: [(&str, &[u8]); 5] = [
    ("README.md", b"not fetched"),
    ("config.json", b"{}"),
    ("tokenizer.json", b"{\"model\":{}}"),
    ("generation_config.json", b"{\"eos_token_id\":2}"),
    ("model.safetensors", b"weights"),
];

#[test]
fn an_existing_path_passes_through() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    assert_eq!(resolve(path, folder.path()).unwrap(), folder.path());
}

#[test]
fn a_missing_path_is_named() {
    let error = resolve("/no/such/model", Path::new("/unused")).unwrap_err();
    assert!(matches!(error, HubError::NoSuchPath { .. }));
    assert!(error.to_string().contains("/no/such/model"), "{error}");
}

#[test]
fn sources_are_told_apart_by_their_scheme() {
    let repository = |revision: &str, file: Option<&str>| Source::Repository {
        id: "org/repo".to_owned(),
        revision: revision.to_owned(),
        file: file.map(ToOwned::to_owned),
    };
    assert_eq!(
        Source::parse("hf://org/repo").unwrap(),
        repository("main", None)
    );
    assert_eq!(
        Source::parse("hf://org/repo@v1.0/").unwrap(),
        repository("v1.0", None)
    );
    assert_eq!(
        Source::parse("hf://org/repo@v1/a/b.gguf").unwrap(),
        repository("v1", Some("a/b.gguf"))
    );
    assert_eq!(
        Source::parse("models/a.gguf").unwrap(),
        Source::Local("models/a.gguf".into())
    );
    let Source::Url { file, .. } = Source::parse("https://host:1/x/m.gguf?download=true").unwrap()
    else {
        panic!("a URL is a URL")
    };
    assert_eq!(file, "m.gguf");
}

#[test]
fn malformed_sources_say_what_would_be_right() {
    for (text, expected) in [
        ("hf://repo", "hf://org/repo"),
        ("hf://org/repo/weights.bin", "hf://org/repo/file.gguf"),
        ("hf://org/../x.gguf", "hf://org/repo"),
        ("hf://org/repo@/x.gguf", "hf://org/repo"),
        ("https://host/model.bin", ".gguf"),
        ("https://host.gguf", ".gguf"),
        ("s3://bucket/m.gguf", "hf:// or https://"),
        ("", "empty"),
    ] {
        let error = Source::parse(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn a_repository_becomes_a_folder_with_what_a_model_needs() {
    let fake = FakeHub::new(&FOLDER);
    let server = fake.serve();
    let cache = tempfile::tempdir().unwrap();
    let folder = server.hub(cache.path()).resolve("hf://org/repo").unwrap();
    for (name, bytes) in &FOLDER[1..] {
        assert_eq!(std::fs::read(folder.join(name)).unwrap(), *bytes, "{name}");
    }
    assert!(!folder.join("README.md").exists());
}

#[test]
fn shards_are_fetched_with_their_index() {
    let files: [(&str, &[u8]); 5] = [
        ("config.json", b"{}"),
        ("tokenizer.json", b"{}"),
        ("model.safetensors.index.json", b"{\"weight_map\":{}}"),
        ("model-00001-of-00002.safetensors", b"one"),
        ("model-00002-of-00002.safetensors", b"two"),
    ];
    let server = FakeHub::new(&files).serve();
    let cache = tempfile::tempdir().unwrap();
    let folder = server.hub(cache.path()).resolve("hf://org/repo").unwrap();
    assert!(files.iter().all(|(name, _)| folder.join(name).exists()));
}

#[test]
fn a_second_run_downloads_nothing_and_needs_no_hub() {
    let fake = FakeHub::new(&FOLDER);
    let server = fake.serve();
    let cache = tempfile::tempdir().unwrap();
    let first = server.hub(cache.path()).resolve("hf://org/repo").unwrap();
    let requests = fake.requests.load(Ordering::Relaxed);
    let second = server.hub(cache.path()).resolve("hf://org/repo").unwrap();
    assert_eq!(first, second);
    assert_eq!(fake.requests.load(Ordering::Relaxed), requests);
    let nobody = Server::start(Router::new());
    assert_eq!(
        nobody.hub(cache.path()).resolve("hf://org/repo").unwrap(),
        first
    );
}

#[test]
fn one_gguf_file_of_a_repository_is_fetched_alone() {
    let fake = FakeHub::new(&[("sub/m.gguf", b"GGUF...."), ("config.json", b"{}")]);
    let server = fake.serve();
    let cache = tempfile::tempdir().unwrap();
    let path = server
        .hub(cache.path())
        .resolve("hf://org/repo/sub/m.gguf")
        .unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"GGUF....");
    assert!(path.ends_with("sub/m.gguf"));
}

#[test]
fn a_gguf_repository_without_configuration_names_its_gguf_files() {
    let server = FakeHub::new(&[("m-q8.gguf", b"GGUF")]).serve();
    let cache = tempfile::tempdir().unwrap();
    let error = server
        .hub(cache.path())
        .resolve("hf://org/repo")
        .unwrap_err();
    assert!(
        matches!(&error, HubError::NoSuchFile { file, .. } if file == "config.json"),
        "{error}"
    );
    assert!(error.to_string().contains("m-q8.gguf"), "{error}");
}

#[test]
fn an_unknown_revision_is_named() {
    let server = FakeHub::new(&FOLDER).serve();
    let cache = tempfile::tempdir().unwrap();
    let error = server
        .hub(cache.path())
        .resolve("hf://org/repo@v9")
        .unwrap_err();
    assert!(
        matches!(&error, HubError::NoSuchRepository { revision, status: 404, .. } if revision == "v9"),
        "{error}"
    );
}

#[test]
fn a_url_is_downloaded_once_and_reported() {
    let fake = FakeHub::new(&[("m.gguf", b"GGUF and more")]);
    let server = fake.serve();
    let cache = tempfile::tempdir().unwrap();
    let url = format!("http://{}/plain/m.gguf", server.address);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let hub = Hub::new(cache.path()).with_progress({
        let seen = Arc::clone(&seen);
        Arc::new(move |progress| seen.lock().unwrap().push(progress.clone()))
    });
    let path = hub.resolve(&url).unwrap();
    assert_eq!(hub.resolve(&url).unwrap(), path);
    assert_eq!(std::fs::read(path).unwrap(), b"GGUF and more");
    assert_eq!(fake.requests.load(Ordering::Relaxed), 1);
    let last = seen.lock().unwrap().last().cloned().unwrap();
    assert_eq!((last.done_bytes, last.total_bytes), (13, Some(13)));
}

#[test]
fn a_broken_download_is_continued_where_it_broke() {
    let mut fake = FakeHub::new(&[("m.gguf", b"GGUF and more")]);
    fake.break_after_bytes = Some(6);
    let server = fake.serve();
    let cache = tempfile::tempdir().unwrap();
    let url = format!("http://{}/plain/m.gguf", server.address);
    let hub = Hub::new(cache.path());
    let error = hub.resolve(&url).unwrap_err();
    let HubError::Incomplete {
        expected_bytes: 13,
        got_bytes,
        ..
    } = error
    else {
        panic!("{error}")
    };
    let path = hub.resolve(&url).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"GGUF and more");
    if got_bytes > 0 {
        assert_eq!(
            *fake.ranges.lock().unwrap(),
            [String::new(), format!("bytes={got_bytes}-")]
        );
    }
}

#[test]
fn a_page_that_is_no_gguf_is_refused_and_not_kept() {
    let server = FakeHub::new(&[("m.gguf", b"<html>please log in")]).serve();
    let cache = tempfile::tempdir().unwrap();
    let url = format!("http://{}/plain/m.gguf", server.address);
    let error = Hub::new(cache.path()).resolve(&url).unwrap_err();
    assert!(
        matches!(&error, HubError::NotGguf { start, .. } if start.starts_with("<html>")),
        "{error}"
    );
    let left = walk(cache.path());
    assert!(
        left.iter()
            .all(|name| !name.ends_with(".gguf") && !name.ends_with(".part")),
        "{left:?}"
    );
}

fn walk(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            names.extend(walk(&path));
        } else {
            names.push(path.to_string_lossy().into_owned());
        }
    }
    names
}
