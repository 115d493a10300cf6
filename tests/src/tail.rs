//! A `tail-server` in a process of its own, so that it can be killed.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::program::program;
use crate::{PATIENCE, artifact_cache_dir};

/// Lines of the log that are kept for a message.
const LOG_LINES: usize = 200;

/// A running tail server; killed when dropped.
pub struct Tail {
    child: Child,
    address: SocketAddr,
    log: Arc<Mutex<Log>>,
}

#[derive(Default)]
struct Log {
    last_lines: VecDeque<String>,
    panics: Vec<String>,
}

impl Tail {
    /// Starts a tail on a free port of loopback and waits until it listens.
    ///
    /// # Errors
    /// Where it ends instead; the message holds its log.
    pub async fn start(model: &Path, options: &[&str]) -> Result<Self> {
        Self::start_on((Ipv4Addr::LOCALHOST, 0).into(), model, options).await
    }

    /// Starts a tail on `listen`, which a killed one may have had before it.
    ///
    /// # Errors
    /// As [`Tail::start`].
    pub async fn start_on(listen: SocketAddr, model: &Path, options: &[&str]) -> Result<Self> {
        let mut child = Command::new(program("tail-server"))
            .arg("--model")
            .arg(model)
            .arg("--listen")
            .arg(listen.to_string())
            .arg("--cache-dir")
            .arg(artifact_cache_dir())
            .args(options)
            // The log of a failed start goes into the test's message.
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting tail-server")?;
        let stderr = child.stderr.take().context("tail-server has a stderr")?;
        let log = Arc::new(Mutex::new(Log::default()));
        let (listens, listening) = oneshot::channel();
        tokio::spawn(read_log(stderr, Arc::clone(&log), listens));
        match timeout(PATIENCE, listening).await {
            Ok(Ok(address)) => Ok(Self {
                child,
                address,
                log,
            }),
            Ok(Err(_)) => bail!("tail-server ended:\n{}", last_lines(&log)),
            Err(_) => bail!("tail-server did not listen in time:\n{}", last_lines(&log)),
        }
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL for devices.
    #[must_use]
    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Ends the process at once, as a lost node does, and waits until it is gone and its port is free.
    ///
    /// # Errors
    /// Where the system refuses.
    pub async fn kill(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Asks the process to leave: SIGTERM.
    ///
    /// # Errors
    /// Where the process has gone already.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)
    }

    /// Stops the process where it is: its connections stay open, and nothing answers.
    ///
    /// # Errors
    /// Where the process has gone already.
    pub fn fall_asleep(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// Where the process has gone already.
    pub fn wake(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.id()?)?;
        Ok(kill(Pid::from_raw(id), signal)?)
    }

    /// Waits until the process has ended by itself.
    ///
    /// # Errors
    /// Where it does not.
    pub async fn ended(mut self) -> Result<ExitStatus> {
        let ended = timeout(PATIENCE, self.child.wait()).await;
        Ok(ended.with_context(|| format!("still running:\n{}", last_lines(&self.log)))??)
    }

    /// The process id.
    ///
    /// # Errors
    /// Where the process has ended.
    pub fn id(&self) -> Result<u32> {
        self.child.id().context("tail-server has ended")
    }

    /// Resident memory of the process, in KiB.
    ///
    /// # Errors
    /// Where the process has ended.
    pub fn resident_kib(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.id()?);
        let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(kib.with_context(|| format!("VmRSS in {path}"))?.parse()?)
    }

    /// Lines of the log that speak of a panic.
    #[must_use]
    pub fn panics(&self) -> Vec<String> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.panics.clone()
    }

    /// The value of a metric, with its labels in `name`; 0 where it is not there.
    ///
    /// # Errors
    /// Where `/metrics` cannot be read.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let (status, text) = self.get("/metrics").await?;
        ensure!(status == 200, "/metrics answers {status}");
        let value = text.lines().find_map(|line| {
            let value = line.strip_prefix(name)?.strip_prefix(' ')?;
            value.parse().ok()
        });
        Ok(value.unwrap_or(0.0))
    }

    /// Asks again and again until the metric's value is right.
    ///
    /// # Errors
    /// Where it never is.
    pub async fn wait_for_metric(&self, name: &str, is_right: impl Fn(f64) -> bool) -> Result<()> {
        let reached = async {
            while !is_right(self.metric(name).await?) {}
            anyhow::Ok(())
        };
        let waited = timeout(PATIENCE, reached).await;
        waited.with_context(|| format!("{name} never has the value waited for"))?
    }

    /// `GET path`: status and body.
    ///
    /// # Errors
    /// Where there is no HTTP answer.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: tail\r\nConnection: close\r\n\r\n");
        let answer = exchange(self.address, request.as_bytes()).await?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
        Ok((
            http_status(head.as_bytes()).context("a status")?,
            body.to_owned(),
        ))
    }
}

/// Sends bytes as they are, and reads to the end of the connection. A reset counts as its end.
///
/// # Errors
/// Where nobody listens, or the connection is kept.
pub async fn exchange(address: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    let mut answer = Vec::new();
    let exchange = async {
        stream.write_all(bytes).await?;
        stream.read_to_end(&mut answer).await
    };
    let ended = timeout(PATIENCE, exchange).await;
    // What came before a reset is the answer.
    let _ = ended.context("the connection is kept")?;
    Ok(answer)
}

/// The status of an HTTP answer, if it is one.
#[must_use]
pub fn http_status(answer: &[u8]) -> Option<u16> {
    let digits = answer.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Reads to the end, whoever listens: a full pipe would stop the server.
async fn read_log(stderr: ChildStderr, log: Arc<Mutex<Log>>, listens: oneshot::Sender<SocketAddr>) {
    let mut listens = Some(listens);
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(address) = line.strip_prefix("listening on ws://")
            && let Ok(address) = address.parse()
            && let Some(listens) = listens.take()
        {
            // Nobody waits any more where the test has ended.
            let _ = listens.send(address);
        }
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        if line.contains("panicked") {
            log.panics.push(line.clone());
        }
        if log.last_lines.len() == LOG_LINES {
            log.last_lines.pop_front();
        }
        log.last_lines.push_back(line);
    }
}

fn last_lines(log: &Mutex<Log>) -> String {
    let log = log.lock().unwrap_or_else(PoisonError::into_inner);
    log.last_lines
        .iter()
        .fold(String::new(), |text, line| text + line + "\n")
}
