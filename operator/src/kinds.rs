//! The kinds of objects a SplitModel can own.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::ResourceClaimTemplate;
use kube::core::{ApiResource, GroupVersionKind};

use crate::names;

/// A kind of object that a SplitModel can own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are Kubernetes' own")]
pub enum OwnedKind {
    ServiceAccount,
    Service,
    HeadlessService,
    NetworkPolicy,
    PodDisruptionBudget,
    ResourceClaimTemplate,
    HttpRoute,
    ScaledObject,
    PodMonitor,
    EndpointSlice,
    Deployment,
}

impl OwnedKind {
    /// In the order of creation: what pods need comes before the pods.
    pub const ALL: [Self; 11] = [
        Self::ServiceAccount,
        Self::Service,
        Self::HeadlessService,
        Self::NetworkPolicy,
        Self::PodDisruptionBudget,
        Self::ResourceClaimTemplate,
        Self::HttpRoute,
        Self::ScaledObject,
        Self::PodMonitor,
        Self::EndpointSlice,
        Self::Deployment,
    ];

    /// Group, version, kind and plural.
    #[must_use]
    pub fn api_resource(self) -> ApiResource {
        match self {
            Self::ServiceAccount => ApiResource::erase::<ServiceAccount>(&()),
            Self::Service | Self::HeadlessService => ApiResource::erase::<Service>(&()),
            Self::NetworkPolicy => ApiResource::erase::<NetworkPolicy>(&()),
            Self::PodDisruptionBudget => ApiResource::erase::<PodDisruptionBudget>(&()),
            Self::ResourceClaimTemplate => ApiResource::erase::<ResourceClaimTemplate>(&()),
            Self::HttpRoute => {
                foreign("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes")
            }
            Self::ScaledObject => foreign("keda.sh", "v1alpha1", "ScaledObject", "scaledobjects"),
            Self::PodMonitor => foreign("monitoring.coreos.com", "v1", "PodMonitor", "podmonitors"),
            Self::EndpointSlice => ApiResource::erase::<EndpointSlice>(&()),
            Self::Deployment => ApiResource::erase::<Deployment>(&()),
        }
    }

    /// Whether every cluster that the operator supports serves the kind.
    #[must_use]
    pub fn is_always_served(self) -> bool {
        match self {
            Self::ServiceAccount
            | Self::Service
            | Self::HeadlessService
            | Self::NetworkPolicy
            | Self::PodDisruptionBudget
            | Self::EndpointSlice
            | Self::Deployment => true,
            Self::ResourceClaimTemplate
            | Self::HttpRoute
            | Self::ScaledObject
            | Self::PodMonitor => false,
        }
    }

    /// Selects the objects of the kind that the operator made. Kubernetes gives EndpointSlices that it makes itself
    /// the labels of their Service; another label says whose they are.
    #[must_use]
    pub fn selector(self) -> &'static str {
        match self {
            Self::EndpointSlice => names::OWN_SLICES_SELECTOR,
            _ => names::OWNED_SELECTOR,
        }
    }

    /// The object's name for a SplitModel: one of each kind at most.
    #[must_use]
    pub fn object_name(self, splitmodel: &str) -> String {
        match self {
            Self::HeadlessService => names::headless_service(splitmodel),
            Self::EndpointSlice => names::door(splitmodel),
            _ => names::owned(splitmodel),
        }
    }
}

fn foreign(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
}
