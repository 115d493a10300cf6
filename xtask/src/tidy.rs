//! House rules that clippy does not know.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::paths::root;

/// Lines of a source file without its tests.
const MAX_LINES: usize = 420;
const MAX_MAIN_LINES: usize = 60;

/// Edges between crates that the design forbids: (from, to).
const FORBIDDEN: [(&str, &[&str]); 5] = [
    ("wire", &["candle", "tokio", "axum", "reqwest", "hyper"]),
    (
        "model",
        &["tokio", "axum", "reqwest", "hyper", "tungstenite"],
    ),
    ("operator", &["candle", "headway-model", "headway-wire"]),
    ("autoscale", &["kube", "k8s-openapi", "tokio", "axum"]),
    (
        "telemetry",
        &["candle", "headway-model", "headway-wire", "kube"],
    ),
];

/// Prints every broken rule and fails if there is one.
pub fn run() -> anyhow::Result<()> {
    let mut broken = Vec::new();
    for file in tracked_sources()? {
        let text = std::fs::read_to_string(root().join(&file))
            .with_context(|| file.display().to_string())?;
        file_length(&file, &text, &mut broken);
        module_docs(&file, &text, &mut broken);
    }
    for (krate, forbidden) in FORBIDDEN {
        dependencies(krate, forbidden, &mut broken)?;
    }
    for rule in &broken {
        eprintln!("{rule}");
    }
    ensure!(broken.is_empty(), "{} broken house rules", broken.len());
    Ok(())
}

fn tracked_sources() -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "*.rs"])
        .current_dir(root())
        .output()
        .context("running git")?;
    Ok(String::from_utf8(output.stdout)?
        .lines()
        .map(PathBuf::from)
        .filter(|file| root().join(file).is_file())
        .collect())
}

fn file_length(file: &Path, text: &str, broken: &mut Vec<String>) {
    let lines = text
        .lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]"))
        .count();
    let is_test =
        file.components().any(|part| part.as_os_str() == "tests") || file.ends_with("tests.rs");
    let most = if file.ends_with("main.rs") {
        MAX_MAIN_LINES
    } else {
        MAX_LINES
    };
    if lines > most && !is_test {
        broken.push(format!(
            "{}: {lines} lines; at most {most}. Is there a seam?",
            file.display()
        ));
    }
}

fn module_docs(file: &Path, text: &str, broken: &mut Vec<String>) {
    if !text.starts_with("//!") && !file.ends_with("tests.rs") && !text.starts_with("#![no_main]") {
        broken.push(format!(
            "{}: begins without //! docs that say what it is for",
            file.display()
        ));
    }
}

/// No crate may reach what its place on the path must not know.
fn dependencies(krate: &str, forbidden: &[&str], broken: &mut Vec<String>) -> anyhow::Result<()> {
    let package = format!("headway-{krate}");
    let output = Command::new("cargo")
        .args([
            "tree",
            "--package",
            &package,
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])
        .current_dir(root())
        .output()
        .context("running cargo tree")?;
    ensure!(
        output.status.success(),
        "cargo tree: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    for name in String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| line.split(' ').next())
    {
        if forbidden
            .iter()
            .any(|forbidden| name.starts_with(forbidden))
        {
            broken.push(format!("{package} depends on {name}"));
        }
    }
    Ok(())
}
