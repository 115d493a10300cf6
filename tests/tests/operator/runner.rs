//! Runs scenarios in phases and prints as `cargo test` does.

use std::future::Future;
use std::io::{self, Write as _};
use std::pin::Pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::task::LocalSet;

use crate::world::World;

/// A scenario that has not ended by then has hung.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(240);

type Running = Pin<Box<dyn Future<Output = Result<()>>>>;

/// A scenario; its name is what it claims.
pub struct Trial {
    name: &'static str,
    run: Box<dyn Fn(World) -> Running>,
}

/// Gives a scenario its name.
pub fn trial<F, R>(name: &'static str, run: F) -> Trial
where
    F: Fn(World) -> R + 'static,
    R: Future<Output = Result<()>> + 'static,
{
    Trial {
        name,
        run: Box::new(move |world| Box::pin(run(world))),
    }
}

/// Scenarios that run at the same time.
pub struct Phase {
    trials: Vec<Trial>,
    has_operator: bool,
    looks_back: bool,
}

impl Phase {
    /// Scenarios that share an operator.
    pub fn with_operator(trials: Vec<Trial>) -> Self {
        Self {
            trials,
            has_operator: true,
            looks_back: false,
        }
    }

    /// Scenarios that start operators themselves.
    pub fn bare(trials: Vec<Trial>) -> Self {
        Self {
            trials,
            has_operator: false,
            looks_back: false,
        }
    }

    /// Scenarios that make sense only after all the others.
    pub fn looking_back(trials: Vec<Trial>) -> Self {
        Self {
            trials,
            has_operator: false,
            looks_back: true,
        }
    }
}

/// Runs the scenarios that the command line names, all if it names none.
pub fn run(phases: Vec<Phase>) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        let trials = phases.iter().flat_map(|phase| &phase.trials);
        trials.for_each(|trial| say(&format!("{}: test", trial.name)));
        return ExitCode::SUCCESS;
    }
    let filters: Vec<String> = arguments
        .into_iter()
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let scenarios = LocalSet::new();
    let failures = scenarios.block_on(&runtime, run_phases(phases, &filters));
    // The programs of scenarios that hung are killed with it.
    runtime.shutdown_background();
    if failures.is_empty() {
        say("\ntest result: ok");
        return ExitCode::SUCCESS;
    }
    for (name, error) in &failures {
        say(&format!("\n---- {name} ----"));
        error.chain().for_each(|cause| say(&cause.to_string()));
    }
    say(&format!("\ntest result: FAILED. {} failed", failures.len()));
    ExitCode::FAILURE
}

type Failures = Vec<(&'static str, anyhow::Error)>;

async fn run_phases(phases: Vec<Phase>, filters: &[String]) -> Failures {
    let mut selected = Vec::new();
    for mut phase in phases {
        phase.trials.retain(|trial| {
            filters.is_empty() || filters.iter().any(|filter| trial.name.contains(filter))
        });
        if phase.looks_back && !filters.is_empty() {
            phase.trials.clear();
        }
        if !phase.trials.is_empty() {
            selected.push(phase);
        }
    }
    if selected.is_empty() {
        return Failures::new();
    }
    let mut failures = Failures::new();
    let world = match World::new().await {
        Ok(world) => world,
        Err(error) => return vec![("the cluster with the chart", error)],
    };
    for phase in selected {
        failures.extend(run_phase(&world, phase).await);
    }
    if let Err(error) = world.remove_namespaces().await {
        failures.push(("removing the namespaces", error));
    }
    failures
}

async fn run_phase(world: &World, phase: Phase) -> Failures {
    let began = Instant::now();
    let mut failures = Failures::new();
    let mut world = match phase.has_operator {
        true => match world.with_operator().await {
            Ok(world) => world,
            Err(error) => return vec![(phase.trials[0].name, error)],
        },
        false => world.clone(),
    };
    let mut running: FuturesUnordered<_> = phase
        .trials
        .into_iter()
        .map(|trial| run_trial(trial, world.clone()))
        .collect();
    while let Some((name, result)) = running.next().await {
        if let Err(error) = result {
            failures.push((name, error));
        }
    }
    drop(running);
    if phase.has_operator {
        if let Err(error) = world.delete_everything().await {
            failures.push(("deleting what the phase left", error));
        }
        match world.end_operator().await {
            Ok(log) if failures.is_empty() => drop(log),
            Ok(log) => failures.push(("the operator's log", anyhow!(log))),
            Err(error) => failures.push(("ending the operator", error)),
        }
    }
    // Whatever a failure left would stand in the way of the next phase.
    if let Err(error) = world.abandon_everything().await {
        failures.push(("clearing what a failure left", error));
    }
    say(&format!(
        "phase took {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    failures
}

async fn run_trial(trial: Trial, world: World) -> (&'static str, Result<()>) {
    let began = Instant::now();
    // A task of its own: a panic is a failure, and the others go on.
    let task = tokio::task::spawn_local((trial.run)(world));
    let result = match tokio::time::timeout(TRIAL_TIMEOUT, task).await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => Err(panic).context("panicked"),
        Err(_) => Err(anyhow!("still running after {TRIAL_TIMEOUT:?}")),
    };
    let word = if result.is_ok() { "ok" } else { "FAILED" };
    let took = began.elapsed().as_secs_f64();
    say(&format!("test {} ... {word} ({took:.1} s)", trial.name));
    (trial.name, result)
}

fn say(line: &str) {
    // Nobody reads any more where the pipe is closed.
    let _ = writeln!(io::stdout(), "{line}");
}
