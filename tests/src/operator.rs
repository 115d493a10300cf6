//! A `headway-operator` in a process of its own, with the permissions that the Helm chart gives it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::{Api, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::PATIENCE;
use crate::program::program;
use crate::tail::{exchange, http_status};
use cluster_rig::Cluster;

/// The Helm release, and the namespace it is installed into.
pub const NAMESPACE: &str = "headway-system";
const RELEASE: &str = "headway";
/// Lines of the log that are kept for a message, and how long they may be.
const LOG_LINES: usize = 60;
const LOG_LINE_CHARS: usize = 400;
/// A token lasts as long as any run.
const TOKEN_SECONDS: i64 = 7200;

/// The chart as installed: definition, account and roles. Its Deployment has no replicas.
pub struct Installation {
    account: String,
    token: String,
    /// Of the administrator, for the address of the API server and its certificate authority.
    kubeconfig: Kubeconfig,
    dir: tempfile::TempDir,
}

impl Installation {
    /// Installs the chart and asks for a token of its account.
    ///
    /// # Errors
    /// Where helm fails, or the chart binds no account.
    pub async fn new(cluster: &Cluster) -> Result<Self> {
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/headway");
        let chart = chart.to_str().context("a path in UTF-8")?;
        let mut helm = Command::from(cluster.helm(&[
            "upgrade",
            "--install",
            RELEASE,
            chart,
            "--namespace",
            NAMESPACE,
            "--create-namespace",
            "--set",
            "replicas=0",
        ])?);
        let output = helm.output().await.context("running helm")?;
        ensure!(
            output.status.success(),
            "helm upgrade --install: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig())?;
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig.clone(), &options).await?;
        let client = Client::try_from(config)?;
        let account = bound_account(&client).await?;
        let token = request_token(&client, &account).await?;
        Ok(Self {
            account,
            token,
            kubeconfig,
            dir: tempfile::tempdir()?,
        })
    }

    /// Name of the operator's ServiceAccount.
    #[must_use]
    pub fn account(&self) -> &str {
        &self.account
    }

    /// The operator as audit logs call it.
    #[must_use]
    pub fn user(&self) -> String {
        format!("system:serviceaccount:{NAMESPACE}:{}", self.account)
    }

    /// Writes a kubeconfig for an operator: with the account's token, and for the API server or for a proxy in
    /// front of it.
    fn write_kubeconfig(&self, identity: &str, proxy: Option<&str>) -> Result<PathBuf> {
        let mut kubeconfig = serde_json::to_value(&self.kubeconfig)?;
        let cluster = &mut kubeconfig["clusters"][0]["cluster"];
        if let Some(proxy) = proxy {
            *cluster = json!({"server": proxy});
        }
        kubeconfig["users"] = json!([{"name": "operator", "user": {"token": self.token}}]);
        kubeconfig["contexts"][0]["context"]["user"] = "operator".into();
        let path = self.dir.path().join(identity);
        std::fs::write(&path, kubeconfig.to_string())?;
        Ok(path)
    }
}

/// The account in [`NAMESPACE`] that the chart binds a cluster role to.
async fn bound_account(client: &Client) -> Result<String> {
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    let of_release = format!("app.kubernetes.io/instance={RELEASE}");
    let bindings = bindings
        .list(&ListParams::default().labels(&of_release))
        .await?;
    let mut subjects = bindings
        .items
        .into_iter()
        .flat_map(|binding| binding.subjects.unwrap_or_default());
    let account = subjects.find(|subject| {
        subject.kind == "ServiceAccount" && subject.namespace.as_deref() == Some(NAMESPACE)
    });
    Ok(account.context("the chart binds no ServiceAccount")?.name)
}

async fn request_token(client: &Client, account: &str) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            expiration_seconds: Some(TOKEN_SECONDS),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await?;
    Ok(answer.status.context("a token")?.token)
}

/// How to start an operator.
#[derive(Clone, Copy, Debug)]
pub struct OperatorOptions<'a> {
    /// Its identity among those that want to lead.
    pub identity: &'a str,
    /// URL of a proxy in front of the API server.
    pub proxy: Option<&'a str>,
    /// URL of a collector of traces.
    pub otlp_endpoint: Option<&'a str>,
    /// Between two times that it asks tails; 0 for none, where pods have made-up addresses.
    pub scrape_seconds: u16,
    /// Where it says that it answers for models that sleep; it listens on all addresses.
    pub wake_address: Option<&'a str>,
}

/// A running operator; killed when dropped.
pub struct Operator {
    child: Child,
    address: SocketAddr,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    last_lines: Mutex<VecDeque<String>>,
    address: watch::Sender<Option<SocketAddr>>,
}

impl Operator {
    /// Starts an operator on a free port of loopback and waits until it is ready.
    ///
    /// # Errors
    /// Where it ends instead; the message holds its log.
    pub async fn start(installation: &Installation, options: OperatorOptions<'_>) -> Result<Self> {
        let kubeconfig = installation.write_kubeconfig(options.identity, options.proxy)?;
        let otlp = options.otlp_endpoint.map(|url| ["--otlp-endpoint", url]);
        let wake = options.wake_address.map(|ip| ["--wake-address", ip]);
        let mut child = Command::new(program("headway-operator"))
            .args(otlp.into_iter().flatten())
            .args(wake.into_iter().flatten())
            .args(["--tail-image", "headway-tail-server:test"])
            .args(["--listen", "127.0.0.1:0"])
            .args(["--lease-name", RELEASE, "--lease-namespace", NAMESPACE])
            .args(["--identity", options.identity])
            .args(["--scrape-seconds", &options.scrape_seconds.to_string()])
            .args(["--log-format", "text"])
            .arg("--pod-monitors")
            // The log goes into the test's message.
            .args(["--log-filter", "info,headway_operator=debug"])
            .env("KUBECONFIG", kubeconfig)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting headway-operator")?;
        let log = Arc::new(Log::default());
        let mut listens = log.address.subscribe();
        let stdout = child
            .stdout
            .take()
            .context("headway-operator has a stdout")?;
        let stderr = child
            .stderr
            .take()
            .context("headway-operator has a stderr")?;
        tokio::spawn(read_log(stdout, Arc::clone(&log)));
        tokio::spawn(read_log(stderr, Arc::clone(&log)));
        let address = tokio::select! {
            listens = timeout(PATIENCE, listens.wait_for(Option::is_some)) => match listens {
                Ok(Ok(address)) => *address,
                _ => None,
            },
            _ = child.wait() => None,
        };
        let Some(address) = address else {
            bail!("headway-operator does not listen:\n{}", log.text());
        };
        Ok(Self {
            child,
            address,
            log,
        })
    }

    /// Ends the process at once, as a lost node does, and waits until it is gone.
    ///
    /// # Errors
    /// Where the system refuses.
    pub async fn kill(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Asks the process to leave with SIGTERM, and waits until it has.
    ///
    /// # Errors
    /// Where it does not.
    pub async fn terminate(self) -> Result<ExitStatus> {
        kill(self.pid()?, Signal::SIGTERM)?;
        self.ended().await
    }

    /// Waits until the process has ended.
    ///
    /// # Errors
    /// Where it does not.
    pub async fn ended(mut self) -> Result<ExitStatus> {
        let ended = timeout(PATIENCE, self.child.wait()).await;
        Ok(ended.with_context(|| format!("still running:\n{}", self.log()))??)
    }

    /// The process id.
    ///
    /// # Errors
    /// Where the process has ended.
    pub fn pid(&self) -> Result<Pid> {
        let id = self.child.id().context("headway-operator has ended")?;
        Ok(Pid::from_raw(i32::try_from(id)?))
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// `GET path`: status and body.
    ///
    /// # Errors
    /// Where there is no HTTP answer.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: operator\r\nConnection: close\r\n\r\n");
        let answer = exchange(self.address, request.as_bytes()).await?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
        let status = http_status(head.as_bytes()).context("a status")?;
        Ok((status, body.to_owned()))
    }

    /// The sum of a metric's values over those of its series whose labels hold `labels`, such as `verb="apply"`;
    /// 0 where there is none.
    ///
    /// # Errors
    /// Where `/metrics` cannot be read.
    pub async fn metric(&self, name: &str, labels: &str) -> Result<f64> {
        let (status, text) = self.get("/metrics").await?;
        ensure!(status == 200, "/metrics answers {status}");
        let values = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let given = series.strip_prefix(name)?;
            let is_wanted = given.is_empty() || given.starts_with('{');
            (is_wanted && given.contains(labels)).then(|| value.parse::<f64>().ok())?
        });
        Ok(values.sum())
    }
}

impl Log {
    fn text(&self) -> String {
        let lines = self
            .last_lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        lines
            .iter()
            .fold(String::new(), |text, line| text + line + "\n")
    }
}

/// Reads to the end, whoever listens: a full pipe would stop the operator.
async fn read_log(pipe: impl AsyncRead + Unpin, log: Arc<Log>) {
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some((_, rest)) = line.split_once("listening")
            && let Some(address) = rest
                .split(['=', ' ', '"', '/'])
                .find_map(|word| word.parse().ok())
        {
            log.address.send_replace(Some(address));
        }
        let mut last_lines = log
            .last_lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if last_lines.len() == LOG_LINES {
            last_lines.pop_front();
        }
        last_lines.push_back(line.chars().take(LOG_LINE_CHARS).collect());
    }
}
