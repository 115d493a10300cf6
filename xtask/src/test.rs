//! `cargo xtask test`: everything that must hold before a change lands.

mod test_programs;

use anyhow::ensure;
use cluster_rig::{EXISTING_VARIABLE, crds, programs};

use crate::processes::cargo;
use crate::{model, processes, tidy};

/// What to test with.
#[derive(clap::Args)]
pub struct Arguments {
    /// Cluster tests use the cluster that KUBECONFIG names, instead of one that they start. Tests that stop
    /// components or read the audit log are skipped.
    #[arg(long)]
    existing: bool,
}

/// Runs formatting, lints, house rules and all tests; the first failure ends it.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut variables = Vec::new();
    if arguments.existing {
        ensure!(
            std::env::var_os("KUBECONFIG").is_some_and(|path| !path.is_empty()),
            "--existing needs KUBECONFIG, which says which cluster to use"
        );
        variables.push((EXISTING_VARIABLE, "1"));
    }
    step("format", || cargo(&["fmt", "--all", "--check"]))?;
    step("house rules", tidy::run)?;
    step("lints", || {
        cargo(&[
            "clippy",
            "--release",
            "--workspace",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ])
    })?;
    step("model", || model::fetch().map(drop))?;
    step("programs", processes::build_all)?;
    // Before the tests, so that the time of the first build shows as what it is.
    step("cluster programs", || {
        programs::controlplane()?;
        programs::kwok()?;
        programs::helm()?;
        programs::pause()?;
        programs::dns()?;
        crds::paths().map(drop)
    })?;
    step("tests", || test_programs::run(&variables))
}

fn step(name: &str, run: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    eprintln!("== {name}");
    run()
}
