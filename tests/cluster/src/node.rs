//! What a real node needs besides the control plane: root, Debian's container runtime, and the image of sandboxes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use headway_images::recipe;

use crate::programs;

/// Where pods find the shared folder, as a hostPath.
pub const SHARED_FOLDER: &str = "/var/lib/headway-models";

/// As `controlplane/config/node/containerd.toml` names it.
const PAUSE_IMAGE: &str = "headway.test/pause:1";

/// What keeps this machine from having a real node, in a sentence; None where nothing does.
///
/// # Errors
/// Where the rig cannot be built.
pub fn obstacle() -> anyhow::Result<Option<String>> {
    let output = Command::new(programs::controlplane()?)
        .arg("check-node")
        .output()
        .context("asking the rig whether a real node can run")?;
    if output.status.success() {
        return Ok(None);
    }
    let reason = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if reason.is_empty() {
        bail!(
            "check-node failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(Some(reason))
}

/// The rig's arguments for a real node.
///
/// # Errors
/// Where the image of sandboxes cannot be made.
pub fn arguments(share: Option<&Path>) -> anyhow::Result<Vec<OsString>> {
    let mut arguments = vec!["--node".into(), "--pause".into(), pause_archive()?.into()];
    arguments.extend(["--dns".into(), programs::dns()?.into()]);
    if let Some(share) = share {
        arguments.extend(["--share".into(), share.into()]);
    }
    Ok(arguments)
}

/// The archive lies beside the program, under the same digest.
fn pause_archive() -> anyhow::Result<PathBuf> {
    let program = programs::pause()?;
    let archive = program.with_extension("tar");
    if !archive.is_file() {
        recipe::of_static_program(PAUSE_IMAGE.to_owned(), &program)?.write_archive(&archive)?;
    }
    Ok(archive)
}
