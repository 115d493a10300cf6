//! The last answers of all pods of one SplitModel → a sample. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use headway_autoscale::load::{Load, Pod as PodLoad, Sample};

use super::signals::{Delays, Signals};

/// An answer says how busy a tail is for so long; after that it counts as silent.
const FRESH: Duration = Duration::from_secs(10);

/// What a watch says of a pod that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// Distinguishes it from another one of its name.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// Whether it takes sessions: ready, and not on its way out.
    pub serves: bool,
    /// Whether it is on its way out; it may still have sessions.
    pub is_leaving: bool,
    /// The annotation by which ReplicaSets choose who goes.
    pub deletion_cost: Option<String>,
    /// The annotation with the number of sessions it should have.
    pub session_target: Option<u32>,
}

/// What is known of the tails of one SplitModel.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    tails: BTreeMap<String, Tail>,
}

#[derive(Clone, Debug)]
struct Tail {
    answered: Instant,
    last: Signals,
    /// Steps' delays, sessions turned away and work done between the last two answers.
    delays: Delays,
    refused: f64,
    is_active: bool,
}

impl Fleet {
    /// The tail of pod `uid` answered.
    pub fn heard(&mut self, uid: &str, signals: Signals, now: Instant) {
        let before = self.tails.get(uid).map(|tail| &tail.last);
        // Of the first answer it is not known since when: only a rise counts.
        let rise = |of: fn(&Signals) -> f64| {
            before.map_or(0.0, |before| (of(&signals) - of(before)).max(0.0))
        };
        let tail = Tail {
            answered: now,
            delays: before.map_or_else(Delays::default, |before| {
                signals.queue_delay.since(&before.queue_delay)
            }),
            refused: rise(|signals| signals.refused),
            is_active: rise(|signals| signals.opened) > 0.0 || rise(|signals| signals.steps) > 0.0,
            last: signals,
        };
        self.tails.insert(uid.to_owned(), tail);
    }

    /// Forgets pods that are not among `pods`.
    pub fn keep(&mut self, pods: &[PodFacts]) {
        self.tails
            .retain(|uid, _| pods.iter().any(|pod| pod.uid == *uid));
    }

    /// Sessions of a pod that has answered lately.
    #[must_use]
    pub fn sessions(&self, uid: &str, now: Instant) -> Option<f64> {
        self.fresh(uid, now).map(|tail| tail.last.sessions)
    }

    /// How busy `pods` are. `waiting`: sessions that nobody but the operator has heard of.
    #[must_use]
    pub fn sample(&self, pods: &[PodFacts], waiting: f64, now: Instant) -> Sample {
        let mut sample = Sample {
            waiting,
            ..Sample::default()
        };
        let mut delays = Delays::default();
        for pod in pods {
            let tail = self.fresh(&pod.uid, now);
            sample.pods.push(PodLoad {
                serves: pod.serves,
                load: tail.map(|tail| Load {
                    sessions: tail.last.sessions,
                    kv: tail.last.kv(),
                    is_active: tail.is_active,
                }),
            });
            if let Some(tail) = tail {
                sample.waiting += tail.refused;
                delays = delays.plus(&tail.delays);
            }
        }
        sample.queue_delay_ms = delays.p95_ms();
        sample
    }

    fn fresh(&self, uid: &str, now: Instant) -> Option<&Tail> {
        let tail = self.tails.get(uid)?;
        let age = now.saturating_duration_since(tail.answered);
        (age < FRESH).then_some(tail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, serves: bool) -> PodFacts {
        PodFacts {
            uid: uid.to_owned(),
            name: format!("smol-tail-{uid}"),
            serves,
            is_leaving: false,
            deletion_cost: None,
            session_target: None,
        }
    }

    fn signals(sessions: f64, refused: f64, steps: f64) -> Signals {
        Signals {
            sessions,
            refused,
            steps,
            ..Signals::default()
        }
    }

    #[test]
    fn sessions_turned_away_between_two_answers_wait() {
        let (mut fleet, now) = (Fleet::default(), Instant::now());
        fleet.heard("a", signals(5.0, 100.0, 1.0), now);
        let first = fleet.sample(&[pod("a", true)], 0.0, now);
        assert_eq!(first.waiting, 0.0);
        fleet.heard("a", signals(5.0, 103.0, 1.0), now);
        let next = fleet.sample(&[pod("a", true)], 2.0, now);
        assert_eq!(next.waiting, 5.0);
    }

    #[test]
    fn an_old_answer_is_none_and_a_pod_that_never_answered_has_no_load() {
        let (mut fleet, now) = (Fleet::default(), Instant::now());
        fleet.heard("a", signals(5.0, 0.0, 1.0), now);
        let later = now + FRESH;
        let sample = fleet.sample(&[pod("a", true), pod("b", true)], 0.0, later);
        assert!(sample.pods.iter().all(|pod| pod.load.is_none()));
        assert_eq!(fleet.sessions("a", now), Some(5.0));
        assert_eq!(fleet.sessions("a", later), None);
    }

    #[test]
    fn a_tail_that_computed_between_two_answers_is_active() {
        let (mut fleet, now) = (Fleet::default(), Instant::now());
        fleet.heard("a", signals(0.0, 0.0, 7.0), now);
        fleet.heard("a", signals(0.0, 0.0, 8.0), now);
        let sample = fleet.sample(&[pod("a", true)], 0.0, now);
        assert!(sample.pods[0].load.unwrap().is_active);
        fleet.heard("a", signals(0.0, 0.0, 8.0), now);
        let sample = fleet.sample(&[pod("a", true)], 0.0, now);
        assert!(!sample.pods[0].load.unwrap().is_active);
    }
}
