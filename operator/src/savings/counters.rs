//! What one run of a tail's process has counted, and how that is read: from `/metrics`, and from the last words in
//! a container's termination message. Pure.
//!
//! Times are whole microseconds here. Sums of them are exact, in whichever order they are added up.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The most that a counter can say: beyond it, numbers with a fraction are not exact any more.
const MAX_COUNT: f64 = 9_007_199_254_740_992.0;

/// What was counted, since a process began or over many of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Microseconds that devices of tails were busy.
    pub used_us: u64,
    /// Microseconds saved because devices ran the first layers.
    pub head_layers_us: u64,
    /// Microseconds saved because devices answered alone.
    pub on_device_answers_us: u64,
    /// Microseconds saved because drafts were accepted.
    pub accepted_drafts_us: u64,
    /// Microseconds saved because prefixes were still held.
    pub reused_prefixes_us: u64,
    /// Tokens sent to devices.
    pub output_tokens: u64,
    /// Tokens that devices answered alone.
    pub on_device_tokens: u64,
    /// Answers whose first layers ran on devices.
    pub split_answers: u64,
    /// Answers all of whose layers ran on tails.
    pub tail_answers: u64,
    /// Answers that devices gave alone.
    pub on_device_answers: u64,
}

/// How many numbers [`Counters`] are.
pub const FIELDS: usize = 10;

impl Counters {
    /// As a list, in the order of the fields. New fields come last: the order is stored.
    #[must_use]
    pub const fn to_array(self) -> [u64; FIELDS] {
        let Self {
            used_us,
            head_layers_us,
            on_device_answers_us,
            accepted_drafts_us,
            reused_prefixes_us,
            output_tokens,
            on_device_tokens,
            split_answers,
            tail_answers,
            on_device_answers,
        } = self;
        [
            used_us,
            head_layers_us,
            on_device_answers_us,
            accepted_drafts_us,
            reused_prefixes_us,
            output_tokens,
            on_device_tokens,
            split_answers,
            tail_answers,
            on_device_answers,
        ]
    }

    /// What [`Counters::to_array`] gave.
    #[must_use]
    pub const fn from_array(array: [u64; FIELDS]) -> Self {
        let [
            used_us,
            head_layers_us,
            on_device_answers_us,
            accepted_drafts_us,
            reused_prefixes_us,
            output_tokens,
            on_device_tokens,
            split_answers,
            tail_answers,
            on_device_answers,
        ] = array;
        Self {
            used_us,
            head_layers_us,
            on_device_answers_us,
            accepted_drafts_us,
            reused_prefixes_us,
            output_tokens,
            on_device_tokens,
            split_answers,
            tail_answers,
            on_device_answers,
        }
    }

    /// Microseconds saved, all four terms together.
    #[must_use]
    pub const fn saved_us(&self) -> u64 {
        self.head_layers_us
            .saturating_add(self.on_device_answers_us)
            .saturating_add(self.accepted_drafts_us)
            .saturating_add(self.reused_prefixes_us)
    }

    /// Field by field.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.zip(other, u64::saturating_add)
    }

    /// Field by field, never below 0.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        self.zip(before, u64::saturating_sub)
    }

    /// Field by field: counters only grow, so the higher value is the later one.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        self.zip(other, u64::max)
    }

    fn zip(self, other: Self, each: impl Fn(u64, u64) -> u64) -> Self {
        let mut result = self.to_array();
        for (value, other) in result.iter_mut().zip(other.to_array()) {
            *value = each(*value, other);
        }
        Self::from_array(result)
    }
}

/// What one run of a tail's process said at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// When the process began, in milliseconds since 1970. No two runs in one pod share it.
    pub started_ms: i64,
    /// What it has counted since.
    pub counters: Counters,
    /// Whether the process has ended, so that it will never count more.
    pub is_final: bool,
}

/// Why what a pod answered says nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Not the metrics of a tail.
    #[error("its /metrics has no {0}; it is no tail-server, or one of another version")]
    Missing(&'static str),
    /// A counter that no tail has.
    #[error("its /metrics says {series} is {value}, which no counter can be")]
    Value {
        /// The series, with labels.
        series: &'static str,
        /// What it is said to be.
        value: String,
    },
}

const START: &str = "headway_tail_start_time_seconds";
const USED: &str = "headway_tail_busy_seconds_total";

/// Reads a tail's `/metrics`, Prometheus' text format. Series that an older tail does not have are 0, but for the
/// start time and the time used.
///
/// # Errors
/// [`ReadError`] where it is something else.
pub fn read_metrics(text: &str) -> Result<Reading, ReadError> {
    let samples: BTreeMap<&str, &str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .collect();
    let value = |series: &'static str, scale: f64| match samples.get(series) {
        None => Ok(None),
        Some(text) => {
            let scaled = text.parse().ok().and_then(|value| whole(value, scale));
            let wrong = || ReadError::Value {
                series,
                value: text.chars().take(32).collect(),
            };
            scaled.map(Some).ok_or_else(wrong)
        }
    };
    let micros = |series| Ok(value(series, 1e6)?.unwrap_or(0));
    let count = |series| Ok(value(series, 1.0)?.unwrap_or(0));
    let started_ms = value(START, 1e3)?.ok_or(ReadError::Missing(START))?;
    Ok(Reading {
        started_ms: i64::try_from(started_ms).unwrap_or(i64::MAX),
        counters: Counters {
            used_us: value(USED, 1e6)?.ok_or(ReadError::Missing(USED))?,
            head_layers_us: micros("headway_tail_saved_seconds_total{term=\"head_layers\"}")?,
            on_device_answers_us: micros(
                "headway_tail_saved_seconds_total{term=\"on_device_answers\"}",
            )?,
            accepted_drafts_us: micros(
                "headway_tail_saved_seconds_total{term=\"accepted_drafts\"}",
            )?,
            reused_prefixes_us: micros(
                "headway_tail_saved_seconds_total{term=\"reused_prefixes\"}",
            )?,
            output_tokens: count("headway_tail_output_tokens_total")?,
            on_device_tokens: count("headway_tail_on_device_tokens_total{part=\"output\"}")?,
            split_answers: count("headway_tail_answers_total{route=\"split\"}")?,
            tail_answers: count("headway_tail_answers_total{route=\"tail\"}")?,
            on_device_answers: count("headway_tail_answers_total{route=\"on_device\"}")?,
        },
        is_final: false,
    })
}

/// A tail's last words, as far as they are counted.
#[derive(Deserialize)]
struct LastWords {
    start_time_seconds: f64,
    busy_seconds: f64,
    #[serde(default)]
    saved_seconds: BTreeMap<String, f64>,
    #[serde(default)]
    output_tokens: u64,
    #[serde(default)]
    on_device_output_tokens: u64,
    #[serde(default)]
    answers: BTreeMap<String, u64>,
}

/// Reads the termination message of a container that has ended. `None` where it is not a tail's: the process was
/// killed before it wrote one, or the message is of something else.
#[must_use]
pub fn read_last_words(message: &str) -> Option<Reading> {
    // What stands behind the line is left of a longer message that was being written over.
    let words: LastWords = serde_json::from_str(message.lines().next()?).ok()?;
    let saved = |term: &str| whole(words.saved_seconds.get(term).copied().unwrap_or(0.0), 1e6);
    let answers = |route: &str| words.answers.get(route).copied().unwrap_or(0);
    Some(Reading {
        started_ms: i64::try_from(whole(words.start_time_seconds, 1e3)?).ok()?,
        counters: Counters {
            used_us: whole(words.busy_seconds, 1e6)?,
            head_layers_us: saved("head_layers")?,
            on_device_answers_us: saved("on_device_answers")?,
            accepted_drafts_us: saved("accepted_drafts")?,
            reused_prefixes_us: saved("reused_prefixes")?,
            output_tokens: words.output_tokens,
            on_device_tokens: words.on_device_output_tokens,
            split_answers: answers("split"),
            tail_answers: answers("tail"),
            on_device_answers: answers("on_device"),
        },
        is_final: true,
    })
}

/// `value` in units of `1 / scale`, rounded; `None` for what no counter can be.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the range is checked"
)]
fn whole(value: f64, scale: f64) -> Option<u64> {
    let scaled = (value * scale).round();
    (0.0..=MAX_COUNT).contains(&scaled).then_some(scaled as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = "# HELP headway_tail_busy_seconds_total Time the device was busy.
# TYPE headway_tail_busy_seconds_total counter
headway_tail_busy_seconds_total 81.250001
headway_tail_start_time_seconds 1767225600.125
headway_tail_saved_seconds_total{term=\"accepted_drafts\"} 2.5
headway_tail_saved_seconds_total{term=\"head_layers\"} 40.5
headway_tail_answers_total{route=\"split\"} 25
headway_tail_output_tokens_total 5900
headway_tail_queue_delay_seconds_bucket{le=\"+Inf\"} 7
";

    #[test]
    fn metrics_are_read_to_the_microsecond() {
        let reading = read_metrics(METRICS).unwrap();
        let expected = Counters {
            used_us: 81_250_001,
            head_layers_us: 40_500_000,
            accepted_drafts_us: 2_500_000,
            output_tokens: 5900,
            split_answers: 25,
            ..Counters::default()
        };
        assert_eq!(reading.started_ms, 1_767_225_600_125);
        assert_eq!(reading.counters, expected);
        assert_eq!(expected.saved_us(), 43_000_000);
        assert!(!reading.is_final);
    }

    #[test]
    fn what_is_not_a_tails_metrics_is_refused() {
        assert_eq!(
            read_metrics("<html>not here</html>"),
            Err(ReadError::Missing(START))
        );
        let other = "headway_tail_start_time_seconds 1\n";
        assert_eq!(read_metrics(other), Err(ReadError::Missing(USED)));
        for wrong in ["NaN", "-1", "+Inf", "1e300", "many"] {
            let text = format!("{START} 1\n{USED} {wrong}\n");
            let error = read_metrics(&text).unwrap_err();
            assert!(error.to_string().contains(wrong), "{error}");
        }
    }

    #[test]
    fn the_documented_last_words_are_read_whole() {
        let page = include_str!("../../../docs/tail-metrics.md");
        let example = page.lines().find(|line| line.starts_with("{\"version\""));
        let reading = read_last_words(example.unwrap()).unwrap();
        let expected = Counters {
            used_us: 81_250_000,
            head_layers_us: 40_500_000,
            on_device_answers_us: 0,
            accepted_drafts_us: 2_500_000,
            reused_prefixes_us: 1_250_000,
            output_tokens: 5900,
            on_device_tokens: 310,
            split_answers: 25,
            tail_answers: 2,
            on_device_answers: 4,
        };
        assert_eq!(reading.counters, expected);
        assert_eq!(reading.started_ms, 1_767_225_600_125);
        assert!(reading.is_final);
    }

    #[test]
    fn last_words_that_were_being_written_over_are_read() {
        let words = "{\"start_time_seconds\":1,\"busy_seconds\":2}\nleft of longer ones\"}";
        let reading = read_last_words(words).unwrap();
        assert_eq!(reading.counters.used_us, 2_000_000);
        for other in [
            "",
            "killed",
            "{}",
            "{\"start_time_seconds\":-1,\"busy_seconds\":2}",
        ] {
            assert_eq!(read_last_words(other), None);
        }
    }

    #[test]
    fn an_array_holds_every_field() {
        let array: [u64; FIELDS] = std::array::from_fn(|index| index as u64 + 1);
        assert_eq!(Counters::from_array(array).to_array(), array);
    }
}
