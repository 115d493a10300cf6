//! `cargo xtask bench autoscale`: the operator's decisions on simulated fleets under ten made-up loads, the workload of the tree
//! and two recorded loads, beside a reference after Knative's description and an oracle. The decisions are those of the
//! operator's own function; all else is simulated, and the same seed gives the same numbers.

mod fleet;
mod plot;
mod policies;
mod recorded;
mod results;
mod shapes;
mod traces;

use std::path::PathBuf;

use anyhow::Context as _;

use self::fleet::{Capacity, Outcome};
use self::policies::{Headway, Knative, One, Oracle, Policy};
use self::shapes::Shape;
use crate::paths::root;

/// How to simulate.
#[derive(clap::Args)]
pub struct Arguments {
    /// Of all that is drawn
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder for the plots [default: docs/benchmarks]
    #[arg(long)]
    plots: Option<PathBuf>,
}

/// Policies, in the order of the columns.
pub const POLICIES: [&str; 4] = ["oracle", "Headway", "Knative-like", "Knative-like, delayed"];

/// Seconds between two decisions.
const DECISION_S: f64 = 2.0;

/// Simulates every load under every policy, prints the tables and writes the plots.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut shapes = shapes::all(arguments.seed);
    shapes.push(recorded::shape()?);
    shapes.extend(traces::shapes()?);
    let outcomes: Vec<[Outcome; 4]> = shapes.iter().map(simulate).collect();
    results::print(&shapes, &outcomes);
    let folder = arguments.plots.clone();
    let folder = folder.unwrap_or_else(|| root().join("docs/benchmarks"));
    for (file, half) in plot::svgs(&shapes, &outcomes)? {
        let path = folder.join(file);
        std::fs::write(&path, half).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn simulate(shape: &Shape) -> [Outcome; 4] {
    let arrivals = &shape.arrivals;
    let open = fleet::run(arrivals, &mut One, 1, Capacity::Endless);
    let mut oracle = Oracle::new(&open.sessions, shape.min, DECISION_S);
    let first = oracle.first();
    let run = |policy: &mut dyn Policy, replicas: u32| {
        fleet::run(arrivals, policy, replicas, Capacity::Real)
    };
    [
        run(&mut oracle, first),
        run(&mut Headway::new(shape.min), 1),
        run(&mut Knative::new(shape.min, 0.0), 1),
        run(&mut Knative::new(shape.min, 300.0), 1),
    ]
}
