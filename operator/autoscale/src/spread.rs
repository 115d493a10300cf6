//! Who has too many sessions while another has room: after a scale-up, sessions stay where they are unless they are
//! asked to move.
//!
//! A move makes the device send its session again, so it is asked for only where it helps: from a tail that has more
//! than is aimed at, or where work waits, and clearly more than the others. Which way the session then takes is the
//! load balancer's choice; it may come back. So it is looked at again after a while.

use std::time::Duration;

use crate::policy::Policy;

/// A tail has clearly more than the others from this many times their mean on, and `MARGIN`.
const SURPLUS: f64 = 1.25;
/// Another has room where it has less than this share of the mean, as a new one does. Less uneven is chance.
const ROOM: f64 = 0.5;
const MARGIN: f64 = 1.0;
/// How long a target stands, in which sessions move.
const SETTLE: Duration = Duration::from_secs(30);

/// A tail that serves and has answered.
#[derive(Clone, Copy, Debug)]
pub struct Tail {
    /// Open ones.
    pub sessions: f64,
    /// What it was told last and for how long that has stood; `None` where it has no target.
    pub target: Option<(u32, Duration)>,
}

/// What to tell a tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing new.
    Keep,
    /// To have so many sessions at most.
    Ask(u32),
    /// That it has no target any more. A tail acts when its target changes, so the next one can be the same again.
    Clear,
}

/// What to tell each of `tails`, in their order. `work_waits`: whether the queue delay is above what is aimed at.
#[must_use]
pub fn changes(policy: &Policy, work_waits: bool, tails: &[Tail]) -> Vec<Change> {
    let count = u32::try_from(tails.len()).unwrap_or(u32::MAX);
    let sum: f64 = tails.iter().map(|tail| tail.sessions).sum();
    let mean = sum / f64::from(count.max(1));
    let least = tails.iter().map(|tail| tail.sessions);
    let is_uneven = least.fold(f64::INFINITY, f64::min) < mean * ROOM;
    let change = |tail: &Tail| {
        let has_many = tail.sessions > policy.target_sessions || work_waits;
        let has_surplus = tail.sessions > mean * SURPLUS + MARGIN;
        match tail.target {
            Some((_, stood)) if stood >= SETTLE => Change::Clear,
            Some(_) => Change::Keep,
            None if has_many && has_surplus && is_uneven => {
                Change::Ask(crate::load::whole_pods(mean))
            }
            None => Change::Keep,
        }
    };
    tails.iter().map(change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy {
            min: 1,
            max: 10,
            target_sessions: 10.0,
            target_kv: 0.8,
            target_queue_delay_ms: 100.0,
            stable: Duration::from_secs(60),
            panic: Duration::from_secs(6),
            scale_down_delay: Duration::from_secs(300),
        }
    }

    fn told(sessions: &[f64], work_waits: bool) -> Vec<Change> {
        let tails: Vec<_> = sessions
            .iter()
            .map(|&sessions| Tail {
                sessions,
                target: None,
            })
            .collect();
        changes(&policy(), work_waits, &tails)
    }

    #[test]
    fn a_full_tail_beside_empty_ones_is_asked_down_to_the_mean() {
        let keep = Change::Keep;
        assert_eq!(
            told(&[30.0, 0.0, 0.0], false),
            [Change::Ask(10), keep, keep]
        );
    }

    #[test]
    fn nobody_moves_without_need() {
        // Fewer than are aimed at, alone, as many as the others, or more by chance.
        for sessions in [
            &[9.0, 0.0][..],
            &[30.0],
            &[14.0, 13.0, 12.0],
            &[30.0, 14.0, 12.0],
        ] {
            assert!(
                told(sessions, false)
                    .iter()
                    .all(|each| *each == Change::Keep),
                "{sessions:?}"
            );
        }
        assert_eq!(told(&[9.0, 0.0], true)[0], Change::Ask(5));
    }

    #[test]
    fn a_target_stands_for_a_while_and_is_then_taken_back() {
        let after = |seconds| {
            let tail = Tail {
                sessions: 30.0,
                target: Some((10, Duration::from_secs(seconds))),
            };
            let other = Tail {
                sessions: 0.0,
                target: None,
            };
            changes(&policy(), false, &[tail, other])[0]
        };
        assert_eq!(after(1), Change::Keep);
        assert_eq!(after(31), Change::Clear);
    }
}
