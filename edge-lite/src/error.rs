//! Errors, split by whose fault they are: the caller's, the tail's (or the way there), this device's.

use std::path::PathBuf;
use std::time::Duration;

use headway_model::chat_template::TemplateError;
use headway_model::sampler::SamplingError;
use headway_model::{ForwardError, LoadError};
use headway_wire::message::{Refusal, RefusalCode};
use headway_wire::{Codec, CodecError, FrameError};

/// Any failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was asked for cannot be done.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The tail, or the network on the way there.
    #[error(transparent)]
    Tail(#[from] TailError),
    /// This device: its disk, its memory, its copy of the model.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// What was asked for cannot be done; asking again will not help.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The tail's address is not one.
    #[error("{url:?} is not a tail's address: {reason}; expected ws://HOST:PORT or wss://HOST")]
    TailUrl {
        /// The text given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The tail does not take this split layer.
    #[error("split layer {got} is not served; this tail takes {min} to {max}")]
    SplitLayer {
        /// Layers asked for.
        got: usize,
        /// Smallest accepted.
        min: usize,
        /// Largest accepted.
        max: usize,
    },
    /// The tail does not take this codec.
    #[error("codec {got} is not served; this tail takes {offered}")]
    Codec {
        /// The codec asked for.
        got: Codec,
        /// Those the manifest lists.
        offered: String,
    },
    /// The tail does not offer head weights in this quantisation.
    #[error("head quantization {got} is not served; this tail offers {offered}")]
    Quantization {
        /// The quantisation asked for.
        got: String,
        /// Those the manifest lists.
        offered: String,
    },
    /// The prompt leaves no room for an answer.
    #[error("the prompt has {prompt_tokens} tokens; with {max_positions} positions at most {} fit", max_positions.saturating_sub(1))]
    PromptTooLong {
        /// The prompt's length.
        prompt_tokens: usize,
        /// Positions of a session, the smaller of the tail's limit and the client's.
        max_positions: usize,
    },
    /// An empty prompt for a model that has no token to start from.
    #[error("the prompt is empty, and this model names no token to start from")]
    EmptyPrompt,
    /// A token id of the prompt does not exist.
    #[error("token id {token_id} is outside the vocabulary of {vocab_size}")]
    TokenId {
        /// The id.
        token_id: u32,
        /// Number of ids the model knows.
        vocab_size: usize,
    },
    /// A number is outside what is allowed.
    #[error("{name} is {got}; expected {expected}")]
    Value {
        /// The field.
        name: &'static str,
        /// Its value.
        got: String,
        /// What is allowed.
        expected: String,
    },
    /// The model has no chat template.
    #[error("this model has no chat template; send the prompt as it is (raw)")]
    NoChatTemplate,
    /// The chat template refuses the messages.
    #[error("the chat template failed")]
    ChatTemplate(#[from] TemplateError),
    /// The sampling parameters contradict themselves.
    #[error("sampling")]
    Sampling(#[from] SamplingError),
    /// A file that was named cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// A tail's refusal, as it sent it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tail refused ({}): {message}", code.as_str_name().trim_start_matches("REFUSAL_CODE_").to_ascii_lowercase())]
pub struct Refused {
    /// The typed reason.
    pub code: RefusalCode,
    /// The tail's sentence.
    pub message: String,
    /// After how long a new try can succeed, where one can.
    pub retry_after: Option<Duration>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let retry_after = refusal
            .retry_after_ms
            .map(|ms| Duration::from_millis(ms.into()));
        Self {
            code: refusal.code(),
            message: refusal.message,
            retry_after,
        }
    }
}

/// The tail or the network failed.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// No answer to an HTTP request.
    #[error("no answer from {url}")]
    Http {
        /// What was asked for.
        url: String,
        /// The client's reason.
        #[source]
        source: reqwest::Error,
    },
    /// An HTTP answer other than success.
    #[error("{url} answered with HTTP {status}: {body}")]
    Status {
        /// What was asked for.
        url: String,
        /// The status.
        status: u16,
        /// The start of the answer's text.
        body: String,
    },
    /// An HTTP answer larger than it may be.
    #[error("{url} sent more than {max_bytes} bytes")]
    TooLarge {
        /// What was asked for.
        url: String,
        /// The limit.
        max_bytes: u64,
    },
    /// The manifest, or a list of artefacts, cannot be read.
    #[error("{url} did not answer with what a tail answers")]
    Json {
        /// What was asked for.
        url: String,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
    /// The manifest speaks of another model than its digest.
    #[error("the manifest states the model digest {stated}, but its content has {computed}")]
    ManifestDigest {
        /// `model_digest` of the manifest.
        stated: String,
        /// The digest of its identity.
        computed: String,
    },
    /// The manifest contradicts itself or this client.
    #[error("manifest: {field} is {got}; expected {expected}")]
    Manifest {
        /// The field.
        field: &'static str,
        /// What it holds.
        got: String,
        /// What would be right.
        expected: String,
    },
    /// A downloaded file is not what the manifest promises.
    #[error("{part} has digest {got}; expected {expected}")]
    ArtifactDigest {
        /// The artefact's name.
        part: String,
        /// The digest promised.
        expected: String,
        /// The digest of what came.
        got: String,
    },
    /// A download ended before its end.
    #[error("{part} ended after {got_bytes} of {expected_bytes} bytes")]
    ArtifactTruncated {
        /// The artefact's name.
        part: String,
        /// Size promised.
        expected_bytes: u64,
        /// Bytes that came.
        got_bytes: u64,
    },
    /// The tail refused the session or a step.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The WebSocket failed.
    #[error("the connection to {url} failed")]
    Socket {
        /// The tail's address.
        url: String,
        /// The client's reason.
        #[source]
        source: Box<tokio_tungstenite::tungstenite::Error>,
    },
    /// The tail closed the socket without a reason that is ours.
    #[error("the tail closed the connection")]
    Closed,
    /// No answer in time.
    #[error("no {what} within {} ms", after.as_millis())]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        after: Duration,
    },
    /// A frame that cannot be read.
    #[error("the tail sent a frame that breaks the protocol")]
    Frame(#[from] FrameError),
    /// A frame that makes no sense where it came.
    #[error("the tail broke the protocol: {reason}")]
    Protocol {
        /// What it did, and what was expected.
        reason: String,
    },
    /// The session could not be rebuilt within the policy's bounds.
    #[error("gave up after {attempts} attempts in {} ms", elapsed.as_millis())]
    GaveUp {
        /// Attempts made.
        attempts: u32,
        /// Time since the session was lost.
        elapsed: Duration,
        /// Why the last one failed.
        #[source]
        last: Box<TailError>,
    },
}

impl TailError {
    /// True where another connection can succeed: the network failed, or the tail is draining or full.
    #[must_use]
    pub fn is_recoverable(&self) -> bool {
        match self {
            Self::Refused(refused) => matches!(
                refused.code,
                RefusalCode::Draining | RefusalCode::NoCapacity | RefusalCode::Internal
            ),
            Self::Socket { source, .. } => !is_final(source),
            Self::Closed | Self::Timeout { .. } => true,
            _ => false,
        }
    }

    /// The least time that the tail asks to wait.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(refused) => refused.retry_after,
            Self::Socket { source, .. } => match &**source {
                tokio_tungstenite::tungstenite::Error::Http(response) => {
                    let seconds = response.headers().get("retry-after")?.to_str().ok()?;
                    seconds.parse().ok().map(Duration::from_secs)
                }
                _ => None,
            },
            _ => None,
        }
    }
}

/// Failures that no other pod behind the same address will mend.
fn is_final(error: &tokio_tungstenite::tungstenite::Error) -> bool {
    use tokio_tungstenite::tungstenite::Error as SocketError;
    match error {
        // A gateway answers 502 to 504 while no pod is ready, 429 while it has enough.
        SocketError::Http(response) => {
            let status = response.status();
            status.is_client_error() && status.as_u16() != 429
        }
        SocketError::Url(_) | SocketError::HttpFormat(_) => true,
        _ => false,
    }
}

/// This device failed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The cache folder cannot be used.
    #[error("cannot use {path}")]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The system has no cache folder for this user.
    #[error("this system names no cache folder; choose one")]
    NoCacheDir,
    /// The model cannot be loaded.
    #[error("cannot load the model")]
    Load(#[from] LoadError),
    /// A forward pass failed.
    #[error("a forward pass failed")]
    Forward(#[from] ForwardError),
    /// Hidden states cannot be encoded, or (in an evaluation) not decoded.
    #[error("the hidden states do not fit the codec")]
    Codec(#[from] CodecError),
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// The HTTP client cannot be set up.
    #[error("cannot set up the HTTP client")]
    HttpClient(#[source] reqwest::Error),
    /// A worker thread panicked.
    #[error("a worker thread ended early")]
    Worker(#[from] tokio::task::JoinError),
    /// The task of a generation ended without a report.
    #[error("the generation ended without a report")]
    WorkerLost,
}

impl DeviceError {
    /// Binds an I/O error to the path it happened on.
    pub(crate) fn cache(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Cache {
            path: path.to_owned(),
            source,
        }
    }
}

impl From<LoadError> for Error {
    fn from(error: LoadError) -> Self {
        Self::Device(DeviceError::Load(error))
    }
}

impl From<ForwardError> for Error {
    fn from(error: ForwardError) -> Self {
        Self::Device(DeviceError::Forward(error))
    }
}

impl From<CodecError> for Error {
    fn from(error: CodecError) -> Self {
        Self::Device(DeviceError::Codec(error))
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::Tail(TailError::Refused(refused))
    }
}
