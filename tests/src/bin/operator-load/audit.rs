//! Counting requests in the API server's audit log.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::Path;

use anyhow::Result;
use serde_json::Value;

/// How many requests of which kind.
#[derive(Default)]
pub struct Requests {
    /// But for those on leases.
    pub writes: usize,
    /// Renewals of the leader's lease.
    pub lease_writes: usize,
    /// Gets, lists and watches.
    pub reads: usize,
}

/// Counts what `user` did after the first `skip` bytes of `log`.
pub fn requests(log: &Path, skip: u64, user: &str) -> Result<Requests> {
    let mut file = File::open(log)?;
    file.seek(SeekFrom::Start(skip))?;
    let mut requests = Requests::default();
    for line in BufReader::new(file).lines() {
        let Ok(entry) = serde_json::from_str::<Value>(&line?) else {
            continue; // The line that is being written.
        };
        if entry["user"]["username"] != user {
            continue;
        }
        let is_read = matches!(entry["verb"].as_str(), Some("get" | "list" | "watch"));
        match (is_read, entry["objectRef"]["resource"] == "leases") {
            (true, _) => requests.reads += 1,
            (false, true) => requests.lease_writes += 1,
            (false, false) => requests.writes += 1,
        }
    }
    Ok(requests)
}
