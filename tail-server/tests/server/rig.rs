//! A running server and a WebSocket client for it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser as _;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use headway_model::manifest::Manifest;
use headway_model::weights::{WeightDtype, Weights};
use headway_model::{Decoder, KvCache, LayerRange};
use headway_wire::frame::{decode_server_frame, encode_client_frame};
use headway_wire::message::server_frame::Message as Answer;
use headway_wire::message::{ClientFrame, Open, Opened, Refusal, Step, StepResult, TokenIds, step};
use headway_wire::{Codec, Limits, PROTOCOL_VERSION, codec};
use tail_server::{Args, Config, LastWords, LoadedModel, Metrics, RunError, Timeouts};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// No test waits longer for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// With CUDA, the tests run on a GPU where there is one.
const DEVICE: &str = if cfg!(feature = "cuda") {
    "auto"
} else {
    "cpu"
};

/// Long enough for a prompt in several chunks.
pub const PROMPT: [u32; 11] = [3, 17, 64, 9, 100, 42, 5, 77, 12, 90, 31];

pub fn model_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny/llama")
}

/// What [`tail_server::run`] is given.
pub struct Launch {
    pub listener: TcpListener,
    pub config: Config,
    pub model: LoadedModel,
    pub last_words: Arc<LastWords>,
    pub shutdown: BoxFuture<'static, ()>,
}

pub struct Server {
    pub address: SocketAddr,
    pub manifest: Manifest,
    pub cache_dir: PathBuf,
    pub metrics: Arc<Metrics>,
    /// Answers to plain requests come through it.
    pub http: reqwest::Client,
    scheme: &'static str,
    shutdown: Option<oneshot::Sender<()>>,
    running: JoinHandle<Result<(), RunError>>,
    _cache: Option<TempDir>,
}

/// An HTTP client.
pub fn http() -> reqwest::Client {
    // Built with the whole workspace, reqwest has TLS but leaves the choice of its cryptography to us; that
    // an earlier test has made it already is no error.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

/// Gives a file other content at once, so that nobody reads half of it.
pub fn replace_file(path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
    let next = path.as_ref().with_extension("next");
    std::fs::write(&next, content).unwrap();
    std::fs::rename(&next, path).unwrap();
}

/// The value of a metric in the text of `/metrics`, 0 where it is not in it.
pub fn metric_in(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(' '))
    });
    line.and_then(|line| line.rsplit(' ').next())
        .map_or(0.0, |value| value.parse().unwrap())
}

impl Server {
    pub async fn start(options: &[&str]) -> Self {
        Self::start_with(options, Timeouts::default()).await
    }

    pub async fn start_with(options: &[&str], timeouts: Timeouts) -> Self {
        let cache = tempfile::tempdir().unwrap();
        let path = cache.path().to_owned();
        let server = Self::start_in(&path, options, timeouts).await;
        Self {
            _cache: Some(cache),
            ..server
        }
    }

    pub async fn start_in(cache_dir: &Path, options: &[&str], timeouts: Timeouts) -> Self {
        let run = |launch: Launch| {
            tokio::spawn(tail_server::run(
                launch.listener,
                launch.config,
                launch.model,
                launch.last_words,
                launch.shutdown,
            ))
        };
        Self::launch(cache_dir, options, timeouts, run).await
    }

    /// A server that `run` runs.
    pub async fn launch(
        cache_dir: &Path,
        options: &[&str],
        timeouts: Timeouts,
        run: impl FnOnce(Launch) -> JoinHandle<Result<(), RunError>>,
    ) -> Self {
        let model = model_path();
        let base = [
            "tail-server",
            "--listen",
            "127.0.0.1:0",
            "--step-tokens",
            "8",
            "--model",
        ];
        let paths = [
            model.to_str().unwrap(),
            "--cache-dir",
            cache_dir.to_str().unwrap(),
        ];
        let is_named = options.contains(&"--device");
        let device: &[&str] = if is_named { &[] } else { &["--device", DEVICE] };
        let given = base.iter().chain(&paths).chain(device).chain(options);
        let args = Args::try_parse_from(given).unwrap();
        let config = Config::try_from(args).unwrap();
        let config = Config {
            timeouts,
            // A GPU is shared by the servers of all tests.
            max_kv_bytes: config.max_kv_bytes.or(Some(2 << 30)),
            ..config
        };
        let model = LoadedModel::load(&config).unwrap();
        let manifest = model.manifest().clone();
        let scheme = if config.access.tls.is_some() {
            "https"
        } else {
            "http"
        };
        let listener = TcpListener::bind(config.listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shutdown, signalled) = oneshot::channel();
        let metrics = Arc::new(Metrics::new().unwrap());
        let message = cache_dir.join("termination-message");
        let last_words = LastWords::new(Some(message), Arc::clone(&metrics));
        let running = run(Launch {
            listener,
            config,
            model,
            last_words: Arc::new(last_words),
            shutdown: signalled.map(Result::unwrap).boxed(),
        });
        let cache_dir = cache_dir.to_owned();
        Self {
            address,
            manifest,
            cache_dir,
            metrics,
            http: http(),
            scheme,
            shutdown: Some(shutdown),
            running,
            _cache: None,
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    pub async fn get(&self, path: &str) -> reqwest::Response {
        self.http.get(self.url(path)).send().await.unwrap()
    }

    /// The value of a metric without labels, or with those in `name`.
    pub async fn metric(&self, name: &str) -> f64 {
        metric_in(&self.get("/metrics").await.text().await.unwrap(), name)
    }

    /// `GET path` with a bearer token.
    pub async fn get_as(&self, path: &str, token: &str) -> reqwest::Response {
        let request = self.http.get(self.url(path)).bearer_auth(token);
        request.send().await.unwrap()
    }

    /// Asks until the status comes.
    pub async fn wait_for_status(&self, path: &str, token: &str, status: u16) {
        let reached = async { while self.get_as(path, token).await.status() != status {} };
        timeout(PATIENCE, reached)
            .await
            .unwrap_or_else(|_| panic!("{path} never answers {status}"));
    }

    /// Asks until the metric has the value.
    pub async fn wait_for_metric(&self, name: &str, value: f64) {
        let reached = async { while self.metric(name).await != value {} };
        timeout(PATIENCE, reached)
            .await
            .unwrap_or_else(|_| panic!("{name} is never {value}"));
    }

    pub fn signal(&mut self) {
        self.shutdown.take().unwrap().send(()).unwrap();
    }

    /// Waits until the server has ended by itself.
    pub async fn ended(self) {
        timeout(PATIENCE, self.running)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }

    /// An `Open` that this server admits.
    pub fn open(&self, split_layer: u32) -> Open {
        Open {
            protocol_version: PROTOCOL_VERSION,
            model_digest: self.manifest.model_digest.clone(),
            split_layer,
            codec: Some(Codec::F32.into()),
            max_positions: 64,
            prompt_tokens: u32::try_from(PROMPT.len()).unwrap(),
            ..Open::default()
        }
    }

    pub async fn connect(&self) -> Client {
        self.upgrade(&[])
            .await
            .unwrap_or_else(|status| panic!("HTTP {status}"))
    }

    /// A client whose request for the upgrade has these headers, or the status that refuses it.
    pub async fn upgrade(&self, headers: &[(&'static str, &str)]) -> Result<Client, u16> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let url = format!("ws://{}/v1/session", self.address);
        let mut request = url.into_client_request().unwrap();
        for (name, value) in headers {
            let value = HeaderValue::from_str(value).unwrap();
            request.headers_mut().insert(*name, value);
        }
        let stream = MaybeTlsStream::Plain(stream);
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, _)) => Ok(Client { socket }),
            Err(WsError::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    /// A client with the open session of whoever has the token.
    pub async fn session_as(&self, token: &str) -> Client {
        let bearer = format!("Bearer {token}");
        let mut client = self.upgrade(&[("authorization", &bearer)]).await.unwrap();
        client.send(self.open(0)).await;
        client.opened().await;
        client
    }

    /// A client with an open session.
    pub async fn session(&self, split_layer: u32) -> Client {
        self.session_of(self.open(split_layer)).await.0
    }

    /// A client with the session that `open` opens.
    pub async fn session_of(&self, open: Open) -> (Client, Opened) {
        let mut client = self.connect().await;
        client.send(open).await;
        let opened = client.opened().await;
        (client, opened)
    }

    /// What a client that opens a session is told: a client with the session, or the refusal.
    pub async fn try_session(&self, open: Open) -> Result<Client, Refusal> {
        let mut client = self.connect().await;
        client.send(open).await;
        match client.answer().await {
            Some(Answer::Opened(_)) => Ok(client),
            Some(Answer::Refusal(refusal)) => Err(refusal),
            other => panic!("expected Opened or Refusal, got {other:?}"),
        }
    }
}

pub struct Client {
    pub socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Client {
    pub async fn send(&mut self, frame: impl Into<ClientFrame>) {
        self.send_raw(Message::Binary(encode_client_frame(&frame.into())))
            .await;
    }

    pub async fn send_raw(&mut self, message: Message) {
        self.socket.send(message).await.unwrap();
    }

    /// The next frame; `None` where the server closes.
    pub async fn answer(&mut self) -> Option<Answer> {
        loop {
            match timeout(PATIENCE, self.socket.next()).await.unwrap() {
                Some(Ok(Message::Binary(bytes))) => {
                    return decode_server_frame(bytes, &Limits::default())
                        .unwrap()
                        .message;
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => return None,
            }
        }
    }

    pub async fn opened(&mut self) -> Opened {
        match self.answer().await {
            Some(Answer::Opened(opened)) => opened,
            other => panic!("expected Opened, got {other:?}"),
        }
    }

    pub async fn result(&mut self) -> StepResult {
        match self.answer().await {
            Some(Answer::StepResult(result)) => result,
            other => panic!("expected StepResult, got {other:?}"),
        }
    }

    /// The refusal, after which the server closes.
    pub async fn refusal(&mut self) -> Refusal {
        match self.answer().await {
            Some(Answer::Refusal(refusal)) => {
                assert!(
                    self.answer().await.is_none(),
                    "the server must close after a refusal"
                );
                refusal
            }
            other => panic!("expected Refusal, got {other:?}"),
        }
    }
}

pub fn token_ids(position: usize, ids: &[u32], sample: bool) -> Step {
    let input = Some(step::Input::TokenIds(TokenIds { ids: ids.to_vec() }));
    Step {
        position: u32::try_from(position).unwrap(),
        input,
        sample,
        ..Step::default()
    }
}

/// A device: the head layers of the tiny model.
pub struct Device {
    decoder: Decoder,
    cache: KvCache,
    codec: Codec,
}

impl Device {
    pub fn new(split_layer: usize) -> Self {
        let weights = Weights::open(&model_path()).unwrap();
        let decoder = Decoder::load(
            &weights,
            LayerRange::new(0, split_layer),
            WeightDtype::Native,
        )
        .unwrap();
        let cache = decoder.new_cache(256);
        let codec = Codec::F32;
        Self {
            decoder,
            cache,
            codec,
        }
    }

    /// The device with another codec for its activations.
    pub fn with_codec(self, codec: Codec) -> Self {
        Self { codec, ..self }
    }

    /// Forgets what comes after the first `positions` positions.
    pub fn rewind(&mut self, positions: usize) {
        self.cache.truncate(positions);
    }

    /// The step that carries `ids` through the head layers.
    pub fn step(&mut self, ids: &[u32], position: usize, sample: bool) -> Step {
        if self.decoder.layers().is_empty() {
            return token_ids(position, ids, sample);
        }
        let mut hidden_states = self.decoder.embed(ids).unwrap();
        self.decoder
            .forward(self.decoder.layers(), &mut hidden_states, &mut self.cache)
            .unwrap();
        let columns = self.decoder.config().hidden_size;
        let activations = codec::encode(self.codec, &hidden_states, columns).unwrap();
        Step {
            input: Some(step::Input::Activations(activations)),
            ..token_ids(position, &[], sample)
        }
    }
}
