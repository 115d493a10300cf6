//! What half and double of each assumed number change.

use std::fmt::Write as _;

use super::calibration;
use super::cells::shorten;
use super::scenario::{Arrivals, Scenario};
use super::world::play;

/// An assumed number, and how it is scaled.
type Assumption = (&'static str, fn(&mut Scenario, f64));

const ASSUMPTIONS: [Assumption; 10] = [
    ("time between requests", |scenario, factor| {
        if let Arrivals::Thinking { think_us, .. } = &mut scenario.arrivals {
            *think_us *= factor;
        }
    }),
    ("length of prompts", |scenario, factor| {
        scenario.workload.prompt.median *= factor;
    }),
    ("length of answers", |scenario, factor| {
        scenario.workload.answer.median *= factor;
    }),
    ("round trips", |scenario, factor| {
        for class in &mut scenario.classes {
            class.rtt_us *= factor;
        }
    }),
    ("spread of round trips (sigma)", |scenario, factor| {
        for class in &mut scenario.classes {
            class.rtt_sigma *= factor;
        }
    }),
    ("jitter of the network", |scenario, factor| {
        scenario.workload.network_jitter *= factor;
    }),
    ("time of a device's layers", |scenario, factor| {
        for class in &mut scenario.classes {
            class.token_us = class.token_us.map(|us| us * factor);
            class.prompt_row_us *= factor;
        }
    }),
    ("uplinks", |scenario, factor| {
        for class in &mut scenario.classes {
            class.uplink *= factor;
        }
    }),
    ("answers that repeat the prompt", |scenario, factor| {
        let tasks = &mut scenario.workload.tasks;
        tasks[0].share *= factor;
        tasks[1].share = 1.0 - tasks[0].share;
    }),
    ("phones among the devices", |scenario, factor| {
        let classes = &mut scenario.classes;
        let before = classes[0].share;
        classes[0].share *= factor;
        let others = (1.0 - classes[0].share) / (1.0 - before);
        for class in &mut classes[1..] {
            class.share *= others;
        }
    }),
];

/// A table of the base, and of each number at half and double.
pub(super) fn table(devices: u32, tails: u32, seed: u64, time_share: f64) -> String {
    let mut base = calibration::fleet(devices, tails, seed);
    shorten(&mut base, time_share);
    let mut text = format!(
        "{devices} devices on {tails} tails with room for 1,024 sessions each.\n\n\
         | assumed | factor | sessions a tail | GPU-s a 1,000 tokens | saved, by the ledger | busy | first token: p50, s | p99 \
         | a token: p50, ms | p99 | Opens refused |\n|---|---|---|---|---|---|---|---|---|---|---|\n"
    );
    base.tail.max_sessions = 1_024;
    line(&mut text, "as in the text", 1.0, &base);
    for (name, scale) in ASSUMPTIONS {
        for factor in [0.5, 2.0] {
            let mut scaled = base.clone();
            scale(&mut scaled, factor);
            line(&mut text, name, factor, &scaled);
        }
    }
    let mut one_kind = base.clone();
    for class in &mut one_kind.classes {
        class.split_layer = 16;
    }
    line(&mut text, "all devices at split layer 16", 1.0, &one_kind);
    text
}

fn line(text: &mut String, name: &str, factor: f64, scenario: &Scenario) {
    let outcome = play(scenario);
    let _ = writeln!(
        text,
        "| {name} | {factor} | {:.0} | {:.3} | {:.0} % | {:.0} % | {:.2} | {:.1} | {:.0} | {:.0} | {:.1} % |",
        outcome.sessions() / f64::from(scenario.tails),
        outcome.gpu_seconds_1000(),
        outcome.saved_share() * 100.0,
        outcome.utilisation(scenario.tails) * 100.0,
        outcome.first_token.quantile(0.5) / 1e6,
        outcome.first_token.quantile(0.99) / 1e6,
        outcome.token.quantile(0.5) / 1e3,
        outcome.token.quantile(0.99) / 1e3,
        outcome.refused_opens_share() * 100.0,
    );
}
