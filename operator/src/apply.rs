//! [`Desired`] → [`Applied`]: writes what is missing or has drifted, and deletes what is no longer wanted.

use futures_util::future::try_join_all;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PropagationPolicy};
use kube::core::DynamicObject;
use serde_json::json;

use crate::build::{Desired, DesiredObject};
use crate::drift::{is_current, owns_replicas};
use crate::kinds::OwnedKind;
use crate::metrics::Metrics;
use crate::names;
use crate::observed::Observed;
use crate::validate::Owner;

/// Proof that everything desired exists, but for what `missing` names.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Number of pods that was asked for; `None` where somebody else decides.
    pub replicas: Option<i32>,
    /// Kinds that were wanted and that the cluster does not serve.
    pub missing: Vec<OwnedKind>,
    /// Whether the Deployment was written, so that what the watches have seen of it is out of date.
    pub has_new_pods: bool,
    /// Why the newest template was stopped, where it was.
    pub stopped: Option<String>,
}

/// What became of one object.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    Unchanged,
    Written,
    NotServed,
}

/// Why an object could not be brought into its desired state.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Somebody else's object has the name.
    #[error(
        "{kind} {name} exists and belongs to {owner}; rename the SplitModel, or delete the {kind}"
    )]
    NameTaken {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// Whose it is, for people.
        owner: String,
    },
    /// The API server refused or could not be reached.
    #[error("{action} {kind} {name}")]
    Api {
        /// What was tried.
        action: &'static str,
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// What came back.
        #[source]
        source: Box<kube::Error>,
    },
}

/// Writes objects of one SplitModel.
pub struct Applier<'a> {
    /// Connection to the API server.
    pub client: &'a Client,
    /// Counts writes.
    pub metrics: &'a Metrics,
    /// Whose objects they are.
    pub owner: &'a Owner,
}

impl Applier<'_> {
    /// Makes the cluster hold `desired`. Objects that are as they should be cause no request.
    ///
    /// # Errors
    /// The first failure; whatever was written before it stays, and the next call goes on from there.
    pub async fn apply(
        &self,
        desired: &Desired,
        observed: &Observed,
    ) -> Result<Applied, ApplyError> {
        let (pods, others): (Vec<_>, Vec<_>) = desired
            .objects
            .iter()
            .partition(|object| object.kind == OwnedKind::Deployment);
        let mut effects = Vec::new();
        // Pods come last: they refer to the others.
        for objects in [others, pods] {
            let writes = objects
                .iter()
                .map(|object| self.apply_object(object, observed));
            let kinds = objects.iter().map(|object| object.kind);
            effects.extend(kinds.zip(try_join_all(writes).await?));
        }
        self.delete_unwanted(desired, observed).await?;
        Ok(Applied {
            replicas: desired.replicas,
            missing: kinds_with(Effect::NotServed, &effects).collect(),
            has_new_pods: kinds_with(Effect::Written, &effects)
                .any(|kind| kind == OwnedKind::Deployment),
            stopped: desired.stopped.clone(),
        })
    }

    async fn apply_object(
        &self,
        desired: &DesiredObject,
        observed: &Observed,
    ) -> Result<Effect, ApplyError> {
        let api = self.api(desired.kind);
        let live = match observed.objects.get(&desired.kind) {
            Some(metadata) => Some(metadata.clone()),
            // Not in the cache: not there, not there yet, or somebody else's.
            None => match api.get_metadata_opt(&desired.name).await {
                Ok(object) => object.map(|object| object.metadata),
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    return Ok(Effect::NotServed);
                }
                Err(error) => return Err(failed("reading", desired.kind, &desired.name, error)),
            },
        };
        if let Some(metadata) = &live {
            if let Some(owner) = self.foreign_owner(metadata) {
                return Err(ApplyError::NameTaken {
                    kind: desired.kind.api_resource().kind,
                    name: desired.name.clone(),
                    owner,
                });
            }
            if is_current(metadata, desired) {
                return Ok(Effect::Unchanged);
            }
        }
        if let Some(metadata) = &live {
            self.hand_over_replicas(desired, metadata, observed).await?;
        }
        let written = match (self.write(desired).await, &live) {
            // A template of claims cannot be changed. Claims made from it live on; new pods find the new one.
            (Err(kube::Error::Api(status)), Some(metadata))
                if status.code == 422 && desired.kind == OwnedKind::ResourceClaimTemplate =>
            {
                self.delete(desired.kind, metadata).await?;
                self.write(desired).await
            }
            (written, _) => written,
        };
        match written {
            Ok(()) => Ok(Effect::Written),
            Err(kube::Error::Api(status))
                if status.code == 404 && !desired.kind.is_always_served() =>
            {
                Ok(Effect::NotServed)
            }
            Err(error) => Err(failed("applying", desired.kind, &desired.name, error)),
        }
    }

    async fn write(&self, desired: &DesiredObject) -> Result<(), kube::Error> {
        self.metrics.written("apply", desired.kind);
        let parameters = PatchParams::apply(names::OBJECTS_MANAGER).force();
        self.api(desired.kind)
            .patch_metadata(&desired.name, &parameters, &Patch::Apply(&desired.manifest))
            .await
            .map(drop)
    }

    /// Where somebody else decides on the number of pods from now on: a field that its only owner gives up gets
    /// its default back, one pod. So another manager, which never changes it, takes the present number first.
    async fn hand_over_replicas(
        &self,
        desired: &DesiredObject,
        live: &ObjectMeta,
        observed: &Observed,
    ) -> Result<(), ApplyError> {
        let gives_up = desired.kind == OwnedKind::Deployment
            && desired.manifest["spec"]["replicas"].is_null()
            && owns_replicas(live);
        let Some(replicas) = observed.wanted_replicas.filter(|_| gives_up) else {
            return Ok(());
        };
        let body = json!({
            "apiVersion": desired.manifest["apiVersion"],
            "kind": desired.manifest["kind"],
            "metadata": {"name": desired.name, "uid": live.uid},
            "spec": {"replicas": replicas},
        });
        self.metrics.written("apply", desired.kind);
        let parameters = PatchParams::apply(names::HANDOVER_MANAGER);
        self.api(desired.kind)
            .patch_metadata(&desired.name, &parameters, &Patch::Apply(&body))
            .await
            .map(drop)
            .map_err(|error| failed("handing over", desired.kind, &desired.name, error))
    }

    async fn delete_unwanted(
        &self,
        desired: &Desired,
        observed: &Observed,
    ) -> Result<(), ApplyError> {
        for (kind, metadata) in &observed.objects {
            let is_wanted = desired.objects.iter().any(|object| object.kind == *kind);
            if !is_wanted && self.foreign_owner(metadata).is_none() {
                self.delete(*kind, metadata).await?;
            }
        }
        Ok(())
    }

    /// Deletes every object of the SplitModel. Returns whether all are gone; call again until they are.
    ///
    /// # Errors
    /// The first failure.
    pub async fn delete_all(&self) -> Result<bool, ApplyError> {
        let mut all_gone = true;
        for kind in OwnedKind::ALL {
            let name = kind.object_name(&self.owner.name);
            let live = match self.api(kind).get_metadata_opt(&name).await {
                Ok(live) => live,
                Err(kube::Error::Api(status)) if status.code == 404 => None,
                // Not permitted to see it, so never permitted to make it.
                Err(kube::Error::Api(status)) if status.code == 403 && !kind.is_always_served() => {
                    None
                }
                Err(error) => return Err(failed("reading", kind, &name, error)),
            };
            let Some(live) = live.filter(|live| self.foreign_owner(&live.metadata).is_none())
            else {
                continue;
            };
            all_gone = false;
            if live.metadata.deletion_timestamp.is_none() {
                self.delete(kind, &live.metadata).await?;
            }
        }
        Ok(all_gone)
    }

    async fn delete(&self, kind: OwnedKind, metadata: &ObjectMeta) -> Result<(), ApplyError> {
        let name = metadata.name.clone().unwrap_or_default();
        self.metrics.written("delete", kind);
        // In the foreground, the Deployment stays until its pods have drained and gone.
        let propagation = match kind {
            OwnedKind::Deployment => PropagationPolicy::Foreground,
            _ => PropagationPolicy::Background,
        };
        let parameters = DeleteParams {
            propagation_policy: Some(propagation),
            preconditions: Some(kube::api::Preconditions {
                uid: metadata.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match self.api(kind).delete(&name, &parameters).await {
            Ok(_) => Ok(()),
            // Gone, or another object by now.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(failed("deleting", kind, &name, error)),
        }
    }

    /// Who owns the object, unless it is the SplitModel.
    fn foreign_owner(&self, metadata: &ObjectMeta) -> Option<String> {
        let owners = metadata.owner_references.iter().flatten();
        let controller = owners
            .into_iter()
            .find(|owner| owner.controller == Some(true));
        match controller {
            Some(owner) if owner.uid == self.owner.uid => None,
            Some(owner) => Some(format!("{} {}", owner.kind, owner.name)),
            // Left over by a deletion that orphaned it, or with its owner removed by hand.
            None if self.is_labelled(metadata) => None,
            None => Some("somebody else".to_owned()),
        }
    }

    fn is_labelled(&self, metadata: &ObjectMeta) -> bool {
        let label = metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(names::SPLITMODEL_LABEL));
        label == Some(&self.owner.name)
    }

    fn api(&self, kind: OwnedKind) -> Api<DynamicObject> {
        Api::namespaced_with(
            self.client.clone(),
            &self.owner.namespace,
            &kind.api_resource(),
        )
    }
}

fn kinds_with(effect: Effect, effects: &[(OwnedKind, Effect)]) -> impl Iterator<Item = OwnedKind> {
    effects
        .iter()
        .filter(move |(_, each)| *each == effect)
        .map(|(kind, _)| *kind)
}

fn failed(action: &'static str, kind: OwnedKind, name: &str, error: kube::Error) -> ApplyError {
    ApplyError::Api {
        action,
        kind: kind.api_resource().kind,
        name: name.to_owned(),
        source: Box::new(error),
    }
}
