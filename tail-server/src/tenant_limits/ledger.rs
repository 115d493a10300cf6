//! What each of those that a quota is for has taken of it. Pure: time comes in.
//!
//! Rows are counted by the generic cell rate algorithm, which is a token bucket whose state is one moment: the
//! one up to which the rows are paid for at the quota's rate. It may lie [`BURST`] in the future; further on, the
//! sessions are not read until it is near enough again, and no session is opened.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::config::Quota;

/// How much of the rate may be used at once.
const BURST: Duration = Duration::from_secs(10);

/// How many are remembered before those that need not be are looked for.
pub(super) const MIN_REMEMBERED: usize = 64;

/// What is beyond a quota.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Excess {
    Sessions {
        max_sessions: usize,
    },
    Rate {
        tokens_per_second: u32,
        wait: Duration,
    },
}

/// What has been taken under one key.
#[derive(Debug)]
struct Account {
    sessions: usize,
    /// Up to here its rows are paid for.
    paid_until: Instant,
}

/// One account for each key that has a session or a debt.
pub(super) struct Ledger<K> {
    quota: Quota,
    accounts: HashMap<K, Account>,
}

impl<K: Clone + Eq + Hash> Ledger<K> {
    pub(super) fn new(quota: Quota) -> Self {
        Self {
            quota,
            accounts: HashMap::new(),
        }
    }

    /// Whether one session more may be opened under `key`.
    pub(super) fn check_room(&self, key: &K, now: Instant) -> Result<(), Excess> {
        let Some(account) = self.accounts.get(key) else {
            return Ok(());
        };
        if let Some(max_sessions) = self.quota.max_sessions
            && account.sessions >= max_sessions
        {
            return Err(Excess::Sessions { max_sessions });
        }
        let wait = account.wait(now);
        if wait.is_zero() {
            Ok(())
        } else {
            Err(self.over_rate(wait))
        }
    }

    /// Counts a session in.
    pub(super) fn enter(&mut self, key: &K, now: Instant) {
        let open: usize = self
            .accounts
            .values()
            .map(|used| used.sessions.min(1))
            .sum();
        if self.accounts.len() >= MIN_REMEMBERED.max(2 * open) {
            self.accounts.retain(|_, account| account.is_needed(now));
        }
        let opened = Account {
            sessions: 0,
            paid_until: now,
        };
        self.accounts.entry(key.clone()).or_insert(opened).sessions += 1;
    }

    /// Charges rows, however many they are. How long to wait after them; an error where that is longer than
    /// `max_wait`.
    pub(super) fn charge(
        &mut self,
        key: &K,
        rows: usize,
        now: Instant,
        max_wait: Duration,
    ) -> Result<Duration, Excess> {
        let Some(tokens_per_second) = self.quota.tokens_per_second else {
            return Ok(Duration::ZERO);
        };
        let Some(account) = self.accounts.get_mut(key) else {
            return Ok(Duration::ZERO);
        };
        let cost = Duration::from_secs(rows as u64) / tokens_per_second;
        account.paid_until = account.paid_until.max(now) + cost;
        let wait = account.wait(now);
        if wait > max_wait {
            return Err(self.over_rate(wait));
        }
        Ok(wait)
    }

    /// Counts a session out, and forgets the key with the last one unless there is something left to pay.
    pub(super) fn leave(&mut self, key: &K, now: Instant) {
        let Some(account) = self.accounts.get_mut(key) else {
            return;
        };
        account.sessions -= 1;
        if !account.is_needed(now) {
            self.accounts.remove(key);
        }
    }

    /// How many keys are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.accounts.len()
    }

    fn over_rate(&self, wait: Duration) -> Excess {
        Excess::Rate {
            tokens_per_second: self.quota.tokens_per_second.unwrap_or(0),
            wait,
        }
    }
}

impl Account {
    /// How long until there may be more.
    fn wait(&self, now: Instant) -> Duration {
        self.paid_until
            .saturating_duration_since(now)
            .saturating_sub(BURST)
    }

    fn is_needed(&self, now: Instant) -> bool {
        self.sessions > 0 || self.paid_until > now
    }
}
