//! `cargo xtask cluster`: a Kubernetes cluster in the background, for development. Tests start their own.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process;

use anyhow::{Context as _, bail};
use cluster_rig::{crds, node, programs};

use crate::paths::cache_dir;

/// As many as tests have.
const FAKE_NODES: usize = 3;

/// What to do with the cluster.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Starts it, with fake nodes and the definitions that tests use, and prints the path of its kubeconfig.
    Up {
        /// Number of fake nodes, on which pods become ready at once [default: 3, or 0 with --node].
        #[arg(long)]
        nodes: Option<usize>,
        /// A real node, on which pods run. Takes root, and Debian's containerd, runc, containernetworking-plugins
        /// and nftables.
        #[arg(long)]
        node: bool,
        /// A folder that pods on the real node find as a hostPath, /var/lib/headway-models.
        #[arg(long, requires = "node")]
        share: Option<PathBuf>,
    },
    /// Gives an image to the real node.
    Import {
        /// An archive such as those of `cargo xtask images`.
        archive: PathBuf,
    },
    /// Ends it and removes everything that was in it.
    Down,
    /// One line for each component.
    Status,
    /// Prints the path of the administrator's kubeconfig.
    Kubeconfig,
    /// Stops a component and starts it again.
    Restart {
        /// Such as kube-apiserver.
        component: String,
    },
    /// Runs kubectl.
    Kubectl {
        /// What follows is kubectl's.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

/// Runs the rig's own command of the same name in place of this process.
pub fn run(command: &Command) -> anyhow::Result<()> {
    let program = programs::controlplane()?;
    let mut rig = process::Command::new(program);
    match command {
        Command::Up { nodes, node, share } => {
            let nodes = nodes.unwrap_or(if *node { 0 } else { FAKE_NODES });
            rig.arg("up").arg("--nodes").arg(nodes.to_string());
            if *node {
                if let Some(obstacle) = node::obstacle()? {
                    bail!(obstacle);
                }
                rig.args(node::arguments(share.as_deref())?);
            }
            if nodes > 0 {
                rig.arg("--kwok").arg(programs::kwok()?);
            }
            for path in crds::paths()? {
                rig.arg("--crds").arg(path);
            }
        }
        Command::Import { archive } => _ = rig.arg("import").arg(archive),
        Command::Down => _ = rig.arg("down"),
        Command::Status => _ = rig.arg("status"),
        Command::Kubeconfig => _ = rig.arg("kubeconfig"),
        Command::Restart { component } => _ = rig.args(["restart", component]),
        Command::Kubectl { arguments } => {
            rig.arg("kubectl").args(arguments);
            rig.env("KUBECONFIG", running().join("kubeconfig"));
            // Not the user's own; and each cluster has another port, so theirs would only grow.
            rig.env("KUBECACHEDIR", cache_dir().join("cluster/kubectl"));
        }
    }
    if !matches!(command, Command::Kubectl { .. }) {
        rig.arg("--dir").arg(running());
    }
    // Its exit status and its signals are ours.
    Err(rig.exec()).context("running the cluster's program")
}

/// The directory of the one cluster for development.
fn running() -> PathBuf {
    cache_dir().join("cluster/running")
}
