//! Every way in which a peer's wish is not fulfilled, and the two places where that becomes an answer:
//! [`refusal`] for sessions, [`Error::into_response`] for plain HTTP.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use headway_wire::FrameError;
use headway_wire::message::{Refusal, RefusalCode};
use serde_json::json;

use crate::admission::AdmissionError;
use crate::auth::AuthError;
use crate::capacity::CapacityError;
use crate::engine::EngineError;
use crate::head_artifacts::ArtifactError;
use crate::loading::RETRY_AFTER;
use crate::on_device::ReportError;
use crate::session::StepError;
use crate::tenant_limits::TenantLimitError;
use crate::watchdog::StallError;

/// After how long a device that met a full or leaving tail may try again where nothing better is known.
const RETRY_AFTER_MS: u32 = 1000;

/// Why a request or a session is not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    #[error(transparent)]
    Capacity(#[from] CapacityError),
    #[error(transparent)]
    Step(#[from] StepError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Stalled(#[from] StallError),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error(transparent)]
    OnDeviceReport(#[from] ReportError),
    #[error(transparent)]
    TenantLimit(#[from] TenantLimitError),
    #[error(transparent)]
    Unauthenticated(#[from] AuthError),
    #[error(
        "the credentials that this session was opened with have expired or were withdrawn; \
         open it again with others"
    )]
    CredentialsEnded,
    #[error("pages of the origin {origin:?} may not use this tail; see --allowed-origins")]
    Origin { origin: String },
    #[error("no frame came within {} ms; the first frame of a session is Open", open_timeout.as_millis())]
    OpenTimeout { open_timeout: Duration },
    #[error("a Step came first; the first frame of a session is Open")]
    StepBeforeOpen,
    #[error("a second Open came; a WebSocket carries one session")]
    OpenedTwice,
    #[error("a text message came; frames are binary messages")]
    TextMessage,
    #[error("the peer broke the WebSocket protocol")]
    WebSocket,
    #[error("this tail has not loaded its model yet; try again later")]
    Loading,
    #[error("this tail is leaving; open the session on another one")]
    Draining,
    #[error(
        "the session was idle and its room was needed; rebuild it when it goes on, here or on another tail"
    )]
    Evicted,
    #[error("this tail has {max_sockets} session sockets open, and takes no more; try again later")]
    TooManySockets { max_sockets: usize },
    #[error("the metrics cannot be rendered")]
    Metrics(#[from] prometheus::Error),
    #[error("the device does not read")]
    WriteTimeout,
    #[error("the device has gone")]
    PeerGone,
}

impl Error {
    fn code(&self) -> RefusalCode {
        match self {
            Self::Frame(error) => error.refusal_code(),
            Self::Admission(error) => admission_code(error),
            Self::Capacity(CapacityError::NeverFits { .. }) | Self::TenantLimit(_) => {
                RefusalCode::OverLimit
            }
            Self::Unauthenticated(_) | Self::CredentialsEnded | Self::Origin { .. } => {
                RefusalCode::Unauthenticated
            }
            Self::Capacity(_) | Self::Evicted | Self::Loading | Self::TooManySockets { .. } => {
                RefusalCode::NoCapacity
            }
            Self::Step(StepError::BeyondSession { .. }) => RefusalCode::OverLimit,
            Self::Step(StepError::Activations(error)) => error.refusal_code(),
            Self::Step(StepError::HistoryUpload | StepError::DraftUpload) => {
                RefusalCode::Unsupported
            }
            Self::Step(_)
            | Self::OpenTimeout { .. }
            | Self::StepBeforeOpen
            | Self::OpenedTwice
            | Self::TextMessage
            | Self::WebSocket => RefusalCode::Malformed,
            Self::Draining => RefusalCode::Draining,
            Self::Artifact(error) if error.is_internal() => RefusalCode::Internal,
            Self::Artifact(_) => RefusalCode::Unsupported,
            Self::OnDeviceReport(error) => report_code(error),
            Self::Engine(_)
            | Self::Stalled(_)
            | Self::Metrics(_)
            | Self::WriteTimeout
            | Self::PeerGone => RefusalCode::Internal,
        }
    }

    fn retry_after_ms(&self) -> Option<u32> {
        match self {
            Self::Capacity(
                CapacityError::Sessions { retry_after_ms, .. }
                | CapacityError::Queue { retry_after_ms, .. }
                | CapacityError::KvCache { retry_after_ms, .. },
            ) => Some(*retry_after_ms),
            Self::TenantLimit(error) => Some(error.retry_after_ms()),
            Self::Loading => u32::try_from(RETRY_AFTER.as_millis()).ok(),
            // The device has all it needs to rebuild the session, here or on another tail.
            Self::Engine(_)
            | Self::Stalled(_)
            | Self::TooManySockets { .. }
            | Self::Draining
            | Self::Evicted => Some(RETRY_AFTER_MS),
            _ => None,
        }
    }

    /// The sentence for the peer: the error and its causes, or nothing but the fact where the cause is
    /// inside this machine.
    fn sentence(&self) -> String {
        match self {
            Self::Artifact(error) if error.is_internal() => {
                "the head artefact could not be built".to_owned()
            }
            Self::Metrics(_) => self.to_string(),
            _ => format_chain(self),
        }
    }
}

fn admission_code(error: &AdmissionError) -> RefusalCode {
    match error {
        AdmissionError::DigestMismatch { .. } => RefusalCode::DigestMismatch,
        AdmissionError::SplitLayer { .. }
        | AdmissionError::TokenUpload { .. }
        | AdmissionError::HistoryUpload
        | AdmissionError::Codec { .. } => RefusalCode::Unsupported,
        AdmissionError::Positions { .. } => RefusalCode::OverLimit,
        AdmissionError::CodecForm(error) => error.refusal_code(),
        AdmissionError::LogitBias { .. } | AdmissionError::Sampling(_) => RefusalCode::Malformed,
    }
}

const fn report_code(error: &ReportError) -> RefusalCode {
    match error {
        ReportError::NotAllowed => RefusalCode::Unsupported,
        ReportError::TooLarge { .. } | ReportError::TooManyTokens { .. } => RefusalCode::OverLimit,
        ReportError::Late { .. }
        | ReportError::BrokenOff
        | ReportError::Json { .. }
        | ReportError::ReportId
        | ReportError::Answers { .. }
        | ReportError::NoTokens { .. } => RefusalCode::Malformed,
    }
}

/// The refusal that a session's device gets.
pub(crate) fn refusal(error: &Error) -> Refusal {
    let refusal = Refusal::new(error.code(), error.sentence());
    match error.retry_after_ms() {
        Some(retry_after_ms) => refusal.with_retry_after_ms(retry_after_ms),
        None => refusal,
    }
}

/// The code's name in metrics and in HTTP errors: that of the schema, without the prefix, in lower case.
pub(crate) const fn code_name(code: RefusalCode) -> &'static str {
    match code {
        RefusalCode::Unspecified => "unspecified",
        RefusalCode::Malformed => "malformed",
        RefusalCode::Unsupported => "unsupported",
        RefusalCode::DigestMismatch => "digest_mismatch",
        RefusalCode::OverLimit => "over_limit",
        RefusalCode::Unauthenticated => "unauthenticated",
        RefusalCode::Draining => "draining",
        RefusalCode::NoCapacity => "no_capacity",
        RefusalCode::Internal => "internal",
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        if let Self::Artifact(error) = &self
            && error.is_internal()
        {
            tracing::error!(
                error = format_chain(error),
                "a head artefact could not be built"
            );
        }
        let (status, code) = match &self {
            Self::Artifact(
                ArtifactError::NotServed { .. } | ArtifactError::Quantization { .. },
            ) => (StatusCode::NOT_FOUND, "not_found"),
            // The fault may pass, and another tail may be free of it.
            Self::Stalled(_) => (StatusCode::SERVICE_UNAVAILABLE, code_name(self.code())),
            // The same report may come through the next time.
            Self::OnDeviceReport(ReportError::Late { .. }) => {
                (StatusCode::REQUEST_TIMEOUT, code_name(self.code()))
            }
            // Neither other credentials nor another report would help.
            Self::Origin { .. } | Self::OnDeviceReport(ReportError::NotAllowed) => {
                (StatusCode::FORBIDDEN, code_name(self.code()))
            }
            _ => (status(self.code()), code_name(self.code())),
        };
        let body = Json(json!({ "error": { "code": code, "message": self.sentence() } }));
        let mut response = (status, body).into_response();
        if let Self::Unauthenticated(error) = &self {
            // RFC 6750, section 3: the error is named where there was a token.
            let challenge = match error {
                AuthError::Missing { .. } => "Bearer",
                _ => "Bearer error=\"invalid_token\"",
            };
            response.headers_mut().insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static(challenge),
            );
        }
        if let Some(retry_after_ms) = self.retry_after_ms() {
            response.headers_mut().insert(
                header::RETRY_AFTER,
                HeaderValue::from(retry_after_ms.div_ceil(1000)),
            );
        }
        response
    }
}

fn status(code: RefusalCode) -> StatusCode {
    match code {
        RefusalCode::Draining | RefusalCode::NoCapacity => StatusCode::SERVICE_UNAVAILABLE,
        RefusalCode::Unauthenticated => StatusCode::UNAUTHORIZED,
        RefusalCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        RefusalCode::OverLimit => StatusCode::PAYLOAD_TOO_LARGE,
        RefusalCode::DigestMismatch => StatusCode::CONFLICT,
        _ => StatusCode::BAD_REQUEST,
    }
}

/// The error and its causes, in one line.
pub(crate) fn format_chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", format_chain(cause)),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_mismatch_names_both_digests() {
        let (tail, device) = ("sha256:aa".to_owned(), "sha256:bb".to_owned());
        let refusal = refusal(&AdmissionError::DigestMismatch { tail, device }.into());
        assert_eq!(refusal.code(), RefusalCode::DigestMismatch);
        assert!(refusal.message.contains("sha256:aa") && refusal.message.contains("sha256:bb"));
    }

    #[test]
    fn a_full_tail_says_when_to_try_again() {
        let error = Error::from(CapacityError::Sessions {
            max_sessions: 3,
            retry_after_ms: 1500,
        });
        assert_eq!(refusal(&error).retry_after_ms, Some(1500));
        let response = error.into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
    }

    #[test]
    fn a_fault_of_the_engine_is_internal_and_says_when_to_replay() {
        let refusal = refusal(&EngineError::Failed.into());
        assert_eq!(refusal.code(), RefusalCode::Internal);
        assert_eq!(refusal.retry_after_ms, Some(RETRY_AFTER_MS));
        assert!(refusal.message.contains("rebuild"), "{}", refusal.message);
    }

    #[test]
    fn an_internal_cause_stays_inside() {
        let source = std::io::Error::other("disk sdb1 at /srv/cache is full");
        let error = Error::from(ArtifactError::Cache(source));
        assert!(!refusal(&error).message.contains("/srv"));
        assert_eq!(
            error.into_response().status(),
            StatusCode::INTERNAL_SERVER_ERROR
        );
    }
}
