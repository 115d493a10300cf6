//! Builds the Go programs of `tests/cluster` and keeps them in the cache folder, by a digest of what they are
//! built from.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Instant, SystemTime};

use anyhow::{Context as _, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::cache_dir;

/// Builds of a program that are kept, the newest: a cluster may still run the one before.
const KEPT_BUILDS: usize = 2;

/// A program, its folder below `tests/cluster` having the same name.
struct Program {
    name: &'static str,
    /// What the version is that of, as `go.mod` requires it; empty for a program of our own.
    module: &'static str,
    package: &'static str,
    /// Linker options for a version such as `v1.36.3`.
    link: fn(&str) -> String,
    /// For the person who waits.
    takes: &'static str,
}

const CONTROLPLANE: Program = Program {
    name: "controlplane",
    module: "k8s.io/kubernetes",
    package: ".",
    link: link_kubernetes,
    takes: "five to ten minutes on two cores",
};

const KWOK: Program = Program {
    name: "kwok",
    module: "sigs.k8s.io/kwok",
    package: "sigs.k8s.io/kwok/cmd/kwok",
    link: |version| {
        let number = version.trim_start_matches('v');
        format!("-X sigs.k8s.io/kwok/pkg/consts.Version={number}")
    },
    takes: "a minute or two",
};

const HELM: Program = Program {
    name: "helm",
    module: "helm.sh/helm/v4",
    package: "helm.sh/helm/v4/cmd/helm",
    link: |version| format!("-X helm.sh/helm/v4/internal/version.version={version}"),
    takes: "a minute or two",
};

const DNS: Program = Program {
    name: "dns",
    module: "github.com/coredns/coredns",
    package: ".",
    link: |_| String::new(),
    takes: "a minute or two",
};

const PAUSE: Program = Program {
    name: "pause",
    module: "",
    package: ".",
    link: |_| String::new(),
    takes: "a few seconds",
};

/// The rig: `headway-cluster`, which is etcd, the API server, controller manager, scheduler, kubelet, kube-proxy and kubectl as well.
///
/// # Errors
/// Where Go is missing or too old, or the build fails.
pub fn controlplane() -> anyhow::Result<PathBuf> {
    CONTROLPLANE.built()
}

/// kwok, which plays nodes and their pods.
///
/// # Errors
/// As [`controlplane`].
pub fn kwok() -> anyhow::Result<PathBuf> {
    KWOK.built()
}

/// helm.
///
/// # Errors
/// As [`controlplane`].
pub fn helm() -> anyhow::Result<PathBuf> {
    HELM.built()
}

/// CoreDNS, which answers for names of services on a real node.
///
/// # Errors
/// As [`controlplane`].
pub fn dns() -> anyhow::Result<PathBuf> {
    DNS.built()
}

/// What holds the namespaces of pods on a real node.
///
/// # Errors
/// As [`controlplane`].
pub fn pause() -> anyhow::Result<PathBuf> {
    PAUSE.built()
}

/// The version of Kubernetes, such as `v1.36.3`.
///
/// # Errors
/// Where `go.mod` does not say.
pub fn kubernetes_version() -> anyhow::Result<String> {
    CONTROLPLANE.version()
}

/// The version of helm.
///
/// # Errors
/// Where `go.mod` does not say.
pub fn helm_version() -> anyhow::Result<String> {
    HELM.version()
}

/// Checks that Go is there and new enough for the module in `folder`, and returns its version.
///
/// # Errors
/// Where it is not; the message says what to do.
pub fn go(folder: &Path) -> anyhow::Result<String> {
    let go_mod = read_go_mod(folder)?;
    let needed = go_mod
        .lines()
        .find_map(|line| line.strip_prefix("go "))
        .with_context(|| format!("{}/go.mod names no Go version", folder.display()))?;
    let needed = minor_version(needed).context("the Go version in go.mod")?;
    let advice = format!("install Go {}.{} or newer", needed.0, needed.1);
    let output = Command::new("go")
        .args(["env", "GOVERSION"])
        // Go would otherwise download another one, or fail, because of a go.mod.
        .env("GOTOOLCHAIN", "local")
        .current_dir("/")
        .output();
    let Ok(output) = output else {
        bail!("the cluster for tests is built with Go, which is not in PATH: {advice}");
    };
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let found = version.rsplit("go").next().and_then(minor_version);
    ensure!(
        found.is_some_and(|found| found >= needed),
        "Go is {version:?}: {advice}"
    );
    Ok(version)
}

impl Program {
    /// The path of the program, built now if it is not in the cache.
    fn built(&self) -> anyhow::Result<PathBuf> {
        let folder = self.folder();
        let go_version = go(&folder)?;
        let arguments = self.build_arguments()?;
        let digest = digest(&folder, &go_version, &arguments)?;
        let cache = cache_dir().join("cluster");
        let program = cache.join(format!("{}-{digest}", self.name));
        if program.is_file() {
            return Ok(program);
        }
        fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
        // One build at a time, of whatever program: each takes all cores.
        let lock = File::create(cache.join("build.lock")).context("creating the build lock")?;
        lock.lock().context("waiting for another build")?;
        // Another process may have built it meanwhile.
        if !program.is_file() {
            self.build(&folder, &arguments, &program)?;
            self.remove_old_builds(&cache)?;
        }
        Ok(program)
    }

    fn build(&self, folder: &Path, arguments: &[String], program: &Path) -> anyhow::Result<()> {
        say(&format!(
            "building {} {}, once; this takes {}",
            self.name,
            self.version()?,
            self.takes
        ));
        let started = Instant::now();
        let partial = program.with_extension("partial");
        let status = build_command(folder, arguments, &partial)
            .status()
            .with_context(|| format!("running go build for {}", self.name))?;
        ensure_built(status, self.name)?;
        fs::rename(&partial, program)
            .with_context(|| format!("renaming to {}", program.display()))?;
        let seconds = started.elapsed().as_secs();
        say(&format!("built {} in {seconds} s", self.name));
        Ok(())
    }

    fn build_arguments(&self) -> anyhow::Result<Vec<String>> {
        let link = format!("-s -w {}", (self.link)(&self.version()?));
        let arguments = [
            "-trimpath",
            "-buildvcs=false",
            "-ldflags",
            &link,
            self.package,
        ];
        Ok(arguments.map(str::to_owned).to_vec())
    }

    /// What `go.mod` requires: the one place where a version is written.
    fn version(&self) -> anyhow::Result<String> {
        if self.module.is_empty() {
            return Ok("of this repository".to_owned());
        }
        let go_mod = read_go_mod(&self.folder())?;
        let version = go_mod.lines().find_map(|line| {
            let line = line.trim().trim_start_matches("require ");
            line.strip_prefix(self.module)?
                .strip_prefix(" v")?
                .split_whitespace()
                .next()
        });
        let version = version.with_context(|| format!("{} in go.mod", self.module))?;
        Ok(format!("v{version}"))
    }

    fn folder(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(self.name)
    }

    fn remove_old_builds(&self, cache: &Path) -> anyhow::Result<()> {
        let mut builds: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(cache).context("looking for old builds")? {
            let entry = entry.context("looking for old builds")?;
            let name = entry.file_name();
            let is_ours = name
                .to_str()
                .and_then(|name| name.strip_prefix(self.name))
                .is_some_and(|rest| rest.starts_with('-'));
            if is_ours {
                builds.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        builds.sort();
        for (_, path) in builds.iter().rev().skip(KEPT_BUILDS) {
            fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
        }
        Ok(())
    }
}

fn build_command(folder: &Path, arguments: &[String], output: &Path) -> Command {
    let mut command = Command::new("go");
    command
        .args(["build", "-o"])
        .arg(output)
        .args(arguments)
        .current_dir(folder)
        .env("CGO_ENABLED", "0")
        .env("GOTOOLCHAIN", "local")
        // Only what go.mod and go.sum say, whatever the user has set.
        .env("GOFLAGS", "-mod=readonly")
        .env("GOWORK", "off")
        .env_remove("GOOS")
        .env_remove("GOARCH");
    command
}

fn ensure_built(status: ExitStatus, name: &str) -> anyhow::Result<()> {
    ensure!(
        status.success(),
        "go build of {name} failed ({status}); what it needs is downloaded at the first build"
    );
    Ok(())
}

fn link_kubernetes(version: &str) -> String {
    let mut numbers = version.trim_start_matches('v').split('.');
    let major = numbers.next().unwrap_or_default();
    let minor = numbers.next().unwrap_or_default();
    // Without these, the programs say that they are of v0.0.0-master.
    let link = |package: &str| {
        format!(
            "-X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
        )
    };
    let server = link("k8s.io/component-base/version");
    let client = link("k8s.io/client-go/pkg/version");
    format!("{server} {client}")
}

/// The first 16 hexadecimal digits of the digest over everything that the build depends on.
fn digest(folder: &Path, go_version: &str, arguments: &[String]) -> anyhow::Result<String> {
    let mut hasher = Sha256::new();
    let mut update = |bytes: &[u8]| {
        // The length keeps what follows from being taken for a part of it.
        hasher.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes());
        hasher.update(bytes);
    };
    update(go_version.as_bytes());
    for argument in arguments {
        update(argument.as_bytes());
    }
    for path in files(folder)? {
        let name = path.strip_prefix(folder).unwrap_or(&path);
        update(name.as_os_str().as_encoded_bytes());
        update(&fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
    }
    let digest = hasher.finalize();
    Ok(digest[..8]
        .iter()
        .fold(String::new(), |text, byte| format!("{text}{byte:02x}")))
}

/// Every file of the folder, those of folders in it included, in a fixed order.
fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in
            fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?
        {
            let entry = entry.with_context(|| format!("reading {}", folder.display()))?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if is_source(&entry.file_name()) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Leaves out what editors put beside.
fn is_source(name: &OsString) -> bool {
    let extension = Path::new(name).extension().and_then(|end| end.to_str());
    matches!(
        extension,
        Some("go" | "mod" | "sum" | "yaml" | "toml" | "conflist" | "conf" | "corefile")
    )
}

fn read_go_mod(folder: &Path) -> anyhow::Result<String> {
    let path = folder.join("go.mod");
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// `1.26.8` is (1, 26).
fn minor_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim().split(|sign: char| !sign.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[expect(
    clippy::print_stderr,
    reason = "a person waits; a test's own output is captured"
)]
pub(super) fn say(line: &str) {
    eprintln!("{line}");
}
