//! `cargo xtask bench ledger`: the savings in a SplitModel's status beside what devices counted, on a real node on which
//! tails are killed again and again.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use cluster_rig::{Cluster, node};
use serde_json::Value;

use super::cluster_load::{self, Got};
use crate::demo::cluster::{Demo, SPLIT_MODEL, prepared, serve, url};
use crate::processes;

const TAILS: &str = "app.kubernetes.io/component=tail";
/// The kubelet waits longer before each further start of a container; a pod that was killed so often is replaced.
const KILLS_OF_A_POD: u64 = 2;
/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// For a tail that serves.
const PATIENCE: Duration = Duration::from_secs(180);
/// Longer than the operator keeps to itself what it has read.
const SETTLING: Duration = Duration::from_secs(45);

/// Compares the ledger with what devices counted, while tails are killed.
#[derive(clap::Args)]
pub struct Arguments {
    /// How often a tail is killed, with SIGKILL
    #[arg(long, default_value_t = 50)]
    kills: u64,
    /// Seconds before each
    #[arg(long, default_value_t = 8)]
    seconds: u64,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(obstacle) = node::obstacle()? {
        bail!(obstacle);
    }
    let demo = Demo::new();
    let cluster = prepared(&demo)?;
    serve(&demo, &cluster)?;
    demo.change(
        &cluster,
        r#"{"replicas": 2, "edge": {"onDeviceAnswers": true}}"#,
    )?;
    let tails = format!("deployment/{SPLIT_MODEL}-tail");
    let changed = ["wait", "--for=jsonpath={.spec.replicas}=2", &tails];
    demo.kubectl(&cluster, &changed)?;
    let rolled_out = ["rollout", "status", &tails, "--timeout=180s"];
    demo.kubectl(&cluster, &rolled_out)?;
    without_leaving_tails(&cluster)?;
    let began = Instant::now();
    let got = cluster_load::run(&url(&cluster)?, || {
        for kill in 1..=arguments.kills {
            processes::wait(Duration::from_secs(arguments.seconds));
            let pod = kill_a_tail(&cluster)?;
            demo.step(&format!("kill {kill} of {}: {pod}", arguments.kills));
        }
        processes::wait(Duration::from_secs(arguments.seconds));
        Ok(())
    })?;
    let took = began.elapsed();
    demo.step("waiting for the last figures");
    let savings = settled(&cluster)?;
    print(arguments.kills, took, got, &savings);
    Ok(())
}

/// Waits for the tails that do not allow answers on devices to be gone: one that leaves may still take a device.
fn without_leaving_tails(cluster: &Cluster) -> anyhow::Result<()> {
    let late = Instant::now() + PATIENCE;
    let leaving = |pod: &Value| !pod["metadata"]["deletionTimestamp"].is_null();
    loop {
        let pods = get(cluster, &["pods", "--selector", TAILS])?;
        if !pods["items"]
            .as_array()
            .context("pods")?
            .iter()
            .any(leaving)
        {
            return Ok(());
        }
        ensure!(Instant::now() < late, "a tail does not leave");
        processes::wait(INTERVAL);
    }
}

/// Kills the process of a pod that serves, and says which.
fn kill_a_tail(cluster: &Cluster) -> anyhow::Result<String> {
    let late = Instant::now() + PATIENCE;
    loop {
        ensure!(Instant::now() < late, "no tail serves any more");
        let pods = get(cluster, &["pods", "--selector", TAILS])?;
        let pods = pods["items"].as_array().context("pods")?;
        let status = |pod: &Value| pod["status"]["containerStatuses"][0].clone();
        let serving: Vec<&Value> = pods
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .filter(|pod| status(pod)["ready"] == true)
            .collect();
        let kills = |pod: &Value| status(pod)["restartCount"].as_u64().unwrap_or_default();
        let text = |pod: &Value, field: &str| {
            let text = pod["metadata"][field].as_str();
            text.unwrap_or_default().to_owned()
        };
        for pod in &serving {
            if kills(pod) >= KILLS_OF_A_POD {
                let name = text(pod, "name");
                let mut delete = cluster.kubectl(&["delete", "pod", &name, "--wait=false"]);
                ensure!(delete.output()?.status.success(), "deleting {name}");
            }
        }
        let fresh = serving.iter().filter(|pod| kills(pod) < KILLS_OF_A_POD);
        let first_killed = fresh.max_by_key(|pod| kills(pod));
        if let Some(pod) = first_killed
            && kill(&text(pod, "uid"))?
        {
            return Ok(text(pod, "name"));
        }
        processes::wait(INTERVAL);
    }
}

/// Kills the tail's process in the pod `uid`, as the kernel does when memory runs out; false where there is none.
fn kill(uid: &str) -> anyhow::Result<bool> {
    for entry in std::fs::read_dir("/proc")? {
        let folder = entry?.path();
        if is_tail_of(&folder, uid) {
            let pid = folder.file_name().context("a process id")?;
            return Ok(Command::new("kill").arg("-9").arg(pid).status()?.success());
        }
    }
    Ok(false)
}

fn is_tail_of(process: &Path, uid: &str) -> bool {
    // Processes come and go meanwhile.
    let read = |file: &str| std::fs::read_to_string(process.join(file)).unwrap_or_default();
    read("comm").trim() == "tail-server" && read("cgroup").contains(uid)
}

/// The savings once they no longer change.
fn settled(cluster: &Cluster) -> anyhow::Result<Value> {
    let name = format!("splitmodel/{SPLIT_MODEL}");
    let mut before = Value::Null;
    loop {
        let savings = get(cluster, &[&name])?["status"]["savings"].take();
        if !savings["tokens"].is_null() && savings["tokens"] == before["tokens"] {
            return Ok(savings);
        }
        before = savings;
        processes::wait(SETTLING);
    }
}

fn get(cluster: &Cluster, what: &[&str]) -> anyhow::Result<Value> {
    let output = cluster
        .kubectl(&[&["get", "--output=json"], what].concat())
        .output()
        .context("running kubectl")?;
    ensure!(
        output.status.success(),
        "kubectl get {what:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn print(kills: u64, took: Duration, got: Got, savings: &Value) {
    println!(
        "{kills} kills in {:.0} s, {} answers of tails, {} sessions opened again\n",
        took.as_secs_f64(),
        got.answers,
        got.reconnects
    );
    println!("| tokens | counted by devices | in the status | difference |");
    println!("|---|---|---|---|");
    let rows = [
        ("of tails", got.tokens, "tails"),
        ("of devices alone", got.on_device_tokens, "devices"),
    ];
    for (name, counted, field) in rows {
        let told = savings["tokens"][field].as_u64().unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "tokens of minutes")]
        let difference = (told as f64 / counted.max(1) as f64 - 1.0) * 100.0;
        println!("| {name} | {counted} | {told} | {difference:+.2} % |");
    }
    println!("\nunread endings: {}", savings["unreadEndings"]);
    println!("{savings:#}");
}
