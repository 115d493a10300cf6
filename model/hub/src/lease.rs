//! Who downloads a file, where several processes share a cache folder, perhaps from several machines.
//!
//! Beside `NAME` lies `NAME.lease`: 512 bytes of JSON that say who holds it and of which part file. Whoever finds it
//! held waits. Two things free it without its holder's doing:
//!
//! - On one machine, the lock that the kernel keeps on the file ends with the process that held it.
//! - From another machine a holder counts as dead when its beats have stood still for [`LEASE`]. No clocks are
//!   compared: it is the waiting process that has seen no beat for so long.
//!
//! A lease only spares work. That a file is right does not depend on it: each holder writes to a part file with a
//! name of its own, a part of another machine is copied before it is continued, and a whole file appears by rename.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::error::HubError;

/// How long beats may stand still before their holder counts as dead.
pub(crate) const LEASE: Duration = Duration::from_secs(30);

/// Between two beats.
const BEAT: Duration = Duration::from_secs(3);

/// Between two looks at a lease that somebody else holds.
const LOOK: Duration = Duration::from_millis(500);

/// One block, so that a write is seen whole or not at all.
const RECORD_BYTES: usize = 512;

/// The longest ETag that is kept; a download with a longer one begins again where it breaks off.
const MAX_ETAG_BYTES: usize = 200;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Who holds the lease.
    holder: Option<u64>,
    /// The holder's machine, since it was started.
    machine: String,
    beat: u64,
    part: Option<Part>,
}

/// What of a file is here already.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    /// In the part file's name.
    id: u64,
    /// By which the server can tell that the file is still the same.
    pub(crate) etag: String,
    /// Of the whole file.
    pub(crate) total_bytes: u64,
}

/// The right to download one file.
pub(crate) struct Lease {
    /// The file that the lease is for.
    target: PathBuf,
    path: PathBuf,
    file: File,
    record: Record,
    beaten: Instant,
}

impl Lease {
    /// Waits until nobody else downloads `target`, and says how many bytes somebody else has of how many. Returns
    /// `None` where they have brought it to its end.
    pub(crate) async fn acquire(
        target: &Path,
        mut waiting: impl FnMut(u64, u64),
    ) -> Result<Option<Self>, HubError> {
        let path = beside(target, "lease");
        let mut seen: Option<(Record, Instant)> = None;
        loop {
            if target.exists() {
                return Ok(None);
            }
            if let Some(lease) = Self::attempt(target, &path, &mut seen)? {
                // It may have been brought to its end in between.
                if target.exists() {
                    lease.release_whole();
                    return Ok(None);
                }
                return Ok(Some(lease));
            }
            let part = seen.as_ref().and_then(|(record, _)| record.part.as_ref());
            if let Some(part) = part {
                waiting(file_bytes(&part_path(target, part.id)), part.total_bytes);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn attempt(
        target: &Path,
        path: &Path,
        seen: &mut Option<(Record, Instant)>,
    ) -> Result<Option<Self>, HubError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(HubError::io(path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                note(seen, read(&file));
                return Ok(None);
            }
            // A file system without locks: beats alone say who lives.
            Err(TryLockError::Error(_)) => {}
        }
        let before = read(&file);
        // A lock that the kernel of this machine gave away is proof.
        let is_free = before.holder.is_none() || before.machine == machine();
        if !is_free && !note(seen, before.clone()) {
            return Ok(None);
        }
        let mut lease = Self {
            target: target.to_owned(),
            path: path.to_owned(),
            file,
            record: Record {
                holder: Some(fastrand::u64(..)),
                machine: machine(),
                beat: before.beat.wrapping_add(1),
                part: None,
            },
            beaten: Instant::now(),
        };
        lease.record.part = before.part.and_then(|part| lease.adopt(part, is_free));
        lease.write()?;
        Ok(Some(lease))
    }

    /// Makes another's part this holder's own. One whose writer may still live is copied.
    fn adopt(&self, part: Part, is_free: bool) -> Option<Part> {
        let id = self.record.holder?;
        let (from, to) = (
            part_path(&self.target, part.id),
            part_path(&self.target, id),
        );
        let adopted = if is_free {
            std::fs::rename(&from, &to)
        } else {
            std::fs::copy(&from, &to).map(drop)
        };
        if !is_free {
            let _ = std::fs::remove_file(&from);
        }
        adopted.ok().map(|()| Part { id, ..part })
    }

    /// Where this holder writes.
    pub(crate) fn part_path(&self) -> PathBuf {
        part_path(&self.target, self.record.holder.unwrap_or_default())
    }

    /// What is known of the part file that is here, if one is.
    pub(crate) fn part(&self) -> Option<&Part> {
        self.record.part.as_ref()
    }

    /// A download begins from nothing. Without an ETag it cannot be continued.
    pub(crate) fn begin(&mut self, etag: Option<&str>, total_bytes: u64) -> Result<(), HubError> {
        let etag = etag.filter(|etag| etag.len() <= MAX_ETAG_BYTES);
        self.record.part = etag.zip(self.record.holder).map(|(etag, id)| Part {
            id,
            etag: etag.to_owned(),
            total_bytes,
        });
        self.write()
    }

    /// Says that this holder lives, as often as is needed.
    ///
    /// # Errors
    /// [`HubError::TakenOver`] where another process has taken it for dead.
    pub(crate) fn beat(&mut self) -> Result<(), HubError> {
        if self.beaten.elapsed() < BEAT {
            return Ok(());
        }
        self.check()?;
        self.record.beat = self.record.beat.wrapping_add(1);
        self.beaten = Instant::now();
        self.write()
    }

    /// # Errors
    /// [`HubError::TakenOver`] where another process has taken this one for dead.
    pub(crate) fn check(&self) -> Result<(), HubError> {
        // By name: somebody may have removed the file that is open here.
        let now = File::open(&self.path).map(|file| read(&file));
        if now.is_ok_and(|now| now.holder == self.record.holder) {
            return Ok(());
        }
        Err(HubError::TakenOver {
            what: crate::file_name(&self.target),
        })
    }

    /// Leaves the part for whoever comes next.
    pub(crate) fn release(mut self) {
        if self.check().is_ok() {
            self.record.holder = None;
            // It would only be waited for.
            let _ = self.write();
        }
    }

    /// The file is whole: nothing else is needed.
    pub(crate) fn release_whole(self) {
        let Some(folder) = self.target.parent() else {
            return;
        };
        let stem = format!("{}.part-", crate::file_name(&self.target));
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&stem) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        let _ = std::fs::remove_file(&self.path);
    }

    fn write(&self) -> Result<(), HubError> {
        let mut bytes = serde_json::to_vec(&self.record).unwrap_or_default();
        bytes.resize(RECORD_BYTES, b' ');
        let mut file = &self.file;
        file.rewind()
            .and_then(|()| file.write_all(&bytes))
            .map_err(HubError::io(&self.path))
    }
}

/// Notes what a lease says; true when that has not changed for so long that its holder counts as dead.
fn note(seen: &mut Option<(Record, Instant)>, record: Record) -> bool {
    match seen {
        Some((before, since)) if *before == record => since.elapsed() >= LEASE,
        _ => {
            *seen = Some((record, Instant::now()));
            false
        }
    }
}

/// A lease that was never written is nobody's; one that cannot be read is somebody's.
fn read(mut file: &File) -> Record {
    let mut bytes = Vec::with_capacity(RECORD_BYTES);
    let read = file
        .rewind()
        .and_then(|()| file.take(RECORD_BYTES as u64).read_to_end(&mut bytes));
    if read.is_ok() && bytes.is_empty() {
        return Record::default();
    }
    serde_json::from_slice(&bytes).unwrap_or(Record {
        holder: Some(0),
        ..Record::default()
    })
}

/// This machine since it was started; a random one where the system does not say, so that it is nobody's.
fn machine() -> String {
    static MACHINE: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let read = || match std::fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Ok(id) => id.trim().to_owned(),
        Err(_) => format!("{:016x}", fastrand::u64(..)),
    };
    MACHINE.get_or_init(read).clone()
}

fn part_path(target: &Path, id: u64) -> PathBuf {
    beside(target, &format!("part-{id:016x}"))
}

fn beside(target: &Path, extension: &str) -> PathBuf {
    let name = format!("{}.{extension}", crate::file_name(target));
    target.with_file_name(name)
}

fn file_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lease of a process on another machine.
    fn foreign(target: &Path, beat: u64) {
        let record = Record {
            holder: Some(7),
            machine: "another".to_owned(),
            beat,
            part: Some(Part {
                id: 7,
                etag: "\"e\"".to_owned(),
                total_bytes: 10,
            }),
        };
        let mut bytes = serde_json::to_vec(&record).unwrap();
        bytes.resize(RECORD_BYTES, b' ');
        std::fs::write(beside(target, "lease"), bytes).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_on_another_machine_is_waited_for_while_it_beats() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("m.gguf");
        foreign(&target, 1);
        std::fs::write(part_path(&target, 7), "abc").unwrap();
        let started = Instant::now();
        let mut beats = 1;
        let lease = Lease::acquire(&target, |bytes, total_bytes| {
            assert_eq!((bytes, total_bytes), (3, 10));
            // It lives for a minute.
            if started.elapsed() < Duration::from_secs(60) {
                beats += 1;
                foreign(&target, beats);
            }
        });
        let lease = lease.await.unwrap().unwrap();
        let waited = started.elapsed();
        assert!(waited >= Duration::from_secs(60) + LEASE, "{waited:?}");
        assert!(waited < Duration::from_secs(62) + LEASE, "{waited:?}");
        // A part whose writer may wake up is copied: what it writes then is nobody's.
        assert_eq!(lease.part().unwrap().etag, "\"e\"");
        assert_eq!(std::fs::read(lease.part_path()).unwrap(), b"abc");
        assert!(!part_path(&target, 7).exists());
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_was_taken_for_dead_stops() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("m.gguf");
        let mut lease = Lease::acquire(&target, |_, _| ()).await.unwrap().unwrap();
        tokio::time::advance(BEAT).await;
        lease.beat().unwrap();
        foreign(&target, 3);
        assert!(lease.beat().is_ok(), "it has just beaten");
        tokio::time::advance(BEAT).await;
        assert!(matches!(lease.beat(), Err(HubError::TakenOver { .. })));
        lease.release();
        let record = read(&File::open(beside(&target, "lease")).unwrap());
        assert_eq!(record.holder, Some(7), "the other's lease is left alone");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_was_given_back_is_free_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("m.gguf");
        let mut first = Lease::acquire(&target, |_, _| ()).await.unwrap().unwrap();
        std::fs::write(first.part_path(), "abcd").unwrap();
        first.begin(Some("\"e\""), 9).unwrap();
        first.release();
        let started = Instant::now();
        let second = Lease::acquire(&target, |_, _| ()).await.unwrap().unwrap();
        assert_eq!(started.elapsed(), Duration::ZERO);
        assert_eq!(second.part().unwrap().total_bytes, 9);
        assert_eq!(std::fs::read(second.part_path()).unwrap(), b"abcd");
        second.release_whole();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
