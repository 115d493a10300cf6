//! A GGUF file behind a URL.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::error::HubError;
use crate::{Hub, Meter};

const MAGIC: &[u8; 4] = b"GGUF";

/// Downloads `url` unless an earlier run has.
///
/// A URL is taken to name one file for ever: what is in the cache is not asked about again. A download that
/// broke off is continued where the server gave an ETag by which it can tell that the file is still the same.
pub(crate) fn download(hub: &Hub, url: &str, file: &str) -> Result<PathBuf, HubError> {
    let folder = hub.cache_dir.join("urls").join(short_name(url));
    std::fs::create_dir_all(&folder).map_err(HubError::io(&folder))?;
    let path = folder.join(file);
    if path.exists() {
        return Ok(path);
    }
    let part_path = folder.join(format!("{file}.part"));
    let mut part = open_part(&part_path)?;
    // Another process may have finished while this one waited for the lock.
    if path.exists() {
        return Ok(path);
    }
    fetch(
        hub,
        url,
        file,
        Part {
            file: &mut part,
            path: &part_path,
        },
    )?;
    expect_gguf(url, &mut part).inspect_err(|_| {
        // Kept, it would be continued for ever.
        let _ = std::fs::remove_file(&part_path);
    })?;
    part.sync_all().map_err(HubError::io(&part_path))?;
    std::fs::rename(&part_path, &path).map_err(HubError::io(&path))?;
    let _ = std::fs::remove_file(etag_path(&part_path));
    Ok(path)
}

struct Part<'a> {
    file: &'a mut File,
    path: &'a Path,
}

/// Opens the part file and waits until no other process writes to it.
fn open_part(path: &Path) -> Result<File, HubError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    let file = file.map_err(HubError::io(path))?;
    file.lock().map_err(HubError::io(path))?;
    Ok(file)
}

fn fetch(hub: &Hub, url: &str, file: &str, part: Part<'_>) -> Result<(), HubError> {
    let http_error = |source| HubError::Http {
        url: url.to_owned(),
        source: Box::new(source),
    };
    let etag_path = etag_path(part.path);
    let have_bytes = part
        .file
        .seek(SeekFrom::End(0))
        .map_err(HubError::io(part.path))?;
    let etag = std::fs::read_to_string(&etag_path)
        .ok()
        .filter(|_| have_bytes > 0);
    let mut request = ureq::get(url);
    if let Some(etag) = &etag {
        request = request
            .header("Range", format!("bytes={have_bytes}-"))
            .header("If-Range", etag);
    }
    let response = match request.call() {
        // Nothing follows what is here: whole or foreign, the part file does not say. Start again.
        Err(ureq::Error::StatusCode(416)) if etag.is_some() => {
            std::fs::remove_file(&etag_path).map_err(HubError::io(&etag_path))?;
            return fetch(hub, url, file, part);
        }
        response => response.map_err(http_error)?,
    };
    let continues = response.status() == 206;
    let start_bytes = if continues { have_bytes } else { 0 };
    let header = |name: &str| {
        response
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let body_bytes = header("content-length").and_then(|text| text.parse::<u64>().ok());
    let total_bytes = body_bytes.map(|bytes| start_bytes + bytes);
    if !continues {
        part.file.set_len(0).map_err(HubError::io(part.path))?;
        // Weak ETags do not vouch for the bytes, and a range by them is refused.
        match header("etag").filter(|etag| !etag.starts_with("W/")) {
            Some(etag) => std::fs::write(&etag_path, etag).map_err(HubError::io(&etag_path))?,
            None => drop(std::fs::remove_file(&etag_path)),
        }
    }
    part.file
        .seek(SeekFrom::Start(start_bytes))
        .map_err(HubError::io(part.path))?;
    let mut meter = Meter::new(hub, file, total_bytes);
    meter.start(total_bytes);
    meter.add(start_bytes);
    let copied = copy(response.into_body().into_reader(), &part, &mut meter)?;
    let got_bytes = start_bytes + copied.bytes;
    match (copied.broken, total_bytes) {
        (_, Some(expected_bytes)) if expected_bytes != got_bytes => Err(HubError::Incomplete {
            url: url.to_owned(),
            expected_bytes,
            got_bytes,
        }),
        (Some(error), None) => Err(http_error(ureq::Error::Io(error))),
        _ => {
            meter.finish();
            Ok(())
        }
    }
}

/// How far a body was copied.
struct Copied {
    bytes: u64,
    /// Why it ended, where it did not end by itself.
    broken: Option<std::io::Error>,
}

/// Copies to the end of the body or to the break of the connection: what came is kept either way.
fn copy(mut body: impl Read, part: &Part<'_>, meter: &mut Meter) -> Result<Copied, HubError> {
    let mut file = &*part.file;
    let mut buffer = vec![0; 64 << 10];
    let mut bytes = 0;
    loop {
        let read = match body.read(&mut buffer) {
            Ok(0) => {
                return Ok(Copied {
                    bytes,
                    broken: None,
                });
            }
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => {
                return Ok(Copied {
                    bytes,
                    broken: Some(error),
                });
            }
        };
        file.write_all(&buffer[..read])
            .map_err(HubError::io(part.path))?;
        bytes += read as u64;
        meter.add(read as u64);
    }
}

/// A login page or an error page is no model.
fn expect_gguf(url: &str, file: &mut File) -> Result<(), HubError> {
    let mut start = Vec::with_capacity(16);
    let read = file
        .seek(SeekFrom::Start(0))
        .and_then(|_| file.take(16).read_to_end(&mut start));
    if read.is_ok() && start.starts_with(MAGIC) {
        return Ok(());
    }
    Err(HubError::NotGguf {
        url: url.to_owned(),
        start: String::from_utf8_lossy(&start).into_owned(),
    })
}

fn etag_path(part_path: &Path) -> PathBuf {
    part_path.with_extension("part.etag")
}

/// Files of the same name behind different URLs stay apart.
fn short_name(url: &str) -> String {
    use std::fmt::Write as _;
    Sha256::digest(url.as_bytes())
        .iter()
        .take(8)
        .fold(String::new(), |mut name, byte| {
            // Writing to a String cannot fail.
            let _ = write!(name, "{byte:02x}");
            name
        })
}
