//! Why a source gave no path, and whether asking again can help.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// What was wrong with a source or a download, and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// A local path that is not there.
    #[error(
        "{path} does not exist; expected a model's file or folder, hf://org/repo or https://host/file.gguf"
    )]
    NoSuchPath {
        /// The path.
        path: PathBuf,
    },
    /// The source cannot be read.
    #[error("{source_text:?} is not a model source: {reason}")]
    Source {
        /// The source as given.
        source_text: String,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// The server wants a token, or another one.
    #[error("{what} is not shown (HTTP {status}): {hint}")]
    Unauthorized {
        /// Repository or file.
        what: String,
        /// The server's answer: 401 or 403.
        status: u16,
        /// What to do.
        hint: &'static str,
    },
    /// There is no such file or repository.
    #[error(
        "{what} is not there (HTTP {status}); check the name, and the revision where one is given"
    )]
    NotFound {
        /// Repository and revision, or file.
        what: String,
        /// The server's answer.
        status: u16,
    },
    /// The repository lacks a file that is needed.
    #[error("{repository} has no {file}; {hint}")]
    NoSuchFile {
        /// `org/repo`, or a folder's address.
        repository: String,
        /// The file.
        file: String,
        /// What can be done instead.
        hint: String,
    },
    /// The server answers something else than the file.
    #[error("{what}: the server answers HTTP {status}")]
    Status {
        /// Repository or file.
        what: String,
        /// The server's answer.
        status: u16,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// No answer, or one that broke off.
    #[error("{what}: no answer: {reason}")]
    Unreachable {
        /// Repository or file.
        what: String,
        /// The client's reason, without the address.
        reason: String,
    },
    /// The server sends elsewhere, and it is not gone there.
    #[error("{what}: the server sends to {to}: {reason}")]
    Redirect {
        /// Repository or file.
        what: String,
        /// Where to, without its query.
        to: String,
        /// Why not.
        reason: &'static str,
    },
    /// A download ended early.
    #[error(
        "{what} ended after {got_bytes} of {expected_bytes} bytes; the next attempt goes on from there"
    )]
    Incomplete {
        /// The file.
        what: String,
        /// Bytes that should have come.
        expected_bytes: u64,
        /// Bytes that came.
        got_bytes: u64,
    },
    /// The file is another one than when its download began.
    #[error("{what} has changed while it was downloaded; the next attempt begins again")]
    Changed {
        /// The file.
        what: String,
    },
    /// The file is larger or smaller than it was said to be.
    #[error("{what} has {got_bytes} bytes; expected {expected_bytes}")]
    Size {
        /// The file.
        what: String,
        /// As listed, or the most that is taken.
        expected_bytes: u64,
        /// As the server says.
        got_bytes: u64,
    },
    /// What was downloaded is something else.
    #[error("{what} has SHA-256 {got}; expected {expected}")]
    Digest {
        /// The file.
        what: String,
        /// As given or listed.
        expected: String,
        /// Of the bytes that came.
        got: String,
    },
    /// What was downloaded is no model.
    #[error("{what} is not a GGUF file: it starts with {start:?}, not with \"GGUF\"")]
    NotGguf {
        /// The file.
        what: String,
        /// The first bytes, as text.
        start: String,
    },
    /// The disk is too small.
    #[error(
        "{path} has {free_bytes} bytes free, and {needed_bytes} are needed; make room, or take a larger volume"
    )]
    NoSpace {
        /// The folder of the cache.
        path: PathBuf,
        /// What is still to be written.
        needed_bytes: u64,
        /// What there is.
        free_bytes: u64,
    },
    /// Another process took this one for dead and goes on with the download.
    #[error("another process goes on with the download of {what}")]
    TakenOver {
        /// The file.
        what: String,
    },
    /// The source does not answer a range of a file with that range alone.
    #[error("{what}: the server does not give byte ranges of it")]
    NoRanges {
        /// The file.
        what: String,
    },
    /// Certificates or the token could not be read.
    #[error("cannot use {path}: {reason}")]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no HTTP client.
    #[error("the HTTP client cannot be set up: {reason}")]
    Client {
        /// Why.
        reason: String,
    },
    /// A file below the cache folder could not be read or written.
    #[error("cannot use {path}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

impl HubError {
    /// Binds an I/O error to the path it happened on.
    pub(crate) fn io(path: &Path) -> impl Fn(std::io::Error) -> Self + '_ {
        move |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    /// Whether the next attempt may go better without anybody doing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..),
            Self::Unreachable { .. }
            | Self::Incomplete { .. }
            | Self::Changed { .. }
            | Self::TakenOver { .. } => true,
            _ => false,
        }
    }

    /// When the server wants to be asked again, where it says so.
    pub(crate) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// One word for what is wrong, as a condition's reason is written.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoSuchPath { .. } => "PathMissing",
            Self::Source { .. } => "InvalidSource",
            Self::Unauthorized { .. } => "Unauthorized",
            Self::NotFound { .. } | Self::NoSuchFile { .. } => "NotFound",
            Self::Status { status: 429, .. } => "RateLimited",
            Self::Status { .. }
            | Self::Unreachable { .. }
            | Self::Redirect { .. }
            | Self::Incomplete { .. }
            | Self::Changed { .. }
            | Self::TakenOver { .. }
            | Self::NoRanges { .. } => "SourceUnreachable",
            Self::Size { .. } | Self::Digest { .. } | Self::NotGguf { .. } => "DigestMismatch",
            Self::NoSpace { .. } => "NoSpace",
            Self::Credentials { .. } => "CredentialsUnusable",
            Self::Client { .. } | Self::Io { .. } => "CacheUnusable",
        }
    }
}
