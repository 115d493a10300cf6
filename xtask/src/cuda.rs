//! `cargo xtask cuda`: the compiler for the kernels, and building and checking with the feature `cuda`.

use std::path::{Path, PathBuf};
use std::process::Command as Process;

use anyhow::{Context as _, ensure};

use crate::paths::cache_dir;
use crate::processes::cargo;

/// Of the toolkit's packages; `tail-server/cuda/build.rs` looks for the same.
const VERSION: &str = "13.0.2";
/// The compiler and the headers that the kernels include. No library of it is linked.
const EXTRAS: &str = "nvcc,nvvm,crt,cudart,cccl";

/// What to do.
#[derive(Clone, Copy, clap::Subcommand)]
pub enum Command {
    /// Fetches the CUDA compiler (about 300 MB) from the Python package index, once, and prints its folder.
    Toolkit,
    /// Builds cuda-check, which compares a device with the CPU, tail-server and edge-lite.
    Build,
    /// Lints and tests what the feature adds. Where there is no device, comparisons on it are left out, and so are the
    /// server's tests from outside, which run on the CPU without the feature as well.
    Check,
}

/// What tells that there is an NVIDIA driver; the last is the one under Windows.
const DRIVER_FILES: [&str; 3] = ["/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg"];

/// True where this machine may have a device.
pub fn has_driver() -> bool {
    DRIVER_FILES.iter().any(|file| Path::new(file).exists())
}

/// Runs the command; fetches the compiler first where it is not there.
pub fn run(command: Command) -> anyhow::Result<()> {
    let home = toolkit()?;
    // Cargo passes it on to the build script, and builds again where it changes.
    let variable = format!("env.CUDA_HOME={:?}", home.display().to_string());
    let with_cuda = |arguments: &[&str]| {
        let mut all = vec!["--config", &variable];
        all.extend(arguments);
        cargo(&all)
    };
    let packages = [
        "--package",
        "headway-cuda",
        "--package",
        "tail-server",
        "--package",
        "edge-lite",
        "--features",
        "headway-cuda/cuda,tail-server/cuda,edge-lite/cuda",
    ];
    match command {
        Command::Toolkit => {
            println!("{}", home.display());
            Ok(())
        }
        Command::Build => with_cuda(&[&["build", "--release"], &packages[..]].concat()),
        Command::Check => {
            let lints = ["--all-targets", "--", "--deny", "warnings"];
            with_cuda(&[&["clippy", "--release"], &packages[..], &lints].concat())?;
            let inside = ["--lib", "--bins", "--test", "cuda"];
            let tests = if has_driver() { &[][..] } else { &inside };
            with_cuda(&[&["test", "--release"], &packages[..], tests].concat())
        }
    }
}

/// The folder of the compiler: `bin/nvcc`, `include`, `nvvm`.
fn toolkit() -> anyhow::Result<PathBuf> {
    let folder = cache_dir().join("cuda");
    let kept = folder.join(VERSION);
    let home = kept.join("nvidia/cu13");
    if home.join("bin/nvcc").is_file() {
        return Ok(home);
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    eprintln!("fetching the CUDA {VERSION} compiler (about 300 MB), once");
    // Under a name of its own until it is whole.
    let partial = tempfile::tempdir_in(&folder)?;
    install(partial.path())?;
    let made = partial.path().join("nvidia/cu13/bin/nvcc");
    ensure!(made.is_file(), "the packages hold no {}", made.display());
    if let Err(error) = std::fs::rename(partial.keep(), &kept) {
        // Another command may have been first.
        ensure!(
            home.join("bin/nvcc").is_file(),
            "keeping the compiler: {error}"
        );
    }
    Ok(home)
}

fn install(folder: &Path) -> anyhow::Result<()> {
    let status = Process::new("python3")
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-cache-dir",
            "--disable-pip-version-check",
        ])
        .arg("--only-binary=:all:")
        .arg("--target")
        .arg(folder)
        .arg(format!("cuda-toolkit[{EXTRAS}]=={VERSION}"))
        .stdout(std::io::stderr())
        .status()
        .context("running python3 -m pip; install Python 3 with pip")?;
    ensure!(status.success(), "pip install failed: {status}");
    Ok(())
}
