//! [`Sample`]s over time → [`Decision`]s, for one SplitModel.
//!
//! Upwards by the stable window, and at once by the short one where it is clearly above what there is: otherwise every
//! chance peak would add a pod, which then stays for the delay. Downwards late: only when fewer have been enough for the
//! whole delay, by half at most, and not before those that left are gone. What was halved is held for another delay, so that
//! load which comes back finds something.
//!
//! **Invariant: ignorance removes no pod.** A pod that does not answer counts as one that has what is aimed at, and
//! an operator that has just started knows of no quiet past: it holds what there is for the stable window and for the
//! delay.

use std::time::Instant;

use crate::load::{Demand, Sample, whole_pods};
use crate::policy::Policy;
use crate::reason::{Because, Decision};
use crate::window::{History, Maximum, Seen};

#[cfg(test)]
mod tests;

/// Times as many pods as serve, from which on it is a burst.
const BURST: u32 = 2;
/// A queue delay asks for no more than so many times the pods at once: it says that there are too few, not how many.
const MOST_BY_DELAY: f64 = 2.0;
/// From this share of the queue delay that is aimed at on, no pod goes.
const HOLD_BY_DELAY: f64 = 0.5;
/// The short window says something where it asks for so many times the pods there should be: below that, it is noise
/// that the room above what is aimed at takes.
const CLEARLY: f64 = 1.1;

/// What one SplitModel's load was, and how many pods follow from it.
#[derive(Clone, Debug)]
pub struct Autoscaler {
    replicas: u32,
    /// How the present number came about, until the next decision.
    asked: bool,
    began: Instant,
    history: History,
    /// What was wanted, for the delay downwards.
    wanted: Maximum,
    /// When a burst was last seen.
    burst_at: Option<Instant>,
    /// Since when every pod that there should be serves.
    complete_since: Option<Instant>,
}

/// How many pods, and what says so.
#[derive(Clone, Copy)]
struct Want {
    pods: u32,
    because: Because,
}

impl Autoscaler {
    /// With `replicas` pods that there should be already, and no past.
    #[must_use]
    pub fn new(replicas: u32, now: Instant) -> Self {
        let mut wanted = Maximum::default();
        wanted.push(now, replicas);
        Self {
            replicas,
            asked: false,
            began: now,
            history: History::default(),
            wanted,
            burst_at: None,
            complete_since: None,
        }
    }

    /// The pods that there should be.
    #[must_use]
    pub const fn replicas(&self) -> u32 {
        self.replicas
    }

    /// Somebody wants `replicas`: it holds for the delay downwards, unless load asks for more.
    pub fn ask(&mut self, replicas: u32, now: Instant) {
        self.asked = replicas != self.replicas;
        self.replicas = replicas;
        self.wanted.push(now, replicas);
    }

    /// What follows from `sample`, the newest one. To be called regularly, several times in a panic window.
    pub fn decide(&mut self, policy: &Policy, sample: &Sample, now: Instant) -> Decision {
        let serving = sample.serving();
        if serving < self.replicas {
            self.complete_since = None;
        } else {
            self.complete_since.get_or_insert(now);
        }
        let seen = Seen {
            at: now,
            known: sample.known(policy),
            presumed: sample.presumed(policy),
            queue_delay_ms: sample.queue_delay_ms,
        };
        self.history.push(seen, policy.stable.max(policy.panic));
        let want = self.want(policy, sample, serving, now);
        let is_panicking = self.is_panicking(policy, now);
        let held = self.held(policy, want.pods, now);
        self.wanted.push(now, held);
        let before = self.replicas;
        let enough = self.wanted.over(policy.scale_down_delay, now);
        let (replicas, because) = if want.pods > before {
            (want.pods, want.because)
        } else if enough < before && !is_panicking && !is_leaving(sample, before) {
            let because = match enough {
                0 => Because::Idle,
                pods => Because::Less { pods },
            };
            (enough, because)
        } else {
            (before, Because::Enough)
        };
        let bounded = policy.bounded(replicas);
        let because = match because {
            Because::Enough if bounded != before => Because::Bounds,
            Because::Enough if self.asked => Because::Asked,
            because if bounded != before => because,
            _ => Because::Enough,
        };
        self.asked = false;
        if bounded > before && serving < bounded {
            self.complete_since = None;
        }
        self.replicas = bounded;
        Decision {
            replicas: bounded,
            wanted: want.pods,
            is_panicking,
            because,
        }
    }

    /// The most that anything asks for.
    fn want(&mut self, policy: &Policy, sample: &Sample, serving: u32, now: Instant) -> Want {
        let short = self.history.mean(policy.panic, |seen| seen.known);
        let stable = self.history.mean(policy.stable, |seen| seen.known);
        if short.pods() >= BURST * serving.max(1) {
            self.burst_at = Some(now);
        }
        let by_load = |demand: Demand| {
            let because = if demand.kv > demand.sessions {
                Because::KvCache { pods: demand.kv }
            } else {
                Because::Sessions {
                    pods: demand.sessions,
                }
            };
            Want {
                pods: demand.pods(),
                because,
            }
        };
        let is_clear = |pods: f64| pods > CLEARLY * f64::from(self.replicas);
        let is_burst = self.burst_at == Some(now);
        let short_pods = short.sessions.max(short.kv);
        let by_short = (is_burst || is_clear(short_pods)).then(|| match is_burst {
            true => Want {
                pods: short.pods(),
                because: Because::Burst { pods: short_pods },
            },
            false => by_load(short),
        });
        let queue_delay = self.by_queue_delay(policy, sample, serving, now);
        let others = [by_short, queue_delay];
        let more = |most: Want, want: Want| if want.pods > most.pods { want } else { most };
        let mut most = others.into_iter().flatten().fold(by_load(stable), more);
        if self.replicas == 0 && sample.waiting > 0.0 {
            most.pods = most.pods.max(1);
            most.because = Because::Waiting {
                sessions: sample.waiting,
            };
        }
        most
    }

    /// A queue delay above what is aimed at asks for more pods, once those that there should be have served for a
    /// while: sessions move to new ones only by and by. More pods than sessions would help nobody.
    fn by_queue_delay(
        &self,
        policy: &Policy,
        sample: &Sample,
        serving: u32,
        now: Instant,
    ) -> Option<Want> {
        let delay_ms = self.history.mean_queue_delay_ms(policy.panic)?;
        let target_ms = policy.target_queue_delay_ms;
        let is_settled = self
            .complete_since
            .is_some_and(|since| now.saturating_duration_since(since) >= policy.stable);
        let most = whole_pods(sample.sessions());
        if delay_ms <= target_ms || !is_settled || serving >= most {
            return None;
        }
        let times = (delay_ms / target_ms).min(MOST_BY_DELAY);
        let pods = whole_pods(f64::from(serving) * times).max(serving + 1);
        Some(Want {
            pods: pods.min(most),
            because: Because::QueueDelay {
                delay_ms,
                target_ms,
            },
        })
    }

    /// What counts against a number below the present one.
    fn held(&self, policy: &Policy, wanted: u32, now: Instant) -> u32 {
        let presumed = self.history.mean(policy.stable, |seen| seen.presumed);
        let presumed = presumed.pods().min(self.replicas);
        let delay = self.history.mean_queue_delay_ms(policy.stable);
        let waits =
            delay.is_some_and(|delay| delay >= HOLD_BY_DELAY * policy.target_queue_delay_ms);
        if waits || !self.has_past(policy, now) {
            return wanted.max(self.replicas);
        }
        wanted.max(presumed).max(self.replicas / 2)
    }

    /// Whether the stable window is known.
    fn has_past(&self, policy: &Policy, now: Instant) -> bool {
        now.saturating_duration_since(self.began) >= policy.stable
    }

    fn is_panicking(&self, policy: &Policy, now: Instant) -> bool {
        self.burst_at
            .is_some_and(|at| now.saturating_duration_since(at) < policy.stable)
    }
}

/// Whether pods are still on their way out. One step down follows another when the first is done.
fn is_leaving(sample: &Sample, replicas: u32) -> bool {
    sample.pods.len() > usize::try_from(replicas).unwrap_or(usize::MAX)
}
