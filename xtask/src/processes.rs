//! Building and starting the programs of this workspace.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use edge_lite::Report;

use crate::paths::{program, root};

/// How long a tail may take to load its model.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// Builds all programs in the profile xtask itself runs in.
pub fn build_all() -> anyhow::Result<()> {
    build()?;
    cargo(&["build", "--release", "--bin", "headway-operator"])
}

/// Builds `tail-server` and `edge-lite` in the profile xtask itself runs in.
pub fn build() -> anyhow::Result<()> {
    // No --package, as in the alias `cargo xtask`: the same features, so nothing is built a second time.
    cargo(&[
        "build",
        "--release",
        "--bin",
        "tail-server",
        "--bin",
        "edge-lite",
    ])
}

/// Waits.
pub fn wait(time: Duration) {
    let (_never, woken) = mpsc::sync_channel::<()>(1);
    let _ = woken.recv_timeout(time);
}

/// Runs cargo in the repository's root.
pub fn cargo(arguments: &[&str]) -> anyhow::Result<()> {
    let status = cargo_command().args(arguments).status();
    let status = status.context("running cargo")?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}

/// Cargo in the repository's root.
pub fn cargo_command() -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(root());
    // `cargo run` describes xtask in the environment; ring's build script watches these variables, and a
    // change builds all of TLS again.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// What `edge-lite` prints with one thread.
pub fn edge_lite(arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
    let output = Command::new(program("edge-lite")?)
        .args(["--threads", "1"])
        .args(arguments)
        .stderr(Stdio::piped())
        .output()?;
    ensure!(
        output.status.success(),
        "edge-lite failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

/// What `edge-lite generate` reports of an answer by the tail at `url`, with unquantised head weights and one thread.
pub fn generate(url: &str, arguments: &[&str]) -> anyhow::Result<Report> {
    let fixed = [
        "generate",
        "--tail",
        url,
        "--head-quantization",
        "none",
        "--format",
        "json",
    ];
    let report = edge_lite(&[&fixed, arguments].concat())?;
    serde_json::from_slice(&report).context("edge-lite prints a report")
}

/// Trains an early exit of `model` with the settings of `edge-lite train-exit`, on all cores; its log goes to stderr.
pub fn train_exit(model: &Path, split_layer: usize, output: &Path) -> anyhow::Result<()> {
    let status = Command::new(program("edge-lite")?)
        .args(["--log", "info", "train-exit", "--model"])
        .arg(model)
        .args(["--split-layer", &split_layer.to_string(), "--output"])
        .arg(output)
        .status()?;
    ensure!(status.success(), "edge-lite train-exit failed");
    Ok(())
}

/// `GET /metrics` of the tail at `url`, in the twelve lines that it takes on loopback.
pub fn metrics(url: &str) -> anyhow::Result<String> {
    let address = url.trim_start_matches("ws://");
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let (_, body) = response
        .split_once("\r\n\r\n")
        .context("an HTTP response")?;
    Ok(body.to_owned())
}

/// A running tail server; killed when dropped.
pub struct Tail {
    child: Child,
    /// `ws://IP:PORT`.
    pub url: String,
}

impl Tail {
    /// Starts a tail on a free port of loopback and waits until it listens.
    pub fn start(model: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut child = Command::new(program("tail-server")?)
            .arg("--model")
            .arg(model)
            .args(["--listen", "127.0.0.1:0"])
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .context("starting tail-server")?;
        let stderr = child.stderr.take().context("tail-server has a stderr")?;
        let (found, url) = mpsc::sync_channel(1);
        // The log is drained to its end: a full pipe would stop the server.
        std::thread::spawn(move || {
            let mut log = String::new();
            let mut lines = BufReader::new(stderr);
            while lines
                .by_ref()
                .take(1 << 16)
                .read_line(&mut log)
                .is_ok_and(|read| read > 0)
            {
                if let Some((_, rest)) = log.split_once("listening on ") {
                    let url = rest
                        .split_whitespace()
                        .next()
                        .unwrap_or_default()
                        .to_owned();
                    let _ = found.try_send(Ok(url));
                    log.clear();
                }
            }
            let _ = found.try_send(Err(log));
        });
        let url = match url.recv_timeout(START_TIMEOUT) {
            Ok(Ok(url)) => url,
            Ok(Err(log)) => anyhow::bail!("tail-server ended: {}", log.trim()),
            Err(_) => anyhow::bail!("tail-server did not listen within {START_TIMEOUT:?}"),
        };
        Ok(Self { child, url })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
