//! A `tail-server` process under load: with TLS or without, measured from outside, and killed.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::credentials::Credentials;
use super::link::Link;
use super::scrape::Scrape;
use super::usage::Usage;
use crate::program::program;
use crate::{PATIENCE, artifact_cache_dir};

/// Lines of the log that are kept for a message.
const LOG_LINES: usize = 100;

/// What a tail's log has said.
#[derive(Default)]
struct Log {
    last_lines: VecDeque<String>,
    panics: Vec<String>,
}

/// A running tail; killed when dropped.
pub struct Server {
    child: Child,
    address: SocketAddr,
    link: Link,
    log: Arc<Mutex<Log>>,
}

impl Server {
    /// Starts a tail on a free port of loopback and waits until it listens. With `credentials` it speaks TLS
    /// and asks for tokens.
    ///
    /// # Errors
    /// Where it ends instead; the message holds its log.
    pub async fn start(
        model: &Path,
        options: &[String],
        credentials: Option<&Credentials>,
    ) -> Result<Self> {
        Self::start_on((Ipv4Addr::LOCALHOST, 0).into(), model, options, credentials).await
    }

    /// As [`Server::start`], on an address that a killed one may have had before it.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn start_on(
        listen: SocketAddr,
        model: &Path,
        options: &[String],
        credentials: Option<&Credentials>,
    ) -> Result<Self> {
        let mut child = Command::new(program("tail-server"))
            .arg("--model")
            .arg(model)
            .args(["--listen", &listen.to_string(), "--cache-dir"])
            .arg(artifact_cache_dir())
            .args(options)
            .args(credentials.map_or_else(Vec::new, Credentials::tail_options))
            // Thousands of refusals a minute are no news here; what goes wrong inside is.
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting tail-server")?;
        let stderr = child.stderr.take().context("tail-server has a stderr")?;
        let log = Arc::new(Mutex::new(Log::default()));
        let (listens, listening) = oneshot::channel();
        tokio::spawn(read_log(stderr, Arc::clone(&log), listens));
        let address = match timeout(PATIENCE, listening).await {
            Ok(Ok(address)) => address,
            Ok(Err(_)) => bail!("tail-server ended:\n{}", last_lines(&log)),
            Err(_) => bail!("tail-server did not listen in time:\n{}", last_lines(&log)),
        };
        let link = match credentials {
            None => Link::plain(address),
            Some(credentials) => Link::with_tls(address, &credentials.ca_file())?,
        };
        Ok(Self {
            child,
            address,
            link,
            log,
        })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// How devices reach it.
    #[must_use]
    pub const fn link(&self) -> &Link {
        &self.link
    }

    /// What it has used and holds.
    ///
    /// # Errors
    /// Where it has ended; the message holds the end of its log.
    pub fn usage(&self) -> Result<Usage> {
        let id = self.child.id();
        id.context("the process has no id any more")
            .and_then(Usage::of)
            .with_context(|| format!("the tail has ended:\n{}", last_lines(&self.log)))
    }

    /// Its metrics.
    ///
    /// # Errors
    /// Where it does not answer.
    pub async fn scrape(&self) -> Result<Scrape> {
        scrape(&self.link).await
    }

    /// The digest of the model that it serves.
    ///
    /// # Errors
    /// Where it does not answer with a manifest.
    pub async fn model_digest(&self, token: Option<&str>) -> Result<String> {
        #[derive(Deserialize)]
        struct Served {
            model_digest: String,
        }
        let (status, body) = self.link.fetch("/v1/model", token).await?;
        ensure!(status == 200, "/v1/model answers {status}");
        let served: Served = serde_json::from_str(&body).context("a manifest")?;
        Ok(served.model_digest)
    }

    /// Lines of the log that speak of a panic.
    #[must_use]
    pub fn panics(&self) -> Vec<String> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.panics.clone()
    }

    /// Ends the process at once, as a lost node does, and waits until its port is free.
    ///
    /// # Errors
    /// Where the system refuses.
    pub async fn kill(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }
}

/// The metrics of the tail at `link`.
///
/// # Errors
/// Where it does not answer.
pub async fn scrape(link: &Link) -> Result<Scrape> {
    let (status, text) = link.fetch("/metrics", None).await?;
    ensure!(status == 200, "/metrics answers {status}");
    Ok(Scrape::parse(&text))
}

/// Reads to the end, whoever listens: a full pipe would stop the server.
async fn read_log(stderr: ChildStderr, log: Arc<Mutex<Log>>, listens: oneshot::Sender<SocketAddr>) {
    let mut listens = Some(listens);
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let said = line.strip_prefix("listening on ");
        let address = said.and_then(|url| url.split_once("://"));
        if let Some(Ok(address)) = address.map(|(_, address)| address.parse())
            && let Some(listens) = listens.take()
        {
            // Nobody waits any more where the start has been given up.
            let _ = listens.send(address);
        }
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        if line.contains("panicked") && log.panics.len() < LOG_LINES {
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
