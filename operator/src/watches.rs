//! The watches: streams that wake the controller, and the caches they fill.
//!
//! Caches hold only what the steps read: metadata of owned objects, the status of Deployments and pods. A kind
//! that the cluster does not serve yet is asked for once a minute, and watched from then on.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt as _};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use kube::api::Api;
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::{self, watcher};
use kube::runtime::{WatchStreamExt as _, reflector::Store};
use kube::{Client, Resource, ResourceExt as _};

use crate::crd::SplitModel;
use crate::drift::keep_own_fields;
use crate::kinds::OwnedKind;
use crate::metrics::Metrics;
use crate::names;
use crate::observed::Caches;

/// Below the five minutes after which proxies and load balancers cut connections.
const WATCH_TIMEOUT_SECONDS: u32 = 230;
/// Between two questions whether a kind is served by now.
const DISCOVERY_INTERVAL: Duration = Duration::from_secs(60);

/// Events of one kind. Errors have been counted and left out: the watch goes on by itself, and the controller
/// would slow down all others for them.
pub type Touched<K> = BoxStream<'static, Result<K, watcher::Error>>;

/// All streams and the caches they fill as they are polled.
pub struct Watches {
    /// SplitModels that were touched.
    pub splitmodels: Touched<SplitModel>,
    /// All SplitModels.
    pub splitmodel_cache: Store<SplitModel>,
    /// Deployments that were touched.
    pub deployments: Touched<Deployment>,
    /// Pods that were touched.
    pub pods: Touched<Pod>,
    /// Other owned objects that were touched.
    pub others: Vec<(OwnedKind, Touched<PartialObjectMeta<DynamicObject>>)>,
    /// What the streams have seen.
    pub caches: Caches,
    /// Kinds whose caches fill at once.
    served: Vec<OwnedKind>,
}

impl Watches {
    /// Asks which kinds are served, and prepares the streams. Nothing is watched before they are polled.
    ///
    /// # Errors
    /// Where the API server cannot be reached.
    pub async fn new(client: &Client, metrics: &Arc<Metrics>) -> Result<Self, kube::Error> {
        let (splitmodel_cache, splitmodels) = cached(
            watcher(Api::<SplitModel>::all(client.clone()), config()),
            (),
            metrics,
            "SplitModel",
            |splitmodel| splitmodel.managed_fields_mut().clear(),
        );
        let (deployments_cache, deployments) = cached(
            watcher(Api::<Deployment>::all(client.clone()), owned_config()),
            (),
            metrics,
            "Deployment",
            trim_deployment,
        );
        let (pods_cache, pods) = cached(
            watcher(Api::<Pod>::all(client.clone()), owned_config()),
            (),
            metrics,
            "Pod",
            trim_pod,
        );
        let mut others = Vec::new();
        let mut caches = BTreeMap::new();
        let mut served = Vec::new();
        for kind in OwnedKind::ALL {
            // The two kinds of Services share a watch.
            if matches!(kind, OwnedKind::Deployment | OwnedKind::HeadlessService) {
                continue;
            }
            let is_served = kind.is_always_served() || is_served(client, kind).await?;
            let (cache, stream) = watch_metadata(client, kind, is_served, metrics);
            if is_served {
                served.push(kind);
            }
            if kind == OwnedKind::Service {
                caches.insert(OwnedKind::HeadlessService, cache.clone());
            }
            caches.insert(kind, cache);
            others.push((kind, stream));
        }
        let caches = Caches {
            deployments: deployments_cache,
            pods: pods_cache,
            others: caches,
        };
        Ok(Self {
            splitmodels,
            splitmodel_cache,
            deployments,
            pods,
            others,
            caches,
            served,
        })
    }

    /// A future that ends when every cache holds what the cluster held at the start: before that, an object
    /// that is only not known yet would look like a missing one. The streams must be polled meanwhile.
    pub fn filled(&self) -> impl Future<Output = ()> + Send + 'static {
        let caches = self.caches.clone();
        let served = self.served.clone();
        let splitmodels = self.splitmodel_cache.clone();
        async move {
            // An error means that the streams are gone, and with them the controller.
            let _ = splitmodels.wait_until_ready().await;
            let _ = caches.deployments.wait_until_ready().await;
            let _ = caches.pods.wait_until_ready().await;
            for cache in served.iter().filter_map(|kind| caches.others.get(kind)) {
                let _ = cache.wait_until_ready().await;
            }
        }
    }
}

fn config() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_TIMEOUT_SECONDS)
}

fn owned_config() -> watcher::Config {
    config().labels(names::OWNED_SELECTOR)
}

/// Wraps the events of a watch: back-off, `trim` before caching, errors counted.
fn cached<K>(
    events: impl futures_util::Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
    dynamic_type: K::DynamicType,
    metrics: &Arc<Metrics>,
    kind: &'static str,
    trim: fn(&mut K),
) -> (Store<K>, Touched<K>)
where
    K: Resource + Clone + Debug + Send + Sync + 'static,
    K::DynamicType: Clone + Eq + std::hash::Hash + Debug + Send + Sync,
{
    let writer = Writer::new(dynamic_type);
    let cache = writer.as_reader();
    let metrics = Arc::clone(metrics);
    let stream = events
        .default_backoff()
        .modify(trim)
        .reflect(writer)
        .touched_objects()
        .inspect(move |event| {
            if let Err(error) = event {
                metrics.watch_failed(kind);
                tracing::warn!(%error, kind, "a watch failed and is started again");
            }
        })
        .filter(|event| std::future::ready(event.is_ok()));
    (cache, stream.boxed())
}

fn watch_metadata(
    client: &Client,
    kind: OwnedKind,
    is_served: bool,
    metrics: &Arc<Metrics>,
) -> (
    Store<PartialObjectMeta<DynamicObject>>,
    Touched<PartialObjectMeta<DynamicObject>>,
) {
    let resource = kind.api_resource();
    let client = client.clone();
    let api = Api::<PartialObjectMeta<DynamicObject>>::all_with(client.clone(), &resource);
    let events = stream::once(async move {
        if !is_served {
            wait_until_served(&client, kind).await;
        }
        watcher(api, owned_config())
    })
    .flatten();
    cached(
        events.boxed(),
        resource,
        metrics,
        kind_name(kind),
        |object| {
            keep_own_fields(&mut object.metadata);
        },
    )
}

async fn wait_until_served(client: &Client, kind: OwnedKind) {
    let mut interval = tokio::time::interval(DISCOVERY_INTERVAL);
    interval.tick().await;
    loop {
        interval.tick().await;
        match is_served(client, kind).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, kind = kind_name(kind), "asking which APIs are served failed")
            }
        }
    }
}

async fn is_served(client: &Client, kind: OwnedKind) -> Result<bool, kube::Error> {
    let wanted = kind.api_resource();
    match client.list_api_group_resources(&wanted.api_version).await {
        Ok(list) => Ok(list.resources.iter().any(|each| each.name == wanted.plural)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(error),
    }
}

fn kind_name(kind: OwnedKind) -> &'static str {
    match kind {
        OwnedKind::ServiceAccount => "ServiceAccount",
        OwnedKind::Service | OwnedKind::HeadlessService => "Service",
        OwnedKind::NetworkPolicy => "NetworkPolicy",
        OwnedKind::PodDisruptionBudget => "PodDisruptionBudget",
        OwnedKind::ResourceClaimTemplate => "ResourceClaimTemplate",
        OwnedKind::HttpRoute => "HTTPRoute",
        OwnedKind::ScaledObject => "ScaledObject",
        OwnedKind::PodMonitor => "PodMonitor",
        OwnedKind::Deployment => "Deployment",
    }
}

/// Drift shows in the metadata; of the spec, only the number of pods is read.
fn trim_deployment(deployment: &mut Deployment) {
    keep_own_fields(&mut deployment.metadata);
    if let Some(spec) = &mut deployment.spec {
        spec.template = PodTemplateSpec::default();
    }
    if let Some(status) = &mut deployment.status {
        status.conditions = None;
    }
}

fn trim_pod(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
    pod.metadata.annotations = None;
    pod.spec = None;
}
