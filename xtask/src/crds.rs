//! `cargo xtask crds`: writes the definition of SplitModels from the operator's types.

use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::paths::{program, root};
use crate::processes;

/// For people, and for the chart, which cannot read files outside of itself.
const FILES: [&str; 2] = [
    "crds/splitmodels.headway.dev.yaml",
    "charts/headway/files/crds/splitmodels.headway.dev.yaml",
];

/// Writes both copies. A test of the operator fails while they differ from its types.
pub fn run() -> anyhow::Result<()> {
    processes::cargo(&["build", "--release", "--bin", "headway-operator"])?;
    let output = Command::new(program("headway-operator")?)
        .arg("crd")
        .output()
        .context("running headway-operator")?;
    ensure!(output.status.success(), "headway-operator crd failed");
    for file in FILES {
        std::fs::write(root().join(file), &output.stdout)
            .with_context(|| format!("writing {file}"))?;
        println!("{file}");
    }
    Ok(())
}
