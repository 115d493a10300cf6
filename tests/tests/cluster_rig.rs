//! The cluster for tests does what `tests/cluster/README.md` says of it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use cluster_rig::{Cluster, Options, programs, shared};

/// For `kubectl wait` and its like; `e2e::PATIENCE` in kubectl's words.
const TIMEOUT: &str = "--timeout=60s";

/// Allowed under the "restricted" standard.
const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: web
          image: registry.invalid/web:1
          securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
"#;

const PRIVILEGED_POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: privileged}
spec:
  containers:
    - name: one
      image: registry.invalid/one:1
      securityContext: {privileged: true}
"#;

#[test]
fn nodes_are_ready_and_have_gpus() -> Result<()> {
    let cluster = shared();
    if cluster.skips("fake nodes") {
        return Ok(());
    }
    kubectl(
        cluster,
        &["wait", "--for=condition=Ready", "node", "--all", TIMEOUT],
    )?;
    let gpus = kubectl(
        cluster,
        &[
            "get",
            "nodes",
            r"-o=jsonpath={.items[*].status.allocatable.nvidia\.com/gpu}",
        ],
    )?;
    assert_eq!(gpus, "8 8 8");
    let zones = kubectl(
        cluster,
        &[
            "get",
            "nodes",
            r"-o=jsonpath={.items[*].metadata.labels.topology\.kubernetes\.io/zone}",
        ],
    )?;
    assert_eq!(zones, "zone-a zone-b zone-c");
    Ok(())
}

#[test]
fn definitions_of_other_projects_are_served() -> Result<()> {
    let cluster = shared();
    if cluster.skips("definitions of other projects") {
        return Ok(());
    }
    for name in [
        "httproutes.gateway.networking.k8s.io",
        "scaledobjects.keda.sh",
        "triggerauthentications.keda.sh",
        "podmonitors.monitoring.coreos.com",
        "prometheusrules.monitoring.coreos.com",
        "servicemonitors.monitoring.coreos.com",
    ] {
        let wanted = format!("crd/{name}");
        kubectl(
            cluster,
            &["wait", "--for=condition=Established", &wanted, TIMEOUT],
        )?;
    }
    Ok(())
}

#[test]
fn deployment_becomes_available_and_its_pods_vanish_with_it() -> Result<()> {
    let cluster = shared();
    if cluster.skips("nodes on which pods run without an image") {
        return Ok(());
    }
    let namespace = Namespace::restricted(cluster, "rig-deployment")?;
    namespace.apply(DEPLOYMENT)?;
    namespace.kubectl(&[
        "wait",
        "--for=condition=Available",
        "deployment/web",
        TIMEOUT,
    ])?;
    namespace.kubectl(&["delete", "deployment/web", "--cascade=foreground", TIMEOUT])?;
    let pods = namespace.kubectl(&["get", "pods", "--output=name"])?;
    assert_eq!(pods, "");
    Ok(())
}

#[test]
fn privileged_pod_is_refused_where_the_namespace_is_restricted() -> Result<()> {
    let cluster = shared();
    let namespace = Namespace::restricted(cluster, "rig-privileged")?;
    let refused = namespace.apply(PRIVILEGED_POD).unwrap_err().to_string();
    assert!(
        refused.contains("violates PodSecurity \"restricted"),
        "{refused}"
    );
    Ok(())
}

#[test]
fn objects_outlive_a_restart_of_the_api_server_and_reads_are_audited() -> Result<()> {
    if cluster_rig::existing().is_some() {
        let _ = shared().skips("an API server that may be restarted");
        return Ok(());
    }
    // Its own, for the others must not lose their API server.
    let cluster = Cluster::start(Options {
        nodes: 0,
        crds: false,
    })?;
    kubectl(
        &cluster,
        &["create", "configmap", "kept", "--from-literal=a=b"],
    )?;
    cluster.restart_component("kube-apiserver")?;
    let read = ["get", "configmap", "kept", "--output=jsonpath={.data.a}"];
    assert_eq!(kubectl(&cluster, &read)?, "b");

    let audit = std::fs::read_to_string(cluster.audit_log()?)?;
    for verb in ["create", "get"] {
        let verb = format!(r#""verb":"{verb}""#);
        // The name of an object that is created is in the answer only, which is not logged.
        let is_logged = audit.lines().any(|line| {
            line.contains(&verb) && line.contains("/configmaps") && line.contains("headway-admin")
        });
        assert!(is_logged, "{verb} in {audit}");
    }

    cluster.stop_component("kube-apiserver")?;
    let refused = cluster.stop_component("kube-apiserver").unwrap_err();
    assert!(refused.to_string().contains("stopped already"), "{refused}");
    assert!(kubectl(&cluster, &["get", "--raw=/readyz"]).is_err());
    cluster.start_component("kube-apiserver")?;
    assert_eq!(kubectl(&cluster, &read)?, "b");
    let unknown = cluster.restart_component("kubelet").unwrap_err();
    assert!(unknown.to_string().contains("kube-scheduler"), "{unknown}");
    Ok(())
}

#[test]
fn programs_report_the_versions_that_are_pinned() -> Result<()> {
    let cluster = shared();
    let kubernetes = programs::kubernetes_version()?;
    let client = kubectl(cluster, &["version", "--client"])?;
    assert!(client.contains(&kubernetes), "{client}");
    if cluster.is_ours() {
        let server = kubectl(cluster, &["version"])?;
        let wanted = format!("Server Version: {kubernetes}");
        assert!(server.contains(&wanted), "{server}");
    }
    let helm = output(&mut cluster.helm(&["version", "--short"])?)?;
    assert!(helm.starts_with(&programs::helm_version()?), "{helm}");
    Ok(())
}

#[test]
fn everything_ends_when_the_owner_does() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut rig = Command::new(programs::controlplane()?)
        .args(["run", "--until-stdin-closes", "--remove-dir", "--dir"])
        .arg(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut stdout = BufReader::new(rig.stdout.take().context("a stdout")?);
    let mut line = String::new();
    stdout.read_line(&mut line)?;
    assert!(line.starts_with("ready KUBECONFIG="), "{line}");
    let state: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("state.json"))?)?;
    let components = state["components"].as_array().context("components")?;
    let processes: Vec<_> = components
        .iter()
        .map(|component| format!("/proc/{}", component["pid"]))
        .collect();
    assert_eq!(processes.len(), 4);
    assert!(processes.iter().all(|process| Path::new(process).exists()));

    // As the kernel does for an owner that dies.
    drop(rig.stdin.take());
    // The end of its output is the end of the process.
    stdout.read_to_string(&mut line)?;
    assert!(rig.wait()?.success());
    assert!(!processes.iter().any(|process| Path::new(process).exists()));
    assert!(!dir.path().exists());
    Ok(())
}

#[test]
fn start_that_fails_leaves_nothing_and_says_why() -> Result<()> {
    let parent = tempfile::tempdir()?;
    let dir = parent.path().join("cluster");
    let definitions = parent.path().join("not-a-definition.yaml");
    std::fs::write(&definitions, DEPLOYMENT)?;
    let failed = Command::new(programs::controlplane()?)
        .args(["run", "--dir"])
        .arg(&dir)
        .arg("--crds")
        .arg(&definitions)
        .stdin(Stdio::null())
        .output()?;
    assert!(!failed.status.success());
    let said = String::from_utf8_lossy(&failed.stderr);
    assert!(said.contains("no custom resource definition"), "{said}");
    assert!(!dir.exists());
    Ok(())
}

/// A namespace of a test's own, deleted with it.
struct Namespace {
    cluster: &'static Cluster,
    name: String,
}

impl Namespace {
    fn restricted(cluster: &'static Cluster, prefix: &str) -> Result<Self> {
        // Unlike that of an earlier run, where the cluster is an existing one.
        let name = format!("{prefix}-{}", std::process::id());
        kubectl(cluster, &["create", "namespace", &name])?;
        let label = "pod-security.kubernetes.io/enforce=restricted";
        kubectl(cluster, &["label", "namespace", &name, label])?;
        Ok(Self { cluster, name })
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let namespace = format!("--namespace={}", self.name);
        kubectl(self.cluster, &[&[namespace.as_str()], arguments].concat())
    }

    fn apply(&self, manifest: &str) -> Result<String> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), manifest)?;
        let path = file.path().to_str().context("a path in UTF-8")?;
        self.kubectl(&["apply", "--filename", path])
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The cluster may be gone with the test's process anyway.
        let _ = kubectl(
            self.cluster,
            &["delete", "namespace", &self.name, "--wait=false"],
        );
    }
}

fn kubectl(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    output(&mut cluster.kubectl(arguments))
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}
