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
use kube::api::{Api, ListParams};
use kube::core::error_boundary::InvalidObject;
use kube::core::{DeserializeGuard, DynamicObject, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;

use crate::crd::SplitModel;
use crate::delivery::Deliveries;
use crate::drift::keep_own_fields;
use crate::kinds::OwnedKind;
use crate::metrics::Metrics;
use crate::names;
use crate::observed::Caches;
use crate::savings::shelf::Shelf;

/// Below the five minutes after which proxies and load balancers cut connections.
const WATCH_TIMEOUT_SECONDS: u32 = 230;
/// Objects of one page of a list: all of them are in memory untrimmed for a moment.
const PAGE_SIZE: u32 = 100;
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
    /// Asks which kinds are served, and prepares the streams. Nothing is watched before they are polled. `shelf`
    /// hears of a change of a pod before the cache shows it; `deliveries` goes into the caches as it is.
    ///
    /// # Errors
    /// Where the API server cannot be reached.
    pub async fn new(
        client: &Client,
        metrics: &Arc<Metrics>,
        shelf: &Arc<Shelf>,
        deliveries: &Arc<Deliveries>,
    ) -> Result<Self, kube::Error> {
        let (splitmodel_cache, splitmodels) = watch_splitmodels(client, metrics);
        let (deployments_cache, deployments) = watch(
            Api::all(client.clone()),
            metrics,
            "Deployment",
            trim_deployment,
        );
        let heard = Arc::clone(shelf);
        let trim_pod = move |pod: &mut Pod| {
            trim_pod(pod);
            heard.saw(pod);
        };
        let (pods_cache, pods) = watch(Api::all(client.clone()), metrics, "Pod", trim_pod);
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
            deliveries: Arc::clone(deliveries),
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
    watcher::Config::default()
        .timeout(WATCH_TIMEOUT_SECONDS)
        .page_size(PAGE_SIZE)
}

fn owned_config() -> watcher::Config {
    config().labels(names::OWNED_SELECTOR)
}

/// SplitModels that cannot be read are left out, and do not stop the others. A definition that was changed by hand
/// may have let them in.
fn watch_splitmodels(
    client: &Client,
    metrics: &Arc<Metrics>,
) -> (Store<SplitModel>, Touched<SplitModel>) {
    let writer = Writer::<SplitModel>::default();
    let cache = writer.as_reader();
    let (known, counted) = (cache.clone(), Arc::clone(metrics));
    let events = watcher(
        Api::<DeserializeGuard<SplitModel>>::all(client.clone()),
        config(),
    )
    .filter_map(move |event| {
        let readable = event.map(|event| readable(event, &known, &counted));
        std::future::ready(readable.transpose())
    });
    let stream = cached(events, writer, metrics, "SplitModel", |splitmodel| {
        splitmodel.managed_fields_mut().clear();
    });
    (cache, stream)
}

fn readable(
    event: Event<DeserializeGuard<SplitModel>>,
    known: &Store<SplitModel>,
    metrics: &Metrics,
) -> Option<Event<SplitModel>> {
    let read = |guard: DeserializeGuard<SplitModel>| {
        let complain = |invalid: &InvalidObject| {
            metrics.watch_failed("SplitModel");
            let name = invalid.metadata.name.as_deref().unwrap_or_default();
            let namespace = invalid.metadata.namespace.as_deref().unwrap_or_default();
            tracing::error!(
                namespace,
                name,
                "a SplitModel cannot be read and is left as it is: {invalid}"
            );
        };
        guard.0.inspect_err(complain).ok()
    };
    match event {
        Event::Init => Some(Event::Init),
        Event::InitDone => Some(Event::InitDone),
        Event::InitApply(guard) => read(guard).map(Event::InitApply),
        Event::Apply(guard) => read(guard).map(Event::Apply),
        Event::Delete(guard) => match guard.0 {
            Ok(splitmodel) => Some(Event::Delete(splitmodel)),
            // Its cached form, if it could be read once, goes with it.
            Err(invalid) => {
                let name =
                    ObjectRef::new(&invalid.metadata.name?).within(&invalid.metadata.namespace?);
                let last_readable = known.get(&name)?;
                Some(Event::Delete(SplitModel::clone(&last_readable)))
            }
        },
    }
}

fn watch<K>(
    api: Api<K>,
    metrics: &Arc<Metrics>,
    kind: &'static str,
    trim: impl FnMut(&mut K) + Send + 'static,
) -> (Store<K>, Touched<K>)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let writer = Writer::default();
    let cache = writer.as_reader();
    let stream = cached(watcher(api, owned_config()), writer, metrics, kind, trim);
    (cache, stream)
}

/// Wraps the events of a watch: back-off, `trim` before caching, errors counted.
fn cached<K>(
    events: impl futures_util::Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
    writer: Writer<K>,
    metrics: &Arc<Metrics>,
    kind: &'static str,
    trim: impl FnMut(&mut K) + Send + 'static,
) -> Touched<K>
where
    K: Resource + Clone + Debug + Send + Sync + 'static,
    K::DynamicType: Clone + Eq + std::hash::Hash + Debug + Send + Sync,
{
    let metrics = Arc::clone(metrics);
    events
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
        .filter(|event| std::future::ready(event.is_ok()))
        .boxed()
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
        watcher(api, config().labels(kind.selector()))
    })
    .flatten();
    let writer = Writer::new(resource);
    let cache = writer.as_reader();
    let stream = cached(events.boxed(), writer, metrics, kind_name(kind), |object| {
        keep_own_fields(&mut object.metadata);
    });
    (cache, stream)
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

/// Whether the cluster has the kind, and the operator may see it: a chart can leave out the permission for a kind
/// that nobody there uses.
async fn is_served(client: &Client, kind: OwnedKind) -> Result<bool, kube::Error> {
    let wanted = kind.api_resource();
    let list = match client.list_api_group_resources(&wanted.api_version).await {
        Ok(list) => list,
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(false),
        Err(error) => return Err(error),
    };
    if !list.resources.iter().any(|each| each.name == wanted.plural) {
        return Ok(false);
    }
    let api = Api::<DynamicObject>::all_with(client.clone(), &wanted);
    match api.list_metadata(&ListParams::default().limit(1)).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(false),
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
        OwnedKind::EndpointSlice => "EndpointSlice",
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
    // By which the operator scales; there may be many others.
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.retain(|name, _| {
            matches!(
                name.as_str(),
                names::DELETION_COST_ANNOTATION | names::SESSION_TARGET_ANNOTATION
            )
        });
    }
    pod.spec = None;
}
