//! [`Caches`] → [`Observed`]: what the cluster holds for one SplitModel.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::runtime::reflector::{ObjectRef, Store};
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::delivery::{Deliveries, Delivery};
use crate::kinds::OwnedKind;
use crate::names;
use crate::pod_problem::PodProblem;
use crate::rollout::TailPod;

/// What the watches of the operator have seen, for all SplitModels.
#[derive(Clone)]
pub struct Caches {
    /// With status, without pod template.
    pub deployments: Store<Deployment>,
    /// Metadata of everything else, by kind.
    pub others: BTreeMap<OwnedKind, Store<PartialObjectMeta<DynamicObject>>>,
    /// With metadata and status only.
    pub pods: Store<Pod>,
    /// What pods have said of their model.
    pub deliveries: Arc<Deliveries>,
}

/// What the cluster holds for one SplitModel.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Metadata of the owned objects that exist.
    pub objects: BTreeMap<OwnedKind, ObjectMeta>,
    /// Status of the Deployment; `None` where there is none yet.
    pub deployment: Option<DeploymentStatus>,
    /// `spec.replicas` of the Deployment.
    pub wanted_replicas: Option<i32>,
    /// `metadata.generation` of the Deployment.
    pub deployment_generation: i64,
    /// The gravest of what keeps pods from running.
    pub problem: Option<PodProblem>,
    /// The pods, while not all is as it should be.
    pub pods: Vec<TailPod>,
    /// How far the model is on its way.
    pub delivery: Delivery,
}

/// Looks up what belongs to the SplitModel `name` in `namespace`.
#[must_use]
pub fn observe(caches: &Caches, namespace: &str, name: &str) -> Observed {
    let mut observed = Observed::default();
    for kind in OwnedKind::ALL {
        let object_name = kind.object_name(name);
        if kind == OwnedKind::Deployment {
            let key = ObjectRef::new(&object_name).within(namespace);
            if let Some(deployment) = caches.deployments.get(&key) {
                observed.objects.insert(kind, deployment.metadata.clone());
                observed.deployment.clone_from(&deployment.status);
                observed.wanted_replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas);
                observed.deployment_generation = deployment.metadata.generation.unwrap_or(0);
            }
        } else if let Some(store) = caches.others.get(&kind) {
            let key = ObjectRef::new_with(&object_name, kind.api_resource()).within(namespace);
            if let Some(object) = store.get(&key) {
                observed.objects.insert(kind, object.metadata.clone());
            }
        }
    }
    observed.delivery = caches.deliveries.of(namespace, name);
    if !observed.all_available() {
        let pods = own_pods(caches, namespace, name);
        observed.problem = pods.iter().filter_map(|pod| PodProblem::of(pod)).max();
        let pods = pods
            .iter()
            .map(|pod| TailPod::new(pod, failure(pod, &observed.delivery)));
        observed.pods = pods.collect();
    }
    observed
}

impl Observed {
    /// Pods that serve.
    #[must_use]
    pub fn ready_replicas(&self) -> i32 {
        let status = self.deployment.as_ref();
        status.and_then(|status| status.ready_replicas).unwrap_or(0)
    }

    /// Pods that exist.
    #[must_use]
    pub fn replicas(&self) -> i32 {
        let status = self.deployment.as_ref();
        status.and_then(|status| status.replicas).unwrap_or(0)
    }

    /// Whether as many pods of the newest template serve as the Deployment wants, and no others are left.
    #[must_use]
    pub fn all_available(&self) -> bool {
        let Some(status) = &self.deployment else {
            return false;
        };
        let wanted = self.wanted_replicas.unwrap_or(1);
        status.observed_generation.unwrap_or(0) >= self.deployment_generation
            && status.updated_replicas.unwrap_or(0) >= wanted
            && status.ready_replicas.unwrap_or(0) >= wanted
            && status.replicas.unwrap_or(0) <= wanted
    }
}

/// Looks through all pods there are, so it is asked only while something is amiss.
fn own_pods(caches: &Caches, namespace: &str, name: &str) -> Vec<Arc<Pod>> {
    let mut pods = caches.pods.state();
    pods.retain(|pod| {
        pod.namespace().as_deref() == Some(namespace)
            && pod
                .labels()
                .get(names::SPLITMODEL_LABEL)
                .map(String::as_str)
                == Some(name)
    });
    pods
}

/// What `pod` fails of, by the kubelet's word or by its tail's.
fn failure(pod: &Pod, delivery: &Delivery) -> Option<String> {
    let problem = PodProblem::of(pod).filter(PodProblem::is_failure);
    let said = || {
        let name = pod.name_any();
        let (_, report) = delivery.failed.iter().find(|(failed, _)| *failed == name)?;
        Some(format!("pod {name}: {}", report.message))
    };
    problem.map(|problem| problem.message).or_else(said)
}
