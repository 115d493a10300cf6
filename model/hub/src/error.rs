//! Why a source gave no path.

use std::path::PathBuf;

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
    /// The hub does not know the repository or the revision, or does not show them.
    #[error(
        "the model hub does not show {repository} at revision {revision} (HTTP {status}); check the name, \
         and for a model that is not public set HF_TOKEN"
    )]
    NoSuchRepository {
        /// `org/repo`.
        repository: String,
        /// Branch, tag or commit.
        revision: String,
        /// The hub's answer.
        status: u16,
    },
    /// The repository lacks a file that is needed.
    #[error("{repository} has no {file}; {hint}")]
    NoSuchFile {
        /// `org/repo`.
        repository: String,
        /// The file.
        file: String,
        /// What can be done instead.
        hint: String,
    },
    /// The repository's files did not all come from one commit.
    #[error("the downloaded files of {repository} belong to different commits; try again")]
    MixedCommits {
        /// `org/repo`.
        repository: String,
    },
    /// The hub client failed.
    #[error("download of {what} from the model hub failed")]
    Hub {
        /// Repository and file.
        what: String,
        /// The client's reason.
        #[source]
        source: Box<hf_hub::api::sync::ApiError>,
    },
    /// A download by URL failed.
    #[error("download of {url} failed")]
    Http {
        /// The URL.
        url: String,
        /// The client's reason.
        #[source]
        source: Box<ureq::Error>,
    },
    /// A download by URL ended early.
    #[error(
        "download of {url} ended after {got_bytes} of {expected_bytes} bytes; run again to continue from there"
    )]
    Incomplete {
        /// The URL.
        url: String,
        /// Bytes that should have come.
        expected_bytes: u64,
        /// Bytes that came.
        got_bytes: u64,
    },
    /// What was downloaded is something else.
    #[error("{url} did not give a GGUF file: it starts with {start:?}, not with \"GGUF\"")]
    NotGguf {
        /// The URL.
        url: String,
        /// The first bytes, as text.
        start: String,
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
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}
