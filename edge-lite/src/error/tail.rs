//! What the tail, or the network on the way there, does wrong.

use std::path::PathBuf;
use std::time::Duration;

use headway_wire::FrameError;
use headway_wire::message::{Refusal, RefusalCode};

use crate::tail_api::error_code;

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
    /// The tail does not let this device in. Asking again with the same credentials does not help.
    #[error("{url} does not let this device in: {message}")]
    Unauthenticated {
        /// What was asked for.
        url: String,
        /// The tail's sentence.
        message: String,
    },
    /// No tail of the model runs. The first one is being started, because of this request.
    #[error("{url} has no tail that runs yet: {message}")]
    Starting {
        /// What was asked for.
        url: String,
        /// The sentence of whoever answers in the tails' place.
        message: String,
        /// After how long a new try can succeed.
        retry_after: Duration,
    },
    /// The token for the tail cannot be read.
    #[error("cannot read the token in {path}")]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The token for the tail is not one.
    #[error("{what} is no bearer token: one word of visible ASCII is")]
    Token {
        /// What was looked at: a file's name, and never the token.
        what: String,
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
    /// True where another connection can succeed: the network failed, the tail is draining or full, the
    /// tenant's limit is reached, or the credentials of a session have ended, which may have been
    /// renewed since. Where they have not, that connection fails with [`TailError::Unauthenticated`], and
    /// that is the end.
    #[must_use]
    pub fn is_recoverable(&self) -> bool {
        match self {
            Self::Refused(refused) => match refused.code {
                RefusalCode::Draining
                | RefusalCode::NoCapacity
                | RefusalCode::Unauthenticated
                | RefusalCode::Internal => true,
                RefusalCode::OverLimit => refused.retry_after.is_some(),
                _ => false,
            },
            Self::Socket { source, .. } => !is_final(source),
            Self::Closed | Self::Timeout { .. } | Self::Starting { .. } => true,
            _ => false,
        }
    }

    /// True where a tail serves another model than the device's. Behind one address there are tails of two models
    /// while one takes the place of the other, so that the next connection may meet one of the device's own.
    #[must_use]
    pub fn is_of_another_model(&self) -> bool {
        matches!(self, Self::Refused(refused) if refused.code == RefusalCode::DigestMismatch)
    }

    /// True where whoever stands before the tails may have none just now: a gateway that knows no pod, or one that
    /// cannot be connected to.
    pub(crate) fn is_of_the_way(&self) -> bool {
        match self {
            Self::Http { .. } => true,
            Self::Status { status, body, .. } => {
                matches!(status, 404 | 502..=504) && error_code(body.as_bytes()).is_none()
            }
            _ => self.is_recoverable(),
        }
    }

    /// The least time that the tail asks to wait.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(refused) => refused.retry_after,
            Self::Starting { retry_after, .. } => Some(*retry_after),
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
        // A gateway answers 502 to 504 while no pod is ready, some 404, and 429 while it has enough.
        SocketError::Http(response) => match response.status().as_u16() {
            429 => false,
            404 => error_code(response.body().as_deref().unwrap_or_default()).is_some(),
            _ => response.status().is_client_error(),
        },
        SocketError::Url(_) | SocketError::HttpFormat(_) => true,
        _ => false,
    }
}
