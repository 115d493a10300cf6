//! A model that is not where the SplitModel says: its conditions tell.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cluster_rig::Cluster;
use e2e::PATIENCE;
use serde_json::Value;
use tokio::time::sleep;

use super::{SPLIT_MODEL, cluster, install, kubectl, root};

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(200);

#[tokio::test]
async fn a_path_that_is_not_on_the_volume_is_told_of() -> Result<()> {
    let Some(cluster) = cluster()? else {
        return Ok(());
    };
    install(&cluster)?;
    let example = root().join("examples/volume.yaml");
    let example = example.to_str().context("a path in UTF-8")?;
    kubectl(&cluster, &["apply", "--server-side", "--filename", example])?;
    let patch = r#"{"spec":{"model":{"source":"pvc://models/none.gguf"}}}"#;
    let target = format!("splitmodel/{SPLIT_MODEL}");
    kubectl(
        &cluster,
        &["patch", &target, "--type=merge", "--patch", patch],
    )?;
    let told = condition(&cluster, SPLIT_MODEL, "Degraded", |said| {
        said["reason"] == "PathMissing"
    });
    let message = told.await?["message"].to_string();
    assert!(message.contains("/model/none.gguf"), "{message}");
    Ok(())
}

/// Waits until a condition says what is wanted.
async fn condition(
    cluster: &Cluster,
    name: &str,
    type_: &str,
    is_wanted: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let late = Instant::now() + 5 * PATIENCE;
    loop {
        let splitmodel = kubectl(cluster, &["get", "splitmodel", name, "-o=json"])?;
        let splitmodel: Value = serde_json::from_str(&splitmodel)?;
        let conditions = splitmodel["status"]["conditions"].as_array();
        let mut said = conditions.into_iter().flatten();
        let said = said
            .find(|condition| condition["type"] == type_)
            .cloned()
            .unwrap_or_default();
        if is_wanted(&said) {
            return Ok(said);
        }
        ensure!(Instant::now() < late, "{name}: {}", splitmodel["status"]);
        sleep(INTERVAL).await;
    }
}
