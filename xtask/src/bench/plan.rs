//! `cargo xtask bench plan`.

use std::time::Duration;

use anyhow::Context as _;
use edge_lite::{Report, Route};
use serde_json::Value;

use self::results::{Results, Times};
use super::relay::{Network, Relays};
use super::text_of;
use crate::model;
use crate::processes::{self, Tail};

mod results;

/// Options of `bench plan`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Tokens to generate.
    #[arg(long, default_value_t = 32)]
    tokens: usize,
    /// Split layers of the fixed plans; the first is all on the tail, the last all on the device.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 10, 20, 30])]
    split_layers: Vec<usize>,
    /// How prompts go up in the fixed plans that split: hidden-states, token-ids.
    #[arg(long, value_delimiter = ',', default_values_t = ["hidden-states".to_owned(), "token-ids".to_owned()])]
    prefills: Vec<String>,
    /// Round trips, in milliseconds.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 20, 50])]
    round_trips: Vec<u64>,
    /// Uplinks, in megabits a second; 0 is not limited.
    #[arg(long, value_delimiter = ',', default_values_t = [5, 20, 100])]
    uplinks: Vec<u64>,
    /// Words of the prompts; about one token each.
    #[arg(long, value_delimiter = ',', default_values_t = [12, 500])]
    words: Vec<usize>,
    /// Repetitions; the median is reported.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// The type in which the device holds its weights [default: the tail's]. With f32 a device is several times slower than
    /// its tail, as its arithmetic really is.
    #[arg(long)]
    device_dtype: Option<String>,
    /// Threads of the tail; the device has one.
    #[arg(long, default_value_t = 1)]
    tail_threads: usize,
}

/// One network and one prompt.
struct Cell {
    network: String,
    url: String,
    prompt: String,
    prompt_tokens: usize,
}

/// What is run: a fixed plan, or the planner's choice.
struct Way {
    /// `None`: the planner's choice.
    fixed: Option<Fixed>,
    reports: Vec<Report>,
}

/// A plan that was not chosen. Its chunks are those that are predicted to be best for it.
#[derive(Clone)]
struct Fixed {
    split_layer: usize,
    prefill: String,
    chunk: u64,
}

/// What `edge-lite plan` says, by how prompts may go up.
struct Predicted(Vec<(String, Value)>);

/// Prints predictions beside measurements, and the planner's choice beside the best fixed plan.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    processes::build()?;
    let threads = arguments.tail_threads.to_string();
    let tail = Tail::start(
        &model::fetch()?,
        &[
            "--threads",
            &threads,
            "--on-device-answers",
            "--codecs",
            "f32",
        ],
    )?;
    let relays = Relays::to(&tail.url)?;
    // Weights are fetched, the tail is warm, and the device is measured once, before any network is emulated.
    for split_layer in &arguments.split_layers {
        let fixed = Fixed {
            split_layer: *split_layer,
            prefill: "auto".to_owned(),
            chunk: 256,
        };
        generate(arguments, &tail.url, &text_of(12), Some(&fixed))?;
    }
    let dtype = arguments.dtype();
    processes::edge_lite(&[&["profile", "--tail", &tail.url], &dtype[..]].concat())?;
    println!(
        "{} tokens, f32, one thread here (weights {}) and {threads} on the tail; medians of {}; predicted / measured.\n",
        arguments.tokens,
        arguments
            .device_dtype
            .as_deref()
            .unwrap_or("as on the tail"),
        arguments.repeats
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
                let prompt = text_of(words);
                let on_device = Fixed {
                    split_layer: *arguments.split_layers.last().context("a split layer")?,
                    prefill: "auto".to_owned(),
                    chunk: 256,
                };
                let counted = generate(arguments, &tail.url, &prompt, Some(&on_device))?;
                let cell = Cell {
                    network: format!("{round_trip} ms, {uplink}"),
                    url: url.clone(),
                    prompt,
                    prompt_tokens: counted.prompt_tokens,
                };
                measure(arguments, &cell, &mut results)?;
            }
        }
    }
    results.print();
    Ok(())
}

impl Arguments {
    /// For the device's programs.
    fn dtype(&self) -> Vec<&str> {
        let dtype = self.device_dtype.as_deref();
        dtype.map_or_else(Vec::new, |dtype| vec!["--dtype", dtype])
    }

    /// The fixed plans, and the planner's choice behind them.
    fn ways(&self, predicted: &Predicted) -> anyhow::Result<Vec<Way>> {
        let mut fixed = Vec::new();
        let ends = [self.split_layers.first(), self.split_layers.last()];
        for &split_layer in &self.split_layers {
            let is_split = !ends.contains(&Some(&split_layer));
            let prefills = match is_split {
                true => &self.prefills[..],
                false => &["auto".to_owned()],
            };
            for prefill in prefills {
                let alternative = predicted.alternative(split_layer, prefill)?;
                let chunk = alternative["prompt_chunk_positions"].as_u64();
                fixed.push(Fixed {
                    split_layer,
                    prefill: prefill.clone(),
                    chunk: chunk.context("a chunk")?,
                });
            }
        }
        let ways = fixed.into_iter().map(Some).chain([None]);
        let ways = ways.map(|fixed| Way {
            fixed,
            reports: Vec::new(),
        });
        Ok(ways.collect())
    }
}

impl Way {
    /// What it is, and what it was predicted to take.
    fn described(&self, predicted: &Predicted) -> anyhow::Result<(String, Times)> {
        if let Some(fixed) = &self.fixed {
            let shown = match fixed.prefill.as_str() {
                "auto" => fixed.split_layer.to_string(),
                prefill => format!("{}, {prefill}", fixed.split_layer),
            };
            let alternative = predicted.alternative(fixed.split_layer, &fixed.prefill)?;
            return Ok((shown, Times::predicted(alternative)?));
        }
        let report = self.a_report();
        let prefill = prefill_of(report);
        let shown = match prefill {
            "auto" => String::new(),
            prefill => format!(", {prefill}"),
        };
        let alternative = predicted.alternative(report.split_layer, prefill)?;
        let shown = format!("planner: {}{shown}", report.split_layer);
        Ok((shown, Times::predicted(alternative)?))
    }

    fn a_report(&self) -> &Report {
        &self.reports[self.reports.len() / 2]
    }

    /// Whether both ran the same, as far as this can be told.
    fn is_same(&self, other: &Self) -> bool {
        let (ours, others) = (self.a_report(), other.a_report());
        ours.split_layer == others.split_layer && prefill_of(ours) == prefill_of(others)
    }
}

/// How the prompt went up, where there was a choice.
fn prefill_of(report: &Report) -> &'static str {
    match (report.route, report.token_id_positions) {
        (Route::Split, 0) => "hidden-states",
        (Route::Split, _) => "token-ids",
        (Route::Device | Route::Cloud, _) => "auto",
    }
}

/// All plans of one cell, in turns, so that a slow minute is everybody's.
fn measure(arguments: &Arguments, cell: &Cell, results: &mut Results) -> anyhow::Result<()> {
    let Cell {
        network,
        url,
        prompt,
        prompt_tokens,
    } = cell;
    let predicted = Predicted::of(arguments, cell)?;
    let mut ways = arguments.ways(&predicted)?;
    for _ in 0..arguments.repeats.max(1) {
        for way in &mut ways {
            let report = generate(arguments, url, prompt, way.fixed.as_ref())?;
            way.reports.push(report);
        }
    }
    for way in &ways {
        let (shown, expected) = way.described(&predicted)?;
        let got = Times::of(&way.reports);
        println!(
            "| {network} | {prompt_tokens} | {shown} | {:.0} / {:.0} | {:.1} / {:.1} | {:.0} / {:.0} |",
            expected.first_token_ms,
            got.first_token_ms,
            expected.token_ms,
            got.token_ms,
            expected.total_ms,
            got.total_ms
        );
        let is_on_device = way.reports.iter().all(|of| of.route == Route::Device);
        results.compare(expected, got, is_on_device);
    }
    // Runs of the same plan are runs of the same plan, whoever named it: what two of them differ by is nobody's choice.
    let total_ms = |way: &Way| {
        let same = ways.iter().filter(|other| way.is_same(other));
        let reports: Vec<Report> = same.flat_map(|way| way.reports.clone()).collect();
        Times::of(&reports).total_ms
    };
    let mut totals: Vec<f64> = ways.iter().map(total_ms).collect();
    let chosen = totals.pop().context("the planner's choice")?;
    let best = totals.iter().copied().fold(f64::INFINITY, f64::min);
    results.regret.push(chosen / best - 1.0);
    let ends = totals.first().zip(totals.last());
    let (cloud, device) = ends.context("--split-layers has none")?;
    results.over_cloud.push(chosen / cloud - 1.0);
    results.over_device.push(chosen / device - 1.0);
    Ok(())
}

impl Predicted {
    /// Of this prompt over this network.
    fn of(arguments: &Arguments, cell: &Cell) -> anyhow::Result<Self> {
        let (prompt_tokens, answer_tokens) =
            (cell.prompt_tokens.to_string(), arguments.tokens.to_string());
        let mut plans = Vec::new();
        for prefill in arguments
            .prefills
            .iter()
            .map(String::as_str)
            .chain(["auto"])
        {
            let asked = [
                ["--tail", &cell.url],
                ["--prompt-tokens", &prompt_tokens],
                ["--answer-tokens", &answer_tokens],
                ["--prefill", prefill],
                ["--format", "json"],
            ];
            let asked = [&["plan"], asked.as_flattened(), &arguments.dtype()].concat();
            let json = processes::edge_lite(&asked)?;
            let plan = serde_json::from_slice(&json).context("edge-lite prints a plan")?;
            plans.push((prefill.to_owned(), plan));
        }
        Ok(Self(plans))
    }

    fn alternative(&self, split_layer: usize, prefill: &str) -> anyhow::Result<&Value> {
        let plan = self.0.iter().find(|(name, _)| name == prefill);
        let (_, plan) = plan.with_context(|| format!("{prefill} was not planned"))?;
        let alternatives = plan["by_split_layer"].as_array().context("alternatives")?;
        alternatives
            .iter()
            .find(|alternative| alternative["split_layer"] == split_layer)
            .with_context(|| format!("split layer {split_layer} is not possible"))
    }
}

/// `fixed`: `None` is the planner's choice.
fn generate(
    arguments: &Arguments,
    url: &str,
    prompt: &str,
    fixed: Option<&Fixed>,
) -> anyhow::Result<Report> {
    let tokens = arguments.tokens.to_string();
    let fixed = fixed.map(|fixed| {
        (
            fixed.split_layer.to_string(),
            fixed.prefill.as_str(),
            fixed.chunk.to_string(),
        )
    });
    let split_layer = match &fixed {
        None => vec!["--split-layer", "plan"],
        Some((split_layer, prefill, chunk)) => {
            let layer = ["--split-layer", split_layer, "--prefill", prefill];
            [&layer[..], &["--prompt-chunk", chunk]].concat()
        }
    };
    // A round trip for each token, and as many tokens as were planned for.
    let chosen = [
        "--raw",
        "--ignore-end-of-turn",
        "--draft",
        "off",
        "--codec",
        "f32",
        "--answer-tokens",
        &tokens,
        "--max-tokens",
        &tokens,
        "--prompt",
        prompt,
    ];
    processes::generate(
        url,
        &[&chosen[..], &split_layer, &arguments.dtype()].concat(),
    )
}
