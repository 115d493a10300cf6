//! How far the model is on its way to the pods: tails are asked while they do not serve, and once when they do.
//!
//! A pod's readiness says only that it does not serve. What it waits for, and which model it has then, is in the
//! answer of its `/readyz`. Nothing of this is kept over a restart of the operator: tails are asked again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt as _;
use kube::runtime::reflector::{ObjectRef, Store};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

pub use report::{Report, State};

use crate::crd::SplitModel;
use crate::names;
use crate::savings::shelf::{Key, key_of, tail_container};
use crate::scrape::{ScrapeError, Scraper, Target};

mod report;

/// Between two times that a tail is asked.
const INTERVAL: Duration = Duration::from_secs(5);
/// Tails that are asked at a time.
const MAX_ASKED: usize = 32;
/// SplitModels that wait to be looked at.
const MAX_WAITING: usize = 1024;

/// What pods have said of their model.
#[derive(Debug)]
pub struct Deliveries {
    reports: Mutex<BTreeMap<String, Said>>,
    news: mpsc::Sender<ObjectRef<SplitModel>>,
}

#[derive(Clone, Debug, PartialEq)]
struct Said {
    key: Key,
    pod: String,
    /// Tells one run of the container from the next.
    run: Run,
    report: Report,
}

/// One run of a container: how often it was started again, and since when it runs.
type Run = (i32, Option<String>);

/// What the pods of one SplitModel have said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// The one that is furthest, of those that are on their way: the pod's name and what it said.
    pub on_its_way: Option<(String, Report)>,
    /// Those that have failed: the pod's name and what it said.
    pub failed: Vec<(String, Report)>,
    /// The model that is served: its digest, and its commit where it has one.
    pub served: Option<(String, Option<String>)>,
}

impl Deliveries {
    /// An empty one, and the SplitModels of which there is something new.
    pub fn new() -> (
        Arc<Self>,
        impl Stream<Item = ObjectRef<SplitModel>> + Send + 'static,
    ) {
        let (news, heard) = mpsc::channel(MAX_WAITING);
        let deliveries = Self {
            reports: Mutex::default(),
            news,
        };
        let heard = stream::unfold(heard, async |mut heard: mpsc::Receiver<_>| {
            Some((heard.recv().await?, heard))
        });
        (Arc::new(deliveries), heard.boxed())
    }

    /// What the pods of the SplitModel `name` in `namespace` have said.
    #[must_use]
    pub fn of(&self, namespace: &str, name: &str) -> Delivery {
        let mut delivery = Delivery::default();
        let reports = self.lock();
        let own = reports
            .values()
            .filter(|said| said.key.0 == namespace && said.key.1 == name);
        for said in own {
            let told = (said.pod.clone(), said.report.clone());
            match said.report.state {
                State::Failed => delivery.failed.push(told),
                State::Downloading | State::Loading => {
                    let so_far = delivery.on_its_way.as_ref();
                    if so_far.is_none_or(|(_, before)| before.progress() <= told.1.progress()) {
                        delivery.on_its_way = Some(told);
                    }
                }
                State::Ready => {
                    let digest = said.report.model_digest.clone();
                    delivery.served = digest.map(|digest| (digest, said.report.commit.clone()));
                }
            }
        }
        delivery
    }

    /// Asks tails without end. The caches must be filled.
    pub async fn run(&self, scraper: &Scraper, splitmodels: &Store<SplitModel>, pods: &Store<Pod>) {
        let mut interval = interval(INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.ask_all(scraper, splitmodels, &pods.state()).await;
        }
    }

    async fn ask_all(&self, scraper: &Scraper, splitmodels: &Store<SplitModel>, pods: &[Arc<Pod>]) {
        self.forget_all_but(&pods.iter().filter_map(|pod| pod.uid()).collect());
        let wanted = pods.iter().filter(|pod| self.is_wanted(pod));
        let asked = stream::iter(wanted.map(async |pod| {
            let (key, target) = (key_of(pod)?, target(pod, splitmodels)?);
            let run = run(tail_container(pod)?)?;
            let report = match ask(scraper, target).await {
                Ok(report) => report,
                // Not listening yet, or another program: there is nothing to tell.
                Err(_) => return None,
            };
            self.heard(
                &pod.uid()?,
                Said {
                    key,
                    pod: pod.name_any(),
                    run,
                    report,
                },
            );
            Some(())
        }));
        asked.buffer_unordered(MAX_ASKED).collect::<Vec<_>>().await;
    }

    /// Whether a pod may have something new to say.
    fn is_wanted(&self, pod: &Pod) -> bool {
        let (Some(uid), Some(container)) = (pod.uid(), tail_container(pod)) else {
            return false;
        };
        let Some(run) = run(container) else {
            return false;
        };
        let reports = self.lock();
        let said = reports.get(&uid);
        let is_done = said.is_some_and(|said| said.run == run && said.report.state == State::Ready);
        !is_done
    }

    fn heard(&self, uid: &str, said: Said) {
        let before = self.lock().insert(uid.to_owned(), said.clone());
        if before.as_ref() != Some(&said) {
            self.tell(&said.key);
        }
    }

    /// Forgets pods that have gone: what they failed of is in nobody's way any more.
    fn forget_all_but(&self, uids: &BTreeSet<String>) {
        let mut reports = self.lock();
        for (_, said) in reports.extract_if(.., |uid, _| !uids.contains(uid)) {
            self.tell(&said.key);
        }
    }

    fn tell(&self, (namespace, name): &Key) {
        // Full: somebody looks soon anyway, and then sees all there is.
        let _ = self.news.try_send(ObjectRef::new(name).within(namespace));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Said>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn ask(scraper: &Scraper, target: Target) -> Result<Report, ScrapeError> {
    let (status, body) = scraper.page(target, "/readyz").await?;
    let report = Report::read(&body).filter(|_| matches!(status, 200 | 503));
    report.ok_or(ScrapeError::Status(status))
}

fn run(container: &ContainerStatus) -> Option<Run> {
    let running = container.state.as_ref()?.running.as_ref()?;
    let since = running.started_at.as_ref().map(|since| since.0.to_string());
    Some((container.restart_count, since))
}

fn target(pod: &Pod, splitmodels: &Store<SplitModel>) -> Option<Target> {
    let (namespace, name) = key_of(pod)?;
    let splitmodel = splitmodels.get(&ObjectRef::new(&name).within(&namespace))?;
    Some(Target {
        address: pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?,
        port: u16::try_from(names::TAIL_PORT).ok()?,
        is_tls: splitmodel.spec.expose.tls_secret_ref.is_some(),
    })
}

#[cfg(test)]
mod tests;
