//! What stands: for each SplitModel, the number of pods that the operator has decided on.
//!
//! A decision to have fewer stands only once the pods that go are marked, see [`super::rounds`]; until then
//! [`Scales::stands`] gives the number before. What stands is found again after a restart: the live Deployment has the
//! number, and its annotation says which `spec.replicas` that came from.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use headway_autoscale::autoscaler::Autoscaler;
use headway_autoscale::policy::Policy;
use headway_autoscale::reason::Because;

use super::fleet::Fleet;
use super::signals::Signals;
use crate::crd::SplitModelSpec;
use crate::crd::autoscaling::Provider;
use crate::kinds::OwnedKind;
use crate::names;
use crate::observed::Observed;
use crate::savings::shelf::Key;
use crate::validate::ValidSpec;

/// What of the outside a SplitModel's objects depend on, besides its spec.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The number of pods that the operator has decided on; `None` where it does not decide.
    pub replicas: Option<i32>,
    /// Where the operator answers in place of tails; `None` while they do, or where it cannot.
    pub door: Option<SocketAddr>,
}

/// One SplitModel whose number of pods the operator decides on.
#[derive(Debug)]
pub struct Scale {
    /// Distinguishes it from another one that had its name before.
    uid: String,
    /// `spec.replicas`, which a person may change.
    asked: i32,
    /// Decides.
    pub autoscaler: Autoscaler,
    /// What its tails said last.
    pub fleet: Fleet,
    /// What stands.
    pub stands: u32,
    /// Why the last decision was made; it may stand only some looks later.
    pub because: Because,
    /// Looks at which the pods that go were not marked yet.
    pub marking: u32,
    /// When each pod's session target was written, by uid.
    pub targets: BTreeMap<String, Instant>,
}

/// All SplitModels whose number of pods the operator decides on.
#[derive(Debug, Default)]
pub struct Scales(Mutex<BTreeMap<Key, Scale>>);

impl Scales {
    /// The number that stands for `valid`. Begins to decide where it did not.
    pub fn stands(&self, valid: &ValidSpec, observed: &Observed, now: Instant) -> i32 {
        let key = (valid.owner.namespace.clone(), valid.owner.name.clone());
        let asked = valid.spec.replicas;
        let mut scales = self.lock();
        if scales
            .get(&key)
            .is_some_and(|scale| scale.uid != valid.owner.uid)
        {
            scales.remove(&key);
        }
        let scale = scales.entry(key).or_insert_with(|| {
            let replicas = bounded(&valid.spec, found(asked, observed));
            Scale {
                uid: valid.owner.uid.clone(),
                asked,
                autoscaler: Autoscaler::new(replicas, now),
                fleet: Fleet::default(),
                stands: replicas,
                because: Because::Enough,
                marking: 0,
                targets: BTreeMap::new(),
            }
        });
        if scale.asked != asked {
            let replicas = bounded(&valid.spec, asked);
            scale.asked = asked;
            scale.autoscaler.ask(replicas, now);
            scale.stands = replicas;
        }
        i32::try_from(bounded_count(&valid.spec, scale.stands)).unwrap_or(i32::MAX)
    }

    /// A pod of `key` answered.
    pub fn heard(&self, key: &Key, uid: &str, signals: Signals, now: Instant) {
        if let Some(scale) = self.lock().get_mut(key) {
            scale.fleet.heard(uid, signals, now);
        }
    }

    /// Runs `f` on the scale of `key`, where there is one.
    pub fn with<R>(&self, key: &Key, f: impl FnOnce(&mut Scale) -> R) -> Option<R> {
        self.lock().get_mut(key).map(f)
    }

    /// Forgets SplitModels that are not in `present`.
    pub fn keep(&self, present: &BTreeSet<Key>) {
        self.lock().retain(|key, _| present.contains(key));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Scale>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number to begin with: what is asked for where there are no pods yet, or where it was asked for while no
/// operator looked; else the number that there is, whoever decided on it.
fn found(asked: i32, observed: &Observed) -> i32 {
    let live = observed.objects.get(&OwnedKind::Deployment);
    let annotations = live.and_then(|live| live.annotations.as_ref());
    let asked_then = annotations.and_then(|all| all.get(names::ASKED_ANNOTATION));
    match observed.wanted_replicas {
        Some(replicas) if asked_then.is_none_or(|then| *then == asked.to_string()) => replicas,
        _ => asked,
    }
}

fn bounded(spec: &SplitModelSpec, replicas: i32) -> u32 {
    bounded_count(spec, u32::try_from(replicas).unwrap_or(0))
}

fn bounded_count(spec: &SplitModelSpec, replicas: u32) -> u32 {
    let count = |replicas: i32| u32::try_from(replicas).unwrap_or(0);
    let scaling = &spec.autoscaling;
    replicas.min(count(scaling.max)).max(count(scaling.min))
}

/// What `spec` aims at. `stands`: pods that there should be now. Without a place where the operator can answer, no
/// model is put to sleep: nobody would wake it.
#[must_use]
pub fn policy(spec: &SplitModelSpec, can_sleep: bool, stands: u32) -> Policy {
    let scaling = &spec.autoscaling;
    let count = |replicas: i32| u32::try_from(replicas).unwrap_or(0);
    let share = |percent: u32| f64::from(percent) / 100.0;
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    let least = if can_sleep { 0 } else { stands.min(1) };
    let sessions = f64::from(spec.tail.limits.sessions) * share(scaling.targets.sessions_percent);
    Policy {
        min: count(scaling.min).max(least),
        max: count(scaling.max),
        target_sessions: sessions.max(1.0),
        target_kv: share(scaling.targets.kv_percent),
        target_queue_delay_ms: scaling.targets.queue_delay_ms.into(),
        stable: seconds(scaling.windows.stable_seconds),
        panic: seconds(scaling.windows.panic_seconds),
        scale_down_delay: seconds(scaling.windows.scale_down_delay_seconds),
    }
}

/// Whether the operator answers in place of tails that are not there: where there may be none on purpose, and
/// somebody starts the first one.
#[must_use]
pub fn may_sleep(spec: &SplitModelSpec) -> bool {
    spec.autoscaling.min == 0 && spec.autoscaling.provider != Provider::None
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use serde_json::{Value, json};

    use super::*;
    use crate::validate::tests::splitmodel;

    fn valid(replicas: i32, autoscaling: Value) -> ValidSpec {
        let spec = json!({
            "model": {"source": "hf://org/smol"},
            "auth": {"allowAnonymous": true},
            "replicas": replicas,
            "autoscaling": autoscaling,
        });
        ValidSpec::check(&splitmodel(spec)).unwrap()
    }

    fn live(replicas: i32, asked: Option<i32>) -> Observed {
        let annotations = asked.map(|asked| {
            [(names::ASKED_ANNOTATION.to_owned(), asked.to_string())]
                .into_iter()
                .collect()
        });
        let metadata = ObjectMeta {
            annotations,
            ..ObjectMeta::default()
        };
        Observed {
            objects: [(OwnedKind::Deployment, metadata)].into_iter().collect(),
            wanted_replicas: Some(replicas),
            ..Observed::default()
        }
    }

    fn begins_with(valid: &ValidSpec, observed: &Observed) -> i32 {
        Scales::default().stands(valid, observed, Instant::now())
    }

    #[test]
    fn a_new_model_begins_with_what_is_asked_for_within_bounds() {
        let none = Observed::default();
        assert_eq!(begins_with(&valid(3, json!({})), &none), 3);
        assert_eq!(begins_with(&valid(3, json!({"max": 2})), &none), 2);
        assert_eq!(begins_with(&valid(0, json!({"min": 0})), &none), 0);
    }

    #[test]
    fn an_operator_that_starts_again_keeps_what_stands() {
        assert_eq!(begins_with(&valid(1, json!({})), &live(7, Some(1))), 7);
        // Somebody else decided before.
        assert_eq!(begins_with(&valid(1, json!({})), &live(7, None)), 7);
    }

    #[test]
    fn what_was_asked_for_while_no_operator_looked_counts() {
        assert_eq!(begins_with(&valid(4, json!({})), &live(7, Some(1))), 4);
    }

    #[test]
    fn a_changed_wish_is_taken_over_and_a_repeated_one_is_not() {
        let (scales, now) = (Scales::default(), Instant::now());
        let (one, none) = (valid(1, json!({})), Observed::default());
        scales.stands(&one, &none, now);
        let key = (one.owner.namespace.clone(), one.owner.name.clone());
        scales.with(&key, |scale| scale.stands = 5);
        assert_eq!(scales.stands(&one, &none, now), 5);
        assert_eq!(scales.stands(&valid(2, json!({})), &none, now), 2);
    }

    #[test]
    fn nothing_sleeps_where_nobody_could_wake_it() {
        let asleep = valid(1, json!({"min": 0}));
        assert_eq!(policy(&asleep.spec, true, 1).min, 0);
        assert_eq!(policy(&asleep.spec, false, 1).min, 1);
        // What somebody put to sleep is left asleep.
        assert_eq!(policy(&asleep.spec, false, 0).min, 0);
    }
}
