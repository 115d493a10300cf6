//! What a tail leaves behind when its process ends: one line of JSON in the file that Kubernetes reads as the
//! container's termination message.
//!
//! Between the last scrape and the end a tail goes on counting. The operator takes what is missing from here.
//! `docs/tail-metrics.md` has the form.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::metrics::{Counters, Metrics};

/// Where Kubernetes reads the message unless the pod says otherwise.
const DEFAULT_PATH: &str = "/dev/termination-log";

/// What Kubernetes keeps of a message.
const MAX_BYTES: usize = 4096;

/// Stands where an error was cut.
const CUT: &str = "…";

/// The message's place, and what it will tell of.
pub struct LastWords {
    /// `None`: the default, where it exists.
    path: Option<PathBuf>,
    metrics: Arc<Metrics>,
}

impl LastWords {
    /// `path`: where the message goes; `None` takes `/dev/termination-log` where it exists and can be written,
    /// and writes nothing where not.
    #[must_use]
    pub fn new(path: Option<PathBuf>, metrics: Arc<Metrics>) -> Self {
        Self { path, metrics }
    }

    /// Writes the message. `error`: why the process ends, where it ends with an error. A message that cannot be
    /// written is logged: there is nobody else to tell.
    pub fn write(&self, error: Option<&(dyn std::error::Error + 'static)>) {
        let error = error.map(crate::error::format_chain);
        let message = message(&self.metrics.counters(), error.as_deref());
        let written = match &self.path {
            Some(path) => replace(path, &message, true),
            None => match replace(Path::new(DEFAULT_PATH), &message, false) {
                Err(error) => {
                    tracing::debug!(%error, "no termination message at {DEFAULT_PATH}");
                    Ok(())
                }
                Ok(()) => Ok(()),
            },
        };
        if let Err(error) = written {
            let path = self.path.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
            tracing::error!(%error, path = %path.display(), "the termination message is not written");
        }
    }
}

fn replace(path: &Path, message: &str, create: bool) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(create)
        .truncate(true)
        .open(path)?;
    file.write_all(message.as_bytes())
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
    use crate::metrics::TokenTime;

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
        for (family, key) in [("saved_seconds", "saved_seconds"), ("tokens", "tokens")] {
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
        let json = parse(&std::fs::read_to_string(&path).unwrap());
        assert_eq!(json["error"], "the disk is gone");
        last_words.write(None);
        let json = parse(&std::fs::read_to_string(&path).unwrap());
        assert_eq!(json.get("error"), None);
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
        for key in ["saved_seconds", "tokens"] {
            assert_eq!(fields(&documented[key]), fields(&real[key]));
        }
    }
}
