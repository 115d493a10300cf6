//! What the process leaves behind, in process and as the program itself.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use headway_wire::message::Close;
use serde_json::Value;
use tail_server::LastWords;

use crate::rig::{PROMPT, Server, http, metric_in, model_path, token_ids};

fn read(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.len() <= 4096 && text.lines().count() == 1, "{text}");
    serde_json::from_str(&text).unwrap()
}

fn program(message: &Path, options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tail-server"));
    command
        .arg("--termination-message")
        .arg(message)
        .args(options)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    command
}

#[tokio::test]
async fn after_a_drain_the_last_words_equal_the_last_scrape() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("message");
    let mut server = Server::start(&[]).await;
    let last_words = LastWords::new(Some(path.clone()), server.metrics.clone());
    let mut client = server.session(0).await;
    client.send(token_ids(0, &PROMPT, true)).await;
    let token_id = client.result().await.token_id.unwrap();
    client
        .send(token_ids(PROMPT.len(), &[token_id], true))
        .await;
    client.result().await;
    // A token is counted when it has left, which the device can see first.
    let later = "headway_tail_time_per_output_token_seconds_count";
    server.wait_for_metric(later, 1.0).await;
    let first = "headway_tail_time_to_first_token_seconds_count";
    assert_eq!(server.metric(first).await, 1.0);
    client.send(Close {}).await;
    assert!(client.answer().await.is_none());
    let scrape = server.get("/metrics").await.text().await.unwrap();
    server.signal();
    server.ended().await;
    last_words.write(None);

    let json = read(&path);
    for (pointer, name) in [
        ("/start_time_seconds", "headway_tail_start_time_seconds"),
        ("/busy_seconds", "headway_tail_busy_seconds_total"),
        ("/compute_seconds", "headway_tail_compute_seconds_total"),
        (
            "/tokens/prefill",
            "headway_tail_tokens_total{phase=\"prefill\"}",
        ),
        (
            "/tokens/decode",
            "headway_tail_tokens_total{phase=\"decode\"}",
        ),
        ("/sessions_opened", "headway_tail_sessions_opened_total"),
    ] {
        let value = metric_in(&scrape, name);
        assert!(value > 0.0, "{name}");
        // The JSON parser may be off by the last bit; what is written is exact.
        let got = json.pointer(pointer).unwrap().as_f64().unwrap();
        assert!(
            (got - value).abs() <= f64::EPSILON * value,
            "{name}: {got} {value}"
        );
    }
    assert_eq!(json.get("error"), None);
}

#[test]
fn a_program_that_cannot_start_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("message");
    let cache = folder.path().to_str().unwrap();
    let no_model = ["--cache-dir", cache, "--model", "/nowhere/model.gguf"];
    // One that the configuration refuses, and one that loading does.
    let open_address = [&no_model[..], &["--listen", "0.0.0.0:0"]].concat();
    for (options, reason) in [
        (&no_model[..], "model.gguf"),
        (&open_address, "--allow-anonymous"),
    ] {
        let output = program(&path, options).output().unwrap();
        assert!(!output.status.success());
        let json = read(&path);
        let error = json["error"].as_str().unwrap();
        assert!(error.contains(reason), "{error}");
        assert_eq!(json["busy_seconds"], 0.0);
    }
}

#[tokio::test]
async fn a_program_that_is_told_to_stop_leaves_its_counters() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("message");
    let model = model_path();
    let options = [
        "--cache-dir",
        folder.path().to_str().unwrap(),
        "--model",
        model.to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
    ];
    let mut child = Stopped(program(&path, &options).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stderr.take().unwrap()).lines();
    let address = lines
        .by_ref()
        .map(Result::unwrap)
        .find_map(|line| Some(line.strip_prefix("listening on ws://")?.to_owned()))
        .unwrap();
    let url = format!("http://{address}/metrics");
    let scrape = http().get(url).send().await.unwrap().text().await.unwrap();
    let id = child.0.id().to_string();
    assert!(Command::new("kill").arg(id).status().unwrap().success());
    assert!(lines.all(|line| line.is_ok()), "its log ends with it");
    assert!(child.0.wait().unwrap().success());

    let json = read(&path);
    let started = metric_in(&scrape, "headway_tail_start_time_seconds");
    let got = json["start_time_seconds"].as_f64().unwrap();
    assert!((got - started).abs() < 1e-3, "{got} {started}");
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(json["tokens"]["prefill"], 0);
}

/// A process that ends with the test, however that ends.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        // It has ended already where the test is good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
