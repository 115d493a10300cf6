//! [`Outcome`] → `status`: written only where it differs, with an event for each transition.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder};
use kube::runtime::reflector::ObjectRef;
use kube::{Client, Resource as _, ResourceExt as _};
use serde_json::json;

use crate::build;
use crate::conditions::{Outcome, conditions};
use crate::crd::SplitModel;
use crate::crd::status::{ServedModel, SplitModelStatus};
use crate::metrics::Metrics;
use crate::names;
use crate::observed::Observed;
use crate::savings::report::CURRENT;
use crate::validate::ValidSpec;

/// An event's note may have 1 KiB.
const MAX_NOTE_CHARS: usize = 1000;

/// The status after `outcome`. Savings and their condition are another writer's, and are left as they are.
#[must_use]
pub fn status(
    splitmodel: &SplitModel,
    before: &SplitModelStatus,
    valid: Option<&ValidSpec>,
    outcome: &Outcome<'_>,
    observed: &Observed,
    now: &Time,
) -> SplitModelStatus {
    let generation = splitmodel.metadata.generation;
    let desired_replicas = match outcome {
        Outcome::Applied(applied) => applied.replicas,
        _ => before.desired_replicas,
    };
    let mut conditions = conditions(outcome, observed, generation, &before.conditions, now);
    let others = before.conditions.iter().filter(|old| is_of_savings(old));
    conditions.extend(others.cloned());
    SplitModelStatus {
        observed_generation: generation,
        conditions,
        replicas: observed.replicas(),
        ready_replicas: observed.ready_replicas(),
        desired_replicas,
        selector: valid
            .map(build::selector_text)
            .or_else(|| before.selector.clone()),
        endpoint: valid
            .map(build::endpoint)
            .or_else(|| before.endpoint.clone()),
        // Known again soon after the operator was started.
        model: served(observed).or_else(|| before.model.clone()),
        savings: before.savings.clone(),
    }
}

fn served(observed: &Observed) -> Option<ServedModel> {
    let (digest, commit) = observed.delivery.served.clone()?;
    Some(ServedModel { digest, commit })
}

/// Conditions are a map by type: with two writers, their order is the API server's.
fn in_order(status: &SplitModelStatus) -> SplitModelStatus {
    let mut status = status.clone();
    let by_type = |a: &Condition, b: &Condition| a.type_.cmp(&b.type_);
    status.conditions.sort_by(by_type);
    status
}

fn is_of_savings(condition: &Condition) -> bool {
    condition.type_ == CURRENT
}

/// Writes statuses and tells of transitions.
pub struct StatusWriter {
    client: Client,
    recorder: Recorder,
    /// What was written while the cache still showed this version: until it moves on, this is the status, and
    /// nothing is written or told twice.
    ahead: Mutex<HashMap<ObjectRef<SplitModel>, Ahead>>,
}

/// A status that was written.
struct Ahead {
    /// The version of the SplitModel that the cache showed then.
    cached_version: Option<String>,
    status: SplitModelStatus,
}

impl StatusWriter {
    /// Writes through `client`, tells through `recorder`.
    #[must_use]
    pub fn new(client: Client, recorder: Recorder) -> Self {
        Self {
            client,
            recorder,
            ahead: Mutex::default(),
        }
    }

    /// The status that the API server holds, which the cache may not show yet.
    #[must_use]
    pub fn current(&self, splitmodel: &SplitModel) -> SplitModelStatus {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let key = ObjectRef::from(splitmodel);
        match ahead.get(&key) {
            Some(written) if written.cached_version == splitmodel.resource_version() => {
                written.status.clone()
            }
            _ => {
                ahead.remove(&key);
                splitmodel.status.clone().unwrap_or_default()
            }
        }
    }

    /// Forgets a SplitModel that has gone.
    pub fn forget(&self, splitmodel: &SplitModel) {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        ahead.remove(&ObjectRef::from(splitmodel));
    }

    /// Writes `status` if it is not what the API server holds.
    ///
    /// # Errors
    /// Where the API server refuses or cannot be reached. Events that fail are only logged: they tell, they
    /// do not decide.
    pub async fn write(
        &self,
        splitmodel: &SplitModel,
        before: &SplitModelStatus,
        status: &SplitModelStatus,
        metrics: &Metrics,
    ) -> Result<(), kube::Error> {
        if in_order(before) == in_order(status) {
            return Ok(());
        }
        let namespace = splitmodel.namespace().unwrap_or_default();
        let api: Api<SplitModel> = Api::namespaced(self.client.clone(), &namespace);
        metrics.status_written();
        let mut own = status.clone();
        own.conditions.retain(|condition| !is_of_savings(condition));
        let mut own = serde_json::to_value(own).map_err(kube::Error::SerdeError)?;
        if let Some(fields) = own.as_object_mut() {
            fields.remove("savings");
        }
        let body = json!({
            "apiVersion": SplitModel::api_version(&()),
            "kind": SplitModel::kind(&()),
            // Nothing is written to a successor of the same name.
            "metadata": {"name": splitmodel.name_any(), "uid": splitmodel.uid()},
            "status": own,
        });
        let parameters = PatchParams::apply(names::STATUS_MANAGER).force();
        api.patch_status(&splitmodel.name_any(), &parameters, &Patch::Apply(body))
            .await?;
        let written = Ahead {
            cached_version: splitmodel.resource_version(),
            status: status.clone(),
        };
        self.ahead
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(ObjectRef::from(splitmodel), written);
        for condition in transitions(&before.conditions, &status.conditions) {
            self.tell(splitmodel, condition).await;
        }
        Ok(())
    }

    async fn tell(&self, splitmodel: &SplitModel, condition: &Condition) {
        // A model may sleep.
        let is_bad = condition.reason != "ScaledToZero"
            && (condition.type_ == "Degraded") == (condition.status == "True")
            && condition.type_ != "Progressing";
        let note = format!(
            "{}={}: {}",
            condition.type_, condition.status, condition.message
        );
        let event = Event {
            type_: if is_bad {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: condition.reason.clone(),
            note: Some(note.chars().take(MAX_NOTE_CHARS).collect()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        let mut reference = splitmodel.object_ref(&());
        // An event about one version of the object would not be counted together with the next one.
        reference.resource_version = None;
        if let Err(error) = self.recorder.publish(&event, &reference).await {
            tracing::warn!(%error, reason = event.reason, "an event could not be published");
        }
    }
}

/// Conditions whose status or reason changed. At the very beginning, only what is wrong is worth telling.
fn transitions<'a>(before: &[Condition], after: &'a [Condition]) -> Vec<&'a Condition> {
    let is_news = |condition: &&Condition| {
        let old = before.iter().find(|old| old.type_ == condition.type_);
        match old {
            Some(old) => old.status != condition.status || old.reason != condition.reason,
            None => condition.type_ == "Degraded" && condition.status == "True",
        }
    };
    after.iter().filter(is_news).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn condition(status: &str, reason: &str, message: &str) -> Condition {
        Condition {
            type_: "Ready".to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            observed_generation: None,
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        }
    }

    #[test]
    fn the_condition_of_savings_is_kept_wherever_it_stands() {
        let mut current = condition("True", "AllScraped", "a");
        current.type_ = CURRENT.to_owned();
        let before = SplitModelStatus {
            conditions: vec![current.clone(), condition("True", "TailsReady", "a")],
            ..SplitModelStatus::default()
        };
        let after = status(
            &serde_json::from_value(json!({
                "metadata": {"name": "smol"},
                "spec": {"model": {"source": "hf://org/smol"}, "auth": {"allowAnonymous": true}},
            }))
            .unwrap(),
            &before,
            None,
            &Outcome::Paused,
            &Observed::default(),
            &Time(Timestamp::UNIX_EPOCH),
        );
        assert_eq!(after.conditions.last(), Some(&current));
        let mut reordered = after.clone();
        reordered.conditions.reverse();
        assert_ne!(reordered, after);
        assert_eq!(in_order(&reordered), in_order(&after));
    }

    #[test]
    fn only_a_new_status_or_reason_is_a_transition() {
        let before = [condition("False", "NoTailReady", "a")];
        let reworded = [condition("False", "NoTailReady", "b")];
        assert!(transitions(&before, &reworded).is_empty());
        let ready = [condition("True", "TailsReady", "a")];
        assert_eq!(transitions(&before, &ready).len(), 1);
        assert!(transitions(&[], &ready).is_empty());
    }
}
