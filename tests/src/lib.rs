//! What the end-to-end tests share: the real model, golden data, the two programs, a device, a cluster, and load.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::de::DeserializeOwned;

pub mod api_proxy;
pub mod device;
pub mod forwarder;
pub mod load;
pub mod model_source;
pub mod operator;
pub mod program;
pub mod tail;

/// No test waits longer for anything that should happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The file name under which `cargo xtask model` keeps SmolLM2-135M-Instruct.
pub const SMOLLM2_FILE: &str = "smollm2-135m-instruct-q4_1.gguf";

/// Where the commands of this repository keep what they fetched.
#[must_use]
pub fn cache_dir() -> PathBuf {
    dirs::cache_dir()
        .unwrap_or_else(std::env::temp_dir)
        .join("headway")
}

/// The real model that tests run on.
///
/// # Panics
/// Where it has not been fetched yet; the message says how to.
#[must_use]
pub fn smollm2() -> PathBuf {
    let path = cache_dir().join("models").join(SMOLLM2_FILE);
    assert!(
        path.is_file(),
        "{} is missing; `cargo xtask model` fetches it",
        path.display()
    );
    path
}

/// The real model with a word of its chat template changed, which is another model of the same sizes, in `folder`.
///
/// # Errors
/// Where it cannot be written.
pub fn other_model(folder: &Path) -> anyhow::Result<PathBuf> {
    let mut bytes = std::fs::read(smollm2())?;
    // Of one length, so that no offset in the file moves.
    let (words, other_words) = (b"a helpful AI", b"a pirate who");
    let mut windows = bytes.windows(words.len());
    let at = windows
        .position(|window| window == words)
        .context("the words of the chat template")?;
    bytes[at..at + words.len()].copy_from_slice(other_words);
    let path = folder.join("other.gguf");
    std::fs::write(&path, bytes)?;
    Ok(path)
}

/// Where tails and devices of tests keep head artefacts, shared by all of them and by later runs: both sides
/// name files by digest and check them again each time.
#[must_use]
pub fn artifact_cache_dir() -> PathBuf {
    cache_dir().join("e2e")
}

/// The small random model of the Llama family, a folder.
#[must_use]
pub fn tiny_llama() -> PathBuf {
    golden_dir().join("tiny/llama")
}

/// Another model of the tokenizer of [`tiny_llama`], a folder of its own.
///
/// # Errors
/// Where it cannot be written.
pub fn companion() -> anyhow::Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    let tiny = golden_dir().join("tiny");
    for (model, file) in [
        ("llama_bf16", "config.json"),
        ("llama_bf16", "model.safetensors"),
        ("llama", "tokenizer.json"),
        ("llama", "tokenizer_config.json"),
        ("llama", "chat_template.jinja"),
    ] {
        std::fs::copy(tiny.join(model).join(file), folder.path().join(file))?;
    }
    Ok(folder)
}

/// The folder with golden data.
#[must_use]
pub fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// Reads a JSON file below [`golden_dir`].
///
/// # Errors
/// Where the file is missing or holds something else.
pub fn golden<T: DeserializeOwned>(path: &str) -> anyhow::Result<T> {
    let path = golden_dir().join(path);
    let json = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&json).with_context(|| format!("parsing {}", path.display()))
}
