//! `cargo xtask bench drafts`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use edge_lite::Report;

use super::median;
use super::relay::{Network, Relays};
use crate::model;
use crate::paths;
use crate::processes::{self, Tail};

/// Options of `bench drafts`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Split layer.
    #[arg(long, default_value_t = 15)]
    split_layer: usize,
    /// Tokens to generate.
    #[arg(long, default_value_t = 96)]
    tokens: usize,
    /// Round trips, in milliseconds.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 10, 20, 50, 100])]
    round_trips: Vec<u64>,
    /// Repetitions; the median is reported.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// An early exit for the split layer; without it one is trained, which takes minutes, and kept
    #[arg(long)]
    early_exit: Option<PathBuf>,
    /// Temperature of the answers; 0 is greedy.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
}

/// How the next tokens are guessed.
const DRAFTERS: [&str; 4] = ["off", "lookup", "model", "auto"];

/// What is asked: text that stands in the prompt, or is about it, or is new.
const TASKS: [(&str, &str); 5] = [
    (
        "write text again",
        "Write this text again with all numbers as words: The old harbour has 3 piers and 12 boats. Every morning at 6 the \
         boats leave the harbour, and every evening at 7 the boats come back to the harbour. The harbour master counts the \
         boats, writes the number of boats into the big green book, and goes home to his house on the hill.",
    ),
    (
        "change code",
        "Rename the variable `total` to `amount` in this Python function and print the whole function:\n\ndef \
         total_price(items, discount):\n    total = 0\n    for item in items:\n        total = total + item.price * \
         item.count\n    if discount > 0:\n        total = total - total * discount\n    return total\n",
    ),
    (
        "summarise",
        "Summarise this text in two sentences: The old harbour has three piers and twelve boats. Every morning the boats \
         leave the harbour, and every evening the boats come back to the harbour. The harbour master counts the boats, \
         writes the number of boats into the big green book, and goes home to his house on the hill.",
    ),
    ("explain", "Explain in simple words why the sky is blue."),
    (
        "tell",
        "Tell me a story about a lighthouse keeper and a whale.",
    ),
];

/// Prints decode speed without and with guesses, by task and round trip.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    processes::build()?;
    let model = model::fetch()?;
    let early_exit = match &arguments.early_exit {
        Some(path) => path.clone(),
        None => trained_exit(&model, arguments.split_layer)?,
    };
    let tail = Tail::start(&model, &["--threads", "1"])?;
    let relays = Relays::to(&tail.url)?;
    println!(
        "Split layer {}, one thread a side, f16, temperature {}, answers of at most {} tokens; medians of {}.\n",
        arguments.split_layer, arguments.temperature, arguments.tokens, arguments.repeats
    );
    println!(
        "| task | round trip | tok/s without guesses | lookup | exit | both | ratio of both | tokens a step | guesses right |\n\
         |---|---|---|---|---|---|---|---|---|"
    );
    for (task, prompt) in TASKS {
        for &milliseconds in &arguments.round_trips {
            let network = Network {
                round_trip: Duration::from_millis(milliseconds),
                uplink_bits_per_second: None,
            };
            let url = relays.url(network)?;
            let mut speeds = Vec::new();
            let mut last = None;
            for draft in DRAFTERS {
                let (speed, report) = measure(arguments, &url, (prompt, draft), &early_exit)?;
                speeds.push(speed);
                last = Some(report);
            }
            let report = last.context("nothing was measured")?;
            println!("{}", row(task, milliseconds, &speeds, &report));
        }
    }
    Ok(())
}

/// The exit of an earlier run, or else one that is trained now.
fn trained_exit(model: &Path, split_layer: usize) -> anyhow::Result<PathBuf> {
    let folder = paths::cache_dir().join("exits");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("smollm2-{split_layer}.gguf"));
    if !path.is_file() {
        eprintln!("training an early exit, for half an hour on two cores");
        let unfinished = path.with_extension("unfinished");
        processes::train_exit(model, split_layer, &unfinished)?;
        std::fs::rename(&unfinished, &path)?;
    }
    Ok(path)
}

#[expect(clippy::cast_precision_loss, reason = "token counts are small")]
fn row(task: &str, milliseconds: u64, speeds: &[f64], report: &Report) -> String {
    let [off, .., both] = speeds else {
        return String::new();
    };
    let cells: Vec<_> = speeds.iter().map(|speed| format!("{speed:.1}")).collect();
    format!(
        "| {task} | {milliseconds} ms | {} | {:.2} | {:.2} | {} of {} |",
        cells.join(" | "),
        both / off,
        report.token_ids.len() as f64 / report.token_steps as f64,
        report.accepted_draft_tokens,
        report.draft_tokens
    )
}

/// Tokens a second after the first one, and one of the reports.
fn measure(
    arguments: &Arguments,
    url: &str,
    (prompt, draft): (&str, &str),
    early_exit: &Path,
) -> anyhow::Result<(f64, Report)> {
    let mut speeds = Vec::new();
    let mut last = None;
    for _ in 0..arguments.repeats.max(1) {
        let report = generate(arguments, url, (prompt, draft), early_exit)?;
        #[expect(clippy::cast_precision_loss, reason = "token counts are small")]
        let decoded = (report.token_ids.len() - 1) as f64;
        speeds.push(decoded / report.timings_ms.decode * 1e3);
        last = Some(report);
    }
    Ok((median(speeds), last.context("nothing was measured")?))
}

fn generate(
    arguments: &Arguments,
    url: &str,
    (prompt, draft): (&str, &str),
    early_exit: &Path,
) -> anyhow::Result<Report> {
    let [split_layer, tokens, temperature] = [
        arguments.split_layer.to_string(),
        arguments.tokens.to_string(),
        arguments.temperature.to_string(),
    ];
    let early_exit = early_exit.to_str().context("the exit's path is text")?;
    let chosen = [
        ["--codec", "f16"],
        ["--split-layer", &split_layer],
        ["--prompt", prompt],
        ["--max-tokens", &tokens],
        ["--temperature", &temperature],
        ["--draft", draft],
        ["--early-exit", early_exit],
    ];
    processes::generate(url, &chosen.concat())
}
