//! What is in an image. There is no distribution in it: the program, the libraries that it maps, certificate
//! authorities, licences, and the few files of `/etc` that its C library looks for.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use crate::archive::Image;
use crate::libraries;
use crate::tree::Tree;

/// Not root, and the user that the chart and the operator name in pods.
const USER: u32 = 65_532;

/// Where this machine may have the certificate authorities, and where programs look for them in the image.
const AUTHORITIES: [&str; 2] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
];

/// Licences of what comes from the distribution, as Debian has them.
const LIBRARY_LICENCES: [&str; 2] = ["libc6", "libgcc-s1"];

/// A program that has an image.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Last word of the image's name.
    pub name: &'static str,
    /// File name of the program as cargo builds it.
    pub program: &'static str,
    description: &'static str,
}

/// The operator and the tail.
pub const PARTS: [Part; 2] = [
    Part {
        name: "operator",
        program: "headway-operator",
        description: "Keeps the objects that serve each SplitModel.",
    },
    Part {
        name: "tail-server",
        program: "tail-server",
        description: "Runs the tail layers of a split language model.",
    },
];

impl Part {
    /// The image `name` of the program at `program`, which is stripped of what only a debugger reads. `licence` is
    /// the repository's, `version` the workspace's.
    ///
    /// # Errors
    /// Where a file is missing on this machine.
    pub fn image(
        &self,
        name: String,
        program: &Path,
        licence: &Path,
        version: &str,
    ) -> anyhow::Result<Image> {
        let mut tree = Tree::default();
        let entrypoint = format!("/usr/bin/{}", self.program);
        tree.file(&entrypoint, 0o755, stripped(program)?)?;
        for path in libraries::of(program)? {
            let text = path.to_str().context("a path in UTF-8")?;
            tree.file(text, 0o755, read(&path)?)?;
        }
        tree.file(AUTHORITIES[0], 0o644, authorities()?)?;
        let user = format!("root:x:0:0::/:/\nheadway:x:{USER}:{USER}::/:/\n");
        tree.file("/etc/passwd", 0o644, user.into_bytes())?;
        let group = format!("root:x:0:\nheadway:x:{USER}:\n");
        tree.file("/etc/group", 0o644, group.into_bytes())?;
        tree.file("/etc/nsswitch.conf", 0o644, b"hosts: files dns\n".to_vec())?;
        tree.folder("/tmp", 0o1777)?;
        tree.file("/usr/share/licenses/headway", 0o644, read(licence)?)?;
        for package in LIBRARY_LICENCES {
            let path = PathBuf::from(format!("/usr/share/doc/{package}/copyright"));
            if path.is_file() {
                let inside = format!("/usr/share/licenses/{package}");
                tree.file(&inside, 0o644, read(&path)?)?;
            }
        }
        let label =
            |key: &str, value: &str| (format!("org.opencontainers.image.{key}"), value.to_owned());
        Ok(Image {
            name,
            entrypoint,
            user: USER,
            labels: BTreeMap::from([
                label("title", &format!("headway {}", self.name)),
                label("description", self.description),
                label("licenses", "Apache-2.0"),
                label("version", version),
            ]),
            tree,
        })
    }
}

/// The image of a single static program, such as the one that holds a pod's namespaces.
///
/// # Errors
/// Where the program cannot be read, or is not static.
pub fn of_static_program(name: String, program: &Path) -> anyhow::Result<Image> {
    let needs = libraries::of(program)?;
    ensure!(
        needs.is_empty(),
        "{} is not static: it needs {needs:?}",
        program.display()
    );
    let mut tree = Tree::default();
    let entrypoint = "/program".to_owned();
    tree.file(&entrypoint, 0o755, read(program)?)?;
    Ok(Image {
        name,
        entrypoint,
        user: USER,
        labels: BTreeMap::new(),
        tree,
    })
}

/// The program without symbols: three quarters of the file are.
fn stripped(program: &Path) -> anyhow::Result<Vec<u8>> {
    let copy = tempfile::NamedTempFile::new().context("making a temporary file")?;
    let output = Command::new("strip")
        .arg("-o")
        .arg(copy.path())
        .arg(program)
        .output()
        .context("running strip, of the package binutils")?;
    ensure!(
        output.status.success(),
        "strip {}: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    read(copy.path())
}

fn authorities() -> anyhow::Result<Vec<u8>> {
    for path in AUTHORITIES {
        if let Ok(content) = fs::read(path) {
            return Ok(content);
        }
    }
    bail!("this machine has no certificate authorities in {AUTHORITIES:?}; install ca-certificates")
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}
