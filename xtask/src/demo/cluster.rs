//! `cargo xtask demo --cluster`: from nothing to an answer through Kubernetes, on one machine, and nothing left behind.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use cluster_rig::{Cluster, node};

use super::{Arguments, answer};
use crate::paths::root;
use crate::{images, model, processes};

const NAMESPACE: &str = "headway-system";
/// The example, and the SplitModel in it.
const EXAMPLE: &str = "examples/volume.yaml";
pub const SPLIT_MODEL: &str = "smollm2-volume";
/// The port of every tail's Service.
const TAIL_PORT: u16 = 8089;

/// Does what a user of a cluster does, and shows each command.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    // Before anything is built.
    if let Some(obstacle) = node::obstacle()? {
        bail!(obstacle);
    }
    let demo = Demo::new();
    let cluster = prepared(&demo)?;
    serve(&demo, &cluster)?;
    demo.kubectl(
        &cluster,
        &["get", "pods", "--all-namespaces", "--output=wide"],
    )?;
    demo.kubectl(&cluster, &["get", "services"])?;
    demo.step("edge-lite, outside the cluster, asks the Service");
    println!("> {}\n", arguments.prompt);
    answer(&url(&cluster)?, arguments)?;
    demo.kubectl(&cluster, &["get", "splitmodels"])?;
    demo.step("stopping everything");
    drop(cluster);
    demo.step("done");
    Ok(())
}

/// A cluster of one real node with the chart installed; ends when dropped.
pub fn prepared(demo: &Demo) -> anyhow::Result<Cluster> {
    demo.step("building operator, tail-server and edge-lite, and their images");
    processes::build_all()?;
    let archives = images::local()?;
    let weights = model::fetch()?;
    let folder = weights.parent().context("the model lies in a folder")?;
    demo.step("starting etcd, API server, controllers, scheduler, and a node: kubelet, kube-proxy, containerd");
    let cluster = Cluster::start_with_node(folder)?;
    for archive in &archives {
        demo.step(&format!("importing {}", archive.display()));
        cluster.import_image(archive)?;
    }
    install(demo, &cluster)?;
    Ok(cluster)
}

/// Applies the example and waits until it serves.
pub fn serve(demo: &Demo, cluster: &Cluster) -> anyhow::Result<()> {
    let example = path(&root().join(EXAMPLE))?;
    demo.kubectl(cluster, &["apply", "--server-side", "--filename", &example])?;
    let name = format!("splitmodel/{SPLIT_MODEL}");
    let wait = ["wait", "--for=condition=Ready", &name, "--timeout=180s"];
    demo.kubectl(cluster, &wait)
}

/// Where the example's Service is.
pub fn url(cluster: &Cluster) -> anyhow::Result<String> {
    let mut get = cluster.kubectl(&[
        "get",
        "service",
        &format!("{SPLIT_MODEL}-tail"),
        "--output=jsonpath={.spec.clusterIP}",
    ]);
    let output = get.output().context("running kubectl")?;
    ensure!(output.status.success(), "the SplitModel has no Service");
    let address = String::from_utf8(output.stdout)?;
    Ok(format!("ws://{address}:{TAIL_PORT}"))
}

fn install(demo: &Demo, cluster: &Cluster) -> anyhow::Result<()> {
    let image = |value: &str, name: &str| {
        let (repository, tag) = (images::LOCAL_REPOSITORY, images::LOCAL_TAG);
        format!("{value}.repository={repository}/{name},{value}.tag={tag}")
    };
    let words = [
        "install",
        "headway",
        &path(&root().join("charts/headway"))?,
        "--namespace",
        NAMESPACE,
        "--create-namespace",
        "--wait",
        "--set",
        &image("image", "operator"),
        "--set",
        &image("tail.image", "tail-server"),
    ];
    demo.command("helm", &words, &mut cluster.helm(&words)?)?;
    let words = ["test", "headway", "--namespace", NAMESPACE];
    demo.command("helm", &words, &mut cluster.helm(&words)?)
}

fn path(path: &Path) -> anyhow::Result<String> {
    Ok(path.to_str().context("a path in UTF-8")?.to_owned())
}

/// Tells a person what happens, and when.
pub struct Demo {
    started: Instant,
}

impl Demo {
    /// Begins now.
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
        }
    }

    /// Says what comes next.
    pub fn step(&self, what: &str) {
        println!("\n== {:.1} s  {what}", self.started.elapsed().as_secs_f64());
    }

    /// Runs kubectl, and shows it.
    pub fn kubectl(&self, cluster: &Cluster, words: &[&str]) -> anyhow::Result<()> {
        self.command("kubectl", words, &mut cluster.kubectl(words))
    }

    /// Changes what the SplitModel asks for, by a JSON merge patch of its `spec`.
    pub fn change(&self, cluster: &Cluster, spec: &str) -> anyhow::Result<()> {
        let (name, patch) = (
            format!("splitmodel/{SPLIT_MODEL}"),
            format!(r#"--patch={{"spec": {spec}}}"#),
        );
        self.kubectl(cluster, &["patch", &name, "--type=merge", &patch])
    }

    fn command(&self, name: &str, words: &[&str], command: &mut Command) -> anyhow::Result<()> {
        self.step(&format!("{name} {}", words.join(" ")));
        let status = command
            .status()
            .with_context(|| format!("running {name}"))?;
        ensure!(status.success(), "{name} failed");
        Ok(())
    }
}
