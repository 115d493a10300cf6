//! How far the model is on its way to this tail, for `/readyz`, `/metrics` and whoever is refused meanwhile.
//!
//! ```text
//! downloading ──► loading ──► ready
//!      └────────────┴──► failed ── after a while ──► downloading
//! ```

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use headway_hub::{Progress, ProgressCallback};
use serde::Serialize;

use crate::metrics::Metrics;

/// The longest pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_secs(120);

/// What `/readyz` says of the model, as JSON. `docs/tail-metrics.md` has the form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    pub(crate) state: State,
    /// One word, in the form of a condition's reason.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) done_bytes: u64,
    pub(crate) total_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) model_digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) commit: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    #[default]
    Downloading,
    Loading,
    Failed,
    Ready,
}

/// Where the delivery stands.
pub(crate) struct Delivery {
    report: Mutex<Report>,
    received_bytes: Mutex<u64>,
    metrics: Arc<Metrics>,
}

impl Delivery {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        let report = Report {
            reason: "Downloading",
            message: "the model is looked for".to_owned(),
            ..Report::default()
        };
        Arc::new(Self {
            report: Mutex::new(report),
            received_bytes: Mutex::default(),
            metrics,
        })
    }

    pub(crate) fn report(&self) -> Report {
        self.lock().clone()
    }

    /// To be told of downloads of one attempt.
    pub(crate) fn progress(self: &Arc<Self>) -> ProgressCallback {
        *self
            .received_bytes
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = 0;
        let delivery = Arc::clone(self);
        Arc::new(move |progress| delivery.downloading(progress))
    }

    fn downloading(&self, progress: &Progress) {
        let Progress {
            file,
            done_bytes,
            total_bytes,
            received_bytes,
        } = progress;
        let mut before = self
            .received_bytes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let came = received_bytes.saturating_sub(*before);
        *before = *received_bytes;
        self.metrics
            .record_delivery(*done_bytes, *total_bytes, came);
        let mut report = self.lock();
        report.state = State::Downloading;
        report.reason = "Downloading";
        report.message = format!(
            "{}{} of {} MiB; {file}",
            percent(*done_bytes, *total_bytes),
            done_bytes >> 20,
            total_bytes >> 20
        );
        report.done_bytes = *done_bytes;
        report.total_bytes = *total_bytes;
    }

    /// All files are here, or can be asked for.
    pub(crate) fn loading(&self) {
        let mut report = self.lock();
        report.state = State::Loading;
        report.reason = "Loading";
        "the model is checked and loaded".clone_into(&mut report.message);
    }

    pub(crate) fn failed(&self, reason: &'static str, message: &str, pause: Duration) {
        self.metrics.record_delivery_failure(reason);
        let mut report = self.lock();
        report.state = State::Failed;
        report.reason = reason;
        report.message = format!("{message}; tried again after {} s", pause.as_secs());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `42 %, ` where it is known.
fn percent(done_bytes: u64, total_bytes: u64) -> String {
    match done_bytes.saturating_mul(100).checked_div(total_bytes) {
        Some(percent) => format!("{percent} %, "),
        None => String::new(),
    }
}

impl Report {
    /// A model that is served.
    pub(crate) fn ready(model_digest: &str, commit: Option<&str>) -> Self {
        Self {
            state: State::Ready,
            reason: "Loaded",
            message: "the model is served".to_owned(),
            done_bytes: 0,
            total_bytes: 0,
            model_digest: Some(model_digest.to_owned()),
            commit: commit.map(str::to_owned),
        }
    }
}

/// How long to wait before the attempt after so many failures.
pub(crate) fn pause(first: Duration, failures: u32) -> Duration {
    let doubled = 1_u32 << failures.saturating_sub(1).min(16);
    first.saturating_mul(doubled).min(MAX_PAUSE.max(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_two_minutes() {
        let first = Duration::from_secs(30);
        let seconds = [1, 2, 3, 6, 99].map(|failures| pause(first, failures).as_secs());
        assert_eq!(seconds, [30, 60, 120, 120, 120]);
        let day = Duration::from_secs(86_400);
        assert_eq!(pause(day, 3), day);
    }

    #[test]
    fn progress_is_told_in_percent_and_what_came_is_counted_once() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let delivery = Delivery::new(Arc::clone(&metrics));
        for attempt in 0..2 {
            let tell = delivery.progress();
            for mebibytes in [10, 42] {
                tell(&Progress {
                    file: "m.gguf".to_owned(),
                    done_bytes: mebibytes << 20,
                    total_bytes: 100 << 20,
                    received_bytes: mebibytes << 20,
                });
            }
            let report = delivery.report();
            assert_eq!(report.message, "42 %, 42 of 100 MiB; m.gguf");
            let text = metrics.render().unwrap();
            let came = format!(
                "headway_tail_model_received_bytes_total {}",
                (42 << 20) * (attempt + 1)
            );
            assert!(text.contains(&came), "{text}");
        }
        delivery.failed("Unauthorized", "no token", Duration::from_secs(30));
        let report = delivery.report();
        assert_eq!(
            (report.state, report.reason),
            (State::Failed, "Unauthorized")
        );
        assert_eq!(report.message, "no token; tried again after 30 s");
        assert_eq!(percent(1, 0), "");
    }
}
