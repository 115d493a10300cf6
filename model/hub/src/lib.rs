//! Where a model's files come from: a source named by a person becomes a path on this machine.
//!
//! This is the step before the inference path: `model` reads files and knows nothing of the network.
//! [`resolve`] blocks; call it before any runtime starts, or on a blocking thread.
//!
//! | source | what becomes of it |
//! |---|---|
//! | a path | itself, where it exists |
//! | `hf://org/repo[@revision]` | a folder with configuration, tokenizer and all safetensors files |
//! | `hf://org/repo[@revision]/file.gguf` | that file |
//! | `https://host/path/file.gguf` | that file |
//!
//! Deliberately absent: any check of what is in the files. A model's digest is taken from its weights
//! when it is loaded, so that a damaged download cannot pass for the model.

mod error;
mod repository;
mod source;
#[cfg(test)]
mod tests;
mod url;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use error::HubError;
pub use source::Source;

/// Gives the path of a model's file or folder, after a download where one is needed.
///
/// Downloads go below `cache_dir` and are kept. The model hub's own variables `HF_ENDPOINT` and `HF_TOKEN`
/// are honoured; use [`Hub`] to set both by hand.
///
/// # Errors
/// [`HubError`] says what was wrong with the source or the download, and what would be right.
pub fn resolve(source: &str, cache_dir: &Path) -> Result<PathBuf, HubError> {
    Hub::from_env(cache_dir).resolve(source)
}

/// One step of a download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The file, as the source names it.
    pub file: String,
    /// How much of it is here.
    pub done_bytes: u64,
    /// Its size, where the server told it.
    pub total_bytes: Option<u64>,
}

/// Is told of every few mebibytes.
pub type ProgressCallback = Arc<dyn Fn(&Progress) + Send + Sync>;

/// Where to download from, and where to keep it.
#[derive(Clone, Default)]
pub struct Hub {
    pub(crate) cache_dir: PathBuf,
    pub(crate) endpoint: Option<String>,
    pub(crate) token: Option<String>,
    pub(crate) progress: Option<ProgressCallback>,
}

impl Hub {
    /// The model hub's public endpoint, without a token.
    #[must_use]
    pub fn new(cache_dir: &Path) -> Self {
        Self {
            cache_dir: cache_dir.to_owned(),
            ..Self::default()
        }
    }

    /// Endpoint and token from `HF_ENDPOINT` and `HF_TOKEN`.
    #[must_use]
    #[allow(
        clippy::disallowed_methods,
        reason = "the two variables are every hub client's convention, and the hub crate itself reads \
                  such variables; they are read here, once, and not in each main"
    )]
    pub fn from_env(cache_dir: &Path) -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            endpoint: variable("HF_ENDPOINT"),
            token: variable("HF_TOKEN"),
            ..Self::new(cache_dir)
        }
    }

    /// Base URL of the model hub, or of a mirror with the same layout.
    #[must_use]
    pub fn with_endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// Sent to the model hub, for models that are not public.
    #[must_use]
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Reports every download to `callback`, beside the `tracing` events.
    #[must_use]
    pub fn with_progress(mut self, callback: ProgressCallback) -> Self {
        self.progress = Some(callback);
        self
    }

    /// As the function [`resolve`].
    ///
    /// # Errors
    /// As the function [`resolve`].
    pub fn resolve(&self, source: &str) -> Result<PathBuf, HubError> {
        match Source::parse(source)? {
            Source::Local(path) if path.exists() => Ok(path),
            Source::Local(path) => Err(HubError::NoSuchPath { path }),
            Source::Repository { id, revision, file } => {
                repository::download(self, &repository::Wanted { id, revision, file })
            }
            Source::Url { url, file } => url::download(self, &url, &file),
        }
    }
}

/// Counts bytes and reports every [`Meter::REPORT_BYTES`].
pub(crate) struct Meter {
    progress: Progress,
    reported_bytes: u64,
    callback: Option<ProgressCallback>,
}

impl Meter {
    const REPORT_BYTES: u64 = 4 << 20;

    pub(crate) fn new(hub: &Hub, file: &str, total_bytes: Option<u64>) -> Self {
        let progress = Progress {
            file: file.to_owned(),
            done_bytes: 0,
            total_bytes,
        };
        Self {
            progress,
            reported_bytes: 0,
            callback: hub.progress.clone(),
        }
    }

    pub(crate) fn start(&mut self, total_bytes: Option<u64>) {
        self.progress.total_bytes = total_bytes;
        self.progress.done_bytes = 0;
        self.reported_bytes = 0;
        tracing::info!(file = self.progress.file, total_bytes, "download starts");
    }

    pub(crate) fn add(&mut self, bytes: u64) {
        self.progress.done_bytes += bytes;
        if self.progress.done_bytes - self.reported_bytes >= Self::REPORT_BYTES {
            self.report();
        }
    }

    pub(crate) fn finish(&mut self) {
        self.report();
        tracing::info!(
            file = self.progress.file,
            bytes = self.progress.done_bytes,
            "download is complete"
        );
    }

    fn report(&mut self) {
        self.reported_bytes = self.progress.done_bytes;
        if let Some(callback) = &self.callback {
            callback(&self.progress);
        }
    }
}
