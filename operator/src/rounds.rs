//! What goes on beside reconciliations, for as long as this replica leads: tails are asked, what they have counted is
//! written, and what they are busy with decides how many there are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use kube::runtime::events::Recorder;
use kube::runtime::reflector::{ObjectRef, Store};
use tokio::sync::{Notify, mpsc};
use tokio::time::{MissedTickBehavior, interval};

use crate::autoscale::doors::{Doors, Place};
use crate::autoscale::rounds::ScaleRounds;
use crate::autoscale::scales::{Scales, Standing, may_sleep};
use crate::crd::SplitModel;
use crate::crd::autoscaling::Provider;
use crate::metrics::Metrics;
use crate::observed::{Caches, Observed};
use crate::savings;
use crate::savings::shelf::Shelf;
use crate::scrape::Scraper;
use crate::scrape::rounds::{LastAnswers, ScrapeRounds};
use crate::validate::ValidSpec;

/// SplitModels that wait to be reconciled because of a decision. Beyond it, deciding waits.
const MAX_CHANGED: usize = 1024;

/// What rounds are made of.
pub struct Parts {
    /// Connection to the API server.
    pub client: Client,
    /// Publishes events.
    pub recorder: Recorder,
    /// The operator's metrics.
    pub metrics: Arc<Metrics>,
    /// Between two times that a tail is asked.
    pub scrape_interval: Duration,
    /// Every SplitModel.
    pub splitmodels: Store<SplitModel>,
    /// What the watches have seen.
    pub caches: Caches,
    /// What is known of pods, filled by their watch.
    pub shelf: Arc<Shelf>,
    /// What stands, for reconciliations too.
    pub stands: Stands,
}

/// What goes on beside reconciliations.
pub struct Rounds {
    scrapes: ScrapeRounds,
    savings: savings::rounds::Rounds,
    scaling: ScaleRounds,
}

/// What reconciliations have to know of what is decided beside them.
#[derive(Clone)]
pub struct Stands {
    scales: Arc<Scales>,
    doors: Arc<Doors>,
    look: Arc<Notify>,
    /// Whether tails are asked, and so anything is decided.
    is_scaling: bool,
}

impl Stands {
    /// Nothing is decided yet. `place`: where the operator can answer for models that sleep. Without a
    /// `scrape_interval`, tails are not asked, and nothing is decided.
    #[must_use]
    pub fn new(
        place: Option<Place>,
        scrape_interval: Option<Duration>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let look = Arc::new(Notify::new());
        let doors = Doors::new(place, Arc::clone(&look), Arc::clone(metrics));
        Self {
            scales: Arc::default(),
            doors: Arc::new(doors),
            look,
            is_scaling: scrape_interval.is_some(),
        }
    }

    /// What the objects of `valid` depend on besides its spec. To be called within a tokio runtime.
    #[must_use]
    pub fn of(&self, valid: &ValidSpec, observed: &Observed) -> Standing {
        let is_ours = valid.spec.autoscaling.provider == Provider::Operator;
        let replicas = (self.is_scaling && is_ours)
            .then(|| self.scales.stands(valid, observed, Instant::now()));
        let key = (valid.owner.namespace.clone(), valid.owner.name.clone());
        let wanted = replicas.or(observed.wanted_replicas);
        // Before the last pod goes, and until the first one serves.
        let is_away = observed.ready_replicas() == 0 || wanted == Some(0);
        // Whom nobody would start is not said to be starting.
        let is_woken = self.is_scaling || !is_ours;
        let door = self.doors.at_if(&key, is_woken && may_sleep(&valid.spec));
        Standing {
            replicas,
            door: door.filter(|_| is_away),
        }
    }
}

impl Rounds {
    /// All rounds, and the SplitModels that they want to be reconciled.
    ///
    /// # Errors
    /// Where there is no TLS provider.
    pub fn new(parts: Parts) -> reqwest::Result<(Self, mpsc::Receiver<ObjectRef<SplitModel>>)> {
        let (changed, to_reconcile) = mpsc::channel(MAX_CHANGED);
        let answers = Arc::new(LastAnswers::default());
        let rounds = Self {
            scrapes: ScrapeRounds {
                scraper: Scraper::new()?,
                interval: parts.scrape_interval,
                splitmodels: parts.splitmodels.clone(),
                pods: parts.caches.pods.clone(),
                metrics: Arc::clone(&parts.metrics),
                answers: Arc::clone(&answers),
            },
            savings: savings::rounds::Rounds {
                client: parts.client.clone(),
                splitmodels: parts.splitmodels.clone(),
                pods: parts.caches.pods.clone(),
                shelf: parts.shelf,
                metrics: Arc::clone(&parts.metrics),
                answers,
            },
            scaling: ScaleRounds {
                client: parts.client,
                recorder: parts.recorder,
                scales: parts.stands.scales,
                doors: parts.stands.doors,
                look: parts.stands.look,
                splitmodels: parts.splitmodels,
                pods: parts.caches.pods,
                metrics: parts.metrics,
                changed,
            },
        };
        Ok((rounds, to_reconcile))
    }

    /// Goes on without end. The caches must be filled.
    pub async fn run(&self) {
        tokio::join!(self.ask(), self.savings.run(), self.scaling.run());
    }

    /// Writes what is not written yet, because the operator stops.
    pub async fn finish(&self) {
        self.savings.finish().await;
    }

    async fn ask(&self) {
        let mut interval = interval(self.scrapes.period());
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let round = self.scrapes.go_round(|key, uid, answer| {
                self.savings.shelf.scraped(key, uid, answer.reading);
                let now = Instant::now();
                self.scaling.scales.heard(key, uid, answer.signals, now);
            });
            round.await;
            self.scaling.look.notify_one();
        }
    }
}
