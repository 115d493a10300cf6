//! Whether there is room for a download, asked before anything is written.

use std::path::Path;

use crate::error::HubError;

/// Left free for head artefacts and everything else that shares the disk.
const RESERVE_BYTES: u64 = 16 << 20;

/// # Errors
/// [`HubError::NoSpace`] where `folder` has no room for `needed_bytes` more.
pub(crate) fn expect_room(folder: &Path, needed_bytes: u64) -> Result<(), HubError> {
    let free_bytes = free_bytes(folder)?;
    let needed_bytes = match needed_bytes {
        0 => 0,
        bytes => bytes.saturating_add(RESERVE_BYTES),
    };
    if free_bytes >= needed_bytes {
        return Ok(());
    }
    Err(HubError::NoSpace {
        path: folder.to_owned(),
        needed_bytes,
        free_bytes,
    })
}

/// The error of a write, with what is free where the disk is full.
pub(crate) fn write_error(path: &Path, missing_bytes: u64, source: std::io::Error) -> HubError {
    let folder = path.parent().unwrap_or(path);
    match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => HubError::NoSpace {
            path: folder.to_owned(),
            needed_bytes: missing_bytes,
            free_bytes: free_bytes(folder).unwrap_or(0),
        },
        _ => HubError::io(path)(source),
    }
}

#[cfg(unix)]
fn free_bytes(folder: &Path) -> Result<u64, HubError> {
    let found = rustix::fs::statvfs(folder);
    let found = found.map_err(|error| HubError::io(folder)(error.into()))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Not known: a full disk then shows when it is written to.
#[cfg(not(unix))]
fn free_bytes(_folder: &Path) -> Result<u64, HubError> {
    Ok(u64::MAX)
}
