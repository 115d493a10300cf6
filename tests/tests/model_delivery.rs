//! How a model reaches a tail: processes that are killed, processes that share a cache, and tails that fetch no more
//! than they serve.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::device::{Answer, finish, lossless, request};
use e2e::model_source::ModelSource;
use e2e::program::program;
use e2e::{PATIENCE, SMOLLM2_FILE, smollm2, tiny_llama};
use edge_lite::{Client, ClientConfig, Prompt, SamplingParams};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::{Duration, sleep, timeout};

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(20);

/// A tail that may still wait for its model.
struct Starting {
    child: Child,
    address: SocketAddr,
    log: Lines<BufReader<ChildStderr>>,
}

impl Starting {
    async fn spawn(model: &str, cache_dir: &Path, options: &[&str]) -> Result<Self> {
        let mut child = command(model, cache_dir, options)
            .stderr(Stdio::piped())
            .spawn()
            .context("starting tail-server")?;
        let mut log = BufReader::new(child.stderr.take().context("a stderr")?).lines();
        loop {
            let line = timeout(PATIENCE, log.next_line()).await??;
            let line = line.context("the tail has ended")?;
            if let Some(address) = line.strip_prefix("loading; health is at ") {
                let address = address.parse()?;
                return Ok(Self {
                    child,
                    address,
                    log,
                });
            }
        }
    }

    /// Waits until it takes sessions.
    async fn serves(mut self) -> Result<Self> {
        let listens = async {
            while let Some(line) = self.log.next_line().await? {
                if line.starts_with("listening on ") {
                    return Ok(());
                }
            }
            bail!("the tail has ended")
        };
        timeout(PATIENCE, listens).await??;
        Ok(self)
    }

    async fn get(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: tail\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await??;
        let status = answer.get(9..12).context("a status line")?.parse()?;
        Ok((status, answer))
    }

    /// What `/readyz` says while the tail is not ready.
    async fn report(&self) -> Result<Value> {
        let (status, answer) = self.get("/readyz").await?;
        ensure!(status == 503, "{answer}");
        let (_, body) = answer.split_once("\r\n\r\n").context("a body")?;
        Ok(serde_json::from_str(body)?)
    }

    async fn report_until(&self, is_wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let late = Instant::now() + PATIENCE;
        loop {
            let report = self.report().await?;
            if is_wanted(&report) {
                return Ok(report);
            }
            ensure!(Instant::now() < late, "{report}");
            sleep(INTERVAL).await;
        }
    }

    async fn metric(&self, name: &str) -> Result<u64> {
        let (_, text) = self.get("/metrics").await?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.context(name.to_owned())?.parse()?)
    }

    async fn ended(mut self) -> Result<ExitStatus> {
        Ok(timeout(PATIENCE, self.child.wait()).await??)
    }
}

fn command(model: &str, cache_dir: &Path, options: &[&str]) -> Command {
    let mut command = Command::new(program("tail-server"));
    command
        .args(["--model", model, "--listen", "127.0.0.1:0", "--cache-dir"])
        .arg(cache_dir)
        .args(["--max-kv-bytes", "100000000"])
        .args(options)
        .env("RUST_LOG", "info")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

fn sha256(path: &Path) -> Result<String> {
    let digest = Sha256::digest(std::fs::read(path)?);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

async fn source_of(file: &Path) -> Result<ModelSource> {
    ModelSource::start(file.parent().context("a folder")?).await
}

#[tokio::test]
async fn a_killed_download_goes_on_and_says_how_far_it_is() -> Result<()> {
    let (model, cache) = (smollm2(), tempfile::tempdir()?);
    let (size, digest) = (std::fs::metadata(&model)?.len(), sha256(&model)?);
    let source = source_of(&model).await?;
    source.close_at(size / 2);
    let options = ["--model-sha256", &digest];
    let mut first = Starting::spawn(&source.url(SMOLLM2_FILE), cache.path(), &options).await?;
    let is_half = |report: &Value| report["done_bytes"].as_u64() >= Some(size / 2 - (2 << 20));
    let report = first.report_until(is_half).await?;
    assert_eq!(report["state"], "downloading");
    assert_eq!(report["total_bytes"], size);
    assert!(
        report["message"]
            .as_str()
            .is_some_and(|text| text.contains(" %, ")),
        "{report}"
    );
    assert_eq!(first.get("/healthz").await?.0, 200);
    assert_eq!(first.metric("headway_tail_model_size_bytes").await?, size);
    for path in ["/v1/session", "/v1/model", "/v1/head/none"] {
        let (status, answer) = first.get(path).await?;
        assert_eq!(status, 503, "{path}: {answer}");
        assert!(
            answer.contains("retry-after: 5") && answer.contains("no_capacity"),
            "{answer}"
        );
    }
    first.child.kill().await?;

    source.open();
    let second = Starting::spawn(&source.url(SMOLLM2_FILE), cache.path(), &options).await?;
    let second = second.serves().await?;
    let (status, answer) = second.get("/readyz").await?;
    assert!(
        status == 200 && answer.contains("\"model_digest\":\"sha256:"),
        "{answer}"
    );
    let requests = source.requests();
    assert_eq!(requests.len(), 2, "{requests:?}");
    assert!(requests[1].1.starts_with("bytes="), "{requests:?}");
    // What was on its way when the process was killed, and no more, came twice.
    let twice = source.sent_bytes() - size;
    assert!(twice < 16 << 20, "{twice} bytes came twice");
    Ok(())
}

#[tokio::test]
async fn tails_that_share_a_cache_download_once_and_outlive_each_other() -> Result<()> {
    let (model, cache) = (smollm2(), tempfile::tempdir()?);
    let (size, digest) = (std::fs::metadata(&model)?.len(), sha256(&model)?);
    let source = source_of(&model).await?;
    source.close_at(size / 2);
    let url = source.url(SMOLLM2_FILE);
    let options = ["--model-sha256", &digest];
    let mut first = Starting::spawn(&url, cache.path(), &options).await?;
    let has_begun = |report: &Value| report["done_bytes"].as_u64() > Some(1 << 20);
    first.report_until(has_begun).await?;
    let second = Starting::spawn(&url, cache.path(), &options).await?;
    // It waits, and tells how far the other one is.
    let report = second.report_until(has_begun).await?;
    assert_eq!(report["total_bytes"], size);
    assert_eq!(source.requests().len(), 1);
    first.child.kill().await?;
    source.open();
    let second = second.serves().await?;
    assert_eq!(second.get("/readyz").await?.0, 200);
    let requests = source.requests();
    assert_eq!(requests.len(), 2, "{requests:?}");
    assert!(requests[1].1.starts_with("bytes="), "{requests:?}");
    Ok(())
}

#[tokio::test]
async fn a_wrong_digest_ends_a_tail_or_is_told_until_it_is_put_right() -> Result<()> {
    let (model, cache) = (smollm2(), tempfile::tempdir()?);
    let source = source_of(&model).await?;
    let url = source.url(SMOLLM2_FILE);
    let wrong = "0".repeat(64);
    let options = ["--model-sha256", &wrong];
    let ended = Starting::spawn(&url, cache.path(), &options)
        .await?
        .ended()
        .await?;
    assert!(!ended.success());
    let options = ["--model-sha256", &wrong, "--retry-seconds", "3600"];
    let tail = Starting::spawn(&url, cache.path(), &options).await?;
    let report = tail
        .report_until(|report| report["state"] == "failed")
        .await?;
    assert_eq!(report["reason"], "DigestMismatch");
    let message = report["message"].as_str().context("a message")?;
    assert!(
        message.contains(&wrong) && message.contains(&sha256(&model)?),
        "{message}"
    );
    assert_eq!(tail.get("/healthz").await?.0, 200);
    assert_eq!(
        tail.metric("headway_tail_model_failures_total{reason=\"DigestMismatch\"}")
            .await?,
        1
    );
    Ok(())
}

#[tokio::test]
async fn a_path_that_is_not_there_yet_is_waited_for() -> Result<()> {
    let cache = tempfile::tempdir()?;
    let path = cache.path().join("model.gguf");
    let name = path.to_str().context("a path")?;
    let tail = Starting::spawn(name, cache.path(), &["--retry-seconds", "1"]).await?;
    let report = tail
        .report_until(|report| report["state"] == "failed")
        .await?;
    assert_eq!(report["reason"], "PathMissing");
    assert!(
        report["message"]
            .as_str()
            .is_some_and(|text| text.contains(name)),
        "{report}"
    );
    std::os::unix::fs::symlink(smollm2(), &path)?;
    assert_eq!(tail.serves().await?.get("/readyz").await?.0, 200);
    Ok(())
}

/// The identity of the small model, as a user makes it.
async fn identity_file(folder: &Path) -> Result<String> {
    let model = tiny_llama();
    let model = model.to_str().context("a path")?;
    let output = command(model, folder, &["--print-identity"])
        .output()
        .await?;
    ensure!(output.status.success(), "{output:?}");
    let path = folder.join("identity.json");
    std::fs::write(&path, output.stdout)?;
    Ok(path.to_str().context("a path")?.to_owned())
}

async fn answer(tail: &Starting, split_layer: usize, cache_dir: &Path) -> Result<Answer> {
    let config = ClientConfig {
        cache_dir: Some(cache_dir.to_owned()),
        ..lossless(split_layer)
    };
    let client = Client::connect(&format!("ws://{}", tail.address), config).await?;
    let prompt = Prompt::TokenIds(vec![3, 17, 64, 9, 100]);
    let generation = client.generate(request(prompt, 12, SamplingParams::default()));
    Ok(finish(generation.await?).await?)
}

#[tokio::test]
async fn a_tail_with_an_identity_fetches_what_it_serves_and_the_rest_for_a_device() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let identity = identity_file(folder.path()).await?;
    let source = ModelSource::start(&tiny_llama()).await?;
    let split_min = ["--split-min", "2", "--split-default", "2"];
    let whole = Starting::spawn(&source.url(""), &folder.path().join("whole"), &split_min).await?;
    let whole = whole.serves().await?;
    let all_bytes = source.sent_bytes();

    let options = [&split_min[..], &["--model-identity", &identity]].concat();
    let tail = Starting::spawn(&source.url(""), &folder.path().join("tail"), &options).await?;
    let tail = tail.serves().await?;
    let tail_bytes = source.sent_bytes() - all_bytes;
    assert!(tail_bytes < all_bytes, "{tail_bytes} of {all_bytes} bytes");
    assert_eq!(
        tail.metric("headway_tail_model_received_bytes_total")
            .await?,
        tail_bytes
    );

    let expected = answer(&whole, 2, &folder.path().join("device-a")).await?;
    let before = source.sent_bytes();
    let got = answer(&tail, 2, &folder.path().join("device-b")).await?;
    assert_eq!(got.tokens, expected.tokens);
    assert!(
        source.sent_bytes() > before,
        "the device's layers came from the source"
    );
    let before = source.sent_bytes();
    answer(&tail, 2, &folder.path().join("device-c")).await?;
    assert_eq!(source.sent_bytes(), before, "and are kept");
    Ok(())
}

#[tokio::test]
async fn layers_that_are_not_those_of_the_identity_are_never_served() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let identity = identity_file(folder.path()).await?;
    let files = folder.path().join("files");
    std::fs::create_dir(&files)?;
    for entry in std::fs::read_dir(tiny_llama())? {
        let path = entry?.path();
        std::fs::copy(&path, files.join(path.file_name().context("a name")?))?;
    }
    let source = ModelSource::start(&files).await?;
    let split_min = ["--split-min", "2", "--split-default", "2"];
    let options = [&split_min[..], &["--model-identity", &identity]].concat();
    let tail = Starting::spawn(&source.url(""), &folder.path().join("tail"), &options).await?;
    let tail = tail.serves().await?;
    // Every byte of every weight is another one from now on: only the headers stay.
    for entry in std::fs::read_dir(&files)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            let mut bytes = std::fs::read(&path)?;
            let header = usize::try_from(u64::from_le_bytes(bytes[..8].try_into()?))?;
            bytes[8 + header..].iter_mut().for_each(|byte| *byte ^= 1);
            std::fs::write(&path, bytes)?;
        }
    }
    for path in ["/v1/head/none/layer-0", "/v1/head/q8_0/layer-0"] {
        let (status, answer) = tail.get(path).await?;
        assert_eq!(status, 500, "{path}: {answer}");
    }
    let options = [&options[..], &["--retry-seconds", "3600"]].concat();
    let other = Starting::spawn(&source.url(""), &folder.path().join("other"), &options).await?;
    let report = other
        .report_until(|report| report["state"] == "failed")
        .await?;
    assert_eq!(report["reason"], "DigestMismatch", "{report}");
    Ok(())
}
