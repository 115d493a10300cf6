//! Which pods Prometheus scrapes, as a file that follows the cluster: Debian's Prometheus is built without the discovery of
//! Kubernetes.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};

use anyhow::Context as _;
use cluster_rig::Cluster;
use serde::Deserialize;
use serde_json::{Value, json};

/// What is scraped: a component of the chart, and its port's name.
const SCRAPED: [(&str, &str); 2] = [("operator", "http"), ("tail", "tail")];

/// Watches pods; ends when dropped.
pub(super) struct Targets {
    watch: Child,
}

#[derive(Deserialize)]
struct Event {
    r#type: String,
    object: Value,
}

impl Targets {
    /// Keeps `{component}.json` in `folder` for each of [`SCRAPED`].
    pub(super) fn follow(cluster: &Cluster, folder: &Path) -> anyhow::Result<Self> {
        let mut watch = cluster
            .kubectl(&[
                "get",
                "pods",
                "--all-namespaces",
                "--watch",
                "--output-watch-events",
                "--output=json",
            ])
            .stdout(Stdio::piped())
            .spawn()
            .context("running kubectl")?;
        let events = watch.stdout.take().context("kubectl's output")?;
        let folder = folder.to_owned();
        std::thread::spawn(move || {
            if let Err(error) = write_all(events, &folder) {
                eprintln!("pods are no longer followed: {error:#}");
            }
        });
        Ok(Self { watch })
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        let _ = self.watch.kill();
        let _ = self.watch.wait();
    }
}

/// Where the targets of `component` stand.
pub(super) fn file(folder: &Path, component: &str) -> PathBuf {
    folder.join(format!("{component}.json"))
}

fn write_all(events: ChildStdout, folder: &Path) -> anyhow::Result<()> {
    let mut found = BTreeMap::new();
    let events = serde_json::Deserializer::from_reader(BufReader::new(events)).into_iter();
    for event in events {
        let Event { r#type, object } = event?;
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        match scraped(&object).filter(|_| r#type != "DELETED") {
            Some(target) => found.insert(uid.to_owned(), target),
            None => found.remove(uid),
        };
        for (component, _) in SCRAPED {
            let of_it = found.values().filter(|(of, _)| *of == component);
            let targets: Vec<&Value> = of_it.map(|(_, target)| target).collect();
            // Prometheus must not read half of it.
            let written = folder.join("written");
            std::fs::write(&written, serde_json::to_string(&targets)?)?;
            std::fs::rename(&written, file(folder, component))?;
        }
    }
    Ok(())
}

/// The component and the target of a pod that runs.
fn scraped(pod: &Value) -> Option<(&'static str, Value)> {
    let (metadata, status) = (&pod["metadata"], &pod["status"]);
    let label = |name: &str| metadata["labels"][name].as_str().unwrap_or_default();
    let found = SCRAPED.into_iter();
    let (component, port) = found
        .filter(|(component, _)| label("app.kubernetes.io/component") == *component)
        .find(|_| status["phase"] == "Running")?;
    let containers = pod["spec"]["containers"].as_array()?.iter();
    let mut ports = containers.filter_map(|container| container["ports"].as_array());
    let number = ports.find_map(|ports| {
        let port = ports.iter().find(|each| each["name"] == port)?;
        port["containerPort"].as_u64()
    })?;
    let address = status["podIP"].as_str()?;
    let target = json!({
        "targets": [format!("{address}:{number}")],
        "labels": {
            "namespace": metadata["namespace"],
            "pod": metadata["name"],
            "headway_dev_splitmodel": label("headway.dev/splitmodel"),
        },
    });
    Some((component, target))
}
