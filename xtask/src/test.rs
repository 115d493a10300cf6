//! `cargo xtask test`: everything that must hold before a change lands.

use crate::processes::cargo;
use crate::{model, processes, tidy};

/// Runs formatting, lints, house rules and all tests; the first failure ends it.
pub fn run() -> anyhow::Result<()> {
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
    step("programs", processes::build)?;
    step("tests", || {
        cargo(&["test", "--release", "--workspace", "--no-fail-fast"])
    })
}

fn step(name: &str, run: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    eprintln!("== {name}");
    run()
}
