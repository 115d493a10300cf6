//! What was done and what came of it, counted.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use headway_wire::message::RefusalCode;
use serde::Serialize;

/// Descriptions of faults that are kept; the others are only counted.
const MAX_DESCRIPTIONS: usize = 20;

/// What must have happened in a long soak: without it, nothing was shown about it.
pub(super) mod event {
    /// Every token as known.
    pub(in super::super) const ANSWERED: &str = "whole answers, every token as known";
    pub(in super::super) const REBUILT: &str = "sessions rebuilt";
    pub(in super::super) const EVICTED: &str = "sessions evicted in a pause";
    pub(in super::super) const WITHDRAWN: &str = "sessions ended because their token was withdrawn";
    pub(in super::super) const LOST: &str = "sessions lost with a killed tail";
    pub(in super::super) const KILLED: &str = "tails killed";
    pub(in super::super) const REUSED: &str = "positions reused";
    pub(in super::super) const GIVEN_UP_ON: &str = "silent devices that the tail gave up on";
    pub(in super::super) const TOKENS_REPLACED: &str = "token files replaced";
    pub(in super::super) const CERTIFICATES_REPLACED: &str = "certificates replaced";

    /// All of these.
    pub(in super::super) const ALL: [&str; 10] = [
        ANSWERED,
        REBUILT,
        EVICTED,
        WITHDRAWN,
        LOST,
        KILLED,
        REUSED,
        GIVEN_UP_ON,
        TOKENS_REPLACED,
        CERTIFICATES_REPLACED,
    ];

    /// Not one of them: it needs more results on their way than the system's buffers hold.
    pub(in super::super) const CUT_OFF: &str = "slow readers given up on";
}

/// How a soak went, in numbers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counts {
    /// Acts begun, by name.
    pub acts: BTreeMap<&'static str, u64>,
    /// What happened in them, by name.
    pub events: BTreeMap<&'static str, u64>,
    /// Refusals that came, by code; HTTP statuses in place of one.
    pub refusals: BTreeMap<String, u64>,
    /// Tokens, probabilities or verdicts on drafts that were not the known ones.
    pub mismatches: u64,
    /// Sessions that did not move for a minute.
    pub stuck: u64,
    /// What else no tail may do.
    pub broken: u64,
    /// The first of the last three, in words.
    pub descriptions: Vec<String>,
}

/// Counts, for many players at a time.
#[derive(Default)]
pub(super) struct Tally(Mutex<Counts>);

impl Tally {
    pub(super) fn act(&self, name: &'static str) {
        *self.lock().acts.entry(name).or_default() += 1;
    }

    pub(super) fn count(&self, name: &'static str) {
        self.add(name, 1);
    }

    pub(super) fn add(&self, name: &'static str, count: u64) {
        *self.lock().events.entry(name).or_default() += count;
    }

    /// Keeps the largest.
    pub(super) fn largest(&self, name: &'static str, value: u64) {
        let mut counts = self.lock();
        let largest = counts.events.entry(name).or_default();
        *largest = value.max(*largest);
    }

    pub(super) fn refusal(&self, code: RefusalCode) {
        let name = code.as_str_name().trim_start_matches("REFUSAL_CODE_");
        self.refused(name.to_ascii_lowercase());
    }

    pub(super) fn turned(&self, status: u16) {
        self.refused(format!("HTTP {status}"));
    }

    pub(super) fn mismatch(&self, description: String) {
        self.describe(format!("mismatch: {description}")).mismatches += 1;
    }

    pub(super) fn stuck(&self, description: &str) {
        self.describe(format!("stuck: {description}")).stuck += 1;
    }

    pub(super) fn broken(&self, description: String) {
        self.describe(description).broken += 1;
    }

    pub(super) fn counts(&self) -> Counts {
        self.lock().clone()
    }

    fn refused(&self, name: String) {
        *self.lock().refusals.entry(name).or_default() += 1;
    }

    fn describe(&self, description: String) -> MutexGuard<'_, Counts> {
        let mut counts = self.lock();
        if counts.descriptions.len() < MAX_DESCRIPTIONS {
            counts.descriptions.push(description);
        }
        counts
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
