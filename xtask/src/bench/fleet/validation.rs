//! The simulation beside real tails: one on this machine, whose step times are measured first, and one on a GPU that
//! `docs/benchmarks/cuda.md` has measured.

use std::fmt::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use super::calibration;
use super::events::SECOND;
use super::outcome::Outcome;
use super::scenario::{Arrivals, DeviceClass, Length, Scenario, TailShape, Task, Workload};
use super::step_costs::{Curve, StepCosts};
use super::world::play;
use crate::model;
use crate::paths::program;
use crate::processes::{self, Tail};

/// A round trip over loopback, generator included, in microseconds. Assumed.
const LOOPBACK_US: f64 = 150.0;
/// What a pause of the generator takes longer than asked, in milliseconds: its timer counts whole ones. Computed from
/// `docs/benchmarks/cuda.md`, *Serving*: sessions over tokens a second, less the pause and the median of a token, is 1.1 and 1.2.
const TIMER_MS: f64 = 1.1;
/// Layers on the devices of the tail on this machine.
const SPLIT_LAYER: &str = "15";
/// Tokens of the short prompts: what is compared are answers.
const PROMPT_TOKENS: u32 = 8;
/// Milliseconds that a device takes for its layers in what is predicted.
const THINK_MS: [f64; 2] = [20.0, 60.0];

/// Sessions that all decode, each sending its next row some time after its token.
struct Crowd {
    sessions: u32,
    think_ms: [f64; 2],
    prompt_tokens: u32,
    arrival_ms: f64,
}

/// What is compared.
struct Decoding {
    tokens_a_second: f64,
    token_p50_ms: f64,
    token_p99_ms: f64,
    rows_a_step: f64,
    busy_percent: f64,
}

/// `docs/benchmarks/cuda.md`, *Serving*, beside what is predicted: figures of a real tail that the costs were not taken
/// from.
pub(super) fn gpu() -> String {
    let measured = [
        (64, [0.0, 0.0], [14_706.0, 4.08, 7.53, 54.4, 81.0]),
        (256, [0.0, 0.0], [26_306.0, 9.31, 23.7, 128.7, 95.0]),
        (64, [2.0, 10.0], [5_775.0, 3.94, 5.57, 14.5, 98.0]),
        (256, [2.0, 10.0], [19_411.0, 6.02, 9.34, 70.6, 94.0]),
    ];
    let mut text = header("sessions, ms between tokens");
    for (sessions, think_ms, [tokens, p50, p99, rows, busy]) in measured {
        let crowd = Crowd {
            sessions,
            think_ms,
            prompt_tokens: 256,
            arrival_ms: 500.0,
        };
        let mut tail = calibration::h200();
        // 17 layers, of which devices have one.
        tail.costs.layers = 17;
        let measured = Decoding {
            tokens_a_second: tokens,
            token_p50_ms: p50,
            token_p99_ms: p99,
            rows_a_step: rows,
            busy_percent: busy,
        };
        let name = format!("{sessions}, {} to {}", think_ms[0], think_ms[1]);
        text += &row(&name, &measured, &crowd.predicted(tail, 1));
    }
    text
}

/// A real tail on this machine: its steps are measured with sessions that send at once, and what sessions that take a
/// time see is predicted from them, and then measured.
pub(super) fn cpu(print: &mut impl FnMut(&str)) -> anyhow::Result<()> {
    processes::build()?;
    processes::cargo(&["build", "--release", "--bin", "tail-load"])?;
    let model = model::fetch()?;
    let tail = Tail::start(
        &model,
        &["--split-min", SPLIT_LAYER, "--max-sessions", "64"],
    )?;
    let measured = synthetic(&tail, &[1, 2, 4, 8, 16, 32], [0.0, 0.0])?;
    let mut points: Vec<(f64, f64)> = Vec::new();
    print("| sessions that send at once | rows a step | a step, ms (measured) |\n|---|---|---|");
    for (sessions, decoding, step_ms) in &measured {
        print(&format!(
            "| {sessions} | {:.2} | {step_ms:.2} |",
            decoding.rows_a_step
        ));
        if points
            .last()
            .is_none_or(|(rows, _)| *rows < decoding.rows_a_step)
        {
            points.push((decoding.rows_a_step, step_ms * 1e3));
        }
    }
    ensure!(!points.is_empty(), "no step was measured");
    let shape = TailShape {
        step_rows: 128,
        costs: StepCosts {
            layers: 1,
            layer_us: Curve::new(&points),
            attention_us: 0.0,
            least_attention_us: 0.0,
            logits_us: Curve::flat(0.0),
            host_share: 0.0,
        },
        ..calibration::h200()
    };
    print(&format!(
        "\n{}",
        header(&format!(
            "sessions, {} to {} ms between tokens",
            THINK_MS[0], THINK_MS[1]
        ))
    ));
    for (sessions, decoding, _) in synthetic(&tail, &[2, 4, 8, 16, 32], THINK_MS)? {
        let crowd = Crowd {
            sessions,
            think_ms: THINK_MS,
            prompt_tokens: PROMPT_TOKENS,
            arrival_ms: 200.0,
        };
        print(
            row(
                &sessions.to_string(),
                &decoding,
                &crowd.predicted(shape.clone(), 0),
            )
            .trim_end(),
        );
    }
    Ok(())
}

/// Runs `tail-load synthetic`: sessions, what they saw, and how long a step took, in milliseconds.
fn synthetic(
    tail: &Tail,
    sessions: &[u32],
    think_ms: [f64; 2],
) -> anyhow::Result<Vec<(u32, Decoding, f64)>> {
    let address = tail.url.split_once("://").context("a URL")?.1;
    let sessions: Vec<String> = sessions.iter().map(u32::to_string).collect();
    let output = Command::new(program("tail-load")?)
        .args([
            "synthetic",
            "--tail",
            address,
            "--sessions",
            &sessions.join(","),
        ])
        .args([
            "--split-layer",
            SPLIT_LAYER,
            "--codec",
            "f16",
            "--arrival-ms",
            "200",
        ])
        .args([
            "--prompt-tokens",
            &PROMPT_TOKENS.to_string(),
            "--answer-tokens",
            "250",
        ])
        .args([
            "--think-ms",
            &think_ms[0].to_string(),
            &think_ms[1].to_string(),
        ])
        .stderr(Stdio::inherit())
        .output()
        .context("running tail-load")?;
    ensure!(output.status.success(), "tail-load failed");
    let text = String::from_utf8(output.stdout)?;
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<f64> = line
            .split('|')
            .filter_map(|cell| cell.trim().trim_end_matches(" %").parse().ok())
            .collect();
        // Sessions, tokens/s, first token p50 and p99, token p50 and p99, steps/s, rows a step, steps run, …
        let [sessions, tokens, _, _, p50, p99, steps, rows, busy, ..] = cells[..] else {
            return None;
        };
        let decoding = Decoding {
            tokens_a_second: tokens,
            token_p50_ms: p50,
            token_p99_ms: p99,
            rows_a_step: rows,
            busy_percent: busy,
        };
        Some((
            super::random::micros(sessions),
            decoding,
            busy / 100.0 / steps * 1e3,
        ))
    });
    let rows: Vec<_> = rows
        .map(|(sessions, decoding, step_ms)| Ok((u32::try_from(sessions)?, decoding, step_ms)))
        .collect::<anyhow::Result<_>>()?;
    ensure!(!rows.is_empty(), "tail-load printed no row:\n{text}");
    Ok(rows)
}

impl Crowd {
    /// What the simulation says of all of them decoding at the same time.
    fn predicted(&self, tail: TailShape, split_layer: u16) -> Decoding {
        let endless = Length {
            median: 1e6,
            sigma: 0.0,
            least: 1,
            most: 1_000_000,
        };
        let prompt = Length {
            median: f64::from(self.prompt_tokens),
            ..endless
        };
        // No pause at all is no timer.
        let timer_ms = if self.think_ms[1] > 0.0 {
            TIMER_MS
        } else {
            0.0
        };
        let token_us = self.think_ms.map(|ms| (ms + timer_ms) * 1e3);
        let outcome = play(&Scenario {
            seed: 1,
            classes: vec![DeviceClass {
                name: "played",
                share: 1.0,
                split_layer,
                token_us,
                prompt_row_us: 0.0,
                rtt_us: LOOPBACK_US,
                rtt_sigma: 0.0,
                uplink: 1.0,
                row_bytes: 0.0,
            }],
            arrivals: Arrivals::Crowd {
                requests: self.sessions,
                over_us: self.arrival_ms * 1e3,
            },
            workload: Workload {
                prompt,
                answer: endless,
                answer_room: 1_024,
                tasks: vec![Task {
                    share: 1.0,
                    guesses: 0,
                    acceptance: 0.0,
                }],
                network_jitter: 0.05,
                opening_rtts: 2.5,
            },
            tails: 1,
            tail: TailShape {
                max_sessions: self.sessions,
                kv_bytes: u64::MAX,
                kv_bytes_position_layer: 0,
                ..tail
            },
            retry: calibration::RETRY,
            outage: None,
            warm_up: 2 * SECOND,
            horizon: 5 * SECOND,
            drains: false,
        });
        Decoding::of(&outcome)
    }
}

impl Decoding {
    fn of(outcome: &Outcome) -> Self {
        Self {
            tokens_a_second: outcome.tokens_a_second(),
            token_p50_ms: outcome.answered.quantile(0.5) / 1e3,
            token_p99_ms: outcome.answered.quantile(0.99) / 1e3,
            rows_a_step: outcome.rows_a_step(),
            busy_percent: outcome.utilisation(1) * 100.0,
        }
    }
}

fn header(first: &str) -> String {
    format!(
        "| {first} | tok/s: measured | simulated | error | a token: p50, ms, measured | simulated | error | p99, measured \
         | simulated | rows a step, measured | simulated | steps run, measured | simulated |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|\n"
    )
}

fn row(name: &str, measured: &Decoding, simulated: &Decoding) -> String {
    let error = |simulated: f64, measured: f64| (simulated / measured - 1.0) * 100.0;
    let mut text = String::new();
    let _ = writeln!(
        text,
        "| {name} | {:.0} | {:.0} | {:+.1} % | {:.2} | {:.2} | {:+.1} % | {:.2} | {:.2} | {:.1} | {:.1} | {:.0} % | {:.0} % |",
        measured.tokens_a_second,
        simulated.tokens_a_second,
        error(simulated.tokens_a_second, measured.tokens_a_second),
        measured.token_p50_ms,
        simulated.token_p50_ms,
        error(simulated.token_p50_ms, measured.token_p50_ms),
        measured.token_p99_ms,
        simulated.token_p99_ms,
        measured.rows_a_step,
        simulated.rows_a_step,
        measured.busy_percent,
        simulated.busy_percent,
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_gpus_serving_is_predicted() {
        // The two measurements in which the engine did not gather rows and devices took a time.
        for (sessions, tokens, p50) in [(64, 5_775.0, 3.94), (256, 19_411.0, 6.02)] {
            let crowd = Crowd {
                sessions,
                think_ms: [2.0, 10.0],
                prompt_tokens: 256,
                arrival_ms: 500.0,
            };
            let mut tail = calibration::h200();
            tail.costs.layers = 17;
            let got = crowd.predicted(tail, 1);
            assert!(
                (got.tokens_a_second / tokens - 1.0).abs() < 0.1,
                "{}",
                got.tokens_a_second
            );
            assert!(
                (got.token_p50_ms / p50 - 1.0).abs() < 0.25,
                "{}",
                got.token_p50_ms
            );
        }
    }
}
