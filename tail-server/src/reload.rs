//! Files that are read again when they change: certificates, keys and the session target, as Kubernetes mounts
//! them.
//!
//! Kubernetes changes a mounted Secret by turning a link to another folder, which tells a watcher of the file
//! nothing, so the contents themselves are compared, every few seconds. They are small.
//!
//! Invariant: content that cannot be used changes nothing. It is logged and counted once, and the last good
//! content stays in use.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::error::format_chain;
use crate::metrics::Metrics;

/// Why the content of files is not taken.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} has more than {max_bytes} bytes")]
    TooLarge { path: PathBuf, max_bytes: u64 },
    #[error("{paths} cannot be used")]
    Content {
        paths: String,
        #[source]
        source: Cause,
    },
}

impl FileError {
    /// There is no such file.
    fn is_away(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }
}

/// What is read again, as the metrics and the log name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reloaded {
    /// Certificates and their key.
    Tls,
    /// The file of keys.
    AuthKeys,
    /// An issuer's keys.
    OidcJwks,
    /// How many sessions this tail should have.
    SessionTarget,
}

impl Reloaded {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 4] = [
        Self::Tls,
        Self::AuthKeys,
        Self::OidcJwks,
        Self::SessionTarget,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::AuthKeys => "auth_keys",
            Self::OidcJwks => "oidc_jwks",
            Self::SessionTarget => "session_target",
        }
    }
}

/// All files that are watched.
#[derive(Default)]
pub(crate) struct Reloads {
    watched: Vec<Watched>,
}

type Apply = Box<dyn FnMut(&[Vec<u8>]) -> Result<(), Cause> + Send>;

/// Files that belong together.
struct Watched {
    what: Reloaded,
    paths: Vec<PathBuf>,
    max_bytes: u64,
    /// A file that is away is an empty one.
    is_optional: bool,
    apply: Apply,
    /// Of the content that was last applied or refused; `None` where it could not be read.
    seen: Option<[u8; 32]>,
    is_readable: bool,
}

impl Reloads {
    /// Reads the files, gives them to `apply` in the order of `paths`, and again whenever they change.
    /// Blocks.
    pub(crate) fn watch(
        &mut self,
        what: Reloaded,
        paths: Vec<PathBuf>,
        max_bytes: u64,
        apply: impl FnMut(&[Vec<u8>]) -> Result<(), Cause> + Send + 'static,
    ) -> Result<(), FileError> {
        let mut watched = Watched {
            what,
            paths,
            max_bytes,
            is_optional: false,
            apply: Box::new(apply),
            seen: None,
            is_readable: true,
        };
        watched.look()?;
        self.watched.push(watched);
        Ok(())
    }

    /// As [`Self::watch`], for one file that the tail can do without: where it is away it counts as empty, which
    /// at the start is no change, and content that cannot be used at the start is told like any later one. Blocks.
    pub(crate) fn watch_optional(
        &mut self,
        what: Reloaded,
        path: PathBuf,
        max_bytes: u64,
        apply: impl FnMut(&[Vec<u8>]) -> Result<(), Cause> + Send + 'static,
    ) {
        let mut watched = Watched {
            what,
            paths: vec![path],
            max_bytes,
            is_optional: true,
            apply: Box::new(apply),
            seen: Some(digest(&[Vec::new()])),
            is_readable: true,
        };
        if let Err(error) = watched.look() {
            watched.tell(&error);
        }
        self.watched.push(watched);
    }

    /// Looks at the files every `period`, for as long as it is not dropped.
    pub(crate) async fn run(mut self, period: Duration, metrics: Arc<Metrics>) {
        while !self.watched.is_empty() {
            tokio::time::sleep(period).await;
            let metrics = Arc::clone(&metrics);
            let looked = tokio::task::spawn_blocking(move || {
                self.look(&metrics);
                self
            });
            match looked.await {
                Ok(reloads) => self = reloads,
                Err(error) => {
                    tracing::error!(%error, "files are no longer read when they change");
                    return;
                }
            }
        }
    }

    /// Looks once.
    pub(crate) fn look(&mut self, metrics: &Metrics) {
        for watched in &mut self.watched {
            let what = watched.what;
            match watched.look() {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!(what = what.name(), "read again");
                    metrics.record_reload(what, true);
                }
                Err(error) => {
                    watched.tell(&error);
                    metrics.record_reload(what, false);
                }
            }
        }
    }
}

impl Watched {
    /// Logs why the content is not taken.
    fn tell(&self, error: &FileError) {
        let (what, error) = (self.what.name(), format_chain(error));
        if self.is_optional {
            tracing::warn!(what, error, "not taken; what was read before stays");
        } else {
            tracing::error!(what, error, "not read again; what was read before stays");
        }
    }

    /// Applies the content if it has changed. An error is told once for each content.
    fn look(&mut self) -> Result<bool, FileError> {
        let files: Result<Vec<Vec<u8>>, FileError> = self
            .paths
            .iter()
            .map(|path| match read(path, self.max_bytes) {
                Err(error) if self.is_optional && error.is_away() => Ok(Vec::new()),
                read => read,
            })
            .collect();
        let files = match files {
            Ok(files) => files,
            Err(_) if !self.is_readable => return Ok(false),
            Err(error) => {
                self.is_readable = false;
                return Err(error);
            }
        };
        self.is_readable = true;
        let digest = digest(&files);
        if self.seen == Some(digest) {
            return Ok(false);
        }
        self.seen = Some(digest);
        match (self.apply)(&files) {
            Ok(()) => Ok(true),
            Err(source) => {
                let paths: Vec<String> = self
                    .paths
                    .iter()
                    .map(|path| path.display().to_string())
                    .collect();
                Err(FileError::Content {
                    paths: paths.join(" and "),
                    source,
                })
            }
        }
    }
}

fn read(path: &Path, max_bytes: u64) -> Result<Vec<u8>, FileError> {
    let failed = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    let mut content = Vec::new();
    // One more than it may be, to see that it is.
    let file = File::open(path).map_err(failed)?;
    file.take(max_bytes + 1)
        .read_to_end(&mut content)
        .map_err(failed)?;
    if content.len() as u64 > max_bytes {
        let path = path.to_owned();
        return Err(FileError::TooLarge { path, max_bytes });
    }
    Ok(content)
}

fn digest(files: &[Vec<u8>]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for file in files {
        hasher.update(file.len().to_le_bytes());
        hasher.update(file);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A folder with one file, and what was applied of it. `bad` is not taken.
    struct Rig {
        folder: tempfile::TempDir,
        reloads: Reloads,
        applied: Arc<Mutex<Vec<String>>>,
        metrics: Metrics,
    }

    impl Rig {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let applied: Arc<Mutex<Vec<String>>> = Arc::default();
            std::fs::write(folder.path().join("file"), "one").unwrap();
            let mut reloads = Reloads::default();
            let seen = Arc::clone(&applied);
            reloads
                .watch(
                    Reloaded::AuthKeys,
                    vec![folder.path().join("file")],
                    8,
                    move |files| {
                        let text = String::from_utf8(files[0].clone())?;
                        if text == "bad" {
                            return Err("it is bad".into());
                        }
                        seen.lock().unwrap().push(text);
                        Ok(())
                    },
                )
                .unwrap();
            Self {
                folder,
                reloads,
                applied,
                metrics: Metrics::new().unwrap(),
            }
        }

        fn write_and_look(&mut self, text: &str) {
            std::fs::write(self.folder.path().join("file"), text).unwrap();
            self.reloads.look(&self.metrics);
        }

        fn counted(&self, result: &str) -> bool {
            let line =
                format!("headway_tail_reloads_total{{result=\"{result}\",what=\"auth_keys\"}} 1");
            self.metrics.render().unwrap().contains(&line)
        }
    }

    #[test]
    fn content_is_applied_once_and_again_when_it_changes() {
        let mut rig = Rig::new();
        rig.reloads.look(&rig.metrics);
        rig.write_and_look("two");
        rig.reloads.look(&rig.metrics);
        assert_eq!(*rig.applied.lock().unwrap(), ["one", "two"]);
        assert!(rig.counted("ok"));
    }

    #[test]
    fn what_cannot_be_used_is_counted_once_and_changes_nothing() {
        let mut rig = Rig::new();
        rig.write_and_look("bad");
        rig.reloads.look(&rig.metrics);
        assert_eq!(*rig.applied.lock().unwrap(), ["one"]);
        assert!(rig.counted("failed"));
    }

    #[test]
    fn a_file_that_is_away_or_too_large_changes_nothing_until_it_is_back() {
        let mut rig = Rig::new();
        rig.write_and_look("far too large");
        rig.reloads.look(&rig.metrics);
        std::fs::remove_file(rig.folder.path().join("file")).unwrap();
        rig.reloads.look(&rig.metrics);
        assert!(rig.counted("failed"));
        rig.write_and_look("two");
        assert_eq!(*rig.applied.lock().unwrap(), ["one", "two"]);
    }

    #[test]
    fn a_turned_link_is_a_change() {
        let mut rig = Rig::new();
        let (path, other) = (
            rig.folder.path().join("file"),
            rig.folder.path().join("other"),
        );
        std::fs::write(&other, "two").unwrap();
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        rig.reloads.look(&rig.metrics);
        assert_eq!(*rig.applied.lock().unwrap(), ["one", "two"]);
    }

    #[test]
    fn files_that_cannot_be_used_at_the_start_are_an_error() {
        let path = PathBuf::from("/nowhere/at/all");
        let watched = Reloads::default().watch(Reloaded::AuthKeys, vec![path], 8, |_| Ok(()));
        assert!(watched.unwrap_err().to_string().contains("/nowhere/at/all"));
    }
    #[test]
    fn an_optional_file_that_is_away_is_empty_and_what_is_bad_at_the_start_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "bad").unwrap();
        let applied: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let (mut reloads, metrics) = (Reloads::default(), Metrics::new().unwrap());
        for path in [path.clone(), folder.path().join("never there")] {
            let seen = Arc::clone(&applied);
            reloads.watch_optional(Reloaded::SessionTarget, path, 8, move |files| {
                if files[0] == b"bad" {
                    return Err("it is bad".into());
                }
                seen.lock().unwrap().push(files[0].clone());
                Ok(())
            });
        }
        reloads.look(&metrics);
        assert!(applied.lock().unwrap().is_empty());
        std::fs::write(&path, "one").unwrap();
        reloads.look(&metrics);
        std::fs::remove_file(&path).unwrap();
        reloads.look(&metrics);
        reloads.look(&metrics);
        assert_eq!(*applied.lock().unwrap(), [b"one".to_vec(), Vec::new()]);
        let text = metrics.render().unwrap();
        let counted = "headway_tail_reloads_total{result=\"ok\",what=\"session_target\"} 2";
        assert!(text.contains(counted), "{text}");
    }
}
