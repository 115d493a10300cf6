//! Who decides: the operator's own function, a reference after Knative's description, and an oracle.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use headway_autoscale::autoscaler::Autoscaler;
use headway_autoscale::leaving::{Candidate, leaving};
use headway_autoscale::load::{Load, Pod, Sample};
use headway_autoscale::policy::Policy as Aim;
use headway_autoscale::spread::{self, Change, Tail};

use super::fleet::{MAX_SESSIONS, START_UP_S, TARGET_PERCENT};
use super::shapes::whole;

/// The most pods of any policy.
const MAX_PODS: u32 = 100;

/// What a policy sees.
pub struct Observed {
    pub now_s: f64,
    pub pods: Vec<SeenPod>,
    /// Sessions that were turned away since the last decision, or wait for a first pod.
    pub waiting: f64,
    /// 95th percentile of the time that steps waited.
    pub step_wait_ms: Option<f64>,
}

/// A pod as a policy sees it.
pub struct SeenPod {
    pub id: u64,
    pub serves: bool,
    pub leaves: bool,
    pub sessions: usize,
    /// Sessions that it was asked to have, and when.
    pub target: Option<(u32, f64)>,
}

impl Observed {
    /// Sessions open or waiting.
    fn sessions(&self) -> f64 {
        let open: usize = self.pods.iter().map(|pod| pod.sessions).sum();
        open as f64 + self.waiting
    }

    fn ready(&self) -> u32 {
        let ready = self.pods.iter().filter(|pod| pod.serves).count();
        u32::try_from(ready).unwrap_or(u32::MAX)
    }
}

/// What is to be done.
#[derive(Default)]
pub struct Orders {
    pub replicas: u32,
    /// Pods that go first.
    pub leaving: Vec<u64>,
    /// Sessions that pods should have at most.
    pub targets: Vec<(u64, Option<u32>)>,
}

/// Decides on the number of pods.
pub trait Policy {
    fn decide(&mut self, observed: &Observed) -> Orders;
}

/// Sessions of one pod that all of them aim at.
pub fn target_sessions() -> f64 {
    MAX_SESSIONS as f64 * TARGET_PERCENT / 100.0
}

/// Pods for so many sessions.
fn pods_for(sessions: f64) -> u32 {
    u32::try_from(whole((sessions / target_sessions()).ceil())).unwrap_or(u32::MAX)
}

/// The operator's, with the defaults of `spec.autoscaling`.
pub struct Headway {
    aim: Aim,
    autoscaler: Autoscaler,
    began: Instant,
}

impl Headway {
    pub fn new(min: u32) -> Self {
        let began = Instant::now();
        Self {
            aim: Aim {
                min,
                max: MAX_PODS,
                target_sessions: target_sessions(),
                target_kv: 0.8,
                target_queue_delay_ms: 100.0,
                stable: Duration::from_secs(60),
                panic: Duration::from_secs(6),
                scale_down_delay: Duration::from_secs(300),
            },
            autoscaler: Autoscaler::new(1, began),
            began,
        }
    }
}

impl Policy for Headway {
    fn decide(&mut self, observed: &Observed) -> Orders {
        let now = self.began + Duration::from_secs_f64(observed.now_s);
        let load = |pod: &SeenPod| Load {
            sessions: pod.sessions as f64,
            kv: 0.5 * pod.sessions as f64 / MAX_SESSIONS as f64,
            is_active: pod.sessions > 0,
        };
        let pods = observed.pods.iter().map(|pod| Pod {
            serves: pod.serves,
            load: (pod.serves || pod.leaves).then(|| load(pod)),
        });
        let sample = Sample {
            pods: pods.collect(),
            waiting: observed.waiting,
            queue_delay_ms: observed.step_wait_ms,
        };
        let replicas = self.autoscaler.decide(&self.aim, &sample, now).replicas;
        let staying: Vec<_> = observed.pods.iter().filter(|pod| !pod.leaves).collect();
        let names: Vec<String> = staying.iter().map(|pod| format!("{:08}", pod.id)).collect();
        let candidates: Vec<_> = staying
            .iter()
            .zip(&names)
            .map(|(pod, name)| Candidate {
                name,
                serves: pod.serves,
                sessions: Some(pod.sessions as f64),
            })
            .collect();
        let count = candidates.len().saturating_sub(replicas as usize);
        let leaving = leaving(&candidates, count);
        let serving: Vec<_> = observed.pods.iter().filter(|pod| pod.serves).collect();
        let tails: Vec<_> = serving
            .iter()
            .map(|pod| Tail {
                sessions: pod.sessions as f64,
                target: pod.target.map(|(target, asked_s)| {
                    (target, Duration::from_secs_f64(observed.now_s - asked_s))
                }),
            })
            .collect();
        let waits = observed.step_wait_ms;
        let work_waits = waits.is_some_and(|wait| wait > self.aim.target_queue_delay_ms);
        let changes = spread::changes(&self.aim, work_waits, &tails);
        let targets = serving
            .iter()
            .zip(changes)
            .filter_map(|(pod, change)| match change {
                Change::Keep => None,
                Change::Ask(target) => Some((pod.id, Some(target))),
                Change::Clear => Some((pod.id, None)),
            });
        Orders {
            replicas,
            leaving: leaving
                .into_iter()
                .filter_map(|name| name.parse().ok())
                .collect(),
            targets: targets.collect(),
        }
    }
}

/// After the description of Knative's autoscaler, with its defaults: concurrency is averaged over a stable window of
/// 60 s and a panic window of a tenth of it; it panics when the short one asks for twice the ready pods, and then never
/// goes down for a stable window; down at most by half at a time; to zero 30 s after the last.
/// <https://knative.dev/docs/serving/autoscaling/>
pub struct Knative {
    min: u32,
    /// Its `scale-down-delay`, 0 by default.
    delay_s: f64,
    seen: VecDeque<(f64, f64)>,
    wanted: VecDeque<(f64, u32)>,
    panics_since_s: Option<f64>,
    panic_most: u32,
    idle_since_s: Option<f64>,
    replicas: u32,
}

impl Knative {
    pub fn new(min: u32, delay_s: f64) -> Self {
        Self {
            min,
            delay_s,
            seen: VecDeque::new(),
            wanted: VecDeque::new(),
            panics_since_s: None,
            panic_most: 0,
            idle_since_s: None,
            replicas: 1,
        }
    }

    fn mean(&self, now_s: f64, window_s: f64) -> f64 {
        let within = self.seen.iter().filter(|(at_s, _)| now_s - at_s < window_s);
        let (count, sum) = within.fold((0.0, 0.0), |(n, sum), (_, value)| (n + 1.0, sum + value));
        if count > 0.0 { sum / count } else { 0.0 }
    }
}

impl Policy for Knative {
    fn decide(&mut self, observed: &Observed) -> Orders {
        const STABLE_S: f64 = 60.0;
        let now_s = observed.now_s;
        self.seen.push_back((now_s, observed.sessions()));
        while self
            .seen
            .front()
            .is_some_and(|(at_s, _)| now_s - at_s >= STABLE_S)
        {
            self.seen.pop_front();
        }
        let pods = pods_for;
        let (stable, short) = (
            self.mean(now_s, STABLE_S),
            self.mean(now_s, STABLE_S / 10.0),
        );
        let ready = observed.ready().max(1);
        let (stable, short) = (pods(stable).max(ready / 2), pods(short));
        if short >= 2 * ready {
            self.panics_since_s = Some(now_s);
        }
        let mut wanted = stable;
        match self.panics_since_s {
            Some(since) if now_s - since < STABLE_S => {
                self.panic_most = self.panic_most.max(short).max(self.replicas);
                wanted = wanted.max(self.panic_most);
            }
            _ => {
                self.panics_since_s = None;
                self.panic_most = 0;
            }
        }
        self.wanted.push_back((now_s, wanted));
        while self
            .wanted
            .front()
            .is_some_and(|(at_s, _)| now_s - at_s > self.delay_s)
        {
            self.wanted.pop_front();
        }
        let held = self.wanted.iter().map(|(_, pods)| *pods).max();
        let mut replicas = held.unwrap_or(wanted).clamp(self.min, MAX_PODS);
        if replicas == 0 {
            let since = *self.idle_since_s.get_or_insert(now_s);
            replicas = u32::from(now_s - since < 30.0 && self.replicas > 0);
        } else {
            self.idle_since_s = None;
        }
        self.replicas = replicas;
        Orders {
            replicas,
            ..Orders::default()
        }
    }
}

/// Knows how many sessions will be open, and starts each pod just in time. It takes a start-up into account as
/// everybody has to: a pod that would be needed again before another could start stays.
pub struct Oracle {
    plan: Vec<u32>,
    at: usize,
}

impl Oracle {
    /// `sessions`: open ones at each decision, with as many pods as are needed.
    pub fn new(sessions: &[f64], min: u32, decision_s: f64) -> Self {
        let ahead = whole(START_UP_S / decision_s) + 1;
        let needed: Vec<u32> = sessions
            .iter()
            .map(|sessions| pods_for(*sessions).max(min))
            .collect();
        let plan = (0..needed.len()).map(|at| {
            let until = (at + ahead).min(needed.len() - 1);
            needed[at..=until].iter().copied().max().unwrap_or(min)
        });
        Self {
            plan: plan.collect(),
            at: 0,
        }
    }

    /// Pods to begin with.
    pub fn first(&self) -> u32 {
        self.plan.first().copied().unwrap_or(1)
    }
}

impl Policy for Oracle {
    fn decide(&mut self, observed: &Observed) -> Orders {
        let replicas = self.plan[self.at.min(self.plan.len() - 1)];
        self.at += 1;
        let mut pods: Vec<_> = observed.pods.iter().filter(|pod| pod.serves).collect();
        pods.sort_by_key(|pod| (pod.sessions, pod.id));
        Orders {
            replicas,
            leaving: pods
                .iter()
                .take(pods.len().saturating_sub(replicas as usize))
                .map(|pod| pod.id)
                .collect(),
            targets: Vec::new(),
        }
    }
}

/// One pod for as many sessions as there are, to see how many are open.
pub struct One;

impl Policy for One {
    fn decide(&mut self, _: &Observed) -> Orders {
        Orders {
            replicas: 1,
            ..Orders::default()
        }
    }
}
