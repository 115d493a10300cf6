//! What a process has used, from `/proc`.

use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::operator::Operator;

/// `sysconf(_SC_CLK_TCK)` on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process has used.
pub struct Usage {
    /// User and system time since its start.
    pub cpu: Duration,
    /// Resident now.
    pub rss_mib: f64,
    /// Resident at most.
    pub peak_rss_mib: f64,
}

impl Usage {
    /// Of a running operator.
    pub fn of(operator: &Operator) -> Result<Self> {
        let folder = format!("/proc/{}", operator.pid()?);
        let status = std::fs::read_to_string(format!("{folder}/status"))?;
        let stat = std::fs::read_to_string(format!("{folder}/stat"))?;
        // The name, in brackets, may hold anything; user and system time are the 12th and 13th after it.
        let (_, fields) = stat.rsplit_once(')').context("the name's end")?;
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks = ticks.map(str::parse::<f64>).sum::<Result<f64, _>>()?;
        Ok(Self {
            cpu: Duration::from_secs_f64(ticks / TICKS_PER_SECOND),
            rss_mib: mib(&status, "VmRSS:")?,
            peak_rss_mib: mib(&status, "VmHWM:")?,
        })
    }
}

fn mib(status: &str, name: &str) -> Result<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.with_context(|| format!("no {name}"))?.parse::<f64>()? / 1024.0)
}
