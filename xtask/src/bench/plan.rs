//! `cargo xtask bench plan`.

use std::time::Duration;

use anyhow::Context as _;
use edge_lite::Report;
use serde_json::Value;

use super::relay::{Network, Relays};
use super::{median, text_of};
use crate::model;
use crate::processes::{self, Tail};

/// Options of `bench plan`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Tokens to generate.
    #[arg(long, default_value_t = 32)]
    tokens: usize,
    /// Split layers of the fixed plans; the first is all on the tail, the last all on the device.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 10, 20, 30])]
    split_layers: Vec<usize>,
    /// Round trips, in milliseconds.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 20, 50])]
    round_trips: Vec<u64>,
    /// Uplinks, in megabits a second; 0 is not limited.
    #[arg(long, value_delimiter = ',', default_values_t = [5, 100, 0])]
    uplinks: Vec<u64>,
    /// Words of the prompts; about one token each.
    #[arg(long, value_delimiter = ',', default_values_t = [12, 500])]
    words: Vec<usize>,
    /// Repetitions; the median is reported.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
}

/// One network and one prompt.
struct Cell {
    network: String,
    url: String,
    prompt: String,
}

/// What was measured of one plan, or predicted.
#[derive(Clone, Copy)]
struct Times {
    first_token_ms: f64,
    token_ms: f64,
    total_ms: f64,
}

/// Relative errors, and what the choices lost.
#[derive(Default)]
struct Results {
    first_token: Vec<f64>,
    token: Vec<f64>,
    total: Vec<f64>,
    regret: Vec<f64>,
    over_device: Vec<f64>,
    over_cloud: Vec<f64>,
}

/// Prints predictions beside measurements, and the planner's choice beside the best fixed plan.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    processes::build()?;
    let tail = Tail::start(
        &model::fetch()?,
        &["--threads", "1", "--on-device-answers", "--codecs", "f32"],
    )?;
    let relays = Relays::to(&tail.url)?;
    // Weights are fetched, the tail is warm, and the device is measured once, before any network is emulated.
    for split_layer in &arguments.split_layers {
        generate(arguments, &tail.url, &text_of(12), &split_layer.to_string())?;
    }
    processes::edge_lite(&["profile", "--tail", &tail.url])?;
    println!(
        "{} tokens, f32, one thread a side; medians of {}; predicted / measured.\n",
        arguments.tokens, arguments.repeats
    );
    println!(
        "| network | prompt | plan | first token ms | ms a token | answer ms |\n|---|---|---|---|---|---|"
    );
    let mut results = Results::default();
    for &round_trip in &arguments.round_trips {
        for &megabits in &arguments.uplinks {
            let url = relays.url(Network {
                round_trip: Duration::from_millis(round_trip),
                uplink_bits_per_second: (megabits > 0).then_some(megabits * 1_000_000),
            })?;
            let uplink = match megabits {
                0 => "no limit".to_owned(),
                megabits => format!("{megabits} Mbit/s"),
            };
            for &words in &arguments.words {
                let cell = Cell {
                    network: format!("{round_trip} ms, {uplink}"),
                    url: url.clone(),
                    prompt: text_of(words),
                };
                measure(arguments, &cell, &mut results)?;
            }
        }
    }
    results.print();
    Ok(())
}

/// All plans of one cell, in turns, so that a slow minute is everybody's.
fn measure(arguments: &Arguments, cell: &Cell, results: &mut Results) -> anyhow::Result<()> {
    let Cell {
        network,
        url,
        prompt,
    } = cell;
    let names: Vec<String> = arguments
        .split_layers
        .iter()
        .map(ToString::to_string)
        .chain(["plan".to_owned()])
        .collect();
    let mut reports: Vec<Vec<Report>> = vec![Vec::new(); names.len()];
    for _ in 0..arguments.repeats.max(1) {
        for (name, reports) in names.iter().zip(&mut reports) {
            reports.push(generate(arguments, url, prompt, name)?);
        }
    }
    let prompt_tokens = reports[0][0].prompt_tokens;
    let predicted = predicted(arguments, url, prompt_tokens)?;
    let mut totals = Vec::new();
    for (name, reports) in names.iter().zip(&reports) {
        let chosen = reports[reports.len() / 2].split_layer;
        let (expected, got) = (of_split_layer(&predicted, chosen)?, Times::of(reports));
        let shown = match name.as_str() {
            "plan" => format!("planner: {chosen}"),
            name => name.to_owned(),
        };
        println!(
            "| {network} | {prompt_tokens} | {shown} | {:.0} / {:.0} | {:.1} / {:.1} | {:.0} / {:.0} |",
            expected.first_token_ms,
            got.first_token_ms,
            expected.token_ms,
            got.token_ms,
            expected.total_ms,
            got.total_ms
        );
        results.compare(expected, got);
        totals.push(got.total_ms);
    }
    let chosen = totals.pop().context("the planner's choice")?;
    let best = totals.iter().copied().fold(f64::INFINITY, f64::min);
    results.regret.push(chosen / best - 1.0);
    let ends = totals.first().zip(totals.last());
    let (cloud, device) = ends.context("--split-layers has none")?;
    results.over_cloud.push(chosen / cloud - 1.0);
    results.over_device.push(chosen / device - 1.0);
    Ok(())
}

impl Times {
    fn of(reports: &[Report]) -> Self {
        let median_of = |time: fn(&Report) -> f64| median(reports.iter().map(time).collect());
        Self {
            first_token_ms: median_of(|report| report.timings_ms.first_token),
            token_ms: median_of(|report| {
                #[expect(clippy::cast_precision_loss, reason = "token counts are small")]
                let further = (report.token_ids.len() - 1) as f64;
                report.timings_ms.decode / further
            }),
            total_ms: median_of(|report| report.timings_ms.first_token + report.timings_ms.decode),
        }
    }
}

impl Results {
    fn compare(&mut self, expected: Times, got: Times) {
        let error = |expected: f64, got: f64| (expected - got).abs() / got;
        self.first_token
            .push(error(expected.first_token_ms, got.first_token_ms));
        self.token.push(error(expected.token_ms, got.token_ms));
        self.total.push(error(expected.total_ms, got.total_ms));
    }

    fn print(self) {
        println!("\n| | median | 9 of 10 | most |\n|---|---|---|---|");
        for (what, mut values) in [
            ("error of the first token", self.first_token),
            ("error of a token", self.token),
            ("error of the answer", self.total),
            ("choice against the best fixed plan", self.regret),
            ("choice against all on the device", self.over_device),
            ("choice against all on the tail", self.over_cloud),
        ] {
            values.sort_by(f64::total_cmp);
            let at = |part: usize| values[(values.len() - 1) * part / 10] * 100.0;
            println!(
                "| {what} | {:.1} % | {:.1} % | {:.1} % |",
                at(5),
                at(9),
                at(10)
            );
        }
    }
}

/// What `edge-lite plan` says of this prompt over this network.
fn predicted(arguments: &Arguments, url: &str, prompt_tokens: usize) -> anyhow::Result<Value> {
    let (prompt_tokens, answer_tokens) = (prompt_tokens.to_string(), arguments.tokens.to_string());
    let json = processes::edge_lite(&[
        "plan",
        "--tail",
        url,
        "--prompt-tokens",
        &prompt_tokens,
        "--answer-tokens",
        &answer_tokens,
        "--format",
        "json",
    ])?;
    serde_json::from_slice(&json).context("edge-lite prints a plan")
}

fn of_split_layer(planned: &Value, split_layer: usize) -> anyhow::Result<Times> {
    let alternatives = planned["by_split_layer"]
        .as_array()
        .context("alternatives")?;
    let alternative = alternatives
        .iter()
        .find(|alternative| alternative["split_layer"] == split_layer)
        .with_context(|| format!("split layer {split_layer} is not possible"))?;
    let number = |field: &str| alternative[field].as_f64().context("a number");
    Ok(Times {
        first_token_ms: number("first_token_ms")?,
        token_ms: number("token_ms")?,
        total_ms: number("total_ms")?,
    })
}

fn generate(
    arguments: &Arguments,
    url: &str,
    prompt: &str,
    split_layer: &str,
) -> anyhow::Result<Report> {
    let tokens = arguments.tokens.to_string();
    // A round trip for each token, and as many tokens as were planned for.
    let chosen = [
        "--raw",
        "--ignore-end-of-turn",
        "--draft",
        "off",
        "--codec",
        "f32",
        "--split-layer",
        split_layer,
        "--answer-tokens",
        &tokens,
        "--max-tokens",
        &tokens,
        "--prompt",
        prompt,
    ];
    processes::generate(url, &chosen)
}
