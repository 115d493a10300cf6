//! How much of this tail one tenant may take, and one of its devices: sessions at a time, and rows a second.
//!
//! Both are counted side by side: a session needs room in its tenant's limits and in its device's, and its rows
//! are charged to both. Where nothing tells devices apart there is the tenant's limit alone.
//!
//! Invariant: a tenant or a device is forgotten when it has no session and nothing left to pay, so that the memory
//! is bounded by the sessions.

mod ledger;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use self::ledger::{Excess, Ledger};
use crate::auth::{Device, Tenant};
use crate::config::TenantLimits;

#[cfg(test)]
mod tests;

/// The longest that a session is not read. Where its tenant or its device has to wait longer, it is refused.
/// Devices wait twice as long for a step.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// The lowest rate that makes sense: the largest step, of 512 rows, is paid for within [`MAX_WAIT`].
pub(crate) const MIN_TOKENS_PER_SECOND: u32 = 20;

/// After how long a device that has, or whose tenant has, too many sessions may ask again.
const SESSIONS_RETRY_AFTER_MS: u32 = 1000;

/// Why a tenant, or one of its devices, gets no more.
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
    #[error(
        "all {max_sessions} sessions that one device may have on this tail are taken; \
         close one, or try again later"
    )]
    DeviceSessions {
        max_sessions: usize,
        retry_after_ms: u32,
    },
    #[error(
        "one device may use {tokens_per_second} tokens a second on this tail, and more have been used; \
         try again later"
    )]
    DeviceRate {
        tokens_per_second: u32,
        retry_after_ms: u32,
    },
}

impl TenantLimitError {
    pub(crate) fn retry_after_ms(&self) -> u32 {
        match self {
            Self::Sessions { retry_after_ms, .. }
            | Self::Rate { retry_after_ms, .. }
            | Self::DeviceSessions { retry_after_ms, .. }
            | Self::DeviceRate { retry_after_ms, .. } => *retry_after_ms,
        }
    }

    fn of_tenant(excess: Excess) -> Self {
        match excess {
            Excess::Sessions { max_sessions } => Self::Sessions {
                max_sessions,
                retry_after_ms: SESSIONS_RETRY_AFTER_MS,
            },
            Excess::Rate {
                tokens_per_second,
                wait,
            } => Self::Rate {
                tokens_per_second,
                retry_after_ms: whole_ms(wait),
            },
        }
    }

    fn of_device(excess: Excess) -> Self {
        match excess {
            Excess::Sessions { max_sessions } => Self::DeviceSessions {
                max_sessions,
                retry_after_ms: SESSIONS_RETRY_AFTER_MS,
            },
            Excess::Rate {
                tokens_per_second,
                wait,
            } => Self::DeviceRate {
                tokens_per_second,
                retry_after_ms: whole_ms(wait),
            },
        }
    }
}

fn whole_ms(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).max(1)
}

/// All tenants of one tail, and their devices. Clones share them.
#[derive(Clone)]
pub(crate) struct Tenants {
    used: Arc<Mutex<Used>>,
}

/// What has been taken.
struct Used {
    tenants: Ledger<Tenant>,
    devices: Ledger<Device>,
}

impl Tenants {
    pub(crate) fn new(limits: TenantLimits) -> Self {
        let TenantLimits { tenant, device } = limits;
        Self {
            used: Arc::new(Mutex::new(Used {
                tenants: Ledger::new(tenant),
                devices: Ledger::new(device),
            })),
        }
    }

    /// Counts a session of `tenant` and of its `device`, where that is known, until what is returned is dropped. A
    /// refused session takes nothing.
    pub(crate) fn enter(
        &self,
        tenant: &Tenant,
        device: Option<&Device>,
        now: Instant,
    ) -> Result<TenantSession, TenantLimitError> {
        let mut used = self.used();
        if let Some(device) = device {
            let room = used.devices.check_room(device, now);
            room.map_err(TenantLimitError::of_device)?;
        }
        let room = used.tenants.check_room(tenant, now);
        room.map_err(TenantLimitError::of_tenant)?;
        if let Some(device) = device {
            used.devices.enter(device, now);
        }
        used.tenants.enter(tenant, now);
        Ok(TenantSession {
            tenants: self.clone(),
            tenant: tenant.clone(),
            device: device.cloned(),
        })
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session of a tenant and of one of its devices; dropping it counts it out.
pub(crate) struct TenantSession {
    tenants: Tenants,
    tenant: Tenant,
    device: Option<Device>,
}

impl TenantSession {
    /// Charges rows that go to the engine. How long the session must not be read after them.
    pub(crate) fn charge(&self, rows: usize, now: Instant) -> Result<Duration, TenantLimitError> {
        let mut used = self.tenants.used();
        // Both are charged before either is looked at: the rows are in the engine's queue, or the session ends.
        let tenant = used.tenants.charge(&self.tenant, rows, now, MAX_WAIT);
        let device = match &self.device {
            Some(device) => used.devices.charge(device, rows, now, MAX_WAIT),
            None => Ok(Duration::ZERO),
        };
        let device_wait = device.map_err(TenantLimitError::of_device)?;
        let tenant_wait = tenant.map_err(TenantLimitError::of_tenant)?;
        Ok(device_wait.max(tenant_wait))
    }
}

impl Drop for TenantSession {
    fn drop(&mut self) {
        let (mut used, now) = (self.tenants.used(), Instant::now());
        if let Some(device) = &self.device {
            used.devices.leave(device, now);
        }
        used.tenants.leave(&self.tenant, now);
    }
}
