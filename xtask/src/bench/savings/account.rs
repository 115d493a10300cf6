//! What a way of answering took: the tail's time by its own account, and latency, by class of device and by network.

use std::collections::BTreeMap;

use anyhow::Context as _;
use edge_lite::{Report, Route};

use super::workload::{Class, Device};
use super::{Answers, Way};
use crate::bench::relay::Network;
use crate::processes;

/// Counters of the tail, by name and labels.
pub type Counters = BTreeMap<String, f64>;

const BUSY: &str = "headway_tail_busy_seconds_total";
const SAVED: &str = "headway_tail_saved_seconds_total";

/// The tail's counters now.
pub fn scrape(url: &str) -> anyhow::Result<Counters> {
    let text = processes::metrics(url)?;
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').context("a sample has a value")?;
            Ok((name.to_owned(), value.parse()?))
        })
        .collect()
}

/// One way's outcome.
pub struct Account {
    pub way: Way,
    /// Seconds in which the tail's device was busy.
    pub busy_seconds: f64,
    /// Seconds saved, by term.
    saved: Vec<(String, f64)>,
    played: Vec<Played>,
}

/// What one device got.
struct Played {
    class: Class,
    round_trip_ms: u128,
    answers: Answers,
}

/// A part of the answers, in numbers.
pub struct Part {
    pub answers: usize,
    pub tokens: usize,
    /// Of the tail, attributed to these answers, for 1,000 tokens.
    pub tail_seconds: f64,
    first_token_ms: Vec<f64>,
    token_ms: Vec<f64>,
    total_ms: Vec<f64>,
}

impl Account {
    /// `before` and `after`: the tail's counters around the workload.
    pub fn new<'a>(
        way: Way,
        devices: impl Iterator<Item = (&'a Device, Answers)>,
        before: &Counters,
        after: &Counters,
    ) -> Self {
        let grown = |name: &str| {
            let before = before.get(name).copied().unwrap_or(0.0);
            after.get(name).copied().unwrap_or(0.0) - before
        };
        let terms = after.keys().filter(|name| name.starts_with(SAVED));
        let saved = terms
            .map(|name| {
                let term = name.split('"').nth(1).unwrap_or(name);
                (term.to_owned(), grown(name))
            })
            .collect();
        Self {
            way,
            busy_seconds: grown(BUSY),
            saved,
            played: devices
                .map(|(device, answers)| Played {
                    class: device.class,
                    round_trip_ms: device.network.round_trip.as_millis(),
                    answers,
                })
                .collect(),
        }
    }

    /// The answers of one class, of one round trip, or all.
    pub fn part(&self, class: Option<Class>, round_trip_ms: Option<u128>) -> Part {
        let played = self.played.iter().filter(|played| {
            class.is_none_or(|class| class == played.class)
                && round_trip_ms.is_none_or(|ms| ms == played.round_trip_ms)
        });
        let answers: Vec<&Report> = played.flat_map(|played| &played.answers).collect();
        let times = |of: fn(&Report) -> f64| sorted(answers.iter().map(|report| of(report)));
        let tokens = answers.iter().map(|report| report.token_ids.len()).sum();
        let tail_us: u64 = answers.iter().map(|report| report.tail_compute_us).sum();
        let several = answers.iter().filter(|report| report.token_ids.len() > 1);
        Part {
            answers: answers.len(),
            tokens,
            tail_seconds: float(tail_us) / 1e6 / count(tokens) * 1e3,
            first_token_ms: times(|report| report.timings_ms.first_token),
            token_ms: sorted(
                several.map(|report| report.timings_ms.decode / count(report.token_ids.len() - 1)),
            ),
            total_ms: times(|report| report.timings_ms.total),
        }
    }

    /// Of the answers, the share whose tokens are `other`'s, in percent.
    fn agreement(&self, other: &Self) -> f64 {
        let answers = |account: &Self| -> Vec<Vec<u32>> {
            let played = account.played.iter().flat_map(|played| &played.answers);
            played.map(|report| report.token_ids.clone()).collect()
        };
        let (here, there) = (answers(self), answers(other));
        let same = here.iter().zip(&there).filter(|(a, b)| a == b).count();
        100.0 * count(same) / count(here.len())
    }

    fn on_device(&self) -> usize {
        let answers = self.played.iter().flat_map(|played| &played.answers);
        answers
            .filter(|report| report.route == Route::Device)
            .count()
    }
}

/// Prints the tables.
pub fn print(accounts: &[Account], classes: &[Class], networks: &[Network]) {
    let cloud = &accounts[0];
    println!(
        "| way | answers | on the device | tokens | tail-seconds | for 1,000 tokens | saved | the cloud's answers, to the token |\n\
         |---|---|---|---|---|---|---|---|"
    );
    for account in accounts {
        let part = account.part(None, None);
        println!(
            "| {} | {} | {} | {} | {:.2} | {:.3} | {:.1} % | {:.1} % |",
            account.way.name(),
            part.answers,
            account.on_device(),
            part.tokens,
            account.busy_seconds,
            account.busy_seconds / count(part.tokens) * 1e3,
            100.0 * (1.0 - account.busy_seconds / cloud.busy_seconds),
            account.agreement(cloud),
        );
    }
    println!("\nSaved by the tail's own account, in seconds:\n");
    for account in accounts {
        let terms = account.saved.iter();
        let terms: Vec<_> = terms
            .map(|(term, saved)| format!("{term} {saved:.2}"))
            .collect();
        println!("- {}: {}", account.way.name(), terms.join(", "));
    }
    println!(
        "\nTail-seconds for 1,000 tokens, attributed; p50 / p95 in milliseconds.\n\n\
         | devices | way | tail-seconds | saved | first token | each token | whole answer |\n|---|---|---|---|---|---|---|"
    );
    let mut rows = vec![("all".to_owned(), None, None)];
    rows.extend(
        networks
            .iter()
            .map(|network| network.round_trip.as_millis())
            .map(|ms| (format!("all at {ms} ms"), None, Some(ms))),
    );
    for class in classes {
        rows.push((class.name().to_owned(), Some(*class), None));
        for network in networks {
            let ms = network.round_trip.as_millis();
            rows.push((
                format!("{} at {ms} ms", class.name()),
                Some(*class),
                Some(ms),
            ));
        }
    }
    for (name, class, round_trip) in rows {
        let before = cloud.part(class, round_trip).tail_seconds;
        for account in accounts {
            let part = account.part(class, round_trip);
            println!(
                "| {name} | {} | {:.3} | {:.1} % | {} | {} | {} |",
                account.way.name(),
                part.tail_seconds,
                100.0 * (1.0 - part.tail_seconds / before),
                quantiles(&part.first_token_ms),
                quantiles(&part.token_ms),
                quantiles(&part.total_ms),
            );
        }
    }
}

fn quantiles(sorted: &[f64]) -> String {
    format!("{:.0} / {:.0}", quantile(sorted, 50), quantile(sorted, 95))
}

/// The value that so many percent do not exceed, by nearest rank.
fn quantile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

#[expect(clippy::cast_precision_loss, reason = "counts are small")]
fn count(count: usize) -> f64 {
    count.max(1) as f64
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of minutes")]
const fn float(us: u64) -> f64 {
    us as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=20).map(f64::from).collect();
        assert!((quantile(&values, 50) - 10.0).abs() < 1e-9);
        assert!((quantile(&values, 95) - 19.0).abs() < 1e-9);
        assert!((quantile(&values[..1], 95) - 1.0).abs() < 1e-9);
        assert!(quantile(&[], 50).is_nan());
    }
}
