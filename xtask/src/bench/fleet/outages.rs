//! Tails that are lost at once: what their devices do, what is computed again, and when it is over.

use std::fmt::Write as _;

use super::calibration::{self, NODE_GRACE};
use super::events::{Micros, SECOND};
use super::histogram::Histogram;
use super::outcome::{Outcome, Window};
use super::plots::Plot;
use super::random::float;
use super::scenario::{Outage, RetryPolicy, Scenario};
use super::world::play;

/// When tails are lost.
const AT: Micros = 90 * SECOND;
/// When it is looked at last.
const END: Micros = 200 * SECOND;

/// Their answers take about 70 % of a tail's places.
const DEVICES_A_TAIL: u32 = 3_700;

/// A table, and curves of the devices without a tail.
pub(super) struct Outages {
    pub(super) text: String,
    pub(super) plots: Vec<(&'static str, Plot)>,
}

/// How tails are lost, and what devices do then.
struct Case {
    name: &'static str,
    outage: Outage,
    retry: RetryPolicy,
}

/// Plays every case on so many tails.
pub(super) fn play_all(tails: u32, seed: u64) -> Outages {
    let mut text = "| what is lost, and how | sessions a tail, on average | without a tail, at most | after 10 s | 30 s | 60 s \
        | most Opens a tail and second | Opens refused | answers lost | rows computed again, of all | pause of those who lost their tail: p50, s | p99 \
        | p99 of all pauses is back after | p99 of first tokens |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    let (mut without, mut firsts) = (Vec::new(), Vec::new());
    for case in cases() {
        let outcome = play(&scenario(&case, tails, seed));
        let _ = writeln!(text, "{}", row(&case, &outcome, tails));
        let by_second = |of: fn(&Window) -> f64| -> Vec<(f64, f64)> {
            let from = 80_u32;
            let windows = outcome.windows.iter().skip(from as usize);
            (0_u32..)
                .zip(windows)
                .map(|(index, window)| (f64::from(index), of(window)))
                .collect()
        };
        without.push((
            case.name.to_owned(),
            by_second(|window| float(window.without_tail)),
        ));
        firsts.push((
            case.name.to_owned(),
            by_second(|window| window.first_token.quantile(0.99) / 1e6),
        ));
    }
    let plot = |title, y, series| Plot {
        title,
        x: "seconds; tails are lost at 10",
        y,
        is_log: (false, false),
        series,
    };
    let plots = vec![
        (
            "outage-sessions",
            plot(
                "Answers without a tail (simulated)",
                "answers without a tail",
                without,
            ),
        ),
        (
            "outage-first-tokens",
            plot(
                "How long first tokens take (simulated)",
                "p99 of a first token, s",
                firsts,
            ),
        ),
    ];
    Outages { text, plots }
}

fn cases() -> Vec<Case> {
    let zone = Outage {
        at: AT,
        share: 0.1,
        is_silent: true,
        listed_for: NODE_GRACE,
    };
    let as_is = calibration::RETRY;
    let large = Outage { share: 0.4, ..zone };
    let hasty = RetryPolicy {
        // As often as the deadline allows.
        max_attempts: 600,
        max_backoff: as_is.min_backoff,
        jitter: 0.0,
        retry_after: 0,
        ..as_is
    };
    let case = |name, outage, retry| Case {
        name,
        outage,
        retry,
    };
    vec![
        case("10 %, silent", zone, as_is),
        case(
            "10 %, connections reset",
            Outage {
                is_silent: false,
                ..zone
            },
            as_is,
        ),
        case(
            "10 %, silent, unlisted after 5 s",
            Outage {
                listed_for: 5 * SECOND,
                ..zone
            },
            as_is,
        ),
        case(
            "10 %, silent, connections tried for 2 s",
            zone,
            RetryPolicy {
                connect_timeout: 2 * SECOND,
                ..as_is
            },
        ),
        case("40 %, silent", large, as_is),
        case(
            "40 %, silent, retry-after with jitter",
            large,
            RetryPolicy {
                retry_after_jitter: 1.0,
                ..as_is
            },
        ),
        case(
            "40 %, silent, no back-off, no jitter, no retry-after",
            large,
            hasty,
        ),
    ]
}

fn scenario(case: &Case, tails: u32, seed: u64) -> Scenario {
    let mut scenario = calibration::fleet(DEVICES_A_TAIL * tails, tails, seed);
    scenario.retry = case.retry;
    scenario.outage = Some(case.outage);
    scenario.horizon = END;
    scenario
}

fn row(case: &Case, outcome: &Outcome, tails: u32) -> String {
    let first = usize::try_from(AT / SECOND).unwrap_or_default();
    let windows = &outcome.windows;
    let after = |seconds: usize| {
        windows
            .get(first + seconds - 1)
            .map_or(0, |window| window.without_tail)
    };
    let affected = windows.get(first..).unwrap_or_default();
    let most = |of: fn(&Window) -> u64| affected.iter().map(of).max().unwrap_or_default();
    let refused: u64 = affected.iter().map(|window| window.refused_opens).sum();
    let back = |of: fn(&Window) -> &Histogram| {
        outcome.seconds_until_back(AT, of).map_or_else(
            || "not within 110 s".to_owned(),
            |seconds| format!("{seconds} s"),
        )
    };
    format!(
        "| {} | {:.0} | {} | {} | {} | {} | {} | {refused} | {} | {:.2} % | {:.1} | {:.1} | {} | {} |",
        case.name,
        outcome.sessions() / f64::from(tails),
        most(|window| window.without_tail),
        after(10),
        after(30),
        after(60),
        most(|window| u64::from(window.most_opens_of_a_tail)),
        outcome.broken,
        float(outcome.replayed_rows) / float(outcome.rows.max(1)) * 100.0,
        outcome.recovery.quantile(0.5) / 1e6,
        outcome.recovery.quantile(0.99) / 1e6,
        back(|window| &window.pause),
        back(|window| &window.first_token),
    )
}
