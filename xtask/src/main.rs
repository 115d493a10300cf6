//! Every command of this repository: `cargo xtask demo`, `test`, `bench`, `cluster`, `cuda`, `images`, `model`, `tidy`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool talks to a person"
)]

use clap::Parser;

mod bench;
mod cluster;
mod crds;
mod cuda;
mod demo;
mod images;
mod model;
mod paths;
mod processes;
mod test;
mod tidy;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The commands of this repository")]
enum Command {
    /// Runs a real model split between a device process and a tail process, and prints what ran where.
    Demo(demo::Arguments),
    /// Formatting, lints, house rules and all tests.
    Test(test::Arguments),
    /// Measures, beside peers, and prints Markdown tables.
    #[command(subcommand)]
    Bench(bench::Command),
    /// A Kubernetes cluster for development, on this machine.
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// The CUDA compiler, and building and checking with it.
    #[command(subcommand)]
    Cuda(cuda::Command),
    /// Puts together container images of the operator and of tail-server, without a container engine.
    Images(images::Arguments),
    /// Writes the definition of SplitModels from the operator's types.
    Crds,
    /// Fetches the small real model of the tests and prints its path, or writes one with random weights.
    Model(model::Arguments),
    /// Checks the house rules that clippy cannot.
    Tidy,
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Bench(command) => bench::run(command),
        Command::Cluster(command) => cluster::run(&command),
        Command::Model(arguments) => model::run(&arguments),
        Command::Images(arguments) => images::run(&arguments),
        Command::Crds => crds::run(),
        Command::Cuda(command) => cuda::run(command),
        Command::Tidy => tidy::run(),
    }
}
