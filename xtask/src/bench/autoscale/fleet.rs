//! A simulated fleet: pods that start, take sessions, drain and go, under a policy.
//!
//! A tail answers all sessions whose steps have come in one engine step, which takes a fixed time and a little more for
//! each of them. A session's next step comes when its device and the network are done with the last one. A session goes
//! to a pod at random, as it does through a Service; a full pod turns it away, and it tries again later.

use fastrand::Rng;

use super::policies::{Observed, Policy, SeenPod};
use super::shapes::{Arrival, SECONDS, whole};

/// Between two looks at the simulated world.
const TICK_S: f64 = 0.5;
/// Between two decisions, as in the operator.
const DECISION_TICKS: u64 = 4;
/// From the decision to a pod that serves.
pub const START_UP_S: f64 = 45.0;
/// Sessions that a pod takes at most.
pub const MAX_SESSIONS: usize = 32;
/// Percent of them that are aimed at: the default of `autoscaling.targets.sessionsPercent`.
pub const TARGET_PERCENT: f64 = 70.0;
/// An engine step, and what each session in it adds.
const STEP_S: f64 = 0.012;
const ROW_S: f64 = 0.0006;
/// Device and network, for each token.
const DEVICE_S: f64 = 0.060;
/// A session that moves is computed again on the pod it comes to: that long its next token waits.
const REPLAY_S: f64 = 1.0;
/// A draining pod is there no longer than this: the default of `rollout.drainSeconds`.
const DRAIN_S: f64 = 60.0;
/// What a device waits after being turned away, at first and at most.
const BACKOFF_S: (f64, f64) = (1.0, 5.0);
/// What it is told to wait while the first pod starts.
const STARTING_S: f64 = 2.0;

/// What a policy came to under one load.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Seconds of all pods, from their start to their end.
    pub pod_seconds: f64,
    /// From a session's arrival to its first step, in seconds.
    pub waits_s: Vec<f64>,
    /// Times that a session was turned away.
    pub refusals: u64,
    /// Sessions that had to move.
    pub moves: u64,
    /// 95th percentile of the time that steps waited, for each decision.
    pub step_waits_ms: Vec<f64>,
    /// Pods that there should be, at each decision.
    pub replicas: Vec<u32>,
    /// Sessions open or waiting, at each decision.
    pub sessions: Vec<f64>,
}

#[derive(Clone, Debug)]
struct Session {
    tokens: f64,
    /// Until its next token: it is being computed again.
    paused_s: f64,
}

#[derive(Clone, Debug)]
struct Pod {
    id: u64,
    born_s: f64,
    drains_since_s: Option<f64>,
    sessions: Vec<Session>,
    /// Sessions that it has been asked to have at most.
    target: Option<(u32, f64)>,
}

struct Waiting {
    arrival: Arrival,
    next_try_s: f64,
    backoff_s: f64,
}

/// Whether pods serve at once: then nothing but the load says how many sessions are open.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Capacity {
    Real,
    Endless,
}

/// One load under one policy.
pub struct Fleet<'a> {
    policy: &'a mut dyn Policy,
    capacity: Capacity,
    rng: Rng,
    pods: Vec<Pod>,
    next_id: u64,
    waiting: Vec<Waiting>,
    refused: f64,
    outcome: Outcome,
}

/// Runs `arrivals` to their end under `policy`.
pub fn run(
    arrivals: &[Arrival],
    policy: &mut dyn Policy,
    replicas: u32,
    capacity: Capacity,
) -> Outcome {
    let mut fleet = Fleet {
        policy,
        capacity,
        rng: Rng::with_seed(7),
        pods: Vec::new(),
        next_id: 0,
        waiting: Vec::new(),
        refused: 0.0,
        outcome: Outcome::default(),
    };
    for _ in 0..replicas {
        fleet.start(-START_UP_S);
    }
    let mut arrivals = arrivals.iter().peekable();
    let ticks = whole(f64::from(SECONDS) / TICK_S) as u64;
    let mut now_s = 0.0;
    for tick in 0..ticks {
        now_s += TICK_S;
        while let Some(arrival) = arrivals.next_if(|arrival| arrival.at_s <= now_s) {
            fleet.waiting.push(Waiting {
                arrival: *arrival,
                next_try_s: arrival.at_s,
                backoff_s: BACKOFF_S.0,
            });
        }
        fleet.admit(now_s);
        fleet.compute();
        fleet.drain(now_s);
        if tick % DECISION_TICKS == 0 {
            fleet.decide(now_s);
        }
        fleet.outcome.pod_seconds += TICK_S * fleet.pods.len() as f64;
    }
    // Whoever still waits has waited until now.
    for waiting in &fleet.waiting {
        fleet.outcome.waits_s.push(now_s - waiting.arrival.at_s);
    }
    fleet.outcome
}

/// How long the engine takes for a step of a pod with so many sessions, and from one token of a session to the next.
fn pace(sessions: usize) -> (f64, f64) {
    let sessions = sessions as f64;
    let mut step = STEP_S + ROW_S;
    let mut between = DEVICE_S + step;
    // A fixed point: a longer step gathers more sessions.
    for _ in 0..8 {
        let rows = (sessions * step / between).clamp(1.0, sessions.max(1.0));
        step = STEP_S + ROW_S * rows;
        let busy = (sessions * step / between / rows).min(1.0);
        between = DEVICE_S + step + busy * step / 2.0;
    }
    (step, between)
}

/// What 95 % of steps wait at most: the rest of the step before, evenly spread, where there is one.
fn step_wait_s(sessions: usize) -> f64 {
    if sessions < 2 {
        return 0.0;
    }
    let (step, between) = pace(sessions);
    let busy = (sessions as f64 * step / between).min(1.0);
    step * (1.0 - 0.05 / busy).max(0.0)
}

impl Fleet<'_> {
    fn start(&mut self, born_s: f64) {
        self.pods.push(Pod {
            id: self.next_id,
            born_s,
            drains_since_s: None,
            sessions: Vec::new(),
            target: None,
        });
        self.next_id += 1;
    }

    fn serving(&self, now_s: f64) -> Vec<usize> {
        let serves = |pod: &Pod| pod.drains_since_s.is_none() && now_s - pod.born_s >= START_UP_S;
        let all = self.pods.iter().enumerate();
        all.filter(|(_, pod)| serves(pod)).map(|(i, _)| i).collect()
    }

    fn has_room(&self, pod: usize) -> bool {
        self.capacity == Capacity::Endless || self.pods[pod].sessions.len() < MAX_SESSIONS
    }

    fn admit(&mut self, now_s: f64) {
        let serving = self.serving(now_s);
        let mut still = Vec::new();
        for mut waiting in std::mem::take(&mut self.waiting) {
            if waiting.next_try_s > now_s {
                still.push(waiting);
                continue;
            }
            if serving.is_empty() {
                self.outcome.refusals += 1;
                waiting.next_try_s = now_s + STARTING_S;
                still.push(waiting);
                continue;
            }
            let pod = serving[self.rng.usize(..serving.len())];
            if self.has_room(pod) {
                let step = step_wait_s(self.pods[pod].sessions.len()) / 2.0;
                let wait = (now_s - waiting.arrival.at_s - TICK_S).max(0.0) + step;
                self.outcome.waits_s.push(wait);
                self.pods[pod].sessions.push(Session {
                    tokens: waiting.arrival.tokens,
                    paused_s: 0.0,
                });
            } else {
                self.outcome.refusals += 1;
                self.refused += 1.0;
                let jitter = 0.5 + self.rng.f64() / 2.0;
                waiting.next_try_s = now_s + (waiting.backoff_s * jitter).max(BACKOFF_S.0);
                waiting.backoff_s = (waiting.backoff_s * 2.0).min(BACKOFF_S.1);
                still.push(waiting);
            }
        }
        self.waiting = still;
    }

    fn compute(&mut self) {
        for pod in &mut self.pods {
            let sessions = match self.capacity {
                Capacity::Real => pod.sessions.len(),
                // As if each pod had what is aimed at.
                Capacity::Endless => whole(MAX_SESSIONS as f64 * TARGET_PERCENT / 100.0),
            };
            let (_, between) = pace(sessions);
            for session in &mut pod.sessions {
                let computes = (TICK_S - session.paused_s).max(0.0);
                session.paused_s = (session.paused_s - TICK_S).max(0.0);
                session.tokens -= computes / between;
            }
            pod.sessions.retain(|session| session.tokens > 0.0);
        }
    }

    /// Sessions of pods that drain, or that have more than they should, go to another pod if it has room.
    fn drain(&mut self, now_s: f64) {
        let serving = self.serving(now_s);
        for from in 0..self.pods.len() {
            let pod = &self.pods[from];
            let keep = match (pod.drains_since_s, pod.target) {
                (Some(_), _) => 0,
                (None, Some((target, asked_s))) if now_s - asked_s < 5.0 => target as usize,
                _ => usize::MAX,
            };
            let surplus = pod.sessions.len().saturating_sub(keep);
            for _ in 0..surplus {
                if serving.is_empty() {
                    break;
                }
                let to = serving[self.rng.usize(..serving.len())];
                // A load balancer may lead back to where it came from.
                if to == from || !self.has_room(to) {
                    continue;
                }
                let Some(mut session) = self.pods[from].sessions.pop() else {
                    break;
                };
                session.paused_s = REPLAY_S;
                self.outcome.moves += 1;
                self.pods[to].sessions.push(session);
            }
        }
        let gone = |pod: &Pod| {
            pod.drains_since_s
                .is_some_and(|since| pod.sessions.is_empty() || now_s - since > DRAIN_S)
        };
        let mut homeless = 0;
        self.pods.retain(|pod| {
            if gone(pod) {
                homeless += pod.sessions.len();
            }
            !gone(pod)
        });
        // Their devices find another pod; what they were given stays theirs.
        self.outcome.refusals += homeless as u64;
    }

    fn decide(&mut self, now_s: f64) {
        let serving = self.serving(now_s);
        let pods: Vec<SeenPod> = self
            .pods
            .iter()
            .enumerate()
            .map(|(index, pod)| SeenPod {
                id: pod.id,
                serves: serving.contains(&index),
                leaves: pod.drains_since_s.is_some(),
                sessions: pod.sessions.len(),
                target: pod.target,
            })
            .collect();
        let waits = serving
            .iter()
            .map(|&pod| step_wait_s(self.pods[pod].sessions.len()));
        let step_wait_ms = 1e3 * waits.fold(0.0, f64::max);
        let starting = if serving.is_empty() {
            self.waiting.len() as f64
        } else {
            0.0
        };
        let observed = Observed {
            now_s,
            pods,
            waiting: self.refused + starting,
            step_wait_ms: (!serving.is_empty()).then_some(step_wait_ms),
        };
        self.refused = 0.0;
        let orders = self.policy.decide(&observed);
        for (id, target) in orders.targets {
            if let Some(pod) = self.pods.iter_mut().find(|pod| pod.id == id) {
                pod.target = target.map(|target| (target, now_s));
            }
        }
        self.scale(orders.replicas, &orders.leaving, now_s);
        let open: usize = self.pods.iter().map(|pod| pod.sessions.len()).sum();
        self.outcome.step_waits_ms.push(step_wait_ms);
        self.outcome.replicas.push(orders.replicas);
        self.outcome
            .sessions
            .push((open + self.waiting.len()) as f64);
    }

    fn scale(&mut self, replicas: u32, leaving: &[u64], now_s: f64) {
        let staying = self
            .pods
            .iter()
            .filter(|pod| pod.drains_since_s.is_none())
            .count();
        let replicas = replicas as usize;
        for _ in staying..replicas {
            let born_s = match self.capacity {
                Capacity::Real => now_s,
                Capacity::Endless => now_s - START_UP_S,
            };
            self.start(born_s);
        }
        // Pods that do not serve go first, then those that the policy names, then the youngest: as ReplicaSets do.
        let mut order: Vec<(bool, bool, u64)> = self
            .pods
            .iter()
            .filter(|pod| pod.drains_since_s.is_none())
            .map(|pod| {
                let serves = now_s - pod.born_s >= START_UP_S;
                (serves, !leaving.contains(&pod.id), u64::MAX - pod.id)
            })
            .collect();
        order.sort_unstable();
        for (_, _, id) in order.into_iter().take(staying.saturating_sub(replicas)) {
            let leaves = self.pods.iter_mut().find(|pod| pod.id == u64::MAX - id);
            if let Some(pod) = leaves {
                pod.drains_since_s = Some(now_s);
            }
        }
    }
}
