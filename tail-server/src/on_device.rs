//! Answers that devices gave without the tail, as they report them: `POST /v1/on-device-answers`.
//!
//! ```text
//! {"report_id": "0f1e2d3c4b5a69788796a5b4c3d2e1f0",
//!  "answers": [{"prompt_tokens": 12, "output_tokens": 40}, …]}
//! ```
//!
//! The answer is `{"counted": true}`, or `{"counted": false}` for a report that was counted before: a device
//! that got no answer sends the same report under the same id again. `output_tokens` are those of the answer,
//! without the token that ended the turn.
//!
//! A report is answered when it is in the file of [`LastWords`]: a tail that is killed afterwards loses none of it.
//!
//! # What is not covered
//! - Ids are remembered by this process alone. A report whose answer was lost, and that is sent again to
//!   another tail or to this one after its restart, is counted twice.
//! - The numbers are what devices say. A tenant can claim tokens that nobody generated, within the limits
//!   below and as often as it likes. So they have a term of savings of their own, and reports are taken only
//!   where the tail lets devices answer alone.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{DefaultBodyLimit, FromRequest as _};
use axum::http::Request;
use bytes::Bytes;
use headway_model::manifest::Manifest;
use serde::{Deserialize, Serialize};

use crate::auth::Tenant;
use crate::last_words::LastWords;
use crate::savings::Savings;

#[cfg(test)]
mod tests;

/// The largest body of a report, in bytes: 256 for each answer, of which one needs 80 at most.
const MAX_REPORT_BYTES: usize = 64 << 10;

/// The most answers of one report.
const MAX_REPORT_ANSWERS: usize = 256;

/// The most ids that are remembered of one tenant; the oldest is forgotten first. 16 bytes each.
const MAX_IDS_OF_TENANT: usize = 1024;

/// The most tenants of which ids are remembered. Beyond it the one that has reported nothing for longest is
/// forgotten, so no number of reports pushes out another tenant's, but a thousand other tenants do. With
/// [`MAX_IDS_OF_TENANT`] that is 16 MiB.
const MAX_TENANTS: usize = 1024;

/// How much of the reason why a body cannot be read is repeated: it may repeat the body.
const MAX_REASON_CHARS: usize = 200;

/// Why a report is not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReportError {
    #[error(
        "this tail lets no device answer alone, and takes no reports of such answers; \
         see --on-device-answers"
    )]
    NotAllowed,
    #[error("the report is larger than {max_bytes} bytes")]
    TooLarge { max_bytes: usize },
    #[error("the report did not come within {} ms", timeout.as_millis())]
    Late { timeout: Duration },
    #[error("the report broke off")]
    BrokenOff,
    #[error("the body is not a JSON object with report_id and answers: {reason}")]
    Json { reason: String },
    #[error("report_id is not 32 digits of 0-9 and a-f")]
    ReportId,
    #[error("the report has {got} answers; expected 1 to {max}")]
    Answers { got: usize, max: usize },
    #[error(
        "answer {index}, counted from 0, has {prompt_tokens} prompt_tokens and {output_tokens} output_tokens; \
         expected 1 or more of each"
    )]
    NoTokens {
        index: usize,
        prompt_tokens: u64,
        output_tokens: u64,
    },
    #[error(
        "answer {index}, counted from 0, has {prompt_tokens} prompt_tokens and {output_tokens} output_tokens; \
         the model has {max_positions} positions for both together"
    )]
    TooManyTokens {
        index: usize,
        prompt_tokens: u64,
        output_tokens: u64,
        max_positions: usize,
    },
}

/// What the sender of a report is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Received {
    /// False where this report was counted before.
    pub(crate) counted: bool,
}

/// Takes the reports of devices, and counts each once.
pub(crate) struct OnDeviceAnswers {
    is_allowed: bool,
    /// Of the model, and not of a session here: a device alone is not bound by this tail's memory.
    max_positions: usize,
    body_timeout: Duration,
    savings: Arc<Savings>,
    last_words: Arc<LastWords>,
    seen: Mutex<SeenReports>,
}

impl OnDeviceAnswers {
    /// `body_timeout`: for a report to come, from its headers on.
    pub(crate) fn new(
        manifest: &Manifest,
        savings: &Arc<Savings>,
        last_words: Arc<LastWords>,
        body_timeout: Duration,
    ) -> Self {
        Self {
            is_allowed: manifest.allows_on_device_answers(),
            max_positions: manifest.identity.config.max_positions,
            body_timeout,
            savings: Arc::clone(savings),
            last_words,
            seen: Mutex::default(),
        }
    }

    /// Reads the report that `request` of `tenant` carries, and counts it unless that was done before.
    ///
    /// # Errors
    /// [`ReportError`]; then nothing of the report was counted, and its id is not remembered.
    pub(crate) async fn receive(
        &self,
        tenant: &Tenant,
        request: Request<Body>,
    ) -> Result<Received, ReportError> {
        if !self.is_allowed {
            return Err(ReportError::NotAllowed);
        }
        let body = tokio::time::timeout(self.body_timeout, read_body(request));
        let body = body.await.map_err(|_| ReportError::Late {
            timeout: self.body_timeout,
        })??;
        let report = Report::parse(&body, self.max_positions)?;
        let counted = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.insert(tenant, report.id)
        };
        if counted {
            for answer in &report.answers {
                self.savings
                    .count_on_device_answer(answer.prompt_tokens, answer.output_tokens);
            }
            Arc::clone(&self.last_words).keep_now().await;
        }
        Ok(Received { counted })
    }
}

/// Reads a body of at most [`MAX_REPORT_BYTES`]; a larger one is not read to its end.
async fn read_body(mut request: Request<Body>) -> Result<Bytes, ReportError> {
    DefaultBodyLimit::max(MAX_REPORT_BYTES).apply(&mut request);
    let body = Bytes::from_request(request, &()).await;
    body.map_err(|error| match error {
        BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
            ReportError::TooLarge {
                max_bytes: MAX_REPORT_BYTES,
            }
        }
        _ => ReportError::BrokenOff,
    })
}

/// A report within its limits.
#[derive(Debug, PartialEq, Eq)]
struct Report {
    id: ReportId,
    answers: Vec<OnDeviceAnswer>,
}

/// One answer that a device gave alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
struct OnDeviceAnswer {
    prompt_tokens: u64,
    output_tokens: u64,
}

impl Report {
    /// `max_positions`: of the model.
    fn parse(body: &[u8], max_positions: usize) -> Result<Self, ReportError> {
        /// As it comes.
        #[derive(Deserialize)]
        struct Unchecked {
            report_id: String,
            answers: Vec<OnDeviceAnswer>,
        }

        let unchecked: Unchecked = serde_json::from_slice(body).map_err(|error| {
            let reason = error.to_string().chars().take(MAX_REASON_CHARS).collect();
            ReportError::Json { reason }
        })?;
        let id = ReportId::parse(&unchecked.report_id).ok_or(ReportError::ReportId)?;
        let answers = unchecked.answers;
        if !(1..=MAX_REPORT_ANSWERS).contains(&answers.len()) {
            return Err(ReportError::Answers {
                got: answers.len(),
                max: MAX_REPORT_ANSWERS,
            });
        }
        for (index, answer) in answers.iter().enumerate() {
            answer.check(index, max_positions)?;
        }
        Ok(Self { id, answers })
    }
}

impl OnDeviceAnswer {
    fn check(self, index: usize, max_positions: usize) -> Result<(), ReportError> {
        let Self {
            prompt_tokens,
            output_tokens,
        } = self;
        if prompt_tokens == 0 || output_tokens == 0 {
            return Err(ReportError::NoTokens {
                index,
                prompt_tokens,
                output_tokens,
            });
        }
        if prompt_tokens.saturating_add(output_tokens) > max_positions as u64 {
            return Err(ReportError::TooManyTokens {
                index,
                prompt_tokens,
                output_tokens,
                max_positions,
            });
        }
        Ok(())
    }
}

/// What one report is known by among those of its tenant: 128 bits that the device drew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ReportId(u128);

impl ReportId {
    /// `None` where `text` is not 32 lower-case hexadecimal digits.
    fn parse(text: &str) -> Option<Self> {
        let is_id = text.len() == 32
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let id = is_id.then(|| u128::from_str_radix(text, 16).ok())??;
        Some(Self(id))
    }
}

/// The ids of the reports that were counted lately.
#[derive(Debug, Default)]
struct SeenReports {
    by_tenant: HashMap<Tenant, TenantReports>,
    /// Counts reports, so that it is known who has sent none for longest.
    clock: u64,
}

#[derive(Debug, Default)]
struct TenantReports {
    /// The oldest first.
    ids: VecDeque<ReportId>,
    last_report: u64,
}

impl SeenReports {
    /// False where the id is remembered. Otherwise it is from now on.
    fn insert(&mut self, tenant: &Tenant, id: ReportId) -> bool {
        self.clock += 1;
        if !self.by_tenant.contains_key(tenant) && self.by_tenant.len() >= MAX_TENANTS {
            self.forget_idlest_tenant();
        }
        let reports = self.by_tenant.entry(tenant.clone()).or_default();
        reports.last_report = self.clock;
        // A look at 16 KiB at most: less than it takes to read the report.
        if reports.ids.contains(&id) {
            return false;
        }
        if reports.ids.len() >= MAX_IDS_OF_TENANT {
            reports.ids.pop_front();
        }
        reports.ids.push_back(id);
        true
    }

    fn forget_idlest_tenant(&mut self) {
        let idlest = self
            .by_tenant
            .iter()
            .min_by_key(|(_, reports)| reports.last_report)
            .map(|(tenant, _)| tenant.clone());
        if let Some(tenant) = idlest {
            self.by_tenant.remove(&tenant);
        }
    }
}
