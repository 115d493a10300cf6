//! The head's files on this device's disk: fetched, checked against their digests, kept.
//!
//! `<cache>/models/<model digest>/tokenizer.json` and `…/<quantization>/<part>.gguf`. A file is complete
//! and had its digest when it got its name; it is checked again each time, because disks fail.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use headway_model::manifest::{Artifact, Manifest, format_digest};
use headway_model::quantization::Quantization;
use reqwest::{StatusCode, Url};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;

use crate::error::{DeviceError, Error, TailError};
use crate::tail_api::{TailApi, http_error};

/// How far one file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The artefact: `tokenizer`, `embedding`, `layer-0` …
    pub part: String,
    /// Bytes that are here.
    pub done_bytes: u64,
    /// The file's size.
    pub total_bytes: u64,
    /// The file was complete in the cache.
    pub cached: bool,
}

/// Is told of every few mebibytes, on a thread of the async runtime: it must not block.
pub type ProgressCallback = Arc<dyn Fn(&Progress) + Send + Sync>;

const REPORT_BYTES: u64 = 1 << 20;
const HASH_BUFFER_BYTES: usize = 64 << 10;

/// The files of one model.
pub(crate) struct ArtifactCache {
    api: TailApi,
    model_digest: String,
    folder: PathBuf,
    progress: Option<ProgressCallback>,
    /// Held by whoever writes to the folder; freed when this is dropped.
    _lock: File,
}

impl ArtifactCache {
    /// Opens the model's folder and waits until no other process writes to it.
    pub(crate) async fn open(
        api: &TailApi,
        cache_dir: &Path,
        model_digest: &str,
        progress: Option<ProgressCallback>,
    ) -> Result<Self, DeviceError> {
        // A colon is not allowed in a file name everywhere.
        let folder = cache_dir
            .join("models")
            .join(model_digest.replace(':', "-"));
        let lock = tokio::task::spawn_blocking({
            let folder = folder.clone();
            move || lock(&folder)
        });
        let lock = lock.await??;
        Ok(Self {
            api: api.clone(),
            model_digest: model_digest.to_owned(),
            folder,
            progress,
            _lock: lock,
        })
    }

    /// The path of `tokenizer.json`.
    pub(crate) async fn tokenizer(&self, manifest: &Manifest) -> Result<PathBuf, Error> {
        let path = self.folder.join("tokenizer.json");
        self.fetch(
            &manifest.identity.tokenizer,
            self.api.url().tokenizer(&self.model_digest),
            &path,
        )
        .await?;
        Ok(path)
    }

    /// The paths of `parts`, in their order.
    pub(crate) async fn parts(
        &self,
        parts: &[Artifact],
        quantization: Quantization,
    ) -> Result<Vec<PathBuf>, Error> {
        let folder = self.folder.join(quantization.name());
        std::fs::create_dir_all(&folder).map_err(DeviceError::cache(&folder))?;
        let mut paths = Vec::with_capacity(parts.len());
        for part in parts {
            let path = folder.join(format!("{}.gguf", part.name));
            self.fetch(
                part,
                self.api
                    .url()
                    .head_part(&self.model_digest, quantization, &part.name),
                &path,
            )
            .await?;
            paths.push(path);
        }
        Ok(paths)
    }

    /// Makes sure that `path` holds `artifact`.
    async fn fetch(&self, artifact: &Artifact, url: Url, path: &Path) -> Result<(), Error> {
        if path.exists() {
            if digest_of(path).await? == artifact.digest {
                self.report(artifact, artifact.bytes, true);
                return Ok(());
            }
            tracing::warn!(path = %path.display(), "a cached file is damaged and is fetched again");
            std::fs::remove_file(path).map_err(DeviceError::cache(path))?;
        }
        let part_path = path.with_extension("part");
        // A part file of an earlier run may be damaged. It is then gone after the first attempt.
        let resumes = part_path.exists();
        match self.download(artifact, &url, &part_path).await {
            Err(Error::Tail(TailError::ArtifactDigest { .. })) if resumes => {
                self.download(artifact, &url, &part_path).await?;
            }
            result => result?,
        }
        std::fs::rename(&part_path, path).map_err(DeviceError::cache(path))?;
        Ok(())
    }

    /// Downloads to `part_path`, after what is already there, and checks the digest.
    async fn download(
        &self,
        artifact: &Artifact,
        url: &Url,
        part_path: &Path,
    ) -> Result<(), Error> {
        let mut have_bytes = std::fs::metadata(part_path).map_or(0, |file| file.len());
        if have_bytes > artifact.bytes {
            have_bytes = 0;
        }
        if have_bytes < artifact.bytes || artifact.bytes == 0 {
            self.download_rest(artifact, url, part_path, have_bytes)
                .await?;
        }
        let got = digest_of(part_path).await?;
        if got == artifact.digest {
            return Ok(());
        }
        std::fs::remove_file(part_path).map_err(DeviceError::cache(part_path))?;
        let (part, expected) = (artifact.name.clone(), artifact.digest.clone());
        Err(TailError::ArtifactDigest {
            part,
            expected,
            got,
        }
        .into())
    }

    async fn download_rest(
        &self,
        artifact: &Artifact,
        url: &Url,
        part_path: &Path,
        have_bytes: u64,
    ) -> Result<(), Error> {
        let mut response = self
            .api
            .download(url.clone(), have_bytes, &artifact.digest)
            .await?;
        // Anything but 206 is the whole file.
        let start_bytes = if response.status() == StatusCode::PARTIAL_CONTENT {
            have_bytes
        } else {
            0
        };
        let io_error = DeviceError::cache;
        let file = tokio::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(part_path)
            .await;
        let mut file = file.map_err(io_error(part_path))?;
        file.set_len(start_bytes)
            .await
            .map_err(io_error(part_path))?;
        let (mut done_bytes, mut reported_bytes) = (start_bytes, start_bytes);
        self.report(artifact, done_bytes, false);
        while let Some(piece) = response
            .chunk()
            .await
            .map_err(|source| http_error(url, source))?
        {
            done_bytes += piece.len() as u64;
            if done_bytes > artifact.bytes {
                return Err(TailError::TooLarge {
                    url: url.to_string(),
                    max_bytes: artifact.bytes,
                }
                .into());
            }
            file.write_all(&piece).await.map_err(io_error(part_path))?;
            if done_bytes - reported_bytes >= REPORT_BYTES {
                reported_bytes = done_bytes;
                self.report(artifact, done_bytes, false);
            }
        }
        file.sync_all().await.map_err(io_error(part_path))?;
        if done_bytes < artifact.bytes {
            let (part, expected_bytes) = (artifact.name.clone(), artifact.bytes);
            return Err(TailError::ArtifactTruncated {
                part,
                expected_bytes,
                got_bytes: done_bytes,
            }
            .into());
        }
        self.report(artifact, done_bytes, false);
        Ok(())
    }

    fn report(&self, artifact: &Artifact, done_bytes: u64, cached: bool) {
        let Artifact { name, bytes, .. } = artifact;
        tracing::debug!(
            part = name,
            done_bytes,
            total_bytes = bytes,
            cached,
            "head artefact"
        );
        if let Some(progress) = &self.progress {
            progress(&Progress {
                part: name.clone(),
                done_bytes,
                total_bytes: *bytes,
                cached,
            });
        }
    }
}

fn lock(folder: &Path) -> Result<File, DeviceError> {
    std::fs::create_dir_all(folder).map_err(DeviceError::cache(folder))?;
    let path = folder.join(".lock");
    let file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(DeviceError::cache(&path))?;
    file.lock().map_err(DeviceError::cache(&path))?;
    Ok(file)
}

/// Hashes on a blocking thread, through a small buffer.
async fn digest_of(path: &Path) -> Result<String, DeviceError> {
    let path = path.to_owned();
    let hash = move || {
        let mut file = File::open(&path).map_err(DeviceError::cache(&path))?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; HASH_BUFFER_BYTES];
        loop {
            match file.read(&mut buffer).map_err(DeviceError::cache(&path))? {
                0 => return Ok(format_digest(hasher.finalize().as_slice())),
                bytes => hasher.update(&buffer[..bytes]),
            }
        }
    };
    tokio::task::spawn_blocking(hash).await?
}
