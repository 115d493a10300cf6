//! What the writer of one SplitModel's ledger remembers between two writes. Pure: time comes in.
//!
//! Nothing here needs to outlive the process: tails go on saying what they have counted. The exceptions are the
//! last words of a pod that has gone, so they are written as soon as they are known.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::counters::Reading;
use super::ledger::{Ledger, Seen};

/// Between two writes, unless a run has ended.
pub const WRITE_INTERVAL: Duration = Duration::from_secs(30);

/// Runs of a pod that are remembered until they are written: a container that ends again and again is started more
/// and more rarely, and is written down in between.
const MAX_REMEMBERED_RUNS: usize = 8;

/// How long a pod that has gone is remembered while no ledger names it: one that does may be on its way to the
/// cache.
const KEEP_GONE: Duration = Duration::from_secs(3600);

/// How long the last words of a pod are waited for that a ledger names, that has gone, and that nobody here has
/// seen: the cache may lag.
const WAIT_UNSEEN: Duration = Duration::from_secs(600);

/// The ledger as the API server had it at one version of the SplitModel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// `metadata.resourceVersion`; opaque.
    pub version: String,
    /// What its status holds.
    pub ledger: Ledger,
}

/// What the writer of one SplitModel's ledger remembers between two writes.
#[derive(Debug, Default)]
pub struct Books {
    /// By uid.
    pods: BTreeMap<String, Sighting>,
    /// Pods that the API server had after `trusted` was read.
    admitted: BTreeSet<String>,
    /// Pods that the API server had once and has not any more, and since when that is known. None ever returns.
    gone: BTreeMap<String, Instant>,
    /// The ledger that `admitted` belongs to.
    trusted: Ledger,
    /// The version that the last write replaced. While it is still shown, that write is not.
    replaced: Option<String>,
    written_at: Option<Instant>,
}

#[derive(Debug)]
struct Sighting {
    name: String,
    seen_at: Instant,
    /// The highest of each of the last runs, by start.
    readings: Vec<Reading>,
}

impl Books {
    /// A pod exists, or did: what its status says of runs that have ended.
    pub fn saw(&mut self, uid: &str, name: &str, last_words: &[Reading], now: Instant) {
        let new = || Sighting {
            name: name.to_owned(),
            seen_at: now,
            readings: Vec::new(),
        };
        let sighting = self.pods.entry(uid.to_owned()).or_insert_with(new);
        sighting.seen_at = now;
        for reading in last_words {
            sighting.add(*reading);
        }
    }

    /// A pod answered with its metrics. One that was never seen is ignored.
    pub fn scraped(&mut self, uid: &str, reading: Reading) {
        if let Some(sighting) = self.pods.get_mut(uid) {
            sighting.add(reading);
        }
    }

    /// Whether the API server must be asked which pods there are before `base` can be built upon. `present`: uids in
    /// the cache. The cache alone is not enough: it and `base` are of different moments, and neither tells a pod
    /// that is not seen yet from one that has gone.
    pub fn needs_list(&mut self, base: &Base, present: &BTreeSet<String>) -> bool {
        if self.is_behind(base) {
            return false;
        }
        if self.trusted != base.ledger {
            self.admitted.clear();
            self.trusted.clone_from(&base.ledger);
        }
        let is_new = |uid: &String| present.contains(uid) && !self.knows(uid);
        let has_vanished = |uid: &String| !present.contains(uid) && self.knows(uid);
        self.pods
            .keys()
            .chain(self.trusted.pods.keys())
            .any(|uid| !self.gone.contains_key(uid) && (is_new(uid) || has_vanished(uid)))
    }

    /// The API server has these pods and no others; it was asked after the last [`Books::needs_list`].
    pub fn listed(&mut self, living: &BTreeSet<String>, now: Instant) {
        for uid in self.pods.keys().chain(self.trusted.pods.keys()) {
            if !living.contains(uid) {
                self.gone.entry(uid.clone()).or_insert(now);
            } else if self.pods.contains_key(uid) {
                self.admitted.insert(uid.clone());
            }
        }
    }

    /// The ledger after `base`; `None` where `base` is older than the last write.
    #[must_use]
    pub fn propose(&self, base: &Base, present: &BTreeSet<String>, now: Instant) -> Option<Ledger> {
        if self.is_behind(base) || self.trusted != base.ledger {
            return None;
        }
        let known = self.pods.iter().filter(|(uid, _)| self.knows(uid));
        let mut seen: Vec<Seen<'_>> = known
            .map(|(uid, sighting)| Seen {
                uid,
                name: &sighting.name,
                is_gone: self.has_gone(uid, present, now),
                readings: &sighting.readings,
            })
            .collect();
        for (uid, pod) in &base.ledger.pods {
            if !self.pods.contains_key(uid) && self.has_gone(uid, present, now) {
                seen.push(Seen {
                    uid,
                    name: &pod.name,
                    is_gone: true,
                    readings: &[],
                });
            }
        }
        Some(base.ledger.fold(&seen))
    }

    /// Whether what differs from `base` should be written now: [`WRITE_INTERVAL`] after the last time, or where a
    /// run has ended, because soon nobody else knows its last words.
    #[must_use]
    pub fn is_due(&self, base: &Base, present: &BTreeSet<String>, now: Instant) -> bool {
        let is_long_ago = self
            .written_at
            .is_none_or(|written| now.saturating_duration_since(written) >= WRITE_INTERVAL);
        let mut known = self.pods.keys().chain(base.ledger.pods.keys());
        is_long_ago
            || known.any(|uid| self.knows(uid) && self.has_gone(uid, present, now))
            || self.has_unwritten_end(base)
    }

    fn has_unwritten_end(&self, base: &Base) -> bool {
        let known = self.pods.iter().filter(|(uid, _)| self.knows(uid));
        let mut last_words = known.flat_map(|(uid, sighting)| {
            let ended = sighting.readings.iter().filter(|reading| reading.is_final);
            ended.map(move |reading| (uid, reading.started_ms))
        });
        last_words.any(|(uid, started_ms)| {
            let runs = base.ledger.pods.get(uid).map(|pod| pod.runs.as_slice());
            !runs
                .unwrap_or_default()
                .iter()
                .any(|run| run.is_ended && run.started_ms >= started_ms)
        })
    }

    /// `ledger` replaced `base`.
    pub fn written(
        &mut self,
        base: &Base,
        ledger: Ledger,
        present: &BTreeSet<String>,
        now: Instant,
    ) {
        self.replaced = Some(base.version.clone());
        self.written_at = Some(now);
        // Pods that went with this write are of no use any more; those that went after it was made still are.
        let is_done = |uid: &String| {
            !present.contains(uid) && self.gone.contains_key(uid) && !ledger.pods.contains_key(uid)
        };
        self.admitted.retain(|uid| !is_done(uid));
        self.pods.retain(|uid, _| !is_done(uid));
        self.trusted = ledger;
    }

    /// Forgets pods that have gone and that no ledger has named for long.
    pub fn tidy(&mut self, base: &Base, present: &BTreeSet<String>, now: Instant) {
        let Self {
            pods,
            admitted,
            gone,
            ..
        } = self;
        let is_named = |uid: &String| present.contains(uid) || base.ledger.pods.contains_key(uid);
        pods.retain(|uid, sighting| {
            is_named(uid)
                || admitted.contains(uid)
                || now.saturating_duration_since(sighting.seen_at) < KEEP_GONE
        });
        gone.retain(|uid, _| is_named(uid) || pods.contains_key(uid));
    }

    /// Whether the pod is gone, and all that will be known of it is known: the cache has dropped it, after it had
    /// told of its end. One that was never seen here may still come with its last words, as long as the cache lags.
    fn has_gone(&self, uid: &String, present: &BTreeSet<String>, now: Instant) -> bool {
        let Some(since) = self.gone.get(uid) else {
            return false;
        };
        let is_long_ago = now.saturating_duration_since(*since) >= WAIT_UNSEEN;
        !present.contains(uid) && (self.pods.contains_key(uid) || is_long_ago)
    }

    fn is_behind(&self, base: &Base) -> bool {
        self.replaced.as_ref() == Some(&base.version)
    }

    fn knows(&self, uid: &str) -> bool {
        self.trusted.pods.contains_key(uid) || self.admitted.contains(uid)
    }
}

impl Sighting {
    fn add(&mut self, reading: Reading) {
        let place = self
            .readings
            .binary_search_by_key(&reading.started_ms, |known| known.started_ms);
        match place {
            Ok(index) => {
                let known = &mut self.readings[index];
                known.counters = known.counters.max(reading.counters);
                known.is_final |= reading.is_final;
            }
            Err(index) => self.readings.insert(index, reading),
        }
        if self.readings.len() > MAX_REMEMBERED_RUNS {
            self.readings.remove(0);
        }
    }
}
