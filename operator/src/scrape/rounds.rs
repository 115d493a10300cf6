//! Asks all tails, round by round, and hands what they say to whoever reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::runtime::reflector::{ObjectRef, Store};

use super::{Answer, Scraper, Target};
use crate::autoscale::is_scaled_here;
use crate::crd::SplitModel;
use crate::metrics::Metrics;
use crate::names;
use crate::savings::shelf::{Key, key_of, tail_container};

/// Tails that are asked at a time.
const MAX_SCRAPES: usize = 64;
/// Between two times that a tail is asked whose number the operator decides on: several times in a panic window.
pub const SCALING_INTERVAL: Duration = Duration::from_secs(2);

/// How asking a pod went.
#[derive(Clone, Debug)]
pub struct LastAnswer {
    /// When it answered, or was asked for the first time.
    pub at: Instant,
    /// When it was asked last.
    pub asked_at: Instant,
    /// Whether it has ever answered.
    pub has_answered: bool,
    /// Why it did not, the last time.
    pub error: Option<String>,
}

/// When pods answered last, by uid.
#[derive(Debug, Default)]
pub struct LastAnswers(Mutex<BTreeMap<String, LastAnswer>>);

impl LastAnswers {
    /// All of them.
    pub fn lock(&self) -> MutexGuard<'_, BTreeMap<String, LastAnswer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a round of questions is made of.
pub struct ScrapeRounds {
    /// Asks tails.
    pub scraper: Scraper,
    /// Between two times that a tail is asked for the savings' sake.
    pub interval: Duration,
    /// Every SplitModel.
    pub splitmodels: Store<SplitModel>,
    /// Every pod of theirs.
    pub pods: Store<Pod>,
    /// The operator's metrics.
    pub metrics: Arc<Metrics>,
    /// When pods answered last.
    pub answers: Arc<LastAnswers>,
}

impl ScrapeRounds {
    /// How often to go round.
    #[must_use]
    pub fn period(&self) -> Duration {
        self.interval.min(SCALING_INTERVAL)
    }

    /// Asks every tail that is due; `heard` is told the SplitModel, the pod's uid and what it said.
    pub async fn go_round(&self, heard: impl Fn(&Key, &str, Answer)) {
        let pods = self.pods.state();
        let uids: BTreeSet<String> = pods.iter().filter_map(|pod| pod.uid()).collect();
        self.answers.lock().retain(|uid, _| uids.contains(uid));
        let targets = pods.iter().filter_map(|pod| self.due(pod));
        let asked = stream::iter(targets.map(async |(key, uid, target)| {
            let asked_at = Instant::now();
            let answer = self.scraper.ask(target).await;
            self.metrics.scraped(answer.is_ok());
            let mut answers = self.answers.lock();
            let last = answers.entry(uid.clone()).or_insert(LastAnswer {
                at: asked_at,
                asked_at,
                has_answered: false,
                error: None,
            });
            last.asked_at = asked_at;
            match answer {
                Ok(answer) => {
                    last.at = asked_at;
                    last.has_answered = true;
                    last.error = None;
                    drop(answers);
                    heard(&key, &uid, answer);
                }
                Err(error) => last.error = Some(error.to_string()),
            }
        }));
        asked.buffer_unordered(MAX_SCRAPES).collect::<()>().await;
    }

    /// Where to ask a pod whose container runs and whose time has come.
    fn due(&self, pod: &Pod) -> Option<(Key, String, Target)> {
        let address: IpAddr = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
        tail_container(pod)?.state.as_ref()?.running.as_ref()?;
        let (namespace, name) = key_of(pod)?;
        let splitmodel = self
            .splitmodels
            .get(&ObjectRef::new(&name).within(&namespace))?;
        let uid = pod.uid()?;
        let answers = self.answers.lock();
        let last = answers.get(&uid);
        // Waiting for those that do not answer holds up the others, so they are asked less often.
        let is_quick = is_scaled_here(&splitmodel) && last.is_none_or(|last| last.error.is_none());
        let after = if is_quick {
            Duration::ZERO
        } else {
            self.interval
        };
        // A round may begin a moment early.
        let is_due = |last: &LastAnswer| last.asked_at.elapsed() + self.period() / 2 >= after;
        if !last.is_none_or(is_due) {
            return None;
        }
        drop(answers);
        let target = Target {
            address,
            port: u16::try_from(names::TAIL_PORT).ok()?,
            is_tls: splitmodel.spec.expose.tls_secret_ref.is_some(),
        };
        Some(((namespace, name), uid, target))
    }
}
