//! Writes ledgers, round by round. What is decided is decided in [`Books`](super::books::Books).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::runtime::reflector::Store;
use kube::{Client, Resource as _, ResourceExt as _};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::books::Base;
use super::ledger::Ledger;
use super::report::{self, Facts, Scrapes};
use super::shelf::{Key, Shelf, key_of, tail_container};
use crate::crd::SplitModel;
use crate::crd::status::{Savings, SplitModelStatus};
use crate::metrics::Metrics;
use crate::names;
use crate::scrape::rounds::LastAnswers;

/// SplitModels that are written at a time.
const MAX_WRITES: usize = 16;
/// Between two looks at what has to be written.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// A pod that serves and has not answered for this long makes figures stale.
const STALE_AFTER: Duration = Duration::from_secs(60);
/// For one request to the API server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// For the last writes of an operator that stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What rounds are made of.
pub struct Rounds {
    /// Connection to the API server.
    pub client: Client,
    /// Every SplitModel.
    pub splitmodels: Store<SplitModel>,
    /// Every pod of theirs.
    pub pods: Store<Pod>,
    /// What is known of them, filled by the watch of pods.
    pub shelf: Arc<Shelf>,
    /// The operator's metrics.
    pub metrics: Arc<Metrics>,
    /// When pods answered last.
    pub answers: Arc<LastAnswers>,
}

/// A SplitModel, and what there is to say about it.
struct Draft {
    key: Key,
    base: Base,
    present: BTreeSet<String>,
    ledger: Ledger,
    savings: Savings,
    condition: Condition,
}

impl Rounds {
    /// Writes, without end. The caches must be filled.
    pub async fn run(&self) {
        let mut interval = interval(LOOK_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.write_all(false).await;
            self.show();
        }
    }

    /// Writes what is not written yet, because the operator stops.
    pub async fn finish(&self) {
        if timeout(STOP_TIMEOUT, self.write_all(true)).await.is_err() {
            tracing::warn!("the last savings were not written in time");
        }
    }

    /// `is_last`: whatever has changed is due.
    async fn write_all(&self, is_last: bool) {
        let splitmodels = self.splitmodels.state();
        let keys = splitmodels.iter().filter_map(|each| key(each)).collect();
        self.shelf.keep(&keys);
        let mut pods: BTreeMap<Key, Vec<Arc<Pod>>> = BTreeMap::new();
        for pod in self.pods.state() {
            if let Some(key) = key_of(&pod) {
                pods.entry(key).or_default().push(pod);
            }
        }
        let none = Vec::new();
        let looked = stream::iter(splitmodels.iter().map(async |splitmodel| {
            let pods = key(splitmodel).and_then(|key| pods.get(&key));
            let written = self.look(splitmodel, pods.unwrap_or(&none), is_last);
            if let Err(error) = written.await {
                tracing::warn!(
                    namespace = splitmodel.namespace(),
                    name = splitmodel.name_any(),
                    "savings are not written, and are tried again: {error}"
                );
            }
        }));
        looked.buffer_unordered(MAX_WRITES).collect::<()>().await;
    }

    async fn look(
        &self,
        splitmodel: &SplitModel,
        pods: &[Arc<Pod>],
        is_last: bool,
    ) -> Result<(), kube::Error> {
        let status = splitmodel.status.clone().unwrap_or_default();
        let (Some(key), Some(version)) = (key(splitmodel), splitmodel.resource_version()) else {
            return Ok(());
        };
        let present: BTreeSet<String> = pods.iter().filter_map(|pod| pod.uid()).collect();
        let base = Base {
            version,
            ledger: report::ledger(status.savings.as_ref()),
        };
        let needs_list = self.shelf.with(&key, |books| {
            books.tidy(&base, &present, Instant::now());
            books.needs_list(&base, &present)
        });
        if needs_list {
            let living = self.living(&key).await?;
            self.shelf
                .with(&key, |books| books.listed(&living, Instant::now()));
        }
        let (proposed, is_due) = self.shelf.with(&key, |books| {
            let now = Instant::now();
            let is_due = is_last || books.is_due(&base, &present, now);
            (books.propose(&base, &present, now), is_due)
        });
        let Some(ledger) = proposed.filter(|_| is_due) else {
            return Ok(());
        };
        let has_nothing = status.savings.is_none() && present.is_empty();
        if has_nothing && ledger == base.ledger {
            return Ok(());
        }
        let now = Time(Timestamp::now());
        let scrapes = self.scrapes(pods, &status);
        let condition = report::current(
            &scrapes,
            &status.conditions,
            splitmodel.metadata.generation,
            &now,
        );
        let facts = Facts {
            pricing: splitmodel.spec.pricing.as_ref(),
            unscraped: &scrapes.unscraped,
            now: &now,
        };
        let savings = report::savings(&ledger, status.savings.as_ref(), &facts);
        if status.savings.as_ref() == Some(&savings) && status.conditions.contains(&condition) {
            return Ok(());
        }
        let draft = Draft {
            key,
            base,
            present,
            ledger,
            savings,
            condition,
        };
        self.write(splitmodel, draft).await
    }

    /// Uids of the pods that the API server has now. Not from its cache: without a resource version, it asks its
    /// database.
    async fn living(&self, (namespace, name): &Key) -> Result<BTreeSet<String>, kube::Error> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let own = format!(
            "{},{}={name}",
            names::OWNED_SELECTOR,
            names::SPLITMODEL_LABEL
        );
        let parameters = ListParams::default().labels(&own);
        let listed = within(pods.list_metadata(&parameters)).await?;
        Ok(listed.iter().filter_map(|pod| pod.uid()).collect())
    }

    /// Replaces the version that the draft was made from, or nothing.
    async fn write(&self, splitmodel: &SplitModel, draft: Draft) -> Result<(), kube::Error> {
        let (namespace, name) = &draft.key;
        let body = json!({
            "apiVersion": SplitModel::api_version(&()),
            "kind": SplitModel::kind(&()),
            "metadata": {
                "name": name,
                "uid": splitmodel.uid(),
                "resourceVersion": draft.base.version,
            },
            "status": {"savings": draft.savings, "conditions": [draft.condition]},
        });
        let api: Api<SplitModel> = Api::namespaced(self.client.clone(), namespace);
        let parameters = PatchParams::apply(names::SAVINGS_MANAGER).force();
        self.metrics.status_written();
        match within(api.patch_status(name, &parameters, &Patch::Apply(body))).await {
            Ok(_) => {
                self.shelf.with(&draft.key, |books| {
                    books.written(&draft.base, draft.ledger, &draft.present, Instant::now());
                });
                Ok(())
            }
            // Somebody else was faster, or it has gone. What there is to count is counted next time.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Which pods that serve do not answer. As long as one was not asked often enough to know, what the status
    /// says of it stays.
    fn scrapes(&self, pods: &[Arc<Pod>], status: &SplitModelStatus) -> Scrapes {
        let serving = pods
            .iter()
            .filter(|pod| tail_container(pod).is_some_and(|container| container.ready));
        let said = status
            .savings
            .as_ref()
            .map(|savings| &savings.unscraped_pods);
        let answers = self.answers.lock();
        let mut scrapes = Scrapes::default();
        let mut failed = BTreeMap::new();
        for pod in serving {
            scrapes.expected += 1;
            let name = pod.name_any();
            let last = pod.uid().and_then(|uid| answers.get(&uid));
            let was_unscraped = said.is_some_and(|names| names.contains(&name));
            let is_unscraped = match last {
                Some(last) if last.error.is_none() => false,
                Some(last) if last.at.elapsed() >= STALE_AFTER => true,
                Some(last) if last.has_answered => false,
                _ => was_unscraped,
            };
            if is_unscraped {
                let error = last.and_then(|last| last.error.clone());
                failed.insert(name, error.unwrap_or_else(|| "not asked yet".to_owned()));
            }
        }
        scrapes.error = failed.values().next().cloned().unwrap_or_default();
        scrapes.unscraped = failed.into_keys().collect();
        scrapes
    }

    /// Shows as metrics what the API server holds.
    fn show(&self) {
        self.metrics.show_statuses(self.splitmodels.state());
    }
}

fn key(splitmodel: &SplitModel) -> Option<Key> {
    Some((splitmodel.namespace()?, splitmodel.name_any()))
}

async fn within<T>(
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, kube::Error> {
    let late = |_| kube::Error::Service("the API server did not answer in time".into());
    timeout(REQUEST_TIMEOUT, request).await.map_err(late)?
}
