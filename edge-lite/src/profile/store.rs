//! Profiles on disk: `<cache>/profiles/<model digest>-<place>-<threads>.json`.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Profile, ProfileKey, VERSION};

/// The most bytes of a stored profile; one has a few thousand.
const MAX_BYTES: u64 = 1 << 20;

/// Why a profile cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be used.
    #[error("cannot use {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A later version of the program wrote it.
    #[error(
        "{path} is a profile of version {got}; this program knows version {VERSION}: delete the file, and `edge-lite \
         profile` measures anew"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says.
        got: u32,
    },
    /// It is no profile.
    #[error("{path} is no profile; delete the file, and `edge-lite profile` measures anew")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// It is larger than any profile.
    #[error(
        "{path} has more than {MAX_BYTES} bytes, which no profile has; delete the file, and `edge-lite profile` \
         measures anew"
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

/// Where profiles are kept.
#[derive(Clone, Debug)]
pub struct ProfileStore {
    folder: PathBuf,
}

impl ProfileStore {
    /// In a cache folder.
    #[must_use]
    pub fn new(cache_dir: &Path) -> Self {
        Self {
            folder: cache_dir.join("profiles"),
        }
    }

    /// The file for `key`.
    #[must_use]
    pub fn path(&self, key: &ProfileKey) -> PathBuf {
        let ProfileKey {
            model_digest,
            place,
            threads,
        } = key;
        // A colon is not allowed in a file name everywhere.
        let name = format!("{model_digest}-{place}-{threads}.json").replace(':', "-");
        self.folder.join(name)
    }

    /// The stored profile, if there is one. What an earlier version measured counts as nothing: it is measured anew.
    ///
    /// # Errors
    /// [`StoreError`] where the file cannot be read, is no profile or is one of a later version.
    pub fn read(&self, key: &ProfileKey) -> Result<Option<Profile>, StoreError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let path = self.path(key);
        let io = |source| StoreError::Io {
            path: path.clone(),
            source,
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        let mut json = Vec::new();
        file.take(MAX_BYTES + 1)
            .read_to_end(&mut json)
            .map_err(io)?;
        if json.len() as u64 > MAX_BYTES {
            return Err(StoreError::TooLarge { path });
        }
        let malformed = |source| StoreError::Malformed {
            path: path.clone(),
            source,
        };
        let Version { version: got } = serde_json::from_slice(&json).map_err(malformed)?;
        if got < VERSION {
            return Ok(None);
        }
        if got > VERSION {
            return Err(StoreError::Version { path, got });
        }
        let profile: Profile = serde_json::from_slice(&json).map_err(malformed)?;
        // A file that was renamed by hand says nothing of this model.
        Ok((profile.key == *key).then_some(profile))
    }

    /// Stores what was measured, with what is stored beside it; gives both back.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn merge(&self, measured: Profile) -> Result<Profile, StoreError> {
        let merged = match self.read(&measured.key)? {
            None => measured,
            Some(mut stored) => {
                stored.device = measured.device;
                for times in measured.layers {
                    stored.put_times(times);
                }
                stored
            }
        };
        self.write(&merged)?;
        Ok(merged)
    }

    /// Stores `profile` in place of the one before. Whoever reads sees either, whole.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn write(&self, profile: &Profile) -> Result<PathBuf, StoreError> {
        let path = self.path(&profile.key);
        let part = path.with_extension(format!("{}.part", std::process::id()));
        let written = (|| {
            std::fs::create_dir_all(&self.folder)?;
            let mut file = File::create(&part)?;
            file.write_all(&serde_json::to_vec_pretty(profile)?)?;
            file.sync_all()?;
            std::fs::rename(&part, &path)
        })();
        match written {
            Ok(()) => Ok(path),
            Err(source) => {
                // What is left of it is in nobody's way, and may not be there.
                let _ = std::fs::remove_file(&part);
                Err(StoreError::Io { path, source })
            }
        }
    }
}
