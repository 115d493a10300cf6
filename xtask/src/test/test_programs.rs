//! The test programs of the workspace. Those that wait for a cluster run while the others are built and run.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::processes::cargo_command;

/// They wait for six seconds where they compute for one.
const WAITING: [&str; 2] = ["operator", "operator_chart"];

/// How much the others give way to them: what waits must not be late as well.
const NICENESS: &str = "10";

/// A test program that cargo has built.
struct TestProgram {
    name: String,
    /// Of its package: where cargo would run it.
    folder: PathBuf,
    executable: PathBuf,
}

/// Builds and runs all of them and the tests in documentation, with `variables` in the environment, whatever fails.
pub fn run(variables: &[(&str, &str)]) -> anyhow::Result<()> {
    let waiting = build(&WAITING.map(|name| format!("--test={name}")))?;
    let failed = std::thread::scope(|scope| {
        let waited = scope.spawn(|| failing(&waiting, |program| program.tell(variables)));
        let mut others = build(&[])?;
        others.retain(|program| !WAITING.contains(&program.name.as_str()));
        let mut failed = failing(&others, |program| program.show(variables))?;
        let mut documentation = cargo_command();
        documentation.args(["test", "--release", "--workspace", "--doc"]);
        documentation.envs(variables.iter().copied());
        if !documentation.status()?.success() {
            failed.push("documentation".to_owned());
        }
        failed.extend(waited.join().expect("a thread that does not panic")?);
        anyhow::Ok(failed)
    })?;
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// Names of those of which `succeeds` says false.
fn failing(
    programs: &[TestProgram],
    succeeds: impl Fn(&TestProgram) -> anyhow::Result<bool>,
) -> anyhow::Result<Vec<String>> {
    let mut failed = Vec::new();
    for program in programs {
        let succeeded = succeeds(program).with_context(|| program.name.clone())?;
        if !succeeded {
            failed.push(program.name.clone());
        }
    }
    Ok(failed)
}

/// Builds the test programs that `selection` names, or all.
fn build(selection: &[String]) -> anyhow::Result<Vec<TestProgram>> {
    let output = cargo_command()
        .args(["test", "--release", "--workspace", "--no-run"])
        .arg("--message-format=json-render-diagnostics")
        .args(selection)
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo")?;
    ensure!(output.status.success(), "cargo test --no-run failed");
    let text = String::from_utf8(output.stdout)?;
    let messages = text.lines().map(serde_json::from_str::<Value>);
    let programs =
        messages.filter_map(|message| message.map(|message| program(&message)).transpose());
    Ok(programs.collect::<Result<_, _>>()?)
}

/// The test program that a message of cargo tells of.
fn program(message: &Value) -> Option<TestProgram> {
    if message["profile"]["test"] != true {
        return None;
    }
    let manifest = Path::new(message["manifest_path"].as_str()?);
    Some(TestProgram {
        name: message["target"]["name"].as_str()?.to_owned(),
        folder: manifest.parent()?.to_owned(),
        executable: message["executable"].as_str()?.into(),
    })
}

impl TestProgram {
    fn command(&self, through: &[&str], variables: &[(&str, &str)]) -> Command {
        let mut words = through
            .iter()
            .map(AsRef::as_ref)
            .chain([self.executable.as_os_str()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).current_dir(&self.folder);
        command.envs(variables.iter().copied());
        command
    }

    /// Runs it.
    fn show(&self, variables: &[(&str, &str)]) -> anyhow::Result<bool> {
        eprintln!("== {} ({})", self.name, self.executable.display());
        let mut command = self.command(&["nice", "-n", NICENESS], variables);
        Ok(command.status()?.success())
    }

    /// Runs it beside others, and tells when it has ended.
    fn tell(&self, variables: &[(&str, &str)]) -> anyhow::Result<bool> {
        let output = self.command(&[], variables).output()?;
        eprintln!("== {}, beside the others", self.name);
        std::io::stderr().write_all(&[output.stdout, output.stderr].concat())?;
        Ok(output.status.success())
    }
}
