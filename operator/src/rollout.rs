//! What becomes of a rollout whose pods fail: it stops, and the template that serves takes its place again.
//!
//! Kubernetes alone leaves a rollout whose pods fail where it is: no serving pod goes, and none comes that would
//! serve. It keeps trying with a GPU that is of no use, and a pod that is lost meanwhile, or a model that wakes, gets
//! the template that fails. So the Deployment gets the former template back, which its ReplicaSet still holds, and
//! annotations say which one is not tried again, and why. All of it is in the Deployment: an operator that is started
//! again goes on from there.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};

use crate::apply::ApplyError;
use crate::build::Desired;
use crate::kinds::OwnedKind;
use crate::names;
use crate::observed::Observed;
use crate::validate::{Owner, ValidSpec};

#[cfg(test)]
mod tests;

/// The most characters of a reason in an annotation.
const MAX_BECAUSE_CHARS: usize = 512;

/// One tail pod, as far as a rollout looks at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TailPod {
    /// Digest of the template it was made from.
    pub template: String,
    /// Whether it serves.
    pub is_ready: bool,
    /// Whether it was told to go.
    pub is_leaving: bool,
    /// When it came to a node; `None` before that.
    pub scheduled_at: Option<Timestamp>,
    /// What it fails of.
    pub failure: Option<String>,
}

impl TailPod {
    /// `pod`, which fails of `failure`.
    #[must_use]
    pub fn new(pod: &Pod, failure: Option<String>) -> Self {
        let conditions = pod
            .status
            .as_ref()
            .and_then(|status| status.conditions.as_ref());
        let condition = |type_: &str| {
            let mut all = conditions.into_iter().flatten();
            all.find(|each| each.type_ == type_ && each.status == "True")
        };
        let scheduled =
            condition("PodScheduled").and_then(|each| each.last_transition_time.as_ref());
        let template = pod.labels().get(names::TEMPLATE_LABEL);
        Self {
            template: template.cloned().unwrap_or_default(),
            is_ready: condition("Ready").is_some(),
            is_leaving: pod.metadata.deletion_timestamp.is_some(),
            scheduled_at: scheduled.map(|time| time.0),
            failure,
        }
    }
}

/// A rollout that was stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Digest of the template whose pods failed.
    pub template: String,
    /// Digest of the template that serves in its place.
    pub held: String,
    /// What the pods failed of.
    pub because: String,
}

impl Stopped {
    /// What the annotations of a Deployment say; `None` where no rollout was stopped.
    #[must_use]
    pub fn read(deployment: &ObjectMeta) -> Option<Self> {
        let annotations = deployment.annotations.as_ref()?;
        let value = |name: &str| annotations.get(name).cloned();
        Some(Self {
            template: value(names::STOPPED_ANNOTATION)?,
            held: value(names::HELD_ANNOTATION)?,
            because: value(names::STOPPED_BECAUSE_ANNOTATION).unwrap_or_default(),
        })
    }

    /// As annotations of a Deployment.
    #[must_use]
    pub fn annotations(&self) -> [(&'static str, &str); 3] {
        [
            (names::STOPPED_ANNOTATION, &self.template),
            (names::HELD_ANNOTATION, &self.held),
            (names::STOPPED_BECAUSE_ANNOTATION, &self.because),
        ]
    }
}

/// Where a rollout goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Course {
    /// On. Where pods fail, it may be time to stop after so long.
    On {
        /// Until the first of them has failed for too long.
        look_again_after: Option<Duration>,
    },
    /// Back to what serves.
    Back(Stopped),
}

/// Where the rollout of `template` goes, after what was `stopped` before and with the `pods` there are. It goes back
/// only while pods of another template serve: where there is nothing to go back to, trying is all that is left.
#[must_use]
pub fn course(
    template: &str,
    stopped: Option<Stopped>,
    pods: &[TailPod],
    stop_after: Duration,
    now: Timestamp,
) -> Course {
    if let Some(stopped) = stopped.filter(|stopped| stopped.template == template) {
        return Course::Back(stopped);
    }
    let Some(held) = serving_beside(template, pods) else {
        return Course::On {
            look_again_after: None,
        };
    };
    let mut look_again_after: Option<Duration> = None;
    let own = pods
        .iter()
        .filter(|pod| pod.template == template && !pod.is_ready && !pod.is_leaving);
    for pod in own {
        let (Some(since), Some(failure)) = (pod.scheduled_at, &pod.failure) else {
            continue;
        };
        let failing = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        let left = stop_after.saturating_sub(failing);
        if left.is_zero() {
            return Course::Back(Stopped {
                template: template.to_owned(),
                held,
                because: failure.chars().take(MAX_BECAUSE_CHARS).collect(),
            });
        }
        look_again_after = Some(look_again_after.map_or(left, |before| before.min(left)));
    }
    Course::On { look_again_after }
}

/// The template, other than `template`, of which most pods serve.
fn serving_beside(template: &str, pods: &[TailPod]) -> Option<String> {
    let mut serving: BTreeMap<&str, usize> = BTreeMap::new();
    let others = pods.iter().filter(|pod| {
        pod.is_ready && !pod.is_leaving && !pod.template.is_empty() && pod.template != template
    });
    for pod in others {
        *serving.entry(&pod.template).or_default() += 1;
    }
    let (held, _) = serving.into_iter().max_by_key(|(_, pods)| *pods)?;
    Some(held.to_owned())
}

/// `desired`, with the former template where the newest one fails, and when to look at its pods again.
///
/// # Errors
/// Where the API server cannot be asked for the former one.
pub async fn steered(
    desired: Desired,
    client: &Client,
    valid: &ValidSpec,
    observed: &Observed,
) -> Result<(Desired, Option<Duration>), ApplyError> {
    let deployment = observed.objects.get(&OwnedKind::Deployment);
    let stopped = deployment.and_then(Stopped::read);
    let stop_after = Duration::from_secs(valid.spec.rollout.stop_after_seconds.into());
    let (template, now) = (desired.template(), Timestamp::now());
    match course(template, stopped, &observed.pods, stop_after, now) {
        Course::On { look_again_after } => Ok((desired, look_again_after)),
        Course::Back(stopped) => {
            let held = held_template(client, &valid.owner, &stopped.held).await?;
            let steered = match held {
                Some(held) => desired.held(&stopped, &held),
                // Its ReplicaSet was deleted: the newest one is the only one.
                None => desired,
            };
            Ok((steered, None))
        }
    }
}

/// The template with the digest `held`, as a ReplicaSet of the SplitModel holds it; `None` where none does any more.
async fn held_template(
    client: &Client,
    owner: &Owner,
    held: &str,
) -> Result<Option<PodTemplateSpec>, ApplyError> {
    let selector = format!(
        "{}={},{}={held}",
        names::SPLITMODEL_LABEL,
        owner.name,
        names::TEMPLATE_LABEL
    );
    let api = Api::<ReplicaSet>::namespaced(client.clone(), &owner.namespace);
    let parameters = ListParams::default().labels(&selector).limit(1);
    let found = api.list(&parameters).await;
    let found = found.map_err(|error| ApplyError::Api {
        action: "reading",
        kind: "ReplicaSet".to_owned(),
        name: selector,
        source: Box::new(error),
    })?;
    let replica_set = found.items.into_iter().next();
    let template = replica_set
        .and_then(|replica_set| replica_set.spec)
        .and_then(|spec| spec.template);
    Ok(template.map(|mut template| {
        let metadata = template.metadata.get_or_insert_default();
        // The ReplicaSet's own.
        if let Some(labels) = &mut metadata.labels {
            labels.remove("pod-template-hash");
        }
        metadata.creation_timestamp = None;
        template
    }))
}
