//! Repositories of the model hub: a name and a revision become a commit, and the commit a folder.
//!
//! ```text
//! <cache>/hub/<org>--<repo>/<commit>/config.json …
//! <cache>/hub/<org>--<repo>/refs/<revision>          the commit that it led to the last time
//! ```

use std::path::{Path, PathBuf};

use reqwest::Url;
use reqwest::header::HeaderMap;
use serde::Deserialize;

use crate::download::Downloads;
use crate::error::HubError;
use crate::folder::{Folder, Listed, is_complete};
use crate::transport::{status_error, unreachable};

/// What a source names.
pub(crate) struct Wanted {
    pub(crate) id: String,
    pub(crate) revision: String,
    pub(crate) file: Option<String>,
}

/// A listing of many thousand files.
const MAX_LISTING_BYTES: usize = 16 << 20;

/// One commit of a repository.
pub(crate) struct Commit {
    /// 40 hexadecimal digits.
    pub(crate) id: String,
    /// Where its files are kept.
    pub(crate) path: PathBuf,
    /// `None` where the hub was not asked, because everything is here.
    pub(crate) folder: Option<Folder>,
}

impl Wanted {
    /// Finds the commit. Where it is here already or the hub gives no answer, that of an earlier run.
    pub(crate) async fn commit(
        &self,
        downloads: &mut Downloads,
        endpoint: &Url,
        cache_dir: &Path,
    ) -> Result<Commit, HubError> {
        let home = cache_dir.join("hub").join(self.id.replace('/', "--"));
        // A commit is what it is for ever.
        if is_commit(&self.revision) && self.is_here(&home.join(&self.revision)) {
            return Ok(Commit {
                id: self.revision.clone(),
                path: home.join(&self.revision),
                folder: None,
            });
        }
        let info = match self.ask(downloads, endpoint).await {
            Ok(info) => info,
            Err(error) => return self.offline(&home).ok_or(error),
        };
        let files = info.siblings.into_iter().map(Sibling::listed);
        let folder = Folder {
            name: self.id.clone(),
            root: address(endpoint, &[&self.id, "resolve", &info.sha], "")?,
            listing: Some(files.collect()),
        };
        Ok(Commit {
            path: home.join(&info.sha),
            id: info.sha,
            folder: Some(folder),
        })
    }

    /// Notes where the revision leads, for a time without a network.
    pub(crate) fn note(&self, commit: &Commit) -> Result<(), HubError> {
        let Some(home) = commit.path.parent() else {
            return Ok(());
        };
        let refs = home.join("refs");
        std::fs::create_dir_all(&refs).map_err(HubError::io(&refs))?;
        let path = refs.join(&self.revision);
        let next = refs.join(format!("{}.{:016x}", self.revision, fastrand::u64(..)));
        std::fs::write(&next, &commit.id).map_err(HubError::io(&next))?;
        std::fs::rename(&next, &path).map_err(HubError::io(&path))
    }

    fn is_here(&self, path: &Path) -> bool {
        match &self.file {
            Some(file) => path.join(file).is_file(),
            None => is_complete(path),
        }
    }

    fn offline(&self, home: &Path) -> Option<Commit> {
        let id = std::fs::read_to_string(home.join("refs").join(&self.revision)).ok()?;
        let path = home.join(Some(&id).filter(|id| is_commit(id))?);
        if !self.is_here(&path) {
            return None;
        }
        tracing::warn!(
            repository = self.id,
            commit = id,
            "the model hub gave no answer; using the files of an earlier run"
        );
        Some(Commit {
            id,
            path,
            folder: None,
        })
    }

    async fn ask(&self, downloads: &mut Downloads, endpoint: &Url) -> Result<Info, HubError> {
        let what = format!("{} at revision {}", self.id, self.revision);
        let mut failures = 0;
        loop {
            let error = match self.ask_once(downloads, endpoint, &what).await {
                Ok(info) => return Ok(info),
                Err(error) => error,
            };
            failures += 1;
            if !error.is_transient() || failures >= downloads.patience.attempts {
                return Err(error);
            }
            downloads.wait(failures, &error).await;
        }
    }

    async fn ask_once(
        &self,
        downloads: &Downloads,
        endpoint: &Url,
        what: &str,
    ) -> Result<Info, HubError> {
        let path = ["api/models", &self.id, "revision", &self.revision];
        let url = address(endpoint, &path, "blobs=true")?;
        let transport = &downloads.transport;
        let mut response = transport.get(&url, &HeaderMap::new(), what).await?;
        if response.status() != 200 {
            return Err(status_error(&response, what, transport.has_token()));
        }
        let mut body = Vec::new();
        let broken = |error| unreachable(what, error);
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            if body.len() + chunk.len() > MAX_LISTING_BYTES {
                return Err(HubError::Size {
                    what: what.to_owned(),
                    expected_bytes: MAX_LISTING_BYTES as u64,
                    got_bytes: (body.len() + chunk.len()) as u64,
                });
            }
            body.extend_from_slice(&chunk);
        }
        let invalid = |reason: String| HubError::Source {
            source_text: format!("hf://{}", self.id),
            reason: format!("the hub's answer is not that of a model hub: {reason}"),
        };
        let info: Info =
            serde_json::from_slice(&body).map_err(|error| invalid(error.to_string()))?;
        // It becomes the name of a folder.
        if !is_commit(&info.sha) {
            return Err(invalid("its sha is no commit".to_owned()));
        }
        Ok(info)
    }
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The address below `endpoint`; it ends with a slash.
fn address(endpoint: &Url, path: &[&str], query: &str) -> Result<Url, HubError> {
    let mut url = endpoint.clone();
    let segments = url.path_segments_mut().map(|mut segments| {
        let path = path.iter().flat_map(|part| part.split('/'));
        segments.pop_if_empty().extend(path);
        if query.is_empty() {
            segments.push("");
        }
    });
    segments.map_err(|()| HubError::Source {
        source_text: endpoint.to_string(),
        reason: "expected the https:// address of a model hub".to_owned(),
    })?;
    url.set_query(Some(query).filter(|query| !query.is_empty()));
    Ok(url)
}

/// What the hub answers of a revision.
#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Sibling {
    fn listed(self) -> (String, Listed) {
        let lfs_bytes = self.lfs.as_ref().and_then(|lfs| lfs.size);
        let listed = Listed {
            bytes: lfs_bytes.or(self.size),
            sha256: self
                .lfs
                .and_then(|lfs| lfs.sha256)
                .map(|sha256| sha256.to_ascii_lowercase()),
        };
        (self.rfilename, listed)
    }
}
