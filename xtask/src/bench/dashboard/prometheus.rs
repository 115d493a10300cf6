//! A Prometheus of this machine's, which watches the cluster's pods.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use cluster_rig::Cluster;
use serde::Deserialize;
use tempfile::TempDir;

use super::targets::{self, Targets};
use crate::processes;

const SCRAPE_INTERVAL: &str = "5s";
const STEP: &str = "5s";
/// An operator and two tails at least.
const PODS: usize = 3;
/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60);

/// A running Prometheus; ends when dropped.
pub(super) struct Prometheus {
    child: Child,
    url: String,
    _targets: Targets,
    _folder: TempDir,
}

/// One series of a range query.
pub(super) struct Series {
    pub(super) labels: BTreeMap<String, String>,
    /// Seconds since the epoch, and values; finite ones alone.
    pub(super) samples: Vec<(f64, f64)>,
}

#[derive(Deserialize)]
struct Wire {
    metric: BTreeMap<String, String>,
    values: Vec<(f64, String)>,
}

/// Says what to install where it is missing.
pub(super) fn check_program() -> anyhow::Result<()> {
    for program in ["prometheus", "promtool"] {
        let mut command = Command::new(program);
        let found = command.arg("--version").output();
        found.with_context(|| {
            format!("{program} cannot be run; Debian's package prometheus has it")
        })?;
    }
    Ok(())
}

/// What the Prometheus operator makes of the chart's PodMonitors and ServiceMonitor, in short.
fn configuration(folder: &Path) -> String {
    let job = |name: &str, is_honored: bool| {
        let file = targets::file(folder, name);
        format!(
            "- job_name: {name}
  honor_labels: {is_honored}
  file_sd_configs: [{{files: ['{}']}}]
",
            file.display()
        )
    };
    format!(
        "global: {{scrape_interval: {SCRAPE_INTERVAL}, scrape_timeout: {SCRAPE_INTERVAL}}}
scrape_configs:
{}{}",
        // The metrics of an operator name other namespaces than its own.
        job("operator", true),
        job("tail", false),
    )
}

impl Prometheus {
    pub(super) fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("prometheus.yaml");
        std::fs::write(&file, configuration(folder.path()))?;
        let targets = Targets::follow(cluster, folder.path())?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let address = format!("127.0.0.1:{port}");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn")
            .stdin(Stdio::null())
            .spawn()
            .context("starting prometheus")?;
        let prometheus = Self {
            child,
            url: format!("http://{address}"),
            _targets: targets,
            _folder: folder,
        };
        let late = Instant::now() + PATIENCE;
        while prometheus.range("up == 1", SystemTime::now())?.len() < PODS {
            ensure!(Instant::now() < late, "Prometheus reaches too few pods");
            processes::wait(INTERVAL);
        }
        Ok(prometheus)
    }

    /// The series of `query` from `began` until now. None while Prometheus does not answer yet.
    pub(super) fn range(&self, query: &str, began: SystemTime) -> anyhow::Result<Vec<Series>> {
        let start = began.duration_since(UNIX_EPOCH)?.as_secs();
        let output = Command::new("promtool")
            .args(["query", "--format=json", "range"])
            .arg(format!("--start={start}"))
            .arg(format!("--step={STEP}"))
            .args([&self.url, query])
            .output()
            .context("running promtool")?;
        let said = String::from_utf8_lossy(&output.stderr);
        // It starts.
        if said.contains("connection refused") || said.contains("Service Unavailable") {
            return Ok(Vec::new());
        }
        ensure!(output.status.success(), "{query}: {said}");
        let found: Vec<Wire> = serde_json::from_slice(&output.stdout).context("promtool's JSON")?;
        let series = found.into_iter().map(|wire| Series {
            labels: wire.metric,
            samples: wire
                .values
                .iter()
                .filter_map(|(time, value)| Some((*time, value.parse::<f64>().ok()?)))
                .filter(|(_, value)| value.is_finite())
                .collect(),
        });
        Ok(series.filter(|series| !series.samples.is_empty()).collect())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
