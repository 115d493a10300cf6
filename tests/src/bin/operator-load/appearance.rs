//! When the objects of each SplitModel appeared, seen by watches.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::StreamExt as _;
use headway_operator::kinds::OwnedKind;
use headway_operator::names::{OWNED_SELECTOR, SPLITMODEL_LABEL};
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};

use crate::load::{Applied, Load};

/// What a minimal SplitModel owns.
const KINDS: [OwnedKind; 6] = [
    OwnedKind::ServiceAccount,
    OwnedKind::Service,
    OwnedKind::HeadlessService,
    OwnedKind::NetworkPolicy,
    OwnedKind::PodDisruptionBudget,
    OwnedKind::Deployment,
];
const PATIENCE: Duration = Duration::from_secs(900);

/// By SplitModel: when each of its objects was first seen.
type Seen = Arc<Mutex<HashMap<String, BTreeMap<OwnedKind, Instant>>>>;

/// When the objects of each SplitModel appeared.
pub struct Appearances {
    seen: Seen,
}

impl Appearances {
    /// Watches from now on.
    pub fn watch(load: &Load) -> Self {
        let seen = Seen::default();
        for kind in KINDS {
            // Both Services come by one watch.
            if kind != OwnedKind::HeadlessService {
                tokio::spawn(follow(load.client.clone(), kind, Arc::clone(&seen)));
            }
        }
        Self { seen }
    }

    /// From each apply to the last of its objects; waits for those that are missing.
    pub async fn latencies(&self, applied: &[Applied]) -> Result<Vec<Duration>> {
        let started = Instant::now();
        let mut latencies = Vec::with_capacity(applied.len());
        for each in applied {
            let last = loop {
                if let Some(last) = self.complete(&each.name) {
                    break last;
                }
                ensure!(
                    started.elapsed() < PATIENCE,
                    "{} is not complete",
                    each.name
                );
                tokio::time::sleep(Duration::from_millis(2)).await;
            };
            latencies.push(last.saturating_duration_since(each.at));
        }
        Ok(latencies)
    }

    /// When the last object was seen, if all were.
    fn complete(&self, name: &str) -> Option<Instant> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let objects = seen.get(name)?;
        (objects.len() == KINDS.len()).then(|| objects.values().max().copied())?
    }
}

async fn follow(client: kube::Client, kind: OwnedKind, seen: Seen) {
    let api = Api::<PartialObjectMeta<DynamicObject>>::all_with(client, &kind.api_resource());
    let config = watcher::Config::default().labels(OWNED_SELECTOR);
    let stream = watcher(api, config).default_backoff().applied_objects();
    tokio::pin!(stream);
    while let Some(event) = stream.next().await {
        let Ok(object) = event else { continue };
        let Some(splitmodel) = object.labels().get(SPLITMODEL_LABEL).cloned() else {
            continue;
        };
        let is_headless = kind == OwnedKind::Service
            && object.name_any() == OwnedKind::HeadlessService.object_name(&splitmodel);
        let kind = if is_headless {
            OwnedKind::HeadlessService
        } else {
            kind
        };
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let objects = seen.entry(splitmodel).or_default();
        objects.entry(kind).or_insert_with(Instant::now);
    }
}
