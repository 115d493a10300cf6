//! The table of devices × tails × clusters, and what the number of devices on a tail does.

use std::fmt::Write as _;
use std::time::Instant;

use super::calibration;
use super::outcome::Outcome;
use super::plots::Plot;
use super::random::float;
use super::scenario::Scenario;
use super::world::play;

/// A cluster with fewer devices or tails is not worth being one.
const LEAST_DEVICES: u32 = 1_000;
const LEAST_TAILS: u32 = 10;
/// A cluster with more devices is played in part: new connections go to any tail, so a tenth of the devices on a tenth of
/// the tails sees what all of them on all tails see.
const MOST_DEVICES: u32 = 100_000;

/// What the table is made of.
pub(super) struct Grid {
    pub(super) devices: Vec<u32>,
    pub(super) tails: Vec<u32>,
    pub(super) clusters: Vec<u32>,
    pub(super) seed: u64,
    /// Whether clusters are played in whole, however large they are.
    pub(super) is_whole: bool,
    /// How much of the usual two minutes is played.
    pub(super) time_share: f64,
}

/// Prints the table, line by line, and what the runs took.
pub(super) fn table(grid: &Grid, print: &mut impl FnMut(&str)) {
    print(
        "| devices | tails | clusters | played | sessions a tail | most | tokens/s | GPU-s a 1,000 tokens | saved, by the ledger \
         | all-cloud, GPU-s a 1,000 | saved against it | busy | first token: p50, s | p99 | a token: p50, ms | p99 \
         | Opens refused | requests failed | holds |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    );
    let (started, mut events) = (Instant::now(), 0);
    for &devices in &grid.devices {
        for &tails in &grid.tails {
            for &clusters in &grid.clusters {
                let is_too_small =
                    devices / clusters < LEAST_DEVICES || tails / clusters < LEAST_TAILS;
                if clusters > 1 && is_too_small {
                    continue;
                }
                // Clusters know nothing of each other: one is played, and the figures of all are so many times it.
                let (devices_of_one, tails_of_one) = (devices / clusters, tails / clusters);
                let part = part_of(grid, devices_of_one, tails_of_one);
                let (devices_played, tails_played) = (devices_of_one / part, tails_of_one / part);
                let mut fleet = calibration::fleet(devices_played, tails_played, grid.seed);
                shorten(&mut fleet, grid.time_share);
                let outcome = play(&fleet);
                events += outcome.events;
                let cloud = (clusters == 1).then(|| play(&calibration::all_cloud(&fleet)));
                events += cloud.as_ref().map_or(0, |cloud| cloud.events);
                let cell = Cell {
                    name: format!("{devices} | {tails} | {clusters}"),
                    tails_played,
                    times: clusters * part,
                };
                print(&cell.row(&outcome, cloud.as_ref()));
            }
        }
    }
    let took = started.elapsed().as_secs_f64();
    print(&format!(
        "\n{:.0} million events in {took:.0} s, {:.1} million a second on one core.\n",
        float(events) / 1e6,
        float(events) / 1e6 / took,
    ));
}

/// Plays a shorter time, warm-up included.
pub(super) fn shorten(scenario: &mut Scenario, share: f64) {
    scenario.warm_up = super::random::micros(float(scenario.warm_up) * share);
    scenario.horizon = super::random::micros(float(scenario.horizon) * share);
}

/// One part in how many of a cluster is played.
fn part_of(grid: &Grid, devices: u32, tails: u32) -> u32 {
    if grid.is_whole {
        return 1;
    }
    let parts = devices / MOST_DEVICES;
    parts.min(tails / LEAST_TAILS).max(1)
}

/// One line of the table.
struct Cell {
    name: String,
    tails_played: u32,
    /// How many times what was played is in it.
    times: u32,
}

impl Cell {
    fn row(&self, outcome: &Outcome, cloud: Option<&Outcome>) -> String {
        let Self {
            name,
            tails_played,
            times,
        } = self;
        let none = || "–".to_owned();
        let used = outcome.gpu_seconds_1000();
        let (of_cloud, against) = cloud.map_or_else(
            || (none(), none()),
            |cloud| {
                let all = cloud.gpu_seconds_1000();
                (
                    format!("{all:.3}"),
                    format!("{:.0} %", (1.0 - used / all) * 100.0),
                )
            },
        );
        let sessions = outcome.sessions() / f64::from(*tails_played);
        let holds = if outcome.is_held() {
            "yes"
        } else {
            "**refused**"
        };
        format!(
            "| {name} | 1 in {times} | {sessions:.1} | {} | {:.0} | {used:.3} | {:.0} % | {of_cloud} | {against} | {:.0} % \
             | {:.2} | {:.1} | {:.0} | {:.0} | {:.1} % | {:.1} % | {holds} |",
            outcome.most_sessions,
            outcome.tokens_a_second() * f64::from(*times),
            outcome.saved_share() * 100.0,
            outcome.utilisation(*tails_played) * 100.0,
            outcome.first_token.quantile(0.5) / 1e6,
            outcome.first_token.quantile(0.99) / 1e6,
            outcome.token.quantile(0.5) / 1e3,
            outcome.token.quantile(0.99) / 1e3,
            outcome.refused_opens_share() * 100.0,
            outcome.failed_share() * 100.0,
        )
    }
}

/// What the number of devices on a tail does, where a tail may have so many sessions: table and plots.
pub(super) struct Density {
    pub(super) text: String,
    pub(super) plots: Vec<(&'static str, Plot)>,
}

/// Plays `tails` tails with growing numbers of devices, split and all in the cloud, with 256 sessions a tail and more.
pub(super) fn density(devices_a_tail: &[u32], tails: u32, seed: u64, time_share: f64) -> Density {
    let mut text = "| devices a tail | sessions allowed | where | sessions a tail | rows a step | busy | tokens/s a tail \
        | GPU-s a 1,000 tokens | saved, by the ledger | a token: p50, ms | p99 | first token: p50, s | Opens refused |\n\
        |---|---|---|---|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    let ways = [
        ("split", calibration::MAX_SESSIONS, false),
        ("split", 2_048, false),
        ("all-cloud", 2_048, true),
    ];
    let mut cost = Vec::new();
    let mut latency = Vec::new();
    for (name, most, is_cloud) in ways {
        let (mut costs, mut latencies) = (Vec::new(), Vec::new());
        for &devices in devices_a_tail {
            let mut fleet = calibration::fleet(devices * tails, tails, seed);
            if is_cloud {
                fleet = calibration::all_cloud(&fleet);
            }
            fleet.tail.max_sessions = most;
            // So many come at once where there is room for so many.
            fleet.tail.max_queued_prompts = most;
            shorten(&mut fleet, time_share);
            let outcome = play(&fleet);
            let x = f64::from(devices);
            if outcome.is_held() {
                costs.push((x, outcome.gpu_seconds_1000()));
                latencies.push((x, outcome.token.quantile(0.99) / 1e3));
            }
            let _ = writeln!(
                text,
                "| {devices} | {most} | {name} | {:.0} | {:.1} | {:.0} % | {:.0} | {:.3} | {:.0} % | {:.0} | {:.0} | {:.2} | {:.1} % |",
                outcome.sessions() / f64::from(tails),
                outcome.rows_a_step(),
                outcome.utilisation(tails) * 100.0,
                outcome.tokens_a_second() / f64::from(tails),
                outcome.gpu_seconds_1000(),
                outcome.saved_share() * 100.0,
                outcome.token.quantile(0.5) / 1e3,
                outcome.token.quantile(0.99) / 1e3,
                outcome.first_token.quantile(0.5) / 1e6,
                outcome.refused_opens_share() * 100.0,
            );
        }
        cost.push((format!("{name}, {most} sessions"), costs));
        latency.push((format!("{name}, {most} sessions"), latencies));
    }
    let plot = |title, y, series| Plot {
        title,
        x: "devices a tail",
        y,
        is_log: (true, true),
        series,
    };
    let plots = vec![
        (
            "gpu-seconds",
            plot(
                "What a token costs, by devices a tail (simulated)",
                "GPU-seconds of 1,000 tokens",
                cost,
            ),
        ),
        (
            "token-p99",
            plot(
                "How long a token takes, by devices a tail (simulated)",
                "p99 of a token's time, ms",
                latency,
            ),
        ),
    ];
    Density { text, plots }
}
