//! Where a model's files come from: a source named by a person becomes a path on this machine.
//!
//! This is the step before the inference path: `model` reads files and knows nothing of the network.
//! Everything here blocks; call it before any runtime starts, or on a blocking thread.
//!
//! | source | what becomes of it |
//! |---|---|
//! | a path | itself, where it exists |
//! | `hf://org/repo[@revision]` | a folder with configuration, tokenizer and all safetensors files |
//! | `hf://org/repo[@revision]/file.gguf` | that file |
//! | `https://host/path/file.gguf` | that file |
//! | `https://host/path/` | as a repository: configuration, tokenizer and all safetensors files of that folder |
//!
//! Invariants:
//! - A file appears under its name when it is whole and checked, and not before.
//! - A token goes to the server it is for, and to nobody that it sends to.
//! - Nothing is written before there is room for it.
//!
//! Deliberately absent: any check of what is in the files. A model's digest is taken from its weights
//! when it is loaded, so that a damaged download cannot pass for the model.

mod download;
mod error;
mod folder;
mod lease;
mod meter;
mod ranges;
mod repository;
mod source;
mod space;
#[cfg(test)]
mod tests;
mod transport;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use reqwest::Url;
use sha2::{Digest as _, Sha256};
use tokio::runtime::Runtime;

use download::{Downloads, Patience, Wanted};
pub use error::HubError;
use folder::Folder;
use meter::Meter;
pub use meter::{Progress, ProgressCallback};
pub use ranges::RemoteRanges;
pub use source::Source;
use transport::Transport;

/// The model hub where nobody names another one.
const PUBLIC_ENDPOINT: &str = "https://huggingface.co/";

/// Gives the path of a model's file or folder, after a download where one is needed.
///
/// Downloads go below `cache_dir` and are kept. The model hub's own variables `HF_ENDPOINT` and `HF_TOKEN`
/// are honoured; use [`Hub`] to set both by hand.
///
/// # Errors
/// [`HubError`] says what was wrong with the source or the download, and what would be right.
pub fn resolve(source: &str, cache_dir: &Path) -> Result<PathBuf, HubError> {
    Ok(Hub::from_env(cache_dir).fetch(source)?.path)
}

/// What became of a source.
pub struct Fetched {
    /// The model's file or folder.
    pub path: PathBuf,
    /// The commit, where the source is a repository.
    pub commit: Option<String>,
    /// By which more of it can be fetched, where its weights were not fetched.
    pub ranges: Option<RemoteRanges>,
}

/// Where to download from, and where to keep it.
#[derive(Clone, Default)]
pub struct Hub {
    cache_dir: PathBuf,
    endpoint: Option<String>,
    token: Option<String>,
    token_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    sha256: Option<String>,
    in_ranges: bool,
    progress: Option<ProgressCallback>,
    patience: Patience,
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
        reason = "the two variables are every hub client's convention; they are read here, once, and not in \
                  each main"
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

    /// A file with the token, read at each [`Hub::fetch`], so that a new one is taken.
    #[must_use]
    pub fn with_token_file(mut self, path: Option<PathBuf>) -> Self {
        self.token_file = path;
        self
    }

    /// A PEM file of certificate authorities that are trusted beside the system's.
    #[must_use]
    pub fn with_ca_file(mut self, path: Option<PathBuf>) -> Self {
        self.ca_file = path;
        self
    }

    /// What the SHA-256 of the file has to be, 64 hexadecimal digits: for sources that are one file.
    #[must_use]
    pub fn with_sha256(mut self, sha256: Option<&str>) -> Self {
        self.sha256 = sha256.map(str::to_ascii_lowercase);
        self
    }

    /// Safetensors are not fetched but made ready to be, range by range, where the server can.
    #[must_use]
    pub const fn in_ranges(mut self, in_ranges: bool) -> Self {
        self.in_ranges = in_ranges;
        self
    }

    /// Reports every download to `callback`, beside the `tracing` events.
    #[must_use]
    pub fn with_progress(mut self, callback: ProgressCallback) -> Self {
        self.progress = Some(callback);
        self
    }

    /// As [`Hub::fetch`], for the path alone.
    ///
    /// # Errors
    /// As [`Hub::fetch`].
    pub fn resolve(&self, source: &str) -> Result<PathBuf, HubError> {
        Ok(self.fetch(source)?.path)
    }

    /// Fetches what of `source` is not here yet.
    ///
    /// # Errors
    /// [`HubError`] says what was wrong with the source or the download, and what would be right.
    pub fn fetch(&self, source: &str) -> Result<Fetched, HubError> {
        match Source::parse(source)? {
            Source::Local(path) => self.local(path),
            Source::Repository { id, revision, file } => {
                let wanted = repository::Wanted { id, revision, file };
                block_on(self.repository(&wanted))
            }
            Source::Url { url, file } => block_on(self.url(&url, &file)),
            Source::Folder { url } => block_on(self.folder(&url)),
        }
    }

    fn local(&self, path: PathBuf) -> Result<Fetched, HubError> {
        if !path.exists() {
            return Err(HubError::NoSuchPath { path });
        }
        if let Some(expected) = &self.sha256 {
            self.expect_file(path.is_file(), &path.display().to_string())?;
            let got = download::sha256_of(&path)?;
            if got != *expected {
                return Err(HubError::Digest {
                    what: path.display().to_string(),
                    expected: expected.clone(),
                    got,
                });
            }
        }
        Ok(whole(path, None))
    }

    async fn repository(&self, wanted: &repository::Wanted) -> Result<Fetched, HubError> {
        let endpoint = self.endpoint.as_deref().unwrap_or(PUBLIC_ENDPOINT);
        let endpoint = protected(endpoint)?;
        let token = self.token()?;
        let mut downloads = self.downloads(&endpoint, token.as_deref())?;
        self.expect_file(wanted.file.is_some(), &format!("hf://{}", wanted.id))?;
        let commit = wanted
            .commit(&mut downloads, &endpoint, &self.cache_dir)
            .await?;
        let path = match (&commit.folder, &wanted.file) {
            (None, None) => commit.path.clone(),
            (None, Some(file)) => commit.path.join(file),
            (Some(folder), Some(file)) => {
                let mut folder = Folder {
                    name: folder.name.clone(),
                    root: folder.root.clone(),
                    listing: folder.listing.clone(),
                };
                self.pin(&mut folder, file);
                folder
                    .fetch_file(&mut downloads, &commit.path, file)
                    .await?
            }
            (Some(folder), None) => {
                let fetched = self.folder_into(downloads, folder, &commit.path).await?;
                wanted.note(&commit)?;
                return Ok(Fetched {
                    commit: Some(commit.id),
                    ..fetched
                });
            }
        };
        wanted.note(&commit)?;
        Ok(whole(path, Some(commit.id)))
    }

    /// The digest that a person gave goes before the hub's.
    fn pin(&self, folder: &mut Folder, file: &str) {
        let listed = folder.listing.as_mut().and_then(|all| all.get_mut(file));
        if let (Some(listed), Some(sha256)) = (listed, &self.sha256) {
            listed.sha256 = Some(sha256.clone());
        }
    }

    async fn url(&self, url: &str, file: &str) -> Result<Fetched, HubError> {
        let address = protected(url)?;
        // With another digest it is another file.
        let named = format!("{url} {}", self.sha256.as_deref().unwrap_or_default());
        let named = if self.sha256.is_some() { &named } else { url };
        let path = self
            .cache_dir
            .join("urls")
            .join(short_name(named))
            .join(file);
        let mut downloads = self.downloads(&address, None)?;
        let wanted = Wanted {
            what: &transport::shown(&address),
            url: address,
            sha256: self.sha256.as_deref(),
            bytes: None,
            is_gguf: true,
        };
        downloads.fetch(&wanted, &path).await?;
        Ok(whole(path, None))
    }

    async fn folder(&self, url: &str) -> Result<Fetched, HubError> {
        let root = protected(url)?;
        self.expect_file(false, url)?;
        let downloads = self.downloads(&root, None)?;
        let folder = Folder {
            name: transport::shown(&root).trim_end_matches('/').to_owned(),
            root,
            listing: None,
        };
        let path = self.cache_dir.join("urls").join(short_name(url));
        self.folder_into(downloads, &folder, &path).await
    }

    async fn folder_into(
        &self,
        mut downloads: Downloads,
        folder: &Folder,
        path: &Path,
    ) -> Result<Fetched, HubError> {
        if self.in_ranges && !folder::is_complete(path) {
            let pieces = path.with_file_name(format!("{}-ranges", file_name(path)));
            match RemoteRanges::open(downloads, folder, &pieces).await {
                Ok(ranges) => {
                    return Ok(Fetched {
                        ranges: Some(ranges),
                        ..whole(pieces, None)
                    });
                }
                Err(HubError::NoRanges { what }) => {
                    tracing::warn!(
                        what,
                        "the server gives whole files only: all of it is fetched"
                    );
                    downloads = self.downloads(&folder.root, self.token()?.as_deref())?;
                }
                Err(error) => return Err(error),
            }
        }
        folder.fetch(&mut downloads, path).await?;
        Ok(whole(path.to_owned(), None))
    }

    /// A digest of one file says nothing of a folder.
    fn expect_file(&self, is_file: bool, source: &str) -> Result<(), HubError> {
        if is_file || self.sha256.is_none() {
            return Ok(());
        }
        Err(HubError::Source {
            source_text: source.to_owned(),
            reason: "it is a folder, and a SHA-256 was given, which is for one file; give the model's identity \
                     instead"
                .to_owned(),
        })
    }

    fn downloads(&self, first: &Url, token: Option<&str>) -> Result<Downloads, HubError> {
        Ok(Downloads {
            transport: Transport::new(first, self.ca_file.as_deref(), token)?,
            meter: Meter::new(self.progress.clone()),
            patience: self.patience,
        })
    }

    fn token(&self) -> Result<Option<String>, HubError> {
        let Some(path) = &self.token_file else {
            return Ok(self.token.clone());
        };
        match std::fs::read_to_string(path) {
            Ok(token) if !token.trim().is_empty() => Ok(Some(token.trim().to_owned())),
            read => Err(HubError::Credentials {
                path: path.clone(),
                reason: read.map_or_else(|error| error.to_string(), |_| "it is empty".to_owned()),
            }),
        }
    }
}

fn whole(path: PathBuf, commit: Option<String>) -> Fetched {
    Fetched {
        path,
        commit,
        ranges: None,
    }
}

fn protected(text: &str) -> Result<Url, HubError> {
    let refuse = |reason: &str| HubError::Source {
        source_text: text.split(['?', '#']).next().unwrap_or_default().to_owned(),
        reason: reason.to_owned(),
    };
    let url = Url::parse(text).map_err(|error| refuse(&error.to_string()))?;
    if !url.username().is_empty() || url.password().is_some() {
        let url = transport::shown(&url);
        return Err(HubError::Source {
            source_text: url,
            reason: "an address with a user's name or password in it is not taken".to_owned(),
        });
    }
    if !transport::is_protected(&url) {
        return Err(refuse(
            "expected an https:// address; http:// is for this machine alone",
        ));
    }
    Ok(url)
}

/// Runs to the end on a thread of its own, because this one may belong to a runtime. The runtime stays, and with it
/// connections that are used again.
fn block_on<T: Send>(
    future: impl Future<Output = Result<T, HubError>> + Send,
) -> Result<T, HubError> {
    static RUNTIME: OnceLock<std::io::Result<Runtime>> = OnceLock::new();
    let start = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("hub")
            .enable_all()
            .build()
    };
    let failed = |reason: String| HubError::Client { reason };
    let runtime = RUNTIME.get_or_init(start).as_ref();
    let runtime = runtime.map_err(|error| failed(error.to_string()))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || runtime.block_on(future));
        let ended = thread.join();
        ended.unwrap_or_else(|_| Err(failed("a download panicked".to_owned())))
    })
}

/// Files of the same name behind different URLs stay apart.
fn short_name(url: &str) -> String {
    download::hex(&Sha256::digest(url.as_bytes())[..8])
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
