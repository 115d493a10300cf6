//! How much of this tail one tenant may take: sessions at a time, and rows a second.
//!
//! Rows are counted by the generic cell rate algorithm, which is a token bucket whose state is one moment: the
//! one up to which the tenant's rows are paid for at its rate. It may lie [`BURST`] in the future; further on,
//! the tenant's sessions are not read until it is near enough again, and no session of it is opened.
//!
//! Invariant: a tenant is forgotten when it has no session and nothing left to pay, so that the memory is
//! bounded by the sessions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::auth::Tenant;
use crate::config::TenantLimits;

#[cfg(test)]
mod tests;

/// How much of its rate a tenant may use at once.
const BURST: Duration = Duration::from_secs(10);

/// The longest that a session is not read. Where its tenant has to wait longer, it is refused. Devices wait
/// twice as long for a step.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// The lowest rate that makes sense: the largest step, of 512 rows, is paid for within [`MAX_WAIT`].
pub(crate) const MIN_TOKENS_PER_SECOND: u32 = 20;

/// After how long a device whose tenant has too many sessions may ask again.
const SESSIONS_RETRY_AFTER_MS: u32 = 1000;

/// Tenants that are remembered before those that need not be are looked for.
const MIN_REMEMBERED: usize = 64;

/// Why a tenant gets no more.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TenantLimitError {
    #[error(
        "all {max_sessions} sessions that one tenant may have on this tail are taken; try again later"
    )]
    Sessions {
        max_sessions: usize,
        retry_after_ms: u32,
    },
    #[error(
        "one tenant may use {tokens_per_second} tokens a second on this tail, and more have been used; \
         try again later"
    )]
    Rate {
        tokens_per_second: u32,
        retry_after_ms: u32,
    },
}

impl TenantLimitError {
    pub(crate) fn retry_after_ms(&self) -> u32 {
        match self {
            Self::Sessions { retry_after_ms, .. } | Self::Rate { retry_after_ms, .. } => {
                *retry_after_ms
            }
        }
    }
}

/// What one tenant has taken.
#[derive(Debug)]
struct Used {
    sessions: usize,
    /// Up to here its rows are paid for.
    paid_until: Instant,
}

/// All tenants of one tail. Clones share them.
#[derive(Clone)]
pub(crate) struct Tenants {
    limits: TenantLimits,
    used: Arc<Mutex<HashMap<Tenant, Used>>>,
}

impl Tenants {
    pub(crate) fn new(limits: TenantLimits) -> Self {
        Self {
            limits,
            used: Arc::default(),
        }
    }

    /// Counts a session of `tenant` until what is returned is dropped.
    pub(crate) fn enter(
        &self,
        tenant: &Tenant,
        now: Instant,
    ) -> Result<TenantSession, TenantLimitError> {
        let mut tenants = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let open: usize = tenants.values().map(|used| used.sessions.min(1)).sum();
        if tenants.len() >= MIN_REMEMBERED.max(2 * open) {
            tenants.retain(|_, used| used.sessions > 0 || used.paid_until > now);
        }
        let used = tenants.entry(tenant.clone()).or_insert(Used {
            sessions: 0,
            paid_until: now,
        });
        if let Some(max_sessions) = self.limits.max_sessions
            && used.sessions >= max_sessions
        {
            return Err(TenantLimitError::Sessions {
                max_sessions,
                retry_after_ms: SESSIONS_RETRY_AFTER_MS,
            });
        }
        let wait = used.wait(now);
        if !wait.is_zero() {
            return Err(self.over_rate(wait));
        }
        used.sessions += 1;
        Ok(TenantSession {
            tenants: self.clone(),
            tenant: tenant.clone(),
        })
    }

    fn over_rate(&self, wait: Duration) -> TenantLimitError {
        TenantLimitError::Rate {
            tokens_per_second: self.limits.tokens_per_second.unwrap_or(0),
            retry_after_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).max(1),
        }
    }
}

impl Used {
    /// How long until the tenant may go on.
    fn wait(&self, now: Instant) -> Duration {
        self.paid_until
            .saturating_duration_since(now)
            .saturating_sub(BURST)
    }
}

/// A session of a tenant; dropping it counts it out.
pub(crate) struct TenantSession {
    tenants: Tenants,
    tenant: Tenant,
}

impl TenantSession {
    /// Charges rows that go to the engine. How long the session must not be read after them.
    pub(crate) fn charge(&self, rows: usize, now: Instant) -> Result<Duration, TenantLimitError> {
        let Some(tokens_per_second) = self.tenants.limits.tokens_per_second else {
            return Ok(Duration::ZERO);
        };
        let cost = Duration::from_secs(rows as u64) / tokens_per_second;
        let mut tenants = self
            .tenants
            .used
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(used) = tenants.get_mut(&self.tenant) else {
            return Ok(Duration::ZERO);
        };
        used.paid_until = used.paid_until.max(now) + cost;
        let wait = used.wait(now);
        if wait > MAX_WAIT {
            return Err(self.tenants.over_rate(wait));
        }
        Ok(wait)
    }
}

impl Drop for TenantSession {
    fn drop(&mut self) {
        let mut tenants = self
            .tenants
            .used
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(used) = tenants.get_mut(&self.tenant) {
            used.sessions -= 1;
        }
    }
}
