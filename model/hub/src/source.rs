//! The text that names a model's source.

use std::path::PathBuf;

use crate::error::HubError;

/// A source, read but not yet looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A path on this machine.
    Local(PathBuf),
    /// A repository of the model hub, or one GGUF file of it.
    Repository {
        /// `org/repo`.
        id: String,
        /// Branch, tag or commit; `main` where none is named.
        revision: String,
        /// Path of a `.gguf` file in the repository.
        file: Option<String>,
    },
    /// A GGUF file behind a URL.
    Url {
        /// The URL.
        url: String,
        /// Its last path segment.
        file: String,
    },
    /// A folder behind a URL, with safetensors.
    Folder {
        /// The URL; its path ends with a slash.
        url: String,
    },
}

const REPOSITORY_FORM: &str =
    "expected hf://org/repo, hf://org/repo@revision or hf://org/repo/file.gguf";

impl Source {
    /// Reads a source's text.
    ///
    /// # Errors
    /// [`HubError::Source`] for a known scheme with the wrong form, and for an unknown scheme.
    pub fn parse(text: &str) -> Result<Self, HubError> {
        let refuse = |reason: String| HubError::Source {
            source_text: text.to_owned(),
            reason,
        };
        match text.split_once("://") {
            None if text.is_empty() => Err(refuse("it is empty".to_owned())),
            None => Ok(Self::Local(PathBuf::from(text))),
            Some(("hf", rest)) => {
                Self::parse_repository(rest).ok_or_else(|| refuse(REPOSITORY_FORM.to_owned()))
            }
            Some(("https" | "http", _)) => Self::parse_url(text).ok_or_else(|| {
                refuse("expected a URL whose path ends with a file name in .gguf, or with / for a folder".to_owned())
            }),
            Some((scheme, _)) => Err(refuse(format!(
                "scheme {scheme} is not known; expected a path, hf:// or https://"
            ))),
        }
    }

    fn parse_repository(rest: &str) -> Option<Self> {
        let mut segments = rest.split('/');
        let organisation = segments.next().filter(|name| is_name(name))?;
        let repository = segments.next()?;
        let (repository, revision) = repository.split_once('@').unwrap_or((repository, "main"));
        if !is_name(repository) || !is_name(revision) {
            return None;
        }
        let file: Vec<&str> = segments.collect();
        let file = match file.as_slice() {
            [] | [""] => None,
            path if path.iter().all(|segment| is_name(segment)) && rest.ends_with(".gguf") => {
                Some(path.join("/"))
            }
            _ => return None,
        };
        Some(Self::Repository {
            id: format!("{organisation}/{repository}"),
            revision: revision.to_owned(),
            file,
        })
    }

    fn parse_url(url: &str) -> Option<Self> {
        let (_, rest) = url.split_once("://")?;
        let path = rest.split(['?', '#']).next()?;
        let (_, path) = path.split_once('/')?;
        if path.is_empty() || path.ends_with('/') {
            let has_query = url.contains(['?', '#']);
            return (!has_query).then(|| Self::Folder {
                url: url.to_owned(),
            });
        }
        let file = path.rsplit('/').next().unwrap_or(path);
        (is_name(file) && file.ends_with(".gguf")).then(|| Self::Url {
            url: url.to_owned(),
            file: file.to_owned(),
        })
    }
}

/// A single path segment that stays one when it becomes a file name.
fn is_name(segment: &str) -> bool {
    !segment.is_empty()
        && segment != "."
        && segment != ".."
        && segment
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.+=%".contains(c))
}
