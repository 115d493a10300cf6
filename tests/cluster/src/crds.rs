//! Custom resource definitions of other projects: the real ones, from their Go modules, whose bytes
//! `tests/cluster/crds/go.sum` pins.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use super::programs::go;

/// Which files or folders of which module are wanted.
const WANTED: [(&str, &[&str]); 3] = [
    ("sigs.k8s.io/gateway-api", &["config/crd/standard"]),
    (
        "github.com/kedacore/keda/v2",
        &[
            "config/crd/bases/keda.sh_scaledobjects.yaml",
            "config/crd/bases/keda.sh_triggerauthentications.yaml",
        ],
    ),
    (
        "github.com/prometheus-operator/prometheus-operator",
        &[
            "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
            "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
            "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
        ],
    ),
];

/// One module of the answer of `go mod download -json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Downloaded {
    path: String,
    #[serde(default)]
    dir: PathBuf,
    error: Option<String>,
}

/// Files and folders with the definitions of Gateway API, KEDA and the Prometheus operator; downloaded where
/// they are not in Go's module cache yet.
///
/// # Errors
/// Where Go is missing, or a module cannot be had or is not what it was.
pub fn paths() -> anyhow::Result<Vec<PathBuf>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
    go(&folder)?;
    let output = Command::new("go")
        .args(["mod", "download", "-json"])
        .args(WANTED.map(|(module, _)| module))
        .current_dir(&folder)
        .env("GOFLAGS", "-mod=readonly")
        .env("GOTOOLCHAIN", "local")
        .output()
        .context("running go mod download")?;
    let answer = serde_json::Deserializer::from_slice(&output.stdout)
        .into_iter::<Downloaded>()
        .collect::<Result<Vec<_>, _>>()
        .context("reading the answer of go mod download")?;
    if let Some((path, error)) = answer
        .iter()
        .find_map(|module| Some((&module.path, module.error.as_ref()?)))
    {
        bail!("downloading {path}: {error}");
    }
    ensure!(
        output.status.success(),
        "go mod download: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let mut paths = Vec::new();
    for (name, wanted) in WANTED {
        let module = answer
            .iter()
            .find(|module| module.path == name)
            .with_context(|| format!("go mod download says nothing of {name}"))?;
        for path in wanted {
            let path = module.dir.join(path);
            ensure!(path.exists(), "{} is missing", path.display());
            paths.push(path);
        }
    }
    Ok(paths)
}
