//! Measurements, always beside something measured in the same run: this machine's absolute numbers say
//! little elsewhere, the ratios more.

use clap::Subcommand;

mod autoscale;
mod cluster_load;
mod concurrency;
mod dashboard;
mod drafts;
mod edge;
mod fleet;
mod ledger;
mod memory;
mod operator;
mod plan;
mod quality;
mod relay;
mod router;
mod savings;
mod soak;
mod split;
mod tail;

/// What to measure.
#[derive(Subcommand)]
pub enum Command {
    /// The operator's decisions on numbers of pods, simulated, beside a reference and an oracle.
    Autoscale(autoscale::Arguments),
    /// What a tail does with up to 64 sessions at a time, and what drafts and prefixes save it.
    Concurrency(concurrency::Arguments),
    /// What the chart's dashboard shows of a real node under load, asked of a real Prometheus.
    Dashboard(dashboard::Arguments),
    /// What guesses of the next tokens do to the speed of a split model over slow round trips.
    Drafts(drafts::Arguments),
    /// Prompt and decode speed on the CPU, beside llama.cpp on the same file.
    Edge(edge::Arguments),
    /// A million devices on thousands of tails, simulated with measured costs: what that takes, and what ends first.
    Fleet(fleet::Arguments),
    /// The savings in a status beside what devices counted, while tails of a real node are killed.
    Ledger(ledger::Arguments),
    /// What the planner predicts over emulated networks, beside what is measured, and its choice beside fixed plans.
    Plan(plan::Arguments),
    /// What a companion answers of mixed prompts, with which agreement, and what that saves the tail.
    Router(router::Arguments),
    /// What Headway saves on one workload, beside all layers on the tail and a split without guesses.
    Savings(savings::Arguments),
    /// One device of `savings`; started by it.
    #[command(hide = true)]
    SavingsDevice(savings::device::Arguments),
    /// Everything that can happen to a tail, for a long time, and whether it is then what it was.
    Soak(soak::Arguments),
    /// Decode speed and time to first token of a split model over emulated networks.
    Split(split::Arguments),
    /// Steps of the tail on a GPU, beside transformers and beside what the GPU cannot be faster than.
    Tail(tail::Arguments),
    /// Resident memory of device and tail at several split layers.
    Memory,
    /// How fast the operator is on a simulated cluster, and what it uses.
    Operator(operator::Arguments),
    /// What each codec and each head quantisation costs in quality.
    Quality(quality::Arguments),
}

/// Runs one measurement and prints its table.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Autoscale(arguments) => autoscale::run(&arguments),
        Command::Concurrency(arguments) => concurrency::run(&arguments),
        Command::Dashboard(arguments) => dashboard::run(&arguments),
        Command::Drafts(arguments) => drafts::run(&arguments),
        Command::Edge(arguments) => edge::run(&arguments),
        Command::Fleet(arguments) => fleet::run(&arguments),
        Command::Ledger(arguments) => ledger::run(&arguments),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Router(arguments) => router::run(&arguments),
        Command::Savings(arguments) => savings::run(&arguments),
        Command::SavingsDevice(arguments) => savings::device::run(&arguments),
        Command::Soak(arguments) => soak::run(&arguments),
        Command::Split(arguments) => split::run(&arguments),
        Command::Tail(arguments) => tail::run(&arguments),
        Command::Memory => memory::run(),
        Command::Operator(arguments) => operator::run(&arguments),
        Command::Quality(arguments) => quality::run(&arguments),
    }
}

/// The middle value; of an even number, the upper one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// So many words that mean nothing.
fn text_of(words: usize) -> String {
    let words_of_text = [
        "the", "river", "runs", "past", "a", "small", "town", "and", "old", "hills", "in", "green",
    ];
    (0..words)
        .map(|i| words_of_text[i * 7 % 12])
        .collect::<Vec<_>>()
        .join(" ")
}
