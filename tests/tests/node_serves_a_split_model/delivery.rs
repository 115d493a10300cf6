//! A model that is not where the SplitModel says, and then on its way: the conditions tell.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cluster_rig::Cluster;
use e2e::device::{chat, connect, finish, request, unsplit};
use e2e::model_source::ModelSource;
use e2e::{PATIENCE, SMOLLM2_FILE, smollm2};
use edge_lite::{SamplingParams, WeightDtype};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::sleep;

use super::{SPLIT_LAYER, SPLIT_MODEL, TIMEOUT, cluster, explain, install, kubectl, root, tell};

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(200);
const MAX_TOKENS: usize = 16;
/// Of the model's file, what comes before its server holds back the rest.
const FIRST_BYTES: u64 = 40 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_is_missing_and_then_on_its_way_is_told_of() -> Result<()> {
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
    comes_over_https(&cluster).await
}

/// The model from a web server of this machine, of which pods know nothing but the address and its authority.
async fn comes_over_https(cluster: &Cluster) -> Result<()> {
    let weights = smollm2();
    let folder = weights.parent().context("a folder")?;
    let host = "-o=jsonpath={.endpoints[0].addresses[0]}";
    let host = kubectl(
        cluster,
        &[
            "get",
            "endpointslice",
            "kubernetes",
            "--namespace=default",
            host,
        ],
    )?;
    let (source, authority) = ModelSource::start_tls(folder, host.parse()?).await?;
    source.close_at(FIRST_BYTES);
    let authority = format!("--from-literal=ca.crt={authority}");
    kubectl(cluster, &["create", "configmap", "authorities", &authority])?;
    let bytes = tokio::fs::read(&weights).await?;
    let sha256: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let model = json!({
        "source": source.url(SMOLLM2_FILE),
        "sha256": sha256,
        "caConfigMapRef": {"name": "authorities", "key": "ca.crt"},
    });
    let target = format!("splitmodel/{SPLIT_MODEL}");
    let patch = format!("--patch={}", json!({"spec": {"model": model}}));
    kubectl(cluster, &["patch", &target, "--type=merge", &patch])?;
    // The model of before goes on being served.
    let told = condition(cluster, SPLIT_MODEL, "Progressing", |said| {
        let message = said["message"].as_str().unwrap_or_default();
        said["reason"] == "RollingOut" && message.contains("40 % of 93 MiB")
    });
    tell(&told.await?["message"].to_string());
    condition(cluster, SPLIT_MODEL, "Degraded", |said| {
        said["status"] == "False"
    })
    .await?;
    source.open();
    let tails = format!("deployment/{SPLIT_MODEL}-tail");
    let rolled_out = ["rollout", "status", &tails, TIMEOUT];
    kubectl(cluster, &rolled_out).or_else(|error| explain(cluster, &error))?;
    assert!(
        source.sent_bytes() < bytes.len() as u64 * 11 / 10,
        "the file was fetched once, and not {} bytes",
        source.sent_bytes()
    );

    let service = format!("service/{SPLIT_MODEL}-tail");
    let address = kubectl(cluster, &["get", &service, "-o=jsonpath={.spec.clusterIP}"])?;
    let client = connect(&format!("ws://{address}:8089"), SPLIT_LAYER).await?;
    let request = request(
        chat("Tell me about the moon."),
        MAX_TOKENS,
        SamplingParams::default(),
    );
    let whole = unsplit(WeightDtype::Native).await?;
    let expected = finish(whole.generate(request.clone()).await?).await?;
    let answer = finish(client.generate(request).await?).await?;
    assert_eq!(answer.tokens, expected.tokens);
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
