//! A Prometheus of this machine's, which finds the pods of the cluster by itself.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use cluster_rig::Cluster;
use serde::Deserialize;
use tempfile::TempDir;

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
fn configuration(cluster: &Cluster) -> String {
    let kubeconfig = cluster.kubeconfig().display();
    let job = |name: &str, port: &str| {
        format!(
            "- job_name: {name}
  kubernetes_sd_configs: [{{role: pod, kubeconfig_file: '{kubeconfig}'}}]
  relabel_configs:
  - {{source_labels: [__meta_kubernetes_pod_label_app_kubernetes_io_component], regex: {name}, action: keep}}
  - {{source_labels: [__meta_kubernetes_pod_container_port_name], regex: {port}, action: keep}}
  - {{source_labels: [__meta_kubernetes_pod_phase], regex: Running, action: keep}}
  - {{source_labels: [__meta_kubernetes_pod_label_headway_dev_splitmodel], target_label: headway_dev_splitmodel}}
  - {{source_labels: [__meta_kubernetes_namespace], target_label: namespace}}
  - {{source_labels: [__meta_kubernetes_pod_name], target_label: pod}}
"
        )
    };
    format!(
        "global: {{scrape_interval: {SCRAPE_INTERVAL}, scrape_timeout: {SCRAPE_INTERVAL}}}
scrape_configs:
{}{}",
        // The metrics of an operator name other namespaces than its own.
        job("operator", "http").replace(
            "  relabel_configs:",
            "  honor_labels: true\n  relabel_configs:"
        ),
        job("tail", "tail"),
    )
}

impl Prometheus {
    pub(super) fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("prometheus.yaml");
        std::fs::write(&file, configuration(cluster))?;
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
            _folder: folder,
        };
        let late = Instant::now() + PATIENCE;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?;
        while prometheus.range("up == 1", SystemTime::now())?.len() < PODS {
            ensure!(Instant::now() < late, "Prometheus reaches too few pods");
            runtime.block_on(tokio::time::sleep(INTERVAL));
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
        if said.contains("connection refused") {
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
