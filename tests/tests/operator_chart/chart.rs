//! The chart, and helm and kubectl for the shared cluster.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use cluster_rig::{Cluster, shared};
use serde_json::Value;

/// For `kubectl wait` and its like; `e2e::PATIENCE` in their words.
pub const TIMEOUT: &str = "--timeout=60s";

/// Name of the definition that the chart brings.
pub const DEFINITION: &str = "splitmodels.headway.dev";

/// Values that switch on everything the chart can make.
pub const EVERYTHING: [&str; 10] = [
    "--set",
    "monitoring.podMonitor.enabled=true",
    "--set",
    "monitoring.prometheusRule.enabled=true",
    "--set",
    "monitoring.dashboard.enabled=true",
    "--set",
    "networkPolicy.enabled=true",
    "--set",
    "tail.podMonitors=true",
];

/// The repository.
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests/ is in a folder").to_owned()
}

/// The chart's folder.
pub fn folder() -> PathBuf {
    root().join("charts/headway")
}

/// A file of the chart.
pub fn read(path: &str) -> Result<String> {
    read_from_root(&format!("charts/headway/{path}"))
}

/// A file of the repository.
pub fn read_from_root(path: &str) -> Result<String> {
    std::fs::read_to_string(root().join(path)).with_context(|| format!("reading {path}"))
}

/// What helm prints. Where an argument is `CHART`, the chart's folder takes its place.
pub fn helm(arguments: &[&str]) -> Result<String> {
    let output = run(&mut helm_command(shared(), arguments)?, "")?;
    text_of(output, arguments)
}

/// What helm says as it refuses; an error where it does not refuse.
pub fn helm_refuses(arguments: &[&str]) -> Result<String> {
    let output = run(&mut helm_command(shared(), arguments)?, "")?;
    refusal_of(&output, arguments)
}

/// What kubectl prints.
pub fn kubectl(arguments: &[&str]) -> Result<String> {
    kubectl_with(arguments, "")
}

/// What kubectl prints, given `input`.
pub fn kubectl_with(arguments: &[&str], input: &str) -> Result<String> {
    let output = run(&mut shared().kubectl(arguments), input)?;
    text_of(output, arguments)
}

/// What kubectl says as it refuses, given `input`; an error where it does not refuse.
pub fn kubectl_refuses(arguments: &[&str], input: &str) -> Result<String> {
    let output = run(&mut shared().kubectl(arguments), input)?;
    refusal_of(&output, arguments)
}

/// An object of the cluster.
pub fn object(arguments: &[&str]) -> Result<Value> {
    let json = kubectl(&[&["get", "-o=json"], arguments].concat())?;
    serde_json::from_str(&json).context("kubectl prints JSON")
}

/// The objects of a release `headway` in namespace `headway-system`, hooks included.
pub fn render(values: &[&str]) -> Result<Vec<Value>> {
    let arguments = ["template", "headway", "CHART", "--namespace=headway-system"];
    let text = helm(&[&arguments, values].concat())?;
    serde_saphyr::from_multiple(&text).context("helm template prints YAML")
}

/// What helm says of values that it refuses to render.
pub fn render_refuses(values: &[&str]) -> Result<String> {
    helm_refuses(&[&["template", "headway", "CHART"], values].concat())
}

/// `Kind/name` of each object.
pub fn ids(objects: &[Value]) -> BTreeSet<String> {
    let id = |object: &Value| {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        format!("{}/{name}", object["kind"].as_str().unwrap_or_default())
    };
    objects.iter().map(id).collect()
}

/// The only object of a kind with a name.
pub fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    let mut found = objects
        .iter()
        .filter(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    let object = found.next().with_context(|| format!("no {kind} {name}"))?;
    ensure!(found.next().is_none(), "two {kind} {name}");
    Ok(object)
}

/// A namespace of a test's own, deleted at its end.
pub struct Namespace(pub &'static str);

impl Namespace {
    pub fn create(name: &'static str) -> Result<Self> {
        kubectl(&["create", "namespace", name])?;
        Ok(Self(name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // On an existing cluster nothing should be left; a failure of this one fails no test.
        let _ = kubectl(&["delete", "namespace", self.0, "--wait=false"]);
    }
}

/// Holds every other test away from the one definition of SplitModel that a cluster has.
pub struct DefinitionGuard(#[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

/// Waits for its turn, and removes what the test before has left: releases, SplitModels, the definition. `None`
/// where the cluster is not ours to do that in.
pub fn without_definition() -> Result<Option<DefinitionGuard>> {
    static TURN: Mutex<()> = Mutex::new(());
    if shared().skips("to remove the definition of SplitModel") {
        return Ok(None);
    }
    // What a failed test leaves is removed here.
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let releases = helm(&["list", "--all-namespaces", "-o=json"])?;
    let releases: Vec<Value> = serde_json::from_str(&releases)?;
    for release in &releases {
        let field = |name: &str| release[name].as_str().unwrap_or_default().to_owned();
        let namespace = format!("--namespace={}", field("namespace"));
        helm(&["uninstall", &field("name"), &namespace, "--wait"])?;
    }
    kubectl(&["delete", "crd", DEFINITION, "--ignore-not-found", TIMEOUT])?;
    Ok(Some(DefinitionGuard(turn)))
}

/// Installs the definition alone, as somebody does who sets `crds.install` to false.
pub fn install_definition() -> Result<()> {
    let file = folder().join("files/crds/splitmodels.headway.dev.yaml");
    let file = format!("--filename={}", file.display());
    kubectl(&["apply", "--server-side", "--validate=strict", &file])?;
    await_definition()
}

/// Waits until SplitModels are served.
pub fn await_definition() -> Result<()> {
    kubectl(&[
        "wait",
        "--for=condition=Established",
        "crd",
        DEFINITION,
        TIMEOUT,
    ])?;
    Ok(())
}

fn helm_command(cluster: &Cluster, arguments: &[&str]) -> Result<Command> {
    let folder = folder();
    let folder = folder.to_str().context("a path in UTF-8")?;
    let arguments: Vec<&str> = arguments
        .iter()
        .map(|argument| {
            if *argument == "CHART" {
                folder
            } else {
                argument
            }
        })
        .collect();
    cluster.helm(&arguments)
}

fn run(command: &mut Command, input: &str) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    let mut stdin = child.stdin.take().context("stdin is a pipe")?;
    // Written from beside: a program that prints before it has read everything would wait for us.
    let input = input.to_owned();
    let writing = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    // One that has refused need not have read everything.
    let _ = writing.join();
    Ok(output)
}

fn text_of(output: Output, arguments: &[&str]) -> Result<String> {
    if !output.status.success() {
        bail!(
            "{}: {}{}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
    }
    String::from_utf8(output.stdout).context("output in UTF-8")
}

fn refusal_of(output: &Output, arguments: &[&str]) -> Result<String> {
    ensure!(
        !output.status.success(),
        "{} is not refused",
        arguments.join(" ")
    );
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}
