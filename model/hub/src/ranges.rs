//! Safetensors files of which only some bytes are here.
//!
//! The file has its full length and is sparse; `NAME.ranges` lists what of it has come. A process that ends between
//! the two downloads some bytes again, and two processes that share the folder write the same bytes. Whether they are
//! the right ones is not for here to say: whoever reads them checks them against the model's identity.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Response, Url};

use crate::download::{Downloads, content_range};
use crate::error::HubError;
use crate::folder::Folder;
use crate::space;
use crate::transport::{status_error, unreachable};

/// The format's own limit of a header.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// What may have to come again after a kill.
const SAVE_BYTES: u64 = 256 << 20;

/// Files behind addresses, fetched piece by piece.
pub struct RemoteRanges {
    state: Mutex<State>,
}

struct State {
    downloads: Downloads,
    shards: HashMap<PathBuf, Shard>,
}

struct Shard {
    url: Url,
    what: String,
    path: PathBuf,
    total_bytes: u64,
    /// In order, apart from each other.
    have: Vec<Range<u64>>,
}

impl RemoteRanges {
    /// Fetches small files and the headers of all files of weights into `folder`.
    ///
    /// # Errors
    /// [`HubError::NoRanges`] where the server gives whole files only.
    pub(crate) async fn open(
        mut downloads: Downloads,
        remote: &Folder,
        folder: &Path,
    ) -> Result<Self, HubError> {
        remote.fetch_small(&mut downloads, folder).await?;
        let mut shards = HashMap::new();
        for file in remote.weights(&mut downloads, folder).await? {
            let what = format!("{}/{file}", remote.name);
            let path = folder.join(&file);
            let mut shard = Shard::open(&mut downloads, remote.url(&file), what, path).await?;
            shard.fetch_header(&mut downloads).await?;
            shards.insert(shard.path.clone(), shard);
        }
        Ok(Self {
            state: Mutex::new(State { downloads, shards }),
        })
    }

    /// Fetches what of these is not here yet. Blocks. Every path is that of a file of weights.
    ///
    /// # Errors
    /// [`HubError`] where bytes cannot be fetched or written.
    pub fn ensure(&self, mut wanted: Vec<(PathBuf, Range<u64>)>) -> Result<(), HubError> {
        wanted.sort_by(|a, b| (&a.0, a.1.start).cmp(&(&b.0, b.1.start)));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { downloads, shards } = &mut *state;
        let mut missing = Vec::new();
        for (path, range) in wanted {
            let shard = shards
                .get(&path)
                .ok_or_else(|| HubError::NoSuchPath { path: path.clone() })?;
            for gap in shard.missing(range) {
                match missing.last_mut() {
                    Some((last, before)) if *last == path && joins(before, &gap) => {
                        before.end = gap.end;
                    }
                    _ => missing.push((path.clone(), gap)),
                }
            }
        }
        let needed_bytes = missing.iter().map(|(_, gap)| gap.end - gap.start).sum();
        if needed_bytes == 0 {
            return Ok(());
        }
        let done_bytes = downloads.meter.done_bytes();
        downloads.meter.plan(done_bytes + needed_bytes);
        if let Some(folder) = missing[0].0.parent() {
            space::expect_room(folder, needed_bytes)?;
        }
        let fetched = crate::block_on(async {
            for (path, gap) in missing {
                if let Some(shard) = shards.get_mut(&path) {
                    shard.fetch(downloads, gap).await?;
                }
            }
            Ok(())
        });
        downloads.meter.report();
        fetched
    }

    /// Forgets what has come: it is not what it should be, and has to come again.
    pub fn forget(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for shard in state.shards.values_mut() {
            shard.have.clear();
            let _ = std::fs::remove_file(shard.record_path());
        }
    }
}

fn joins(before: &Range<u64>, next: &Range<u64>) -> bool {
    before.end == next.start
}

impl Shard {
    async fn open(
        downloads: &mut Downloads,
        url: Url,
        what: String,
        path: PathBuf,
    ) -> Result<Self, HubError> {
        let mut shard = Self {
            url,
            what,
            path,
            total_bytes: 0,
            have: Vec::new(),
        };
        let record = std::fs::read(shard.record_path()).ok();
        let record: Option<Vec<Range<u64>>> =
            record.and_then(|json| serde_json::from_slice(&json).ok());
        let here_bytes = std::fs::metadata(&shard.path).map_or(0, |metadata| metadata.len());
        if let Some(have) =
            record.filter(|have| have.last().is_some_and(|last| last.end <= here_bytes))
        {
            shard.total_bytes = here_bytes;
            shard.have = have;
            return Ok(shard);
        }
        // The first answer says how long the file is.
        let mut response = shard.ask(downloads, 0..8).await?;
        let total = response.headers().get(CONTENT_RANGE);
        let total = total.and_then(|range| content_range(range.to_str().ok()?));
        shard.total_bytes = total.map_or(0, |(_, total)| total);
        let mut file = shard.file()?;
        file.set_len(shard.total_bytes)
            .map_err(HubError::io(&shard.path))?;
        let mut came = 0;
        while let Ok(Some(chunk)) = response.chunk().await {
            file.write_all(&chunk).map_err(HubError::io(&shard.path))?;
            came += chunk.len() as u64;
        }
        downloads.meter.received(came);
        downloads.meter.more(came);
        shard.add(0..came.min(8));
        Ok(shard)
    }

    /// The JSON at the beginning, and the eight bytes before it that say how long it is.
    async fn fetch_header(&mut self, downloads: &mut Downloads) -> Result<(), HubError> {
        use std::io::Read as _;
        self.fetch(downloads, 0..8).await?;
        let mut length = [0; 8];
        let mut file = self.file()?;
        file.read_exact(&mut length)
            .map_err(HubError::io(&self.path))?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > MAX_HEADER_BYTES || header_bytes > self.total_bytes.saturating_sub(8) {
            return Err(HubError::Size {
                what: format!("the header of {}", self.what),
                expected_bytes: MAX_HEADER_BYTES.min(self.total_bytes),
                got_bytes: header_bytes,
            });
        }
        self.fetch(downloads, 8..8 + header_bytes).await
    }

    /// What of `range` is not here.
    fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut missing = Vec::new();
        let mut start = range.start;
        for have in &self.have {
            if have.end <= start || have.start >= range.end {
                continue;
            }
            if have.start > start {
                missing.push(start..have.start);
            }
            start = have.end;
        }
        if start < range.end {
            missing.push(start..range.end);
        }
        missing
    }

    fn add(&mut self, range: Range<u64>) {
        self.have.push(range);
        self.have.sort_by_key(|range| range.start);
        self.have = self.have.drain(..).fold(Vec::new(), |mut joined, next| {
            match joined.last_mut() {
                Some(before) if next.start <= before.end => before.end = before.end.max(next.end),
                _ => joined.push(next),
            }
            joined
        });
    }

    /// Fetches all of `range` that is not here, and notes it.
    async fn fetch(
        &mut self,
        downloads: &mut Downloads,
        range: Range<u64>,
    ) -> Result<(), HubError> {
        downloads.meter.begin(&self.what);
        for mut gap in self.missing(range) {
            let mut failures = 0;
            while gap.start < gap.end {
                let (came, ended) = self.attempt(downloads, gap.clone()).await;
                self.add(gap.start..gap.start + came);
                self.save()?;
                gap.start += came;
                let Err(error) = ended else { continue };
                failures = if came > 0 { 1 } else { failures + 1 };
                if !error.is_transient() || failures >= downloads.patience.attempts {
                    return Err(error);
                }
                downloads.wait(failures, &error).await;
            }
        }
        Ok(())
    }

    /// One request. Returns how many bytes have come and are on the disk, and how it ended.
    async fn attempt(
        &mut self,
        downloads: &mut Downloads,
        gap: Range<u64>,
    ) -> (u64, Result<(), HubError>) {
        let mut came = 0;
        let ended = self.copy(downloads, gap, &mut came).await;
        match self
            .file()
            .and_then(|file| file.sync_data().map_err(HubError::io(&self.path)))
        {
            Ok(()) => (came, ended),
            Err(error) => (0, Err(error)),
        }
    }

    async fn copy(
        &self,
        downloads: &mut Downloads,
        gap: Range<u64>,
        came: &mut u64,
    ) -> Result<(), HubError> {
        // In pieces, so that a kill loses one of them and not all.
        let piece = gap.start..gap.end.min(gap.start + SAVE_BYTES);
        let expected_bytes = piece.end - piece.start;
        let mut response = self.ask(downloads, piece.clone()).await?;
        let mut file = self.file()?;
        file.seek(SeekFrom::Start(piece.start))
            .map_err(HubError::io(&self.path))?;
        let broken = |error| unreachable(&self.what, error);
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            let bytes = chunk.len() as u64;
            if *came + bytes > expected_bytes {
                return Err(HubError::NoRanges {
                    what: self.what.clone(),
                });
            }
            file.write_all(&chunk)
                .map_err(|error| space::write_error(&self.path, expected_bytes - *came, error))?;
            *came += bytes;
            downloads.meter.received(bytes);
            downloads.meter.more(bytes);
        }
        if *came < expected_bytes {
            return Err(HubError::Incomplete {
                what: self.what.clone(),
                expected_bytes,
                got_bytes: *came,
            });
        }
        Ok(())
    }

    /// Asks for a range, and makes sure that the answer is that range.
    async fn ask(&self, downloads: &Downloads, range: Range<u64>) -> Result<Response, HubError> {
        let mut headers = HeaderMap::new();
        let text = format!("bytes={}-{}", range.start, range.end - 1);
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(RANGE, value);
        }
        let transport = &downloads.transport;
        let response = transport.get(&self.url, &headers, &self.what).await?;
        match response.status().as_u16() {
            206 => {}
            200 => {
                return Err(HubError::NoRanges {
                    what: self.what.clone(),
                });
            }
            _ => return Err(status_error(&response, &self.what, transport.has_token())),
        }
        let got = response.headers().get(CONTENT_RANGE);
        let got = got.and_then(|range| content_range(range.to_str().ok()?));
        match got {
            Some((start, total))
                if start == range.start && (self.total_bytes == 0 || total == self.total_bytes) =>
            {
                Ok(response)
            }
            Some(_) => Err(HubError::Changed {
                what: self.what.clone(),
            }),
            None => Err(HubError::NoRanges {
                what: self.what.clone(),
            }),
        }
    }

    fn file(&self) -> Result<File, HubError> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.path)
            .map_err(HubError::io(&self.path))
    }

    fn record_path(&self) -> PathBuf {
        let name = format!("{}.ranges", crate::file_name(&self.path));
        self.path.with_file_name(name)
    }

    fn save(&self) -> Result<(), HubError> {
        let path = self.record_path();
        let next = path.with_extension(format!("ranges-{:016x}", fastrand::u64(..)));
        let json = serde_json::to_vec(&self.have).unwrap_or_default();
        std::fs::write(&next, json).map_err(HubError::io(&next))?;
        std::fs::rename(&next, &path).map_err(HubError::io(&path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_of_a_range_lies_between_what_is_here() {
        let mut shard = Shard {
            url: Url::parse("http://localhost/x").unwrap(),
            what: String::new(),
            path: PathBuf::new(),
            total_bytes: 100,
            have: Vec::new(),
        };
        let missing = |shard: &Shard, range| -> Vec<(u64, u64)> {
            let missing = shard.missing(range).into_iter();
            missing.map(|range| (range.start, range.end)).collect()
        };
        assert_eq!(missing(&shard, 3..9), [(3, 9)]);
        for range in [40..50, 10..20, 20..30] {
            shard.add(range);
        }
        assert_eq!(shard.have, [10..30, 40..50]);
        assert_eq!(missing(&shard, 0..60), [(0, 10), (30, 40), (50, 60)]);
        assert_eq!(missing(&shard, 12..45), [(30, 40)]);
        assert_eq!(missing(&shard, 10..30), []);
    }
}
