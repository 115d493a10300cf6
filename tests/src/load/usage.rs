//! What a process has used, from `/proc`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// `sysconf(_SC_CLK_TCK)` on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process has used and holds.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// User and system time since its start.
    pub cpu: Duration,
    /// Resident memory, in KiB.
    pub resident_kib: u64,
    /// Open file descriptors.
    pub file_descriptors: usize,
    /// Threads.
    pub threads: u64,
}

impl Usage {
    /// Of the process with this id.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn of(id: u32) -> Result<Self> {
        Self::in_folder(&PathBuf::from(format!("/proc/{id}")))
    }

    /// Of this process.
    ///
    /// # Errors
    /// Where `/proc` is not Linux'.
    pub fn own() -> Result<Self> {
        Self::in_folder(&PathBuf::from("/proc/self"))
    }

    fn in_folder(folder: &std::path::Path) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).with_context(|| path.display().to_string())
        };
        let (status, stat) = (read("status")?, read("stat")?);
        // The name, in brackets, may hold anything; user and system time are the 12th and 13th after it.
        let (_, fields) = stat.rsplit_once(')').context("the name's end")?;
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks = ticks.map(str::parse::<f64>).sum::<Result<f64, _>>()?;
        Ok(Self {
            cpu: Duration::from_secs_f64(ticks / TICKS_PER_SECOND),
            resident_kib: field(&status, "VmRSS:")?,
            file_descriptors: std::fs::read_dir(folder.join("fd"))?.count(),
            threads: field(&status, "Threads:")?,
        })
    }
}

fn field(status: &str, name: &str) -> Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.with_context(|| format!("no {name}"))?.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() -> Result<()> {
        let usage = Usage::own()?;
        assert!(usage.resident_kib > 0 && usage.file_descriptors > 2 && usage.threads > 0);
        Ok(())
    }
}
