//! `cargo xtask bench drafts`.

use std::time::Duration;

use anyhow::Context as _;
use edge_lite::Report;

use super::median;
use super::relay::{Network, Relays};
use crate::model;
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
}

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
    let tail = Tail::start(&model::fetch()?, &["--threads", "1"])?;
    let relays = Relays::to(&tail.url)?;
    println!(
        "Split layer {}, one thread a side, f16, greedy answers of at most {} tokens; medians of {}.\n",
        arguments.split_layer, arguments.tokens, arguments.repeats
    );
    println!(
        "| task | round trip | tok/s without guesses | tok/s with lookup | ratio | tokens a step | guesses right |\n\
         |---|---|---|---|---|---|---|"
    );
    for (task, prompt) in TASKS {
        for &milliseconds in &arguments.round_trips {
            let network = Network {
                round_trip: Duration::from_millis(milliseconds),
                uplink_bits_per_second: None,
            };
            let url = relays.url(network)?;
            let [off, lookup] =
                ["off", "lookup"].map(|draft| measure(arguments, &url, prompt, draft));
            let ((off, _), (lookup, report)) = (off?, lookup?);
            println!("{}", row(task, milliseconds, [off, lookup], &report));
        }
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "token counts are small")]
fn row(task: &str, milliseconds: u64, [off, lookup]: [f64; 2], report: &Report) -> String {
    format!(
        "| {task} | {milliseconds} ms | {off:.1} | {lookup:.1} | {:.2} | {:.2} | {} of {} |",
        lookup / off,
        report.token_ids.len() as f64 / report.token_steps as f64,
        report.accepted_draft_tokens,
        report.draft_tokens
    )
}

/// Tokens a second after the first one, and one of the reports.
fn measure(
    arguments: &Arguments,
    url: &str,
    prompt: &str,
    draft: &str,
) -> anyhow::Result<(f64, Report)> {
    let mut speeds = Vec::new();
    let mut last = None;
    for _ in 0..arguments.repeats.max(1) {
        let report = generate(arguments, url, prompt, draft)?;
        #[expect(clippy::cast_precision_loss, reason = "token counts are small")]
        let decoded = (report.token_ids.len() - 1) as f64;
        speeds.push(decoded / report.timings_ms.decode * 1e3);
        last = Some(report);
    }
    Ok((median(speeds), last.context("nothing was measured")?))
}

fn generate(arguments: &Arguments, url: &str, prompt: &str, draft: &str) -> anyhow::Result<Report> {
    let (split_layer, tokens) = (
        arguments.split_layer.to_string(),
        arguments.tokens.to_string(),
    );
    let chosen = [
        "--codec",
        "f16",
        "--split-layer",
        &split_layer,
        "--prompt",
        prompt,
        "--max-tokens",
        &tokens,
        "--draft",
        draft,
    ];
    processes::generate(url, &chosen)
}
