//! [`Ledger`] ↔ `status.savings`, and the condition beside it. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::counters::{Counters, FIELDS};
use super::ledger::{Ledger, Pod, Run};
use crate::crd::pricing::Pricing;
use crate::crd::status::{Answers, CountedPod, CountedRun, Savings, Tokens};

/// The condition that says whether figures are up to date.
pub const CURRENT: &str = "SavingsCurrent";

/// The most names in `unscrapedPods`.
const MAX_NAMES: usize = 16;
/// The most characters of a pod's error in the condition.
const MAX_ERROR_CHARS: usize = 256;

/// The ledger that a status holds.
#[must_use]
pub fn ledger(savings: Option<&Savings>) -> Ledger {
    let Some(savings) = savings else {
        return Ledger::default();
    };
    let pods = savings.pods.iter().map(|pod| {
        let mut runs: Vec<Run> = pod.runs.iter().map(run).collect();
        runs.sort_by_key(|run| run.started_ms);
        let name = pod.name.clone();
        (pod.uid.clone(), Pod { name, runs })
    });
    Ledger {
        totals: Counters {
            used_us: micros(savings.used_gpu_seconds),
            head_layers_us: micros(savings.head_layers_gpu_seconds),
            on_device_answers_us: micros(savings.on_device_answers_gpu_seconds),
            accepted_drafts_us: micros(savings.accepted_drafts_gpu_seconds),
            reused_prefixes_us: micros(savings.reused_prefixes_gpu_seconds),
            output_tokens: unsigned(savings.tokens.tails),
            on_device_tokens: unsigned(savings.tokens.devices),
            split_answers: unsigned(savings.answers.split),
            tail_answers: unsigned(savings.answers.tail),
            on_device_answers: unsigned(savings.answers.on_device),
        },
        unread_endings: unsigned(savings.unread_endings),
        pods: pods.collect(),
    }
}

/// What a status says beside the ledger.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// `spec.pricing`.
    pub pricing: Option<&'a Pricing>,
    /// Names of pods that could not be asked for a while.
    pub unscraped: &'a [String],
    /// The present.
    pub now: &'a Time,
}

/// `status.savings` of `ledger`; equal to `before` where nothing has changed.
#[must_use]
pub fn savings(ledger: &Ledger, before: Option<&Savings>, facts: &Facts<'_>) -> Savings {
    let totals = &ledger.totals;
    let saved = seconds(totals.saved_us());
    let mut after = Savings {
        since: before
            .and_then(|before| before.since.clone())
            .or_else(|| Some(facts.now.clone())),
        updated_at: before.and_then(|before| before.updated_at.clone()),
        used_gpu_seconds: seconds(totals.used_us),
        saved_gpu_seconds: saved,
        saved_percent: percent(totals),
        money_saved: facts.pricing.map(|pricing| pricing.cost(saved)),
        head_layers_gpu_seconds: seconds(totals.head_layers_us),
        on_device_answers_gpu_seconds: seconds(totals.on_device_answers_us),
        accepted_drafts_gpu_seconds: seconds(totals.accepted_drafts_us),
        reused_prefixes_gpu_seconds: seconds(totals.reused_prefixes_us),
        tokens: Tokens {
            tails: signed(totals.output_tokens),
            devices: signed(totals.on_device_tokens),
        },
        answers: Answers {
            split: signed(totals.split_answers),
            tail: signed(totals.tail_answers),
            on_device: signed(totals.on_device_answers),
        },
        unread_endings: signed(ledger.unread_endings),
        unscraped_pods: facts.unscraped.iter().take(MAX_NAMES).cloned().collect(),
        pods: ledger.pods.iter().map(counted_pod).collect(),
    };
    if before != Some(&after) {
        after.updated_at = Some(facts.now.clone());
    }
    after
}

/// How the last attempts to ask tails went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scrapes {
    /// Pods that serve, and should answer.
    pub expected: usize,
    /// Names of those that have not answered for a while, in order.
    pub unscraped: Vec<String>,
    /// Why the first of them did not.
    pub error: String,
}

/// The condition [`CURRENT`]. `now` is its transition time where its status differs from `before`.
#[must_use]
pub fn current(
    scrapes: &Scrapes,
    before: &[Condition],
    generation: Option<i64>,
    now: &Time,
) -> Condition {
    let (status, reason, message) = match scrapes.unscraped.first() {
        None => {
            let message = "every tail that serves tells what it has counted".to_owned();
            ("True", "AllScraped", message)
        }
        Some(first) => {
            let error: String = scrapes.error.chars().take(MAX_ERROR_CHARS).collect();
            let message = format!(
                "{} of {} tails that serve do not tell what they have counted; {first}: {error}",
                scrapes.unscraped.len(),
                scrapes.expected,
            );
            ("False", "ScrapeFailed", message)
        }
    };
    let before = before
        .iter()
        .find(|condition| condition.type_ == CURRENT && condition.status == status);
    Condition {
        type_: CURRENT.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: before
            .map_or_else(|| now.clone(), |old| old.last_transition_time.clone()),
    }
}

fn counted_pod((uid, pod): (&String, &Pod)) -> CountedPod {
    CountedPod {
        uid: uid.clone(),
        name: pod.name.clone(),
        runs: pod.runs.iter().map(counted_run).collect(),
    }
}

fn counted_run(run: &Run) -> CountedRun {
    let mut counted: Vec<i64> = run.counted.to_array().map(signed).to_vec();
    while counted.last() == Some(&0) {
        counted.pop();
    }
    CountedRun {
        started_ms: run.started_ms,
        ended: run.is_ended,
        counted,
    }
}

fn run(run: &CountedRun) -> Run {
    let mut counted = [0; FIELDS];
    for (field, value) in counted.iter_mut().zip(&run.counted) {
        *field = unsigned(*value);
    }
    Run {
        started_ms: run.started_ms,
        is_ended: run.ended,
        counted: Counters::from_array(counted),
    }
}

/// To two places.
fn percent(totals: &Counters) -> f64 {
    let saved = seconds(totals.saved_us());
    let both = saved + seconds(totals.used_us);
    if both > 0.0 {
        (10_000.0 * saved / both).round() / 100.0
    } else {
        0.0
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "exact up to 285 GPU-years; beyond it, one part in 10^15"
)]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates: what is no number of seconds is 0"
)]
fn micros(seconds: f64) -> u64 {
    (seconds * 1e6).round() as u64
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Nobody but the operator writes these fields; what is below 0 all the same is 0.
fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    fn sample() -> Ledger {
        let mut random = fastrand::Rng::with_seed(7);
        let mut counters = || {
            let mut fields = [0; FIELDS];
            fields.fill_with(|| random.u64(0..1 << 50));
            Counters::from_array(fields)
        };
        let run = |started_ms, is_ended, counted| Run {
            started_ms,
            is_ended,
            counted,
        };
        let runs = vec![
            run(1, true, Counters::default()),
            run(1_767_225_600_125, false, counters()),
        ];
        let pod = Pod {
            name: "smol-tail-a".to_owned(),
            runs,
        };
        Ledger {
            totals: counters(),
            unread_endings: 3,
            pods: BTreeMap::from([("uid-a".to_owned(), pod)]),
        }
    }

    fn facts<'a>(pricing: Option<&'a Pricing>, now: &'a Time) -> Facts<'a> {
        Facts {
            pricing,
            unscraped: &[],
            now,
        }
    }

    #[test]
    fn a_ledger_survives_the_status_and_its_json() {
        let ledger_before = sample();
        let written = savings(&ledger_before, None, &facts(None, &at(5)));
        let json = serde_json::to_string(&written).unwrap();
        let read: Savings = serde_json::from_str(&json).unwrap();
        assert_eq!(ledger(Some(&read)), ledger_before);
    }

    #[test]
    fn nothing_changes_with_time_alone() {
        let first = savings(&sample(), None, &facts(None, &at(5)));
        assert_eq!(first.since, Some(at(5)));
        assert_eq!(first.updated_at, Some(at(5)));
        let later = savings(&sample(), Some(&first), &facts(None, &at(50)));
        assert_eq!(later, first);
        let mut more = sample();
        more.totals.used_us += 1;
        let later = savings(&more, Some(&first), &facts(None, &at(50)));
        assert_eq!((later.since, later.updated_at), (Some(at(5)), Some(at(50))));
    }

    #[test]
    fn percent_and_money_are_those_of_the_totals() {
        let ledger = Ledger {
            totals: Counters {
                used_us: 3_600_000_000,
                head_layers_us: 3_600_000_000,
                accepted_drafts_us: 1_800_000_000,
                ..Counters::default()
            },
            ..Ledger::default()
        };
        let pricing = Pricing {
            gpu_hour: "2.40".to_owned(),
            currency: "EUR".to_owned(),
        };
        let savings = savings(&ledger, None, &facts(Some(&pricing), &at(5)));
        assert_eq!(savings.saved_gpu_seconds, 5400.0);
        assert_eq!(savings.saved_percent, 60.0);
        assert_eq!(savings.money_saved.as_deref(), Some("3.60 EUR"));
        let nothing = super::savings(&Ledger::default(), None, &facts(None, &at(5)));
        assert_eq!(nothing.saved_percent, 0.0);
        assert_eq!(nothing.money_saved, None);
    }

    #[test]
    fn the_largest_status_is_far_below_what_the_api_server_takes() {
        let mut ledger = sample();
        let pod = ledger.pods["uid-a"].clone();
        for index in 0..crate::savings::ledger::MAX_PODS {
            let uid = format!("0f1e2d3c-4b5a-6978-8796-{index:012}");
            let mut pod = pod.clone();
            pod.name = format!("{}-tail-0123456789-abcde", "m".repeat(52));
            ledger.pods.insert(uid, pod);
        }
        let savings = savings(&ledger, None, &facts(None, &at(5)));
        let bytes = serde_json::to_string(&savings).unwrap().len();
        assert!(bytes < 600 << 10, "{bytes} bytes");
    }

    #[test]
    fn the_condition_names_the_first_pod_that_does_not_answer() {
        let fine = current(&Scrapes::default(), &[], Some(2), &at(5));
        assert_eq!((&*fine.status, &*fine.reason), ("True", "AllScraped"));
        let scrapes = Scrapes {
            expected: 3,
            unscraped: vec!["smol-tail-a".to_owned()],
            error: "connection refused".to_owned(),
        };
        let stale = current(&scrapes, std::slice::from_ref(&fine), Some(2), &at(9));
        assert_eq!((&*stale.status, &*stale.reason), ("False", "ScrapeFailed"));
        assert_eq!(stale.last_transition_time, at(9));
        assert_eq!(
            stale.message,
            "1 of 3 tails that serve do not tell what they have counted; smol-tail-a: connection refused"
        );
        let still = current(&scrapes, &[stale], Some(2), &at(20));
        assert_eq!(still.last_transition_time, at(9));
    }
}
