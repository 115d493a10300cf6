//! The whole of it on a real node: images, chart, SplitModel, pods, Service, and an edge outside the cluster, which
//! loses no token whatever happens to the node's processes.
//!
//! Skipped where this machine cannot have such a node: it takes root and a container runtime.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use cluster_rig::{Cluster, existing, node, programs};
use e2e::device::{Answer, chat, connect, finish, finish_after, first_tokens, request, unsplit};
use e2e::program::program;
use e2e::{PATIENCE, smollm2};
use edge_lite::{GenerateRequest, SamplingParams, WeightDtype};
use headway_images::recipe::{PARTS, Part};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::sleep;

#[path = "node_serves_a_split_model/delivery.rs"]
mod delivery;
#[path = "node_serves_a_split_model/faults.rs"]
mod faults;

/// The SplitModel of `examples/volume.yaml`.
const SPLIT_MODEL: &str = "smollm2-volume";
/// Layers on the device.
const SPLIT_LAYER: usize = 10;
/// Tokens that have been read when something happens. More than a generation holds for its caller are still to come.
const READ: usize = 8;
const MAX_TOKENS: usize = 96;
/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(50);
/// For `kubectl wait` and its like.
const TIMEOUT: &str = "--timeout=120s";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_is_lost_on_a_real_node() -> Result<()> {
    let Some(cluster) = cluster()? else {
        return Ok(());
    };
    install(&cluster)?;
    let url = serve(&cluster)?;
    let request = request(
        chat("Tell me about the moon."),
        MAX_TOKENS,
        SamplingParams::default(),
    );
    let whole = unsplit(WeightDtype::Native).await?;
    let expected = finish(whole.generate(request.clone()).await?).await?;

    let client = connect(&url, SPLIT_LAYER).await?;
    let undisturbed = finish(client.generate(request.clone()).await?).await?;
    assert_eq!(undisturbed.tokens, expected.tokens, "through the Service");
    assert_eq!(undisturbed.report.reconnects, 0);

    let killed = disturbed(&url, &request, || kill_tail(&cluster)).await?;
    assert_eq!(killed.tokens, expected.tokens, "a tail killed");
    assert!(killed.report.reconnects >= 1, "a tail killed");
    await_restart(&cluster)?;

    let failed = disturbed(&url, &request, || cluster.restart_component("node")).await?;
    assert_eq!(failed.tokens, expected.tokens, "a node without power");
    assert!(failed.report.reconnects >= 1, "a node without power");
    Ok(())
}

/// Pods of the SplitModel that scales, and edges that stream meanwhile.
const MOST_TAILS: usize = 3;
const EDGES: usize = 20;

/// From nothing to one tail, to three, to one, and to nothing, with devices that stream all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_is_lost_while_a_model_sleeps_wakes_and_scales() -> Result<()> {
    let Some(cluster) = cluster()? else {
        return Ok(());
    };
    install(&cluster)?;
    let request = request(
        chat("Tell me about the moon."),
        MAX_TOKENS,
        SamplingParams::default(),
    );
    let whole = unsplit(WeightDtype::Native).await?;
    let expected = finish(whole.generate(request.clone()).await?).await?;

    let url = serve_scaled(&cluster)?;
    tails(&cluster, 0).await?;
    let began = Instant::now();
    let client = connect(&url, SPLIT_LAYER).await?;
    tell(&format!(
        "woken and connected after {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    let woken = finish(client.generate(request.clone()).await?).await?;
    assert_eq!(woken.tokens, expected.tokens, "a model that was asleep");
    tell(&format!(
        "first answer after {:.1} s",
        began.elapsed().as_secs_f64()
    ));

    let streams = (0..EDGES).map(|index| {
        let (client, request) = (client.clone(), request.clone());
        // The last ones begin again when they are done, until the tails are fewer.
        let rounds = if index < EDGES - 2 { 2 } else { 12 };
        tokio::spawn(async move { stream(&client, &request, rounds).await })
    });
    let streams: Vec<_> = streams.collect();
    tails(&cluster, MOST_TAILS).await?;
    tell(&format!(
        "{MOST_TAILS} tails after {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    let mut longest = Duration::ZERO;
    let mut moved = 0;
    for stream in streams {
        let (answers, pause) = stream.await??;
        longest = longest.max(pause);
        for answer in answers {
            assert_eq!(answer.tokens, expected.tokens, "while tails come and go");
            moved += answer.report.reconnects;
        }
    }
    tell(&format!(
        "longest pause {:.1} s, {moved} sessions moved",
        longest.as_secs_f64()
    ));
    tails(&cluster, 0).await?;
    let events = kubectl(&cluster, &["get", "events"])?;
    for word in ["Woken", "ScaledUp", "ScaledDown", "FellAsleep"] {
        ensure!(events.contains(word), "no {word} in\n{events}");
    }
    Ok(())
}

/// Streams one answer after the other; returns them, and the longest time between two tokens.
async fn stream(
    client: &edge_lite::Client,
    request: &GenerateRequest,
    rounds: usize,
) -> Result<(Vec<Answer>, Duration)> {
    let (mut answers, mut longest) = (Vec::new(), Duration::ZERO);
    for _ in 0..rounds {
        let mut generation = client.generate(request.clone()).await?;
        let mut tokens = first_tokens(&mut generation, 1).await?;
        while tokens.len() < MAX_TOKENS {
            let before = Instant::now();
            tokens.extend(first_tokens(&mut generation, 1).await?);
            longest = longest.max(before.elapsed());
        }
        answers.push(finish_after(tokens, generation).await?);
    }
    Ok((answers, longest))
}

/// Applies the example as a model that may sleep, with little patience; returns the URL of its Service.
fn serve_scaled(cluster: &Cluster) -> Result<String> {
    let url = serve(cluster)?;
    let spec = serde_json::json!({"spec": {
        "tail": {"limits": {"sessions": 10}},
        "autoscaling": {
            "min": 0,
            "max": MOST_TAILS,
            // Twenty devices and three tails on one machine: work waits.
            "targets": {"queueDelayMs": 60_000},
            "windows": {"stableSeconds": 10, "panicSeconds": 4, "scaleDownDelaySeconds": 5},
        },
    }});
    let name = format!("splitmodel/{SPLIT_MODEL}");
    let patch = format!("--patch={spec}");
    kubectl(cluster, &["patch", &name, "--type=merge", &patch])?;
    Ok(url)
}

/// Waits until so many tails are wanted, and as many serve.
async fn tails(cluster: &Cluster, count: usize) -> Result<()> {
    let name = format!("splitmodel/{SPLIT_MODEL}");
    let fields = "-o=jsonpath={.status.desiredReplicas} {.status.replicas} {.status.readyReplicas}";
    let late = Instant::now() + 3 * PATIENCE;
    loop {
        let status = tokio::task::block_in_place(|| kubectl(cluster, &["get", &name, fields]))?;
        if status == format!("{count} {count} {count}") {
            return Ok(());
        }
        if Instant::now() > late {
            let events = kubectl(cluster, &["get", "events"])?;
            let error = anyhow::anyhow!("not {count} tails but {status:?}\n{events}");
            return explain(cluster, &error);
        }
        sleep(10 * INTERVAL).await;
    }
}

#[expect(clippy::print_stderr, reason = "says what was measured")]
fn tell(what: &str) {
    eprintln!("{what}");
}

#[tokio::test]
async fn a_killed_rig_leaves_nothing_that_the_next_does_not_remove() -> Result<()> {
    if obstacle()?.is_some() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let (mut rig, first) = run_rig(dir.path())?;
    let traces = first.traces(dir.path())?;
    assert_eq!(traces.len(), 5, "{traces:?}");
    // As a machine short of memory does.
    rig.kill()?;
    rig.wait()?;
    let late = Instant::now() + PATIENCE;
    // The kernel takes namespaces apart in its own time.
    while first.traces(dir.path())? != ["control groups", "refusal"] {
        ensure!(
            Instant::now() < late,
            "left: {:?}",
            first.traces(dir.path())?
        );
        sleep(INTERVAL).await;
    }
    let (mut rig, second) = run_rig(dir.path())?;
    assert!(first.traces(dir.path())?.is_empty());
    kill(Pid::from_raw(i32::try_from(rig.id())?), Signal::SIGTERM)?;
    assert!(rig.wait()?.success());
    while !second.traces(dir.path())?.is_empty() {
        ensure!(
            Instant::now() < late,
            "left: {:?}",
            second.traces(dir.path())?
        );
        sleep(INTERVAL).await;
    }
    Ok(())
}

/// What is known of a rig with a real node.
struct Rig {
    node_pid: u64,
    /// Folder and number of this machine's end of the cable. Names are used again, numbers are not.
    interface: (PathBuf, String),
    /// Metric of the route that refuses the network.
    supervisor_pid: u64,
    control_group: String,
}

/// Starts a rig with a real node in `dir` and waits until it is ready.
fn run_rig(dir: &Path) -> Result<(Child, Rig)> {
    let mut child = Command::new(programs::controlplane()?)
        .arg("run")
        .args(node::arguments(None)?)
        .arg("--dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("a stdout")?).read_line(&mut line)?;
    ensure!(line.starts_with("ready "), "the rig says {line:?}");
    let state: serde_json::Value = serde_json::from_slice(&fs::read(dir.join("state.json"))?)?;
    let components = state["components"].as_array().context("components")?;
    let node = components.iter().find(|each| each["name"] == "node");
    let supervisor = &state["supervisor"];
    let interface = format!("/sys/class/net/headway-{}/ifindex", state["network"]);
    let interface = PathBuf::from(interface);
    let number = fs::read_to_string(&interface)?;
    let rig = Rig {
        node_pid: node
            .and_then(|node| node["pid"].as_u64())
            .context("a node")?,
        supervisor_pid: supervisor["pid"].as_u64().context("a supervisor")?,
        interface: (interface, number),
        control_group: format!("headway-{}-{}", supervisor["pid"], supervisor["startTicks"]),
    };
    Ok((child, rig))
}

impl Rig {
    /// What there is of its node on this machine.
    fn traces(&self, dir: &Path) -> Result<Vec<&'static str>> {
        let mut traces = Vec::new();
        if Path::new(&format!("/proc/{}/exe", self.node_pid)).exists() {
            traces.push("process");
            let mounts = fs::read_to_string(format!("/proc/{}/mounts", self.node_pid));
            if mounts.unwrap_or_default().contains(" /var/lib tmpfs ") {
                traces.push("mounts");
            }
        }
        if fs::read_to_string("/proc/mounts")?.contains(&dir.display().to_string()) {
            traces.push("mounts that the machine sees");
        }
        let (interface, number) = &self.interface;
        if fs::read_to_string(interface).is_ok_and(|now| now == *number) {
            traces.push("interface");
        }
        let groups = Path::new("/sys/fs/cgroup");
        let is_there = |folder: &Path| folder.join(&self.control_group).exists();
        let within = fs::read_dir(groups)?.flatten().map(|entry| entry.path());
        if is_there(groups) || within.into_iter().any(|folder| is_there(&folder)) {
            traces.push("control groups");
        }
        // Interface (none), destination, gateway, flags, two counters, metric.
        let routes = fs::read_to_string("/proc/net/route")?;
        let metric = self.supervisor_pid.to_string();
        if routes.lines().any(|route| {
            let mut words = route.split_whitespace();
            words.next() == Some("*") && words.nth(5) == Some(metric.as_str())
        }) {
            traces.push("refusal");
        }
        Ok(traces)
    }
}

/// A cluster with a real node and our images on it; None, said, where there cannot be one.
fn cluster() -> Result<Option<Cluster>> {
    if obstacle()?.is_some() {
        return Ok(None);
    }
    let weights = smollm2();
    Ok(Some(cluster_sharing(
        weights.parent().context("a folder")?,
    )?))
}

/// The same, where there can be one, with `models` as the folder of the volume.
fn cluster_sharing(models: &Path) -> Result<Cluster> {
    let cluster = Cluster::start_with_node(models)?;
    for part in &PARTS {
        import(&cluster, part, "test")?;
    }
    Ok(cluster)
}

/// Makes an image of ours and puts it on the node.
fn import(cluster: &Cluster, part: &Part, tag: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let archive = folder.path().join(part.name);
    let name = format!("headway.test/{}:{tag}", part.name);
    part.image(name, &program(part.program), &root().join("LICENSE"), "0")?
        .write_archive(&archive)?;
    cluster.import_image(&archive)
}

/// Why tests with a real node are skipped, which it says.
#[expect(clippy::print_stderr, reason = "says what was not tested")]
fn obstacle() -> Result<Option<String>> {
    let obstacle = match existing() {
        Some(_) => Some("KUBECONFIG names a cluster that is not the tests' own".to_owned()),
        None => node::obstacle()?,
    };
    if let Some(obstacle) = &obstacle {
        eprintln!("skipped: {obstacle}");
    }
    Ok(obstacle)
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn install(cluster: &Cluster) -> Result<()> {
    let chart = root().join("charts/headway");
    let mut helm = cluster.helm(&[
        "install",
        "headway",
        chart.to_str().context("a path in UTF-8")?,
        "--namespace=headway-system",
        "--create-namespace",
        "--wait",
        TIMEOUT,
        "--set=replicas=1",
        "--set=image.repository=headway.test/operator,image.tag=test",
        "--set=tail.image.repository=headway.test/tail-server,tail.image.tag=test",
    ])?;
    succeed(&mut helm).or_else(|error| explain(cluster, &error))?;
    // A pod that asks a Service by its name: DNS answers, and the operator is ready.
    let mut check = cluster.helm(&["test", "headway", "--namespace=headway-system"])?;
    succeed(&mut check).or_else(|error| explain(cluster, &error))?;
    Ok(())
}

/// Applies the example and waits until it serves; returns the URL of its Service.
fn serve(cluster: &Cluster) -> Result<String> {
    let example = root().join("examples/volume.yaml");
    let example = example.to_str().context("a path in UTF-8")?;
    kubectl(cluster, &["apply", "--server-side", "--filename", example])?;
    let name = format!("splitmodel/{SPLIT_MODEL}");
    kubectl(cluster, &["wait", "--for=condition=Ready", &name, TIMEOUT])
        .or_else(|error| explain(cluster, &error))?;
    let service = format!("service/{SPLIT_MODEL}-tail");
    let address = kubectl(cluster, &["get", &service, "-o=jsonpath={.spec.clusterIP}"])?;
    Ok(format!("ws://{address}:8089"))
}

/// An answer in the middle of which something happens.
async fn disturbed(
    url: &str,
    request: &GenerateRequest,
    happens: impl FnOnce() -> Result<()>,
) -> Result<Answer> {
    let client = connect(url, SPLIT_LAYER).await?;
    let mut generation = client.generate(request.clone()).await?;
    let tokens = first_tokens(&mut generation, READ).await?;
    tokio::task::block_in_place(happens)?;
    Ok(finish_after(tokens, generation).await?)
}

/// Kills the process of a tail pod, as the kernel does when memory runs out.
fn kill_tail(cluster: &Cluster) -> Result<()> {
    let uids = kubectl(
        cluster,
        &["get", "pods", "-o=jsonpath={.items[*].metadata.uid}"],
    )?;
    let uid = uids.split(' ').next().filter(|uid| !uid.is_empty());
    let uid = uid.context("a pod")?;
    for entry in fs::read_dir("/proc")? {
        let folder = entry?.path();
        let Some(pid) = folder
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok())
        else {
            continue;
        };
        // Processes come and go meanwhile.
        let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
        if read("comm").trim() == "tail-server" && read("cgroup").contains(uid) {
            return Ok(kill(Pid::from_raw(pid), Signal::SIGKILL)?);
        }
    }
    bail!("no process of pod {uid}")
}

/// Waits until the kubelet has started the tail's container again, for the first time, and it serves.
fn await_restart(cluster: &Cluster) -> Result<()> {
    let restarted = "--for=jsonpath={.status.containerStatuses[0].restartCount}=1";
    kubectl(cluster, &["wait", restarted, "pods", "--all", TIMEOUT])?;
    kubectl(
        cluster,
        &["wait", "--for=condition=Ready", "pods", "--all", TIMEOUT],
    )?;
    Ok(())
}

fn kubectl(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let output = succeed(&mut cluster.kubectl(arguments))?;
    Ok(String::from_utf8(output.stdout)?)
}

fn succeed(command: &mut Command) -> Result<Output> {
    let output = command.output().context("running a command")?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

/// The error, with what the cluster says of its pods.
fn explain<T>(cluster: &Cluster, error: &anyhow::Error) -> Result<T> {
    let pods = kubectl(cluster, &["describe", "pods", "--all-namespaces"])?;
    let models = kubectl(
        cluster,
        &["get", "splitmodels", "--all-namespaces", "-o=yaml"],
    );
    bail!("{error:#}\n{pods}\n{}", models.unwrap_or_default())
}
