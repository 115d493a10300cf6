//! A real Kubernetes control plane for tests, without Docker: `tests/cluster/README.md` says what runs in it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

pub mod crds;
pub mod node;
pub mod programs;

/// Set to `1`, it makes tests use the cluster that `KUBECONFIG` names; `cargo xtask test --existing` sets it.
pub const EXISTING_VARIABLE: &str = "HEADWAY_TEST_EXISTING";

/// Where the commands of this repository keep what they built.
fn cache_dir() -> PathBuf {
    dirs::cache_dir()
        .unwrap_or_else(std::env::temp_dir)
        .join("headway")
}

/// How long a cluster may take to start; it takes about six seconds.
const START_TIMEOUT: Duration = Duration::from_secs(180);

/// How long its supervisor may take to end; it gives each component three seconds.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// What a cluster of one's own has in it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Number of fake nodes, on which pods become ready and end at once. At most 1,000.
    pub nodes: usize,
    /// Whether the definitions of [`crds::paths`] are installed.
    pub crds: bool,
}

/// A cluster without nodes and definitions.
const BARE: Options = Options {
    nodes: 0,
    crds: false,
};

/// A cluster that tests may fill and, where it is their own, disturb. One's own ends when this is dropped, and
/// also when the process dies.
pub struct Cluster {
    kubeconfig: PathBuf,
    /// For the caches of kubectl and helm.
    scratch: PathBuf,
    /// The rig's program, which is kubectl, too.
    controlplane: PathBuf,
    /// None where the cluster is not ours.
    supervisor: Option<Supervisor>,
}

/// The cluster that the tests of one binary share: three nodes and all definitions, or the existing one.
/// Each test takes a namespace of its own.
///
/// # Panics
/// Where it cannot be started; the message says why.
pub fn shared() -> &'static Cluster {
    // Never dropped: it ends because the pipe to its supervisor closes with the process.
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| {
        let cluster = match existing() {
            Some(kubeconfig) => Cluster::at(kubeconfig),
            None => Cluster::start(Options {
                nodes: 3,
                crds: true,
            }),
        };
        cluster.unwrap_or_else(|error| panic!("the cluster for tests: {error:#}"))
    })
}

/// The kubeconfig of the cluster that tests were told to use.
#[must_use]
pub fn existing() -> Option<PathBuf> {
    let asked = std::env::var_os(EXISTING_VARIABLE).is_some_and(|value| value == "1");
    let kubeconfig = std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty());
    asked.then_some(())?;
    let kubeconfig = kubeconfig.unwrap_or_else(|| {
        panic!("{EXISTING_VARIABLE}=1 needs KUBECONFIG, which says which cluster that is")
    });
    Some(kubeconfig.into())
}

impl Cluster {
    /// Starts a cluster of one's own and waits until it can be used.
    ///
    /// # Errors
    /// Where Go is missing, a program cannot be built, or the cluster does not start; the message holds what
    /// the rig said.
    pub fn start(options: Options) -> anyhow::Result<Self> {
        Self::start_with(options, Vec::new())
    }

    /// Starts a cluster of one's own with a single node, which is real: its pods run. `share` is a folder that they
    /// find as a hostPath, [`node::SHARED_FOLDER`]; they run as users who must be allowed to read it.
    ///
    /// # Errors
    /// As [`Cluster::start`], and where this machine cannot have such a node: [`node::obstacle`] says why.
    pub fn start_with_node(share: &Path) -> anyhow::Result<Self> {
        Self::start_with(BARE, node::arguments(Some(share))?)
    }

    fn start_with(options: Options, more: Vec<OsString>) -> anyhow::Result<Self> {
        let controlplane = programs::controlplane()?;
        let supervisor = Supervisor::start(&controlplane, options, &more)?;
        Ok(Self {
            kubeconfig: supervisor.dir.join("kubeconfig"),
            scratch: supervisor.dir.join("scratch"),
            controlplane,
            supervisor: Some(supervisor),
        })
    }

    /// Uses a cluster that is not ours.
    ///
    /// # Errors
    /// Where kubectl cannot be built.
    pub fn at(kubeconfig: PathBuf) -> anyhow::Result<Self> {
        Ok(Self {
            kubeconfig,
            scratch: cache_dir().join("cluster/existing"),
            controlplane: programs::controlplane()?,
            supervisor: None,
        })
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Whether this process started it, so that its components may be stopped and its audit log read.
    #[must_use]
    pub const fn is_ours(&self) -> bool {
        self.supervisor.is_some()
    }

    /// Whether a test that needs a cluster of our own must be skipped; says so if it must.
    #[must_use]
    pub fn skips(&self, needs: &str) -> bool {
        if !self.is_ours() {
            programs::say(&format!(
                "skipped: it needs {needs}, and KUBECONFIG names a cluster that is not the tests' own"
            ));
        }
        !self.is_ours()
    }

    /// The API server's audit log: one JSON object a line, level Metadata, written before the answer. The
    /// control plane's own reads are not in it.
    ///
    /// # Errors
    /// Where the cluster is not ours.
    pub fn audit_log(&self) -> anyhow::Result<PathBuf> {
        Ok(self.supervisor()?.dir.join("audit.log"))
    }

    /// Stops a component and starts it again, with the same port and certificates; waits until it is healthy.
    /// Components are `etcd`, `kube-apiserver`, `kube-controller-manager`, `kube-scheduler`, `kwok` where there are
    /// fake nodes, and `node` where there is a real one: its restart is that of a machine whose power failed.
    ///
    /// # Errors
    /// Where the cluster is not ours, or the component does not become healthy.
    pub fn restart_component(&self, component: &str) -> anyhow::Result<()> {
        self.supervisor()?
            .order(&self.controlplane, "restart", component)
    }

    /// Stops a component and waits until its process is gone.
    ///
    /// # Errors
    /// Where the cluster is not ours, or the component is stopped already.
    pub fn stop_component(&self, component: &str) -> anyhow::Result<()> {
        self.supervisor()?
            .order(&self.controlplane, "stop", component)
    }

    /// Starts a stopped component and waits until it is healthy.
    ///
    /// # Errors
    /// Where the cluster is not ours, or the component runs already or does not become healthy.
    pub fn start_component(&self, component: &str) -> anyhow::Result<()> {
        self.supervisor()?
            .order(&self.controlplane, "start", component)
    }

    /// Gives the image in an archive to the real node.
    ///
    /// # Errors
    /// Where there is no real node, or the archive is not one.
    pub fn import_image(&self, archive: &Path) -> anyhow::Result<()> {
        let archive = archive.to_str().context("a path in UTF-8")?;
        self.supervisor()?
            .order(&self.controlplane, "import", archive)
    }

    /// kubectl for this cluster.
    #[must_use]
    pub fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.controlplane);
        command.arg("kubectl").args(arguments);
        self.set_environment(&mut command);
        command
    }

    /// helm for this cluster; built at the first use.
    ///
    /// # Errors
    /// Where it cannot be built.
    pub fn helm(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(programs::helm()?);
        command.args(arguments);
        self.set_environment(&mut command);
        Ok(command)
    }

    /// Neither tool reads or writes the user's own settings and caches.
    fn set_environment(&self, command: &mut Command) {
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", self.scratch.join("kubectl"))
            .env("KUBERC", "off")
            .env("HELM_CACHE_HOME", self.scratch.join("helm/cache"))
            .env("HELM_CONFIG_HOME", self.scratch.join("helm/config"))
            .env("HELM_DATA_HOME", self.scratch.join("helm/data"));
    }

    fn supervisor(&self) -> anyhow::Result<&Supervisor> {
        self.supervisor
            .as_ref()
            .context("the cluster that KUBECONFIG names is not the tests' own")
    }
}

/// The rig's process, which runs all others.
struct Supervisor {
    child: Child,
    /// Its end is how the rig learns that we are gone.
    stdin: Option<ChildStdin>,
    /// Disconnected when the rig has ended. The mutex is what lets threads share a cluster.
    ended: Mutex<Receiver<String>>,
    dir: PathBuf,
}

impl Supervisor {
    fn start(controlplane: &Path, options: Options, more: &[OsString]) -> anyhow::Result<Self> {
        let mut command = Command::new(controlplane);
        command.args(["run", "--until-stdin-closes", "--remove-dir"]);
        command.args(more);
        if options.nodes > 0 {
            command.arg("--nodes").arg(options.nodes.to_string());
            command.arg("--kwok").arg(programs::kwok()?);
        }
        if options.crds {
            for path in crds::paths()? {
                command.arg("--crds").arg(path);
            }
        }
        let dir = tempfile::Builder::new()
            .prefix("headway-cluster-")
            .tempdir()
            .context("creating the cluster's directory")?;
        let log_path = dir.path().join("logs/supervisor.log");
        std::fs::create_dir(dir.path().join("logs")).context("creating the rig's log folder")?;
        let log = File::create(&log_path).context("creating the rig's log")?;
        // Opened now: a start that fails removes the directory, but not what is open.
        let mut read_log = File::open(&log_path).context("opening the rig's log")?;
        let mut child = command
            .arg("--dir")
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("starting the cluster's supervisor")?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("the rig has a stdout")?;
        let (sender, lines) = mpsc::sync_channel(1);
        std::thread::spawn(move || forward_lines(stdout, &sender));
        // From here on, dropping it ends the rig.
        let mut supervisor = Self {
            child,
            stdin,
            ended: Mutex::new(lines),
            // From here on it is the rig that removes it: a shared cluster is never dropped.
            dir: dir.keep(),
        };
        let problem = match supervisor.next_line(START_TIMEOUT) {
            Ok(line) if line.starts_with("ready ") => return Ok(supervisor),
            Ok(line) => format!("said {line:?} instead of being ready"),
            Err(RecvTimeoutError::Timeout) => format!("was not ready within {START_TIMEOUT:?}"),
            Err(RecvTimeoutError::Disconnected) => "ended".to_owned(),
        };
        let mut log = String::new();
        read_log
            .read_to_string(&mut log)
            .context("reading the rig's log")?;
        bail!("the cluster {problem}:\n{log}")
    }

    fn next_line(&mut self, timeout: Duration) -> Result<String, RecvTimeoutError> {
        let lines = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        lines.recv_timeout(timeout)
    }

    /// Has the rig do something with a component, and waits until that is done.
    fn order(&self, controlplane: &Path, action: &str, component: &str) -> anyhow::Result<()> {
        let output = Command::new(controlplane)
            .args([action, "--dir"])
            .arg(&self.dir)
            .arg(component)
            .output()
            .with_context(|| format!("asking for {action} of {component}"))?;
        ensure!(
            output.status.success(),
            "{action} {component}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // Asks it to end.
        self.stdin.take();
        if self.next_line(END_TIMEOUT) != Err(RecvTimeoutError::Disconnected) {
            // The kernel kills its components with it.
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
        // It has removed its directory, unless it was killed.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Passes on the first line, then reads to the end, which is that of the process.
fn forward_lines(stdout: ChildStdout, lines: &mpsc::SyncSender<String>) {
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        // Only the first is waited for; the channel is full or closed for others.
        let _ = lines.try_send(line);
    }
}
