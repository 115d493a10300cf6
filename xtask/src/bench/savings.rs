//! `cargo xtask bench savings`: what Headway saves a tail, and what that does to latency, on one workload that is answered
//! three ways: all layers on the tail, a split without guesses, and a split as it is meant to be used.
//!
//! The tail is a real one, each device a process of its own behind an emulated network. A tail that has all layers goes on
//! by itself, so its tokens cost no round trips: that is what a split is compared with.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use edge_lite::calibrate::prompts::{self, CalibrationPrompt};
use edge_lite::{ChatMessage, Report};
use headway_model::weights::Weights;

use self::account::Account;
use self::device::Asked;
use self::workload::{Class, Device, FOLLOW_UPS, Mix};
use super::drafts::trained_exit;
use super::relay::{Network, Relays};
use crate::model;
use crate::paths::root;
use crate::processes::{self, Tail};

mod account;
pub mod device;
mod plot;
mod workload;

/// The exit lies behind this layer of the small real model: two thirds of its 30.
const EXIT_LAYER: usize = 20;

/// Options of `bench savings`.
#[derive(clap::Args)]
pub struct Arguments {
    /// One device of each class for each round trip.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Class::ALL)]
    classes: Vec<Class>,
    /// Round trips, in milliseconds.
    #[arg(long, value_delimiter = ',', default_values_t = [5, 20, 50])]
    round_trips: Vec<u64>,
    /// The uplink of every device, in megabits a second; 0 is not limited.
    #[arg(long, default_value_t = 20)]
    uplink: u64,
    /// Conversations of each device; two in five have a second question.
    #[arg(long, default_value_t = 6)]
    conversations: usize,
    /// Seconds before a request, in the mean; exponential.
    #[arg(long, default_value_t = 10.0)]
    think_seconds: f64,
    /// The most tokens of an answer, where its prompt does not say fewer.
    #[arg(long, default_value_t = 96)]
    max_tokens: usize,
    /// Selects prompts and times.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// An early exit behind layer 20; without it one is trained, which takes long, and kept.
    #[arg(long)]
    early_exit: Option<PathBuf>,
    /// Threads of each device.
    #[arg(long, default_value_t = 1)]
    device_threads: usize,
    /// A further option of tail-server, such as --tail-option=--device=cuda:0; may be given again.
    #[arg(long)]
    tail_option: Vec<String>,
    /// Where the plot goes, as SVG.
    #[arg(long)]
    plot: Option<PathBuf>,
}

/// How the workload is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// All layers on the tail, which goes on by itself; no guesses.
    Cloud,
    /// The device's layers on the device, and a round trip for each token.
    Split,
    /// Layers on the device, guesses, kept prefixes, and answers on the device where it holds the model.
    Headway,
}

impl Way {
    pub const ALL: [Self; 3] = [Self::Cloud, Self::Split, Self::Headway];

    /// As the tables and the command line call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Split => "split",
            Self::Headway => "headway",
        }
    }
}

/// What a device got, in order.
type Answers = Vec<Report>;

/// Answers the workload each way and prints what it took.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    processes::build()?;
    let model = model::fetch()?;
    let early_exit = match &arguments.early_exit {
        Some(path) => path.clone(),
        None => trained_exit(&model, EXIT_LAYER)?,
    };
    let networks: Vec<Network> = arguments
        .round_trips
        .iter()
        .map(|milliseconds| Network {
            round_trip: Duration::from_millis(*milliseconds),
            uplink_bits_per_second: (arguments.uplink > 0).then_some(arguments.uplink * 1_000_000),
        })
        .collect();
    let prompts = prompts::read(&root().join("tests/prompts/mixed.jsonl"))?;
    let mix = Mix {
        classes: &arguments.classes,
        networks: &networks,
        conversations: arguments.conversations,
        think_ms: u64::try_from(Duration::try_from_secs_f64(arguments.think_seconds)?.as_millis())?,
        seed: arguments.seed,
    };
    let bench = Bench {
        arguments,
        num_layers: Weights::open(&model)?.config().num_layers,
        devices: workload::devices(&mix, &prompts),
        prompts,
        model,
        early_exit,
    };
    let mut accounts = Vec::new();
    for way in Way::ALL {
        accounts.push(bench.way(way)?);
        eprintln!("{}: done", way.name());
    }
    account::print(&accounts, &arguments.classes, &networks);
    if let Some(path) = &arguments.plot {
        plot::write(path, &accounts, &arguments.classes)?;
    }
    Ok(())
}

struct Bench<'a> {
    arguments: &'a Arguments,
    model: PathBuf,
    early_exit: PathBuf,
    num_layers: usize,
    prompts: Vec<CalibrationPrompt>,
    devices: Vec<Device>,
}

impl Bench<'_> {
    /// Answers the whole workload one way, on a tail of its own.
    fn way(&self, way: Way) -> anyhow::Result<Account> {
        let options = ["--on-device-answers"].into_iter();
        let options = options.chain(self.arguments.tail_option.iter().map(String::as_str));
        let tail = Tail::start(&self.model, &options.collect::<Vec<_>>())?;
        let relays = Relays::to(&tail.url)?;
        let mut players = Vec::new();
        for device in &self.devices {
            // What is fetched before the first request is not in its time; the cache keeps it for the next device.
            let url = relays.url(device.network)?;
            players.push(Player::start(self, way, device, &url)?);
        }
        let before = account::scrape(&tail.url)?;
        let answers: Vec<Answers> = std::thread::scope(|scope| {
            let playing: Vec<_> = players
                .iter_mut()
                .zip(&self.devices)
                .map(|(player, device)| scope.spawn(|| self.play(player, device)))
                .collect();
            playing
                .into_iter()
                .map(|playing| playing.join().expect("a player does not panic"))
                .collect::<anyhow::Result<_>>()
        })?;
        let after = account::scrape(&tail.url)?;
        let devices = self.devices.iter().zip(answers);
        Ok(Account::new(way, devices, &before, &after))
    }

    fn play(&self, player: &mut Player, device: &Device) -> anyhow::Result<Answers> {
        let mut answers = Vec::new();
        for conversation in &device.conversations {
            let prompt = &self.prompts[conversation.prompt];
            processes::wait(Duration::from_millis(conversation.think_ms[0]));
            let mut messages = prompt.messages();
            let max_tokens = prompt.max_tokens.min(self.arguments.max_tokens);
            let answer = player.ask(&messages, max_tokens)?;
            messages.push(message("assistant", &answer.text));
            answers.push(answer);
            if let Some(follow_up) = conversation.follow_up {
                processes::wait(Duration::from_millis(conversation.think_ms[1]));
                messages.push(message("user", FOLLOW_UPS[follow_up]));
                answers.push(player.ask(&messages, self.arguments.max_tokens)?);
            }
        }
        Ok(answers)
    }
}

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage {
        role: role.to_owned(),
        content: content.to_owned(),
    }
}

/// A user thinks.
/// A device's process.
struct Player {
    child: Child,
    requests: ChildStdin,
    reports: BufReader<ChildStdout>,
}

impl Player {
    fn start(bench: &Bench<'_>, way: Way, device: &Device, url: &str) -> anyhow::Result<Self> {
        let path = |path: &Path| path.to_str().map(str::to_owned).context("the path is text");
        let mut child = Command::new(std::env::current_exe()?)
            .args(["bench", "savings-device", "--tail", url])
            .args(["--way", way.name(), "--class", device.class.name()])
            .args(["--model", &path(&bench.model)?])
            .args(["--early-exit", &path(&bench.early_exit)?])
            .args(["--num-layers", &bench.num_layers.to_string()])
            .args(["--threads", &bench.arguments.device_threads.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a device")?;
        let requests = child.stdin.take().context("a device has a stdin")?;
        let stdout = child.stdout.take().context("a device has a stdout")?;
        let mut player = Self {
            child,
            requests,
            reports: BufReader::new(stdout),
        };
        let said = player.line()?;
        ensure!(said.trim() == "ready", "a device said {said}");
        Ok(player)
    }

    fn ask(&mut self, messages: &[ChatMessage], max_tokens: usize) -> anyhow::Result<Report> {
        let asked = Asked {
            messages: messages.to_vec(),
            max_tokens,
        };
        serde_json::to_writer(&mut self.requests, &asked)?;
        self.requests.write_all(b"\n")?;
        self.requests.flush()?;
        serde_json::from_str(&self.line()?).context("a device answers with a report")
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        ensure!(self.reports.read_line(&mut line)? > 0, "a device ended");
        Ok(line)
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
