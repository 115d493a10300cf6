//! The totals of one SplitModel, and what of each pod is in them. Pure.
//!
//! # Exactly once
//! A tail's counters begin at 0 with its process and only grow. So a reading of a run that has been seen before
//! adds what it is above the highest value seen, and a reading of another run adds all of itself. A run is known by
//! its pod's uid and its start time. Whatever order readings come in, how often each is given and how many are
//! missed, what a run has added is the highest of its readings: [`Ledger::fold`] keeps the highest value and the
//! totals together, and both are written at once.
//!
//! That leaves forgetting. A run may be forgotten when no reading of it can come any more:
//!
//! - The container's status tells of the run before the present one, and of no earlier one. So of each pod, the
//!   last [`MAX_RUNS`] runs are kept; a reading from before them is ignored.
//! - A pod that has gone is dropped. An old reading of it must not bring it back: a pod that is not in the ledger is
//!   let in only if the API server had it *after* the ledger was read, and dropped only if the API server did not
//!   have it any more ([`Books`](super::books::Books)). A pod's uid never returns, so what is let in was never
//!   dropped.
//!
//! A ledger replaces the one that it was made from, or nothing: the API server refuses a write that was made from
//! an older version of the object. A refused write loses nothing, because the next reading says it again.

use std::collections::BTreeMap;

use super::counters::{Counters, Reading};

/// Runs of a pod that are told apart: the present one, and the one that the container's status still tells of.
pub const MAX_RUNS: usize = 2;

/// The most pods of one SplitModel at a time: the 1,000 that there can be, and some that are on their way out. Those
/// beyond wait. Their counters go on, so they are counted when others have gone, or when they go themselves.
pub const MAX_PODS: usize = 1200;

/// A pod as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen<'a> {
    /// `metadata.uid`.
    pub uid: &'a str,
    /// `metadata.name`.
    pub name: &'a str,
    /// Whether the API server does not have it any more.
    pub is_gone: bool,
    /// What its runs said, in any order.
    pub readings: &'a [Reading],
}

/// Totals, and what of each pod is in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Of all runs there ever were.
    pub totals: Counters,
    /// Runs whose end was noticed and whose last words were not read: what they did after the last reading is not
    /// in the totals.
    pub unread_endings: u64,
    /// By uid: pods that exist, as far as is known.
    pub pods: BTreeMap<String, Pod>,
}

/// What of a pod is in the totals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// For people.
    pub name: String,
    /// By start; at most [`MAX_RUNS`].
    pub runs: Vec<Run>,
}

/// What of a run is in the totals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// When it began, in milliseconds since 1970.
    pub started_ms: i64,
    /// Nothing while it goes on; its last words have been counted where they are final.
    pub is_ended: bool,
    /// The highest reading. Not kept of a run that has ended: nothing of it is counted again.
    pub counted: Counters,
}

impl Ledger {
    /// The ledger after `pods` were seen. Every one of them is known, or was let in: see [the module](self).
    #[must_use]
    pub fn fold(&self, pods: &[Seen<'_>]) -> Self {
        let mut after = self.clone();
        for seen in pods {
            after.fold_pod(seen);
        }
        after
    }

    fn fold_pod(&mut self, seen: &Seen<'_>) {
        let known = self.pods.remove(seen.uid);
        if known.is_none() && !seen.is_gone && self.pods.len() >= MAX_PODS {
            return;
        }
        let mut pod = known.unwrap_or_default();
        seen.name.clone_into(&mut pod.name);
        for reading in seen.readings {
            self.fold_reading(&mut pod, reading);
        }
        if seen.is_gone {
            let unread = pod.runs.iter().filter(|run| !run.is_ended).count();
            self.unread_endings = self.unread_endings.saturating_add(unread as u64);
        } else {
            self.pods.insert(seen.uid.to_owned(), pod);
        }
    }

    fn fold_reading(&mut self, pod: &mut Pod, reading: &Reading) {
        let place = pod
            .runs
            .binary_search_by_key(&reading.started_ms, |run| run.started_ms);
        let index = match place {
            Ok(index) => index,
            // From before those that are kept: its run was counted, and forgotten.
            Err(0) if pod.runs.len() >= MAX_RUNS => return,
            Err(index) => {
                let run = Run {
                    started_ms: reading.started_ms,
                    is_ended: false,
                    counted: Counters::default(),
                };
                pod.runs.insert(index, run);
                index
            }
        };
        let run = &mut pod.runs[index];
        if !run.is_ended {
            let grown = reading.counters.since(run.counted);
            self.totals = self.totals.plus(grown);
            run.is_ended = reading.is_final;
            run.counted = match reading.is_final {
                true => Counters::default(),
                false => run.counted.max(reading.counters),
            };
        }
        if pod.runs.len() > MAX_RUNS {
            let oldest = pod.runs.remove(0);
            self.unread_endings = self
                .unread_endings
                .saturating_add(u64::from(!oldest.is_ended));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(seconds: u64) -> Counters {
        Counters {
            used_us: seconds * 1_000_000,
            ..Counters::default()
        }
    }

    fn reading(started_ms: i64, seconds: u64) -> Reading {
        Reading {
            started_ms,
            counters: used(seconds),
            is_final: false,
        }
    }

    fn last_words(started_ms: i64, seconds: u64) -> Reading {
        Reading {
            is_final: true,
            ..reading(started_ms, seconds)
        }
    }

    fn here(readings: &[Reading]) -> Seen<'_> {
        Seen {
            uid: "a",
            name: "tail-a",
            is_gone: false,
            readings,
        }
    }

    fn gone(readings: &[Reading]) -> Seen<'_> {
        Seen {
            is_gone: true,
            ..here(readings)
        }
    }

    fn folded(steps: &[Seen<'_>]) -> Ledger {
        steps.iter().fold(Ledger::default(), |ledger, seen| {
            ledger.fold(std::slice::from_ref(seen))
        })
    }

    #[test]
    fn a_reading_adds_what_it_is_above_the_highest_before() {
        let readings = [reading(1, 5), reading(1, 9), reading(1, 7), reading(1, 9)];
        assert_eq!(folded(&[here(&readings)]).totals, used(9));
    }

    #[test]
    fn a_counter_that_begins_again_with_its_process_adds_all_of_itself() {
        let ledger = folded(&[here(&[reading(1, 9)]), here(&[reading(2, 3)])]);
        assert_eq!(ledger.totals, used(12));
    }

    #[test]
    fn last_words_that_come_after_the_next_run_s_first_reading_are_counted() {
        let ledger = folded(&[
            here(&[reading(1, 9)]),
            here(&[reading(2, 3)]),
            here(&[last_words(1, 10), reading(2, 4)]),
            here(&[last_words(1, 10), reading(2, 4)]),
        ]);
        assert_eq!(ledger.totals, used(14));
        assert_eq!(ledger.unread_endings, 0);
    }

    #[test]
    fn a_run_that_was_never_scraped_is_counted_by_its_last_words() {
        let ledger = folded(&[here(&[reading(2, 3), last_words(1, 6)])]);
        assert_eq!(ledger.totals, used(9));
    }

    #[test]
    fn readings_of_a_forgotten_run_are_ignored() {
        let late = reading(1, 9);
        let ledger = folded(&[
            here(&[last_words(1, 9), last_words(2, 1)]),
            here(&[reading(3, 1)]),
            here(&[late, reading(3, 1)]),
        ]);
        assert_eq!(ledger.totals, used(11));
    }

    #[test]
    fn readings_after_the_last_words_are_ignored() {
        let ledger = folded(&[here(&[last_words(1, 9)]), here(&[reading(1, 8)])]);
        assert_eq!(ledger.totals, used(9));
    }

    #[test]
    fn a_pod_is_dropped_when_it_has_gone_and_its_last_words_are_in() {
        let ledger = folded(&[here(&[reading(1, 5)]), gone(&[last_words(1, 8)])]);
        assert_eq!(ledger.totals, used(8));
        assert!(ledger.pods.is_empty());
        assert_eq!(ledger.unread_endings, 0);
    }

    #[test]
    fn an_end_without_last_words_is_told() {
        assert_eq!(
            folded(&[here(&[reading(1, 5)]), gone(&[])]).unread_endings,
            1
        );
        let three = [reading(1, 5), reading(2, 5), reading(3, 5)];
        assert_eq!(folded(&[here(&three)]).unread_endings, 1);
        // A pod that never ran has nothing to tell.
        assert_eq!(folded(&[here(&[]), gone(&[])]).unread_endings, 0);
    }

    #[test]
    fn pods_beyond_the_bound_are_counted_when_there_is_room() {
        let names: Vec<String> = (0..=MAX_PODS).map(|index| format!("{index:05}")).collect();
        let readings = [reading(1, 1)];
        let seen = |is_gone: bool| {
            move |name: &'static str| Seen {
                uid: name,
                name,
                is_gone,
                readings: Vec::leak(vec![reading(1, 1)]),
            }
        };
        let all: Vec<Seen<'_>> = names
            .iter()
            .map(|name| Seen {
                uid: name,
                name,
                is_gone: false,
                readings: &readings,
            })
            .collect();
        let full = Ledger::default().fold(&all);
        assert_eq!(full.pods.len(), MAX_PODS);
        assert_eq!(full.totals, used(MAX_PODS as u64));
        let first_goes = full.fold(&[seen(true)("00000"), all[MAX_PODS].clone()]);
        assert_eq!(first_goes.totals, used(MAX_PODS as u64 + 1));
        // One that goes while it waits is counted, too.
        let waiting = full.fold(&[seen(true)("waits")]);
        assert_eq!(waiting.totals, used(MAX_PODS as u64 + 1));
        assert_eq!(waiting.pods.len(), MAX_PODS);
    }
}
