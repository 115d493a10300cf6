//! One file: resumed where it broke off, checked while it comes, and seen under its name only when it is whole.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::Duration;

use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE};
use reqwest::{Response, Url};
use sha2::{Digest as _, Sha256};

use crate::error::HubError;
use crate::lease::Lease;
use crate::meter::Meter;
use crate::space;
use crate::transport::{Transport, status_error, unreachable};

const MAGIC: &[u8; 4] = b"GGUF";

/// The most that is taken of a server that does not say how much will come.
const MAX_UNDECLARED_BYTES: u64 = 64 << 20;

/// How often to try, and how long to wait in between.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Attempts in a row that bring nothing.
    pub(crate) attempts: u32,
    /// Before the second attempt; doubled before each further one.
    pub(crate) first_wait: Duration,
    pub(crate) max_wait: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 6,
            first_wait: Duration::from_secs(1),
            max_wait: Duration::from_secs(30),
        }
    }
}

/// What downloads have in common.
pub(crate) struct Downloads {
    pub(crate) transport: Transport,
    pub(crate) meter: Meter,
    pub(crate) patience: Patience,
}

/// A file to be fetched.
pub(crate) struct Wanted<'a> {
    pub(crate) url: Url,
    /// For messages.
    pub(crate) what: &'a str,
    /// 64 hexadecimal digits in lower case, where they are known.
    pub(crate) sha256: Option<&'a str>,
    /// Its size, where it is known.
    pub(crate) bytes: Option<u64>,
    pub(crate) is_gguf: bool,
}

impl Downloads {
    /// Fetches `wanted` to `path`, unless it is there.
    pub(crate) async fn fetch(&mut self, wanted: &Wanted<'_>, path: &Path) -> Result<(), HubError> {
        self.meter.begin(wanted.what);
        if let Some(bytes) = wanted.bytes {
            self.meter.size(bytes);
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(HubError::io(folder))?;
        }
        let mut failures = 0;
        loop {
            let waiting = |bytes, total_bytes| {
                self.meter.size(total_bytes);
                self.meter.at(bytes);
            };
            let Some(lease) = Lease::acquire(path, waiting).await? else {
                break;
            };
            let mut transfer = Transfer::new(self, wanted, lease)?;
            let before_bytes = transfer.have_bytes;
            let ended = match transfer.run().await {
                Ok(()) => transfer.keep(path),
                Err(error) => Err(error),
            };
            let Err(error) = ended else {
                transfer.lease.release_whole();
                break;
            };
            let came_further = transfer.have_bytes > before_bytes;
            // What is wrong would be continued for ever.
            if matches!(error, HubError::Digest { .. } | HubError::NotGguf { .. }) {
                transfer.lease.release_whole();
            } else {
                transfer.lease.release();
            }
            failures = if came_further { 1 } else { failures + 1 };
            if !error.is_transient() || failures >= self.patience.attempts {
                return Err(error);
            }
            self.wait(failures, &error).await;
        }
        let bytes = std::fs::metadata(path).map_err(HubError::io(path))?.len();
        self.meter.size(bytes);
        self.meter.end();
        Ok(())
    }

    /// Waits before the attempt after so many `failures`.
    pub(crate) async fn wait(&self, failures: u32, error: &HubError) {
        let doubled = 1_u32 << failures.saturating_sub(1).min(16);
        let wait = self.patience.first_wait.saturating_mul(doubled);
        let wait = wait.min(self.patience.max_wait);
        // Tails that were started together do not all come back together.
        let wait = wait.mul_f64(0.5 + 0.5 * fastrand::f64());
        let wait = error.retry_after().map_or(wait, |asked| wait.max(asked));
        tracing::warn!(%error, failures, wait_ms = wait.as_millis(), "a download is tried again");
        tokio::time::sleep(wait).await;
    }
}

/// One attempt.
struct Transfer<'a> {
    transport: &'a Transport,
    meter: &'a mut Meter,
    wanted: &'a Wanted<'a>,
    lease: Lease,
    part: File,
    /// In the part file.
    have_bytes: u64,
    /// Of what is in the part file, where there is something to compare it with.
    sha256: Option<Sha256>,
}

impl<'a> Transfer<'a> {
    fn new(
        downloads: &'a mut Downloads,
        wanted: &'a Wanted<'a>,
        lease: Lease,
    ) -> Result<Self, HubError> {
        let path = lease.part_path();
        let part = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(HubError::io(&path))?;
        Ok(Self {
            transport: &downloads.transport,
            meter: &mut downloads.meter,
            wanted,
            lease,
            part,
            have_bytes: 0,
            sha256: wanted.sha256.map(|_| Sha256::new()),
        })
    }

    /// Downloads what is missing, to the end of the file.
    async fn run(&mut self) -> Result<(), HubError> {
        self.resume()?;
        let mut headers = HeaderMap::new();
        if self.have_bytes > 0
            && let Some(part) = self.lease.part()
        {
            if part.total_bytes == self.have_bytes {
                return Ok(());
            }
            let range = format!("bytes={}-", self.have_bytes);
            if let (Ok(range), Ok(etag)) = (range.parse(), HeaderValue::from_str(&part.etag)) {
                headers.insert(RANGE, range);
                headers.insert(IF_RANGE, etag);
            }
        }
        let wanted = self.wanted;
        let response = self
            .transport
            .get(&wanted.url, &headers, wanted.what)
            .await?;
        let total_bytes = match response.status().as_u16() {
            200 => self.begin(&response)?,
            206 if !headers.is_empty() => self.go_on(&response)?,
            // Nothing follows what is here: whole or foreign, nobody can say.
            416 if !headers.is_empty() => return Err(self.changed()?),
            _ => {
                return Err(status_error(
                    &response,
                    wanted.what,
                    self.transport.has_token(),
                ));
            }
        };
        self.copy(response, total_bytes).await
    }

    /// Takes up what is in the part file.
    fn resume(&mut self) -> Result<(), HubError> {
        let path = self.lease.part_path();
        let io = HubError::io(&path);
        let bytes = self.part.metadata().map_err(&io)?.len();
        let known = self
            .lease
            .part()
            .is_some_and(|part| bytes <= part.total_bytes);
        if !known {
            return self.part.set_len(0).map_err(io);
        }
        self.part.seek(SeekFrom::Start(0)).map_err(&io)?;
        let mut buffer = vec![0; 1 << 20];
        while self.sha256.is_some() && self.have_bytes < bytes {
            let read = self.part.read(&mut buffer).map_err(&io)?;
            if read == 0 {
                break;
            }
            if let Some(sha256) = &mut self.sha256 {
                sha256.update(&buffer[..read]);
            }
            self.have_bytes += read as u64;
            self.lease.beat()?;
        }
        self.have_bytes = bytes;
        self.part.seek(SeekFrom::Start(bytes)).map_err(io)?;
        self.meter.at(bytes);
        Ok(())
    }

    /// The server sends the file from its beginning. Returns its size, where that is known.
    fn begin(&mut self, response: &Response) -> Result<Option<u64>, HubError> {
        self.start_again()?;
        let declared = response.content_length();
        let total_bytes = self.expected_size(declared)?;
        let folder = self.lease.part_path();
        let folder = folder.parent().unwrap_or(&folder);
        space::expect_room(folder, total_bytes.unwrap_or(MAX_UNDECLARED_BYTES))?;
        let etag = response.headers().get(ETAG);
        // Weak ETags do not vouch for the bytes, and a range by them is refused.
        let etag = etag
            .and_then(|etag| etag.to_str().ok())
            .filter(|etag| !etag.starts_with("W/") && total_bytes.is_some());
        self.lease.begin(etag, total_bytes.unwrap_or(0))?;
        Ok(total_bytes)
    }

    /// The server goes on where the part file ends.
    fn go_on(&mut self, response: &Response) -> Result<Option<u64>, HubError> {
        let range = response.headers().get(CONTENT_RANGE);
        let range = range.and_then(|range| content_range(range.to_str().ok()?));
        let expected = self.lease.part().map(|part| part.total_bytes);
        match range {
            Some((start, total)) if start == self.have_bytes && Some(total) == expected => {
                let folder = self.lease.part_path();
                let folder = folder.parent().unwrap_or(&folder);
                space::expect_room(folder, total - start)?;
                Ok(Some(total))
            }
            _ => Err(self.changed()?),
        }
    }

    /// What a file that has become another one is answered with.
    fn changed(&mut self) -> Result<HubError, HubError> {
        self.start_again()?;
        self.lease.begin(None, 0)?;
        Ok(HubError::Changed {
            what: self.wanted.what.to_owned(),
        })
    }

    fn start_again(&mut self) -> Result<(), HubError> {
        let path = self.lease.part_path();
        self.part.set_len(0).map_err(HubError::io(&path))?;
        self.part.rewind().map_err(HubError::io(&path))?;
        self.have_bytes = 0;
        self.sha256 = self.wanted.sha256.map(|_| Sha256::new());
        Ok(())
    }

    fn expected_size(&self, declared: Option<u64>) -> Result<Option<u64>, HubError> {
        match (self.wanted.bytes, declared) {
            (Some(expected_bytes), Some(got_bytes)) if expected_bytes != got_bytes => {
                Err(self.wrong_size(expected_bytes, got_bytes))
            }
            (listed, declared) => Ok(declared.or(listed)),
        }
    }

    fn wrong_size(&self, expected_bytes: u64, got_bytes: u64) -> HubError {
        HubError::Size {
            what: self.wanted.what.to_owned(),
            expected_bytes,
            got_bytes,
        }
    }

    /// Copies to the end of the body; what came before it breaks is kept.
    async fn copy(&mut self, mut response: Response, total: Option<u64>) -> Result<(), HubError> {
        let path = self.lease.part_path();
        let most_bytes = total.unwrap_or(MAX_UNDECLARED_BYTES);
        if let Some(total) = total {
            self.meter.size(total);
        }
        let broken = loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break None,
                Err(error) => break Some(error),
            };
            let next_bytes = self.have_bytes + chunk.len() as u64;
            if next_bytes > most_bytes {
                return Err(self.wrong_size(most_bytes, next_bytes));
            }
            self.part
                .write_all(&chunk)
                .map_err(|error| space::write_error(&path, most_bytes - self.have_bytes, error))?;
            if let Some(sha256) = &mut self.sha256 {
                sha256.update(&chunk);
            }
            self.have_bytes = next_bytes;
            self.meter.received(chunk.len() as u64);
            self.meter.at(next_bytes);
            self.lease.beat()?;
        };
        match (total, broken) {
            (Some(expected_bytes), _) if expected_bytes != self.have_bytes => {
                Err(HubError::Incomplete {
                    what: self.wanted.what.to_owned(),
                    expected_bytes,
                    got_bytes: self.have_bytes,
                })
            }
            (_, Some(error)) => Err(unreachable(self.wanted.what, error)),
            (_, None) => Ok(()),
        }
    }

    /// Checks the part, and gives it its name.
    fn keep(&mut self, path: &Path) -> Result<(), HubError> {
        let part_path = self.lease.part_path();
        if let (Some(sha256), Some(expected)) = (self.sha256.take(), self.wanted.sha256) {
            let got = hex(&sha256.finalize());
            if got != expected {
                return Err(HubError::Digest {
                    what: self.wanted.what.to_owned(),
                    expected: expected.to_owned(),
                    got,
                });
            }
        }
        if self.wanted.is_gguf {
            expect_gguf(self.wanted.what, &mut self.part)?;
        }
        self.part.sync_all().map_err(HubError::io(&part_path))?;
        self.lease.check()?;
        std::fs::rename(&part_path, path).map_err(HubError::io(path))?;
        sync_folder(path);
        Ok(())
    }
}

/// Start and size of `bytes 5-9/10`.
pub(crate) fn content_range(text: &str) -> Option<(u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()?))
}

/// The rename is kept over a loss of power. File systems that cannot do that for folders do it by themselves.
pub(crate) fn sync_folder(path: &Path) {
    if let Some(folder) = path.parent()
        && let Ok(folder) = File::open(folder)
    {
        let _ = folder.sync_all();
    }
}

/// A login page or an error page is no model.
fn expect_gguf(what: &str, file: &mut File) -> Result<(), HubError> {
    let mut start = Vec::with_capacity(16);
    let read = file
        .seek(SeekFrom::Start(0))
        .and_then(|_| file.take(16).read_to_end(&mut start));
    if read.is_ok() && start.starts_with(MAGIC) {
        return Ok(());
    }
    Err(HubError::NotGguf {
        what: what.to_owned(),
        start: String::from_utf8_lossy(&start).into_owned(),
    })
}

/// SHA-256 of a file that is here, in lower-case hexadecimal digits.
pub(crate) fn sha256_of(path: &Path) -> Result<String, HubError> {
    let mut file = File::open(path).map_err(HubError::io(path))?;
    let mut sha256 = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).map_err(HubError::io(path))?;
        if read == 0 {
            return Ok(hex(&sha256.finalize()));
        }
        sha256.update(&buffer[..read]);
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
