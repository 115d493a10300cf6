//! What a tail leaves behind when its process ends: one line of JSON in the file that Kubernetes reads as the
//! container's termination message.
//!
//! Between the last scrape and the end a tail goes on counting. The operator takes what is missing from here.
//! A process that is killed can write nothing any more, so what is in the file is kept up to date all the time:
//! the kubelet reads it however the process ended. `docs/tail-metrics.md` has the form.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::metrics::{Counters, Metrics};

/// Where Kubernetes reads the message unless the pod says otherwise.
const DEFAULT_PATH: &str = "/dev/termination-log";

/// What Kubernetes keeps of a message, less the end of its line.
const MAX_BYTES: usize = 4095;

/// The most that a tail which is killed has done and not written down. A write takes some microseconds.
const KEEP_INTERVAL: Duration = Duration::from_millis(100);

/// Stands where an error was cut.
const CUT: &str = "…";

/// The message's place, and what it will tell of.
pub struct LastWords {
    /// `None`: the default, where it exists.
    path: Option<PathBuf>,
    metrics: Arc<Metrics>,
    /// What is in the file. `None` where nothing was written yet.
    written: Mutex<Option<Written>>,
}

/// What is in the file.
enum Written {
    /// What the tail had done then.
    SoFar(Counters),
    /// The last words: nothing follows.
    Last,
}

impl LastWords {
    /// `path`: where the message goes; `None` takes `/dev/termination-log` where it exists and can be written,
    /// and writes nothing where not.
    #[must_use]
    pub fn new(path: Option<PathBuf>, metrics: Arc<Metrics>) -> Self {
        Self {
            path,
            metrics,
            written: Mutex::new(None),
        }
    }

    /// What it tells of.
    #[must_use]
    pub const fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Keeps the message up to date, for the case that the process is killed. Ends where it cannot be written,
    /// and with the last words.
    pub async fn keep(self: Arc<Self>) {
        let mut interval = tokio::time::interval(KEEP_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            if !Arc::clone(&self).keep_now().await {
                return;
            }
        }
    }

    /// Brings the message up to date: what is counted now is known even if the process is killed next. Returns whether to
    /// go on.
    pub(crate) async fn keep_now(self: Arc<Self>) -> bool {
        let written = tokio::task::spawn_blocking(move || self.write_so_far());
        written.await.unwrap_or(false)
    }

    /// Writes what has been done so far, unless that is in the file already. Returns whether to go on.
    fn write_so_far(&self) -> bool {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let counters = self.metrics.counters();
        match &*written {
            Some(Written::Last) => return false,
            Some(Written::SoFar(before)) if *before == counters => return true,
            _ => {}
        }
        let is_written = self.replace(&message(&counters, None));
        *written = Some(Written::SoFar(counters));
        is_written
    }

    /// Writes the message. `error`: why the process ends, where it ends with an error. A message that cannot be
    /// written is logged: there is nobody else to tell.
    pub fn write(&self, error: Option<&(dyn std::error::Error + 'static)>) {
        let error = error.map(crate::error::format_chain);
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        self.replace(&message(&self.metrics.counters(), error.as_deref()));
        *written = Some(Written::Last);
    }

    /// Returns whether the message is in the file.
    fn replace(&self, message: &str) -> bool {
        let (path, is_wanted) = match &self.path {
            Some(path) => (path.as_path(), true),
            None => (Path::new(DEFAULT_PATH), false),
        };
        let replaced = replace(path, message, is_wanted);
        match &replaced {
            Ok(()) => {}
            Err(error) if is_wanted => {
                tracing::error!(%error, path = %path.display(), "the termination message is not written");
            }
            Err(error) => tracing::debug!(%error, "no termination message at {DEFAULT_PATH}"),
        }
        replaced.is_ok()
    }
}

/// Writes over what is there, and cuts what is left of it: a process that is killed at any moment in between
/// leaves one whole line at the beginning.
fn replace(path: &Path, message: &str, create: bool) -> std::io::Result<()> {
    let file: File = OpenOptions::new()
        .write(true)
        .create(create)
        .truncate(false)
        .open(path)?;
    let line = format!("{message}\n");
    file.write_all_at(line.as_bytes(), 0)?;
    file.set_len(line.len() as u64)
}

#[derive(Serialize)]
struct Message<'a> {
    version: &'static str,
    #[serde(flatten)]
    counters: &'a Counters,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// One line of JSON of at most [`MAX_BYTES`]; an error that is too long is cut at its end.
fn message(counters: &Counters, error: Option<&str>) -> String {
    let json = |error| {
        let message = Message {
            version: env!("CARGO_PKG_VERSION"),
            counters,
            error,
        };
        serde_json::to_string(&message).expect("numbers and text always have a JSON form")
    };
    let whole = json(error);
    let Some(error) = error.filter(|_| whole.len() > MAX_BYTES) else {
        return whole;
    };
    let free = MAX_BYTES.saturating_sub(json(Some(CUT)).len());
    let mut used = 0;
    let end = error
        .char_indices()
        .find(|(_, character)| {
            used += escaped_bytes(*character);
            used > free
        })
        .map_or(error.len(), |(index, _)| index);
    json(Some(&format!("{}{CUT}", &error[..end])))
}

/// How many bytes the character takes inside a JSON string; exact or more.
fn escaped_bytes(character: char) -> usize {
    match character {
        '"' | '\\' => 2,
        // `\u0000` at the most.
        '\0'..'\u{20}' => 6,
        _ => character.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::Value;

    use super::*;
    use crate::accounting::Share;
    use crate::batcher::Phase;
    use crate::metrics::{Route, TokenTime};

    fn used_metrics() -> Arc<Metrics> {
        let metrics = Metrics::new().unwrap();
        let share = Share {
            compute_ns: 1_234_567_891,
            saved_ns: 98_765_432,
        };
        for rows in [3, 40] {
            metrics.record_step(1_234_567_891, &[share]);
            metrics.record_tokens(Phase::Prefill, rows);
            metrics.record_tokens(Phase::Decode, 2 * rows);
        }
        metrics.sessions_opened.inc_by(7);
        metrics.record_answer(Route::Split);
        metrics.record_output(21);
        metrics.record_on_device(5, 13);
        metrics.record_token_time(TokenTime::First(Duration::from_millis(3)));
        Arc::new(metrics)
    }

    fn parse(message: &str) -> Value {
        assert!(message.len() <= MAX_BYTES, "{} bytes", message.len());
        assert!(!message.contains('\n'), "{message}");
        serde_json::from_str(message).unwrap()
    }

    #[test]
    fn every_value_equals_that_of_the_metrics_text() {
        let metrics = used_metrics();
        let json = parse(&message(&metrics.counters(), None));
        let text = metrics.render().unwrap();
        let series = [
            ("/start_time_seconds", "headway_tail_start_time_seconds"),
            ("/busy_seconds", "headway_tail_busy_seconds_total"),
            ("/compute_seconds", "headway_tail_compute_seconds_total"),
            (
                "/saved_seconds/head_layers",
                "headway_tail_saved_seconds_total{term=\"head_layers\"}",
            ),
            (
                "/tokens/prefill",
                "headway_tail_tokens_total{phase=\"prefill\"}",
            ),
            (
                "/tokens/decode",
                "headway_tail_tokens_total{phase=\"decode\"}",
            ),
            ("/sessions_opened", "headway_tail_sessions_opened_total"),
            (
                "/answers/split",
                "headway_tail_answers_total{route=\"split\"}",
            ),
            ("/output_tokens", "headway_tail_output_tokens_total"),
            (
                "/on_device_output_tokens",
                "headway_tail_on_device_tokens_total{part=\"output\"}",
            ),
        ];
        for (pointer, name) in series {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            let expected: f64 = line.expect(name).parse().unwrap();
            assert!(expected > 0.0, "{name} says nothing");
            // The JSON parser may be off by the last bit; what is written is exact.
            let got = json
                .pointer(pointer)
                .and_then(Value::as_f64)
                .expect(pointer);
            assert!(
                (got - expected).abs() <= f64::EPSILON * expected,
                "{pointer}: {got} {expected}"
            );
        }
        assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
        // Every label value of the two families is there.
        for (family, key) in [
            ("saved_seconds", "saved_seconds"),
            ("tokens", "tokens"),
            ("answers", "answers"),
        ] {
            let prefix = format!("headway_tail_{family}_total{{");
            let count = text
                .lines()
                .filter(|line| line.starts_with(&prefix))
                .count();
            assert_eq!(json[key].as_object().unwrap().len(), count);
        }
    }

    #[test]
    fn a_long_error_is_cut_to_the_size_that_is_kept() {
        let counters = used_metrics().counters();
        for piece in ["x", "\n", "\"", "\\", "é", "🦀", "\u{1}"] {
            let error = piece.repeat(10_000);
            let text = message(&counters, Some(&error));
            let json = parse(&text);
            let said = json["error"].as_str().unwrap();
            assert!(said.ends_with(CUT) && said.starts_with(piece));
            assert!(
                text.len() > MAX_BYTES / 3,
                "{piece:?}: only {} bytes",
                text.len()
            );
        }
    }

    #[test]
    fn a_short_error_is_told_whole_on_one_line() {
        let json = parse(&message(&used_metrics().counters(), Some("no\nlayer 40")));
        assert_eq!(json["error"], "no\nlayer 40");
    }

    #[test]
    fn the_message_replaces_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("termination-log");
        std::fs::write(&path, "x".repeat(5000)).unwrap();
        let error = std::io::Error::other("the disk is gone");
        let last_words = LastWords::new(Some(path.clone()), used_metrics());
        last_words.write(Some(&error));
        let json = parse(std::fs::read_to_string(&path).unwrap().trim_end());
        assert_eq!(json["error"], "the disk is gone");
        last_words.write(None);
        let json = parse(std::fs::read_to_string(&path).unwrap().trim_end());
        assert_eq!(json.get("error"), None);
    }

    #[test]
    fn what_is_written_so_far_follows_the_counters_until_the_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("termination-log");
        let metrics = used_metrics();
        let words = LastWords::new(Some(path.clone()), Arc::clone(&metrics));
        let read = || parse(std::fs::read_to_string(&path).unwrap().trim_end());
        assert!(words.write_so_far());
        assert_eq!(read()["sessions_opened"], 7);
        // Nothing new, so nothing is written.
        std::fs::remove_file(&path).unwrap();
        assert!(words.write_so_far());
        assert!(!path.exists());
        metrics.sessions_opened.inc();
        assert!(words.write_so_far());
        assert_eq!(read()["sessions_opened"], 8);
        words.write(Some(&std::io::Error::other("the disk is gone")));
        metrics.sessions_opened.inc();
        assert!(!words.write_so_far());
        assert_eq!(read()["sessions_opened"], 8);
        assert_eq!(read()["error"], "the disk is gone");
    }

    #[test]
    fn a_default_that_does_not_exist_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("termination-log");
        assert!(replace(&path, "{}", false).is_err());
        assert!(!path.exists());
    }

    #[test]
    fn the_documented_example_has_the_message_s_fields() {
        let page = include_str!("../../docs/tail-metrics.md");
        let example = page.lines().find(|line| line.starts_with("{\"version\""));
        let documented: Value = serde_json::from_str(example.unwrap()).unwrap();
        let real = parse(&message(&used_metrics().counters(), Some("why")));
        let fields =
            |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
        assert_eq!(fields(&documented), fields(&real));
        for key in ["saved_seconds", "tokens", "answers"] {
            assert_eq!(fields(&documented[key]), fields(&real[key]));
        }
    }
}
