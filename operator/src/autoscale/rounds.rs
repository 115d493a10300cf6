//! Looks at every SplitModel whose number of pods the operator decides on, and acts on what is decided.
//!
//! | decided | done |
//! |---|---|
//! | more pods | the number stands at once, and the SplitModel is reconciled |
//! | fewer | the pods that go are marked first; the number stands once a watch has shown the marks |
//! | too many sessions on one pod | its annotation says how many it should have, which its tail reads as a file |
//!
//! Nothing is written while nothing is decided.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};
use headway_autoscale::leaving::{Candidate, leaving};
use headway_autoscale::reason::{Because, Decision};
use headway_autoscale::spread::{self, Change, Tail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, Resource as _, ResourceExt as _};
use serde_json::json;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use super::doors::Doors;
use super::fleet::PodFacts;
use super::is_scaled_here;
use super::scales::{Scale, Scales, may_sleep, policy};
use crate::crd::SplitModel;
use crate::metrics::{Metrics, Scaled};
use crate::names;
use crate::savings::shelf::{Key, key_of, tail_container};

/// SplitModels that are acted on at a time.
const MAX_ACTIONS: usize = 16;
/// For one request to the API server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks, however many devices knock.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// Looks that pods which are to go are given to show their marks. Then they go unmarked.
const MAX_MARKING: u32 = 5;
/// The deletion cost of a pod that is to go; others have none, which is 0.
const LEAVES: &str = "-1";

/// What looks are made of.
pub struct ScaleRounds {
    /// Connection to the API server.
    pub client: Client,
    /// Publishes events.
    pub recorder: Recorder,
    /// What stands.
    pub scales: Arc<Scales>,
    /// Where sleeping models are answered for.
    pub doors: Arc<Doors>,
    /// Is told when there is reason to look.
    pub look: Arc<Notify>,
    /// Every SplitModel.
    pub splitmodels: Store<SplitModel>,
    /// Every pod of theirs.
    pub pods: Store<Pod>,
    /// The operator's metrics.
    pub metrics: Arc<Metrics>,
    /// SplitModels to be reconciled.
    pub changed: mpsc::Sender<ObjectRef<SplitModel>>,
}

/// What a look at one SplitModel came to.
#[derive(Debug, Default)]
struct Actions {
    /// Annotations of pods to be written, `None` to be removed.
    annotations: Vec<(String, &'static str, Option<String>)>,
    /// From how many to how many, and why.
    scaled: Option<(u32, Decision)>,
}

impl ScaleRounds {
    /// Looks whenever there is reason to, without end. The caches must be filled.
    pub async fn run(&self) {
        loop {
            self.look.notified().await;
            self.look_at_all().await;
            tokio::time::sleep(MIN_INTERVAL).await;
        }
    }

    async fn look_at_all(&self) {
        let splitmodels = self.splitmodels.state();
        let mut scaled = BTreeMap::new();
        let mut sleepers = BTreeSet::new();
        for splitmodel in &splitmodels {
            let Some(key) = key(splitmodel) else { continue };
            if may_sleep(&splitmodel.spec) {
                sleepers.insert(key.clone());
            }
            if is_scaled_here(splitmodel) {
                scaled.insert(key, splitmodel);
            }
        }
        let keys: BTreeSet<Key> = scaled.keys().cloned().collect();
        self.scales.keep(&keys);
        self.doors.keep(&sleepers);
        self.metrics.keep_scaled(&keys);
        let mut pods: BTreeMap<Key, Vec<PodFacts>> = BTreeMap::new();
        for pod in self.pods.state() {
            if let Some((key, facts)) = key_of(&pod).zip(facts(&pod)) {
                pods.entry(key).or_default().push(facts);
            }
        }
        let acted = stream::iter(scaled.into_iter().map(async |(key, splitmodel)| {
            let pods = pods.get(&key).map_or(&[][..], Vec::as_slice);
            if let Some(actions) = self.decide(&key, splitmodel, pods) {
                self.act(&key, splitmodel, actions).await;
            }
        }));
        acted.buffer_unordered(MAX_ACTIONS).collect::<()>().await;
    }

    /// What to do about one SplitModel; `None` before its first reconciliation.
    fn decide(&self, key: &Key, splitmodel: &SplitModel, pods: &[PodFacts]) -> Option<Actions> {
        let now = Instant::now();
        let can_sleep = self.doors.at_if(key, may_sleep(&splitmodel.spec)).is_some();
        let waiting = self.doors.waiting(key, now);
        self.scales.with(key, |scale| {
            let policy = policy(&splitmodel.spec, can_sleep, scale.stands);
            scale.fleet.keep(pods);
            let sample = scale.fleet.sample(pods, waiting, now);
            let mut decision = scale.autoscaler.decide(&policy, &sample, now);
            if decision.because != Because::Enough {
                scale.because = decision.because;
            }
            decision.because = scale.because;
            let scaled = Scaled {
                wanted: decision.wanted,
                stands: scale.stands,
                waiting: sample.waiting,
                is_panicking: decision.is_panicking,
            };
            self.metrics.show_scaled(key, scaled);
            let mut actions = Actions::default();
            let before = scale.stands;
            if decision.replicas < before {
                actions.annotations = marks(scale, pods, decision.replicas, now);
                if !actions.annotations.is_empty() && scale.marking < MAX_MARKING {
                    scale.marking += 1;
                    return actions;
                }
                actions.annotations.clear();
            }
            scale.marking = 0;
            if decision.replicas != before {
                scale.stands = decision.replicas;
                actions.scaled = Some((before, decision));
                return actions;
            }
            let work_waits = sample
                .queue_delay_ms
                .is_some_and(|delay| delay > policy.target_queue_delay_ms);
            actions.annotations = targets(scale, &policy, work_waits, pods, now);
            actions
        })
    }

    async fn act(&self, key: &Key, splitmodel: &SplitModel, actions: Actions) {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &key.0);
        let parameters = PatchParams {
            field_manager: Some(names::SCALING_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        for (pod, annotation, value) in actions.annotations {
            let patch = Patch::Merge(json!({"metadata": {"annotations": {annotation: value}}}));
            let patched = timeout(
                REQUEST_TIMEOUT,
                pods.patch_metadata(&pod, &parameters, &patch),
            );
            match patched.await {
                Ok(Ok(_)) => {}
                // Gone meanwhile.
                Ok(Err(kube::Error::Api(status))) if status.code == 404 => {}
                Ok(Err(error)) => tracing::warn!(pod, annotation, %error, "a pod is not annotated"),
                Err(_) => tracing::warn!(pod, annotation, "the API server did not answer in time"),
            }
        }
        if let Some((before, decision)) = actions.scaled {
            // The receiver ends with the process.
            let _ = self.changed.send(ObjectRef::from(splitmodel)).await;
            self.tell(key, splitmodel, before, &decision).await;
        }
    }

    async fn tell(&self, key: &Key, splitmodel: &SplitModel, before: u32, decision: &Decision) {
        let Decision {
            replicas, because, ..
        } = decision;
        self.metrics.scaled(key, *replicas > before);
        tracing::info!(
            namespace = key.0,
            name = key.1,
            before,
            replicas,
            reason = because.name(),
            "{because}"
        );
        let limit = if decision.is_limited() {
            format!(
                "; load asks for {}, which autoscaling.max does not allow",
                decision.wanted
            )
        } else {
            String::new()
        };
        let event = Event {
            type_: EventType::Normal,
            reason: match (before, *replicas) {
                (0, _) => "Woken",
                (_, 0) => "FellAsleep",
                (before, after) if after > before => "ScaledUp",
                _ => "ScaledDown",
            }
            .to_owned(),
            note: Some(format!("{before} to {replicas} tails: {because}{limit}")),
            action: "Scale".to_owned(),
            secondary: None,
        };
        let mut reference = splitmodel.object_ref(&());
        reference.resource_version = None;
        if let Err(error) = self.recorder.publish(&event, &reference).await {
            tracing::warn!(%error, reason = event.reason, "an event could not be published");
        }
    }
}

fn key(splitmodel: &SplitModel) -> Option<Key> {
    Some((splitmodel.namespace()?, splitmodel.name_any()))
}

/// What matters of a pod; `None` of one that has ended.
fn facts(pod: &Pod) -> Option<PodFacts> {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let annotation = |name: &str| pod.annotations().get(name);
    let is_ready = tail_container(pod).is_some_and(|container| container.ready);
    let is_leaving = pod.metadata.deletion_timestamp.is_some();
    Some(PodFacts {
        uid: pod.uid()?,
        name: pod.name_any(),
        serves: is_ready && !is_leaving,
        is_leaving,
        deletion_cost: annotation(names::DELETION_COST_ANNOTATION).cloned(),
        session_target: annotation(names::SESSION_TARGET_ANNOTATION)
            .and_then(|target| target.parse().ok()),
    })
}

/// Annotations by which those pods go that have the fewest sessions, as far as they do not stand yet. A mark of an
/// earlier time on a pod that now stays is taken away.
fn marks(
    scale: &Scale,
    pods: &[PodFacts],
    replicas: u32,
    now: Instant,
) -> Vec<(String, &'static str, Option<String>)> {
    let staying: Vec<_> = pods.iter().filter(|pod| !pod.is_leaving).collect();
    let candidates: Vec<_> = staying
        .iter()
        .map(|pod| Candidate {
            name: &pod.name,
            serves: pod.serves,
            sessions: scale.fleet.sessions(&pod.uid, now),
        })
        .collect();
    let replicas = usize::try_from(replicas).unwrap_or(usize::MAX);
    // With none left, there is nothing to choose.
    let count = match replicas {
        0 => 0,
        replicas => candidates.len().saturating_sub(replicas),
    };
    let leaving = leaving(&candidates, count);
    let differing = staying.iter().filter_map(|pod| {
        let cost = leaving
            .contains(pod.name.as_str())
            .then(|| LEAVES.to_owned());
        let differs = pod.deletion_cost != cost;
        differs.then(|| (pod.name.clone(), names::DELETION_COST_ANNOTATION, cost))
    });
    differing.collect()
}

/// Annotations that say how many sessions pods should have, as far as they change.
fn targets(
    scale: &mut Scale,
    policy: &headway_autoscale::policy::Policy,
    work_waits: bool,
    pods: &[PodFacts],
    now: Instant,
) -> Vec<(String, &'static str, Option<String>)> {
    scale
        .targets
        .retain(|uid, _| pods.iter().any(|pod| pod.uid == *uid));
    let serving = pods.iter().filter(|pod| pod.serves);
    let answered: Vec<_> = serving
        .filter_map(|pod| Some((pod, scale.fleet.sessions(&pod.uid, now)?)))
        .collect();
    let mut tails = Vec::new();
    for (pod, sessions) in &answered {
        let target = pod.session_target.map(|target| {
            // After a restart of the operator, from now on.
            let since = scale.targets.entry(pod.uid.clone()).or_insert(now);
            (target, now.saturating_duration_since(*since))
        });
        tails.push(Tail {
            sessions: *sessions,
            target,
        });
    }
    let changes = spread::changes(policy, work_waits, &tails);
    let mut annotations = Vec::new();
    for ((pod, _), change) in answered.iter().zip(changes) {
        let value = match change {
            Change::Keep => continue,
            Change::Ask(target) => {
                // A watch has not shown the last one yet.
                let asked = scale.targets.get(&pod.uid);
                if asked.is_some_and(|at| now.saturating_duration_since(*at) < REQUEST_TIMEOUT) {
                    continue;
                }
                scale.targets.insert(pod.uid.clone(), now);
                Some(target.to_string())
            }
            Change::Clear => None,
        };
        annotations.push((pod.name.clone(), names::SESSION_TARGET_ANNOTATION, value));
    }
    annotations
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(labels: serde_json::Value, status: serde_json::Value) -> Pod {
        let pod = json!({
            "metadata": {"name": "smol-tail-a", "namespace": "ml", "uid": "u", "annotations": labels},
            "status": status,
        });
        serde_json::from_value(pod).unwrap()
    }

    fn container(ready: bool) -> serde_json::Value {
        json!({"name": "tail", "ready": ready, "restartCount": 0, "image": "", "imageID": ""})
    }

    #[test]
    fn a_pod_that_has_ended_is_none_and_one_that_leaves_does_not_serve() {
        let ended = pod(json!({}), json!({"phase": "Succeeded"}));
        assert_eq!(facts(&ended), None);
        let status = json!({"phase": "Running", "containerStatuses": [container(true)]});
        let mut serving = pod(json!({}), status);
        assert!(facts(&serving).unwrap().serves);
        serving.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        let leaving = facts(&serving).unwrap();
        assert!(!leaving.serves && leaving.is_leaving);
    }

    #[test]
    fn annotations_of_a_pod_are_read() {
        let annotations = json!({
            names::DELETION_COST_ANNOTATION: "-1",
            names::SESSION_TARGET_ANNOTATION: "12",
        });
        let facts = facts(&pod(annotations, json!({}))).unwrap();
        assert_eq!(facts.deletion_cost.as_deref(), Some(LEAVES));
        assert_eq!(facts.session_target, Some(12));
    }
}
