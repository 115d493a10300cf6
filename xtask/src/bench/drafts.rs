//! `cargo xtask bench drafts`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use edge_lite::{Report, Route};

use self::tasks::{TASKS, Task};
use super::median;
use super::relay::{Network, Relays};
use crate::model;
use crate::paths;
use crate::processes::{self, Tail};

mod tasks;

/// Options of `bench drafts`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Split layer; the planner chooses its own.
    #[arg(long, default_value_t = 20)]
    split_layer: usize,
    /// The most tokens of an answer.
    #[arg(long, default_value_t = 96)]
    tokens: usize,
    /// The most tokens of an answer that is a text or code of the prompt.
    #[arg(long, default_value_t = 256)]
    edit_tokens: usize,
    /// Prompts of each task, 4 at most.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=4))]
    prompts: u64,
    /// Tasks, by the beginning of their names [default: all]
    #[arg(long, value_delimiter = ',')]
    tasks: Vec<String>,
    /// Round trips, in milliseconds.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 50])]
    round_trips: Vec<u64>,
    /// Uplinks, in megabits a second; 0 is not limited.
    #[arg(long, value_delimiter = ',', default_values_t = [20])]
    uplinks: Vec<u64>,
    /// Repetitions of everything.
    #[arg(long, default_value_t = 1)]
    repeats: usize,
    /// An early exit for the split layer; without it one is trained, which takes minutes, and kept
    #[arg(long)]
    early_exit: Option<PathBuf>,
    /// Temperature of the answers; 0 is greedy.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Whether the planner may choose to run all layers on the device.
    #[arg(long)]
    on_device_answers: bool,
    /// What the planner's choice is to be best at.
    #[arg(long, default_value = "latency")]
    objective: String,
}

/// How an answer is made: the name in the tables, `--draft`, and whether the split layer is planned.
const WAYS: [(&str, &str, bool); 5] = [
    ("off", "off", false),
    ("lookup", "lookup", false),
    ("exit", "model", false),
    ("auto", "auto", false),
    ("planner", "auto", true),
];

/// What is the same for all answers.
struct Bench<'a> {
    arguments: &'a Arguments,
    early_exit: PathBuf,
    relays: Relays,
}

/// All answers of one task over one network in one way.
type Answers = Vec<Report>;

/// Prints tokens a second, time to the first token, and what became of the guesses, network by network.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    processes::build()?;
    let model = model::fetch()?;
    let early_exit = match &arguments.early_exit {
        Some(path) => path.clone(),
        None => trained_exit(&model, arguments.split_layer)?,
    };
    let on_device = arguments.on_device_answers.then_some("--on-device-answers");
    let options = ["--threads", "1", "--codecs", "f16"];
    let options: Vec<&str> = options.into_iter().chain(on_device).collect();
    let tail = Tail::start(&model, &options)?;
    // The device is measured, and the weights are fetched, before any network is emulated.
    processes::edge_lite(&["profile", "--tail", &tail.url])?;
    println!(
        "Split layer {}, one thread a side, f16, temperature {}, answers of at most {} tokens ({} where they repeat the \
         prompt), {} prompts a task, {} times each.\n\n\
         Tokens a second after the first one: all tokens of a task's answers by all their time. *right*: of the \
         guesses that were sent. *a trip*: tokens for each round trip.",
        arguments.split_layer,
        arguments.temperature,
        arguments.tokens,
        arguments.edit_tokens,
        arguments.prompts,
        arguments.repeats
    );
    let bench = Bench {
        arguments,
        early_exit,
        relays: Relays::to(&tail.url)?,
    };
    for &megabits in &arguments.uplinks {
        for &milliseconds in &arguments.round_trips {
            bench.network(milliseconds, megabits)?;
        }
    }
    Ok(())
}

impl Bench<'_> {
    /// Measures and prints one network's tables.
    fn network(&self, milliseconds: u64, megabits: u64) -> anyhow::Result<()> {
        let network = Network {
            round_trip: Duration::from_millis(milliseconds),
            uplink_bits_per_second: (megabits > 0).then_some(megabits * 1_000_000),
        };
        let url = self.relays.url(network)?;
        let is_chosen = |task: &&Task| {
            let chosen = &self.arguments.tasks;
            chosen.is_empty() || chosen.iter().any(|name| task.name.starts_with(name))
        };
        let mut rows = Vec::new();
        for task in TASKS.iter().filter(is_chosen) {
            rows.push((task.name, self.task(&url, task)?));
        }
        let uplink = match megabits {
            0 => "uplink not limited".to_owned(),
            megabits => format!("uplink {megabits} Mbit/s"),
        };
        println!("\n### Round trip {milliseconds} ms, {uplink}\n");
        let speeds = |answers: &Answers| format!("{:.1}", tokens_a_second(answers));
        table("tokens a second", &rows, &WAYS, speeds);
        let first = |answers: &Answers| {
            let times = answers.iter().map(|report| report.timings_ms.first_token);
            format!("{:.0}", median(times.collect()))
        };
        table("first token, ms", &rows, &WAYS, first);
        table("right; a trip", &rows, &WAYS[1..], guesses);
        table("planner's choice", &rows, &WAYS[4..], choices);
        Ok(())
    }

    /// All answers of one task, by way; in turns, so that a slow minute is everybody's.
    fn task(&self, url: &str, task: &Task) -> anyhow::Result<Vec<Answers>> {
        let prompts = usize::try_from(self.arguments.prompts)?;
        let mut answers: Vec<Answers> = vec![Vec::new(); WAYS.len()];
        for _ in 0..self.arguments.repeats.max(1) {
            for prompt in task.prompts.iter().take(prompts) {
                for (way, answers) in WAYS.iter().zip(&mut answers) {
                    answers.push(self.generate(url, task, prompt, *way)?);
                }
            }
        }
        eprintln!("{}: {} answers", task.name, prompts * WAYS.len());
        Ok(answers)
    }

    fn generate(
        &self,
        url: &str,
        task: &Task,
        prompt: &str,
        (_, draft, is_planned): (&str, &str, bool),
    ) -> anyhow::Result<Report> {
        let tokens = if task.repeats_prompt {
            self.arguments.edit_tokens
        } else {
            self.arguments.tokens
        };
        let [split_layer, tokens, temperature] = [
            self.arguments.split_layer.to_string(),
            tokens.to_string(),
            self.arguments.temperature.to_string(),
        ];
        let early_exit = self.early_exit.to_str();
        let chosen = [
            ["--codec", "f16"],
            [
                "--split-layer",
                if is_planned { "plan" } else { &split_layer },
            ],
            ["--objective", &self.arguments.objective],
            ["--prompt", prompt],
            ["--max-tokens", &tokens],
            ["--temperature", &temperature],
            ["--draft", draft],
            [
                "--early-exit",
                early_exit.context("the exit's path is text")?,
            ],
        ];
        processes::generate(url, &chosen.concat())
    }
}

/// The exit of an earlier run, or else one that is trained now.
pub fn trained_exit(model: &Path, split_layer: usize) -> anyhow::Result<PathBuf> {
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

/// One row for each task, and a column for each of the last of [`WAYS`].
fn table(
    title: &str,
    rows: &[(&str, Vec<Answers>)],
    ways: &[(&str, &str, bool)],
    cell: impl Fn(&Answers) -> String,
) {
    let names = ways.iter().map(|(name, ..)| *name);
    println!(
        "| {title} | {} |\n|---|{}",
        names.collect::<Vec<_>>().join(" | "),
        "---|".repeat(ways.len())
    );
    for (task, answers) in rows {
        let cells = answers[WAYS.len() - ways.len()..].iter().map(&cell);
        println!("| {task} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
    println!();
}

#[expect(clippy::cast_precision_loss, reason = "token counts are small")]
fn tokens_a_second(answers: &[Report]) -> f64 {
    let tokens = answers.iter().map(|report| report.token_ids.len() - 1);
    let ms = answers.iter().map(|report| report.timings_ms.decode);
    tokens.sum::<usize>() as f64 / ms.sum::<f64>() * 1e3
}

/// How many of the guesses were right, and tokens a round trip. Without a tail there are none.
#[expect(clippy::cast_precision_loss, reason = "token counts are small")]
fn guesses(answers: &Answers) -> String {
    let sum = |of: fn(&Report) -> u64| answers.iter().map(of).sum::<u64>();
    let (guesses, right) = (
        sum(|report| report.draft_tokens),
        sum(|report| report.accepted_draft_tokens),
    );
    let (tokens, token_steps) = (
        sum(|report| report.token_ids.len() as u64),
        sum(|report| report.token_steps),
    );
    if token_steps == 0 {
        return "-".to_owned();
    }
    let share = match guesses {
        0 => "none made".to_owned(),
        guesses => format!("{:.0} %", right as f64 / guesses as f64 * 100.0),
    };
    format!("{share}; {:.2}", tokens as f64 / token_steps as f64)
}

/// The split layers that were chosen, and how prompts went up.
fn choices(answers: &Answers) -> String {
    let choice = |report: &Report| match (report.route, report.token_id_positions) {
        (Route::Device, _) => "device".to_owned(),
        (Route::Cloud, _) => "tail".to_owned(),
        (Route::Split, 0) => format!("{}, states", report.split_layer),
        (Route::Split, _) => format!("{}, ids", report.split_layer),
    };
    let mut choices: Vec<String> = answers.iter().map(choice).collect();
    choices.sort();
    choices.dedup();
    choices.join("; ")
}
