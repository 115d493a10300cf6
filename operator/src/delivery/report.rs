//! What a tail's `/readyz` says, read with suspicion: it goes into conditions and events.

use serde::Deserialize;

/// The most characters of a message that reach a condition.
const MAX_MESSAGE_CHARS: usize = 512;

/// Progress is told in steps of so many percent, so that a download is a handful of writes.
const STEP_PERCENT: u64 = 10;

/// Where a tail's model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// On its way.
    Downloading,
    /// Here, and being checked and loaded.
    Loading,
    /// It could not be had.
    Failed,
    /// It is served.
    Ready,
}

/// What a tail says of its model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Where the model is.
    pub state: State,
    /// In the form of a condition's reason.
    pub reason: String,
    /// What has happened, or how far the download is, in steps of ten percent.
    pub message: String,
    /// Of the model that is served.
    pub model_digest: Option<String>,
    /// Of the repository that the served model is from.
    pub commit: Option<String>,
    percent: u64,
}

#[derive(Deserialize)]
struct Wire {
    state: State,
    reason: String,
    message: String,
    #[serde(default)]
    done_bytes: u64,
    #[serde(default)]
    total_bytes: u64,
    model_digest: Option<String>,
    commit: Option<String>,
}

impl Report {
    /// Reads an answer; `None` for anything that is not a tail's.
    #[must_use]
    pub fn read(body: &[u8]) -> Option<Self> {
        let wire: Wire = serde_json::from_slice(body).ok()?;
        let percent = wire
            .done_bytes
            .saturating_mul(100)
            .checked_div(wire.total_bytes);
        let percent = percent.unwrap_or(0).min(100) / STEP_PERCENT * STEP_PERCENT;
        let is_downloading = wire.state == State::Downloading && wire.total_bytes > 0;
        let message = if is_downloading {
            format!(
                "{percent} % of {} MiB are downloaded",
                wire.total_bytes >> 20
            )
        } else {
            wire.message.chars().take(MAX_MESSAGE_CHARS).collect()
        };
        Some(Self {
            state: wire.state,
            reason: Some(wire.reason)
                .filter(|reason| is_reason(reason))
                .unwrap_or_else(|| "Unknown".to_owned()),
            message,
            model_digest: wire.model_digest.filter(|digest| is_digest(digest)),
            commit: wire.commit.filter(|commit| is_hex(commit, 40)),
            percent,
        })
    }

    /// Greater for who is further.
    pub(super) fn progress(&self) -> (State, u64) {
        (self.state, self.percent)
    }
}

/// By the API conventions, in one word.
fn is_reason(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphabetic())
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| is_hex(hex, 64))
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
