//! `cargo xtask cluster`: a Kubernetes cluster in the background, for development. Tests start their own.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process;

use anyhow::Context as _;
use cluster_rig::{crds, programs};

use crate::paths::cache_dir;

/// What to do with the cluster.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Starts it, with fake nodes and the definitions that tests use, and prints the path of its kubeconfig.
    Up {
        /// Number of fake nodes, on which pods become ready at once.
        #[arg(long, default_value_t = 3)]
        nodes: usize,
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
        Command::Up { nodes } => {
            rig.arg("up").arg("--nodes").arg(nodes.to_string());
            if *nodes > 0 {
                rig.arg("--kwok").arg(programs::kwok()?);
            }
            for path in crds::paths()? {
                rig.arg("--crds").arg(path);
            }
        }
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
