//! One reconciliation: the steps in order, and what follows from how they end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use futures_util::stream::{StreamExt as _, poll_fn};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::Api;
use kube::runtime::Controller;
use kube::runtime::controller::{Action, Config};
use kube::runtime::events::Recorder;
use kube::runtime::finalizer::{self, Event, finalizer};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, ResourceExt as _};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::apply::{Applier, ApplyError};
use crate::autoscale::doors::Place;
use crate::build::{Settings, build};
use crate::conditions::Outcome;
use crate::crd::SplitModel;
use crate::delivery::Deliveries;
use crate::error::{ReconcileError, backoff, error_chain};
use crate::metrics::{Metrics, SplitModelCounts};
use crate::names;
use crate::observed::{Caches, Observed, observe};
use crate::rollout::steered;
use crate::rounds::{Parts, Rounds, Stands};
use crate::savings::shelf::Shelf;
use crate::scrape::Scraper;
use crate::status::{StatusWriter, status};
use crate::validate::{Owner, ValidSpec};
use crate::watches::Watches;

/// Between two looks at whether a deleted SplitModel's pods have gone.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(2);
/// Between two tries where only somebody else can remove the obstacle.
const OBSTACLE_INTERVAL: Duration = Duration::from_secs(60);
/// Failures in a row before the status tells of them: most pass by themselves.
const FAILURES_TO_TELL: u32 = 3;
/// For reconciliations under way when the operator stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
const COUNT_INTERVAL: Duration = Duration::from_secs(5);

/// What the controller is started with.
pub struct Setup {
    /// Connection to the API server.
    pub client: Client,
    /// What builders depend on.
    pub settings: Settings,
    /// Publishes events.
    pub recorder: Recorder,
    /// The operator's metrics.
    pub metrics: Arc<Metrics>,
    /// The most reconciliations at a time.
    pub concurrency: u16,
    /// Between two times that a tail is asked what it has counted; `None` adds up no savings.
    pub scrape_interval: Option<Duration>,
    /// Where the operator can answer for models that sleep; `None` puts none to sleep.
    pub place: Option<Place>,
}

/// What reconciliations share.
struct Context {
    client: Client,
    settings: Settings,
    metrics: Arc<Metrics>,
    caches: Caches,
    stands: Stands,
    writer: StatusWriter,
    /// Ends when the caches are complete.
    filled: Shared<BoxFuture<'static, ()>>,
    /// Failures in a row, by SplitModel.
    failures: Mutex<HashMap<ObjectRef<SplitModel>, u32>>,
}

/// Reconciles, adds up savings and decides on numbers of pods until `stop` is cancelled, then finishes what is under way.
///
/// # Errors
/// Where the API server cannot be asked which kinds it serves, or there is no TLS provider.
pub async fn run(setup: Setup, stop: CancellationToken) -> anyhow::Result<()> {
    let shelf = Arc::new(Shelf::default());
    let (deliveries, news) = Deliveries::new();
    let watches = Watches::new(&setup.client, &setup.metrics, &shelf, &deliveries).await?;
    let filled = watches.filled().boxed().shared();
    let Watches {
        splitmodels,
        splitmodel_cache,
        deployments,
        pods,
        others,
        caches,
        ..
    } = watches;
    let stands = Stands::new(setup.place, setup.scrape_interval, &setup.metrics);
    let rounds = setup.scrape_interval.map(|scrape_interval| {
        Rounds::new(Parts {
            client: setup.client.clone(),
            recorder: setup.recorder.clone(),
            metrics: Arc::clone(&setup.metrics),
            scrape_interval,
            splitmodels: splitmodel_cache.clone(),
            caches: caches.clone(),
            shelf,
            stands: stands.clone(),
        })
    });
    let (rounds, changed) = rounds.transpose()?.unzip();
    let (scraper, pod_cache) = (Scraper::new()?, caches.pods.clone());
    let context = Arc::new(Context {
        writer: StatusWriter::new(setup.client.clone(), setup.recorder),
        client: setup.client,
        settings: setup.settings,
        metrics: Arc::clone(&setup.metrics),
        caches,
        stands,
        filled: filled.clone(),
        failures: Mutex::default(),
    });
    let mut controller = Controller::for_stream(splitmodels, splitmodel_cache.clone())
        .with_config(Config::default().concurrency(setup.concurrency))
        .owns_stream(deployments)
        .watches_stream(pods, |pod: Pod| owner_of_pod(&pod))
        .reconcile_on(news)
        .graceful_shutdown_on(stop.clone().cancelled_owned());
    if let Some(mut changed) = changed {
        controller = controller.reconcile_on(poll_fn(move |context| changed.poll_recv(context)));
    }
    for (kind, stream) in others {
        controller = controller.owns_stream_with(stream, kind.api_resource());
    }
    // Errors of reconciliations have been dealt with in `retry`; those of watches where they are counted.
    let reconciling = controller
        .run(reconcile, retry, context)
        .for_each(|_| std::future::ready(()));
    tokio::select! {
        () = reconciling => {}
        () = stopped(&stop, &filled) => {}
        () = count_splitmodels(&splitmodel_cache, &setup.metrics) => {}
        () = go_round(rounds.as_ref(), &filled) => {}
        () = filled.clone().then(|()| deliveries.run(&scraper, &splitmodel_cache, &pod_cache)) => {}
    }
    if let Some(rounds) = rounds.filter(|_| filled.peek().is_some()) {
        rounds.finish().await;
    }
    Ok(())
}

/// Goes on beside reconciliations. Before the caches are filled, a pod not known yet would look like one that has gone.
async fn go_round(rounds: Option<&Rounds>, filled: &Shared<BoxFuture<'static, ()>>) {
    filled.clone().await;
    match rounds {
        Some(rounds) => rounds.run().await,
        None => std::future::pending().await,
    }
}

/// Ends when reconciliations have had their time to end. Before the caches are filled there are none.
async fn stopped(stop: &CancellationToken, filled: &Shared<BoxFuture<'static, ()>>) {
    stop.cancelled().await;
    if filled.peek().is_some() {
        tokio::time::sleep(STOP_TIMEOUT).await;
        tracing::warn!("reconciliations did not end in time");
    }
}

fn owner_of_pod(pod: &Pod) -> Option<ObjectRef<SplitModel>> {
    let name = pod.labels().get(names::SPLITMODEL_LABEL)?;
    Some(ObjectRef::new(name).within(&pod.namespace()?))
}

async fn count_splitmodels(cache: &Store<SplitModel>, metrics: &Metrics) {
    let mut interval = tokio::time::interval(COUNT_INTERVAL);
    loop {
        interval.tick().await;
        let splitmodels = cache.state();
        metrics.set_splitmodels(SplitModelCounts::of(&splitmodels));
        metrics.show_statuses(splitmodels);
    }
}

async fn reconcile(
    splitmodel: Arc<SplitModel>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    context.filled.clone().await;
    let namespace = splitmodel.namespace().unwrap_or_default();
    let span = tracing::info_span!("reconcile", namespace, name = splitmodel.name_any());
    let started = Instant::now();
    let result = context
        .reconcile(Arc::clone(&splitmodel), &namespace)
        .instrument(span)
        .await;
    let label = match &result {
        Ok((label, _)) => label,
        Err(error) if error.is_draining() => "draining",
        Err(_) => "failed",
    };
    context.metrics.reconciled(label, started.elapsed());
    if result.is_ok() {
        context
            .lock_failures()
            .remove(&ObjectRef::from(&*splitmodel));
    }
    result.map(|(_, action)| action)
}

/// When to try again after an error.
fn retry(splitmodel: Arc<SplitModel>, error: &ReconcileError, context: Arc<Context>) -> Action {
    if error.is_draining() {
        return Action::requeue(CLEANUP_INTERVAL);
    }
    let key = ObjectRef::from(&*splitmodel);
    let failures = {
        let mut all = context.lock_failures();
        let failures = all.entry(key).or_insert(0);
        *failures = failures.saturating_add(1);
        *failures
    };
    let delay = backoff(failures, fastrand::f64());
    let cause = error_chain(error);
    tracing::warn!(
        namespace = splitmodel.namespace(),
        name = splitmodel.name_any(),
        failures,
        delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
        "reconciling failed and is tried again: {cause}"
    );
    Action::requeue(delay)
}

/// How a reconciliation that needs no retry ended, for the metrics, and what comes next.
type Done = (&'static str, Action);

impl Context {
    async fn reconcile(
        &self,
        splitmodel: Arc<SplitModel>,
        namespace: &str,
    ) -> Result<Done, ReconcileError> {
        let is_deleted = splitmodel.metadata.deletion_timestamp.is_some();
        if is_deleted && !has_finalizer(&splitmodel) {
            self.writer.forget(&splitmodel);
            return Ok(("deleted", Action::await_change()));
        }
        if is_paused(&splitmodel) && !is_deleted {
            let observed = observe(&self.caches, namespace, &splitmodel.name_any());
            self.write_status(&splitmodel, None, &Outcome::Paused, &observed)
                .await?;
            return Ok(("paused", Action::await_change()));
        }
        if has_finalizer(&splitmodel) && !is_deleted {
            return self.apply(&splitmodel, namespace).await;
        }
        let api = Api::<SplitModel>::namespaced(self.client.clone(), namespace);
        let finalized = finalizer(
            &api,
            names::FINALIZER,
            splitmodel,
            async |event| match event {
                Event::Apply(splitmodel) => Ok(self.apply(&splitmodel, namespace).await?.1),
                Event::Cleanup(splitmodel) => self.clean_up(&splitmodel).await,
            },
        )
        .await;
        match finalized {
            Ok(action) => Ok((if is_deleted { "deleted" } else { "applied" }, action)),
            // It has gone already, and the cache does not show it yet.
            Err(finalizer::Error::RemoveFinalizer(kube::Error::Api(status)))
                if status.code == 404 =>
            {
                Ok(("deleted", Action::await_change()))
            }
            Err(error) => Err(ReconcileError::Finalizer(Box::new(error))),
        }
    }

    async fn apply(
        &self,
        splitmodel: &SplitModel,
        namespace: &str,
    ) -> Result<Done, ReconcileError> {
        let observed = observe(&self.caches, namespace, &splitmodel.name_any());
        let valid = match ValidSpec::check(splitmodel) {
            Ok(valid) => valid,
            Err(error) => {
                let outcome = Outcome::Invalid(error.to_string());
                self.write_status(splitmodel, None, &outcome, &observed)
                    .await?;
                return Ok(("invalid", Action::await_change()));
            }
        };
        let standing = self.stands.of(&valid, &observed);
        let desired = build(&valid, &self.settings, &standing);
        let (desired, look_again) = match steered(desired, &self.client, &valid, &observed).await {
            Ok(steered) => steered,
            Err(error) => return self.failed(splitmodel, &valid, &observed, error).await,
        };
        let applier = Applier {
            client: &self.client,
            metrics: &self.metrics,
            owner: &valid.owner,
        };
        match applier.apply(&desired, &observed).await {
            Ok(applied) => {
                let outcome = Outcome::Applied(&applied);
                self.write_status(splitmodel, Some(&valid), &outcome, &observed)
                    .await?;
                let obstacle = (!applied.missing.is_empty()).then_some(OBSTACLE_INTERVAL);
                let next = obstacle.into_iter().chain(look_again).min();
                let action = next.map_or_else(Action::await_change, Action::requeue);
                Ok(("applied", action))
            }
            Err(error) => self.failed(splitmodel, &valid, &observed, error).await,
        }
    }

    /// Tells of a failure that lasts, and says when to try again; passes on one that may pass by itself.
    async fn failed(
        &self,
        splitmodel: &SplitModel,
        valid: &ValidSpec,
        observed: &Observed,
        error: ApplyError,
    ) -> Result<Done, ReconcileError> {
        let (reason, next) = match &error {
            ApplyError::NameTaken { .. } => ("NameTaken", Some(Action::requeue(OBSTACLE_INTERVAL))),
            ApplyError::Api { source, .. } => match &**source {
                // The spec has something that only the API server knows to be wrong.
                kube::Error::Api(status) if status.code == 422 => {
                    ("Rejected", Some(Action::await_change()))
                }
                // Also what an API server answers that has just started and has not read the roles yet.
                kube::Error::Api(status) if status.code == 403 => ("Forbidden", None),
                _ => ("ApplyFailed", None),
            },
        };
        let failures = self
            .lock_failures()
            .get(&ObjectRef::from(splitmodel))
            .copied();
        if next.is_some() || failures.unwrap_or(0) >= FAILURES_TO_TELL {
            let message = error_chain(&error);
            let outcome = Outcome::Failed { reason, message };
            self.write_status(splitmodel, Some(valid), &outcome, observed)
                .await?;
        }
        match next {
            Some(action) => Ok(("failed", action)),
            None => Err(ReconcileError::Apply(error)),
        }
    }

    /// Lets the finalizer go when nothing is left.
    async fn clean_up(&self, splitmodel: &SplitModel) -> Result<Action, ReconcileError> {
        let Ok(owner) = Owner::of(splitmodel) else {
            return Ok(Action::await_change());
        };
        let applier = Applier {
            client: &self.client,
            metrics: &self.metrics,
            owner: &owner,
        };
        if applier.delete_all().await.map_err(ReconcileError::Apply)? {
            self.writer.forget(splitmodel);
            Ok(Action::await_change())
        } else {
            Err(ReconcileError::Draining)
        }
    }

    async fn write_status(
        &self,
        splitmodel: &SplitModel,
        valid: Option<&ValidSpec>,
        outcome: &Outcome<'_>,
        observed: &Observed,
    ) -> Result<(), ReconcileError> {
        let before = self.writer.current(splitmodel);
        let after = status(
            splitmodel,
            &before,
            valid,
            outcome,
            observed,
            &Time(Timestamp::now()),
        );
        let written = self
            .writer
            .write(splitmodel, &before, &after, &self.metrics)
            .await;
        match written {
            Ok(()) => Ok(()),
            // Deleted meanwhile, or replaced by another one of its name.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(ReconcileError::Status(error)),
        }
    }

    fn lock_failures(&self) -> std::sync::MutexGuard<'_, HashMap<ObjectRef<SplitModel>, u32>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn has_finalizer(splitmodel: &SplitModel) -> bool {
    splitmodel
        .finalizers()
        .iter()
        .any(|each| each == names::FINALIZER)
}

fn is_paused(splitmodel: &SplitModel) -> bool {
    let annotation = splitmodel.annotations().get(names::PAUSED_ANNOTATION);
    annotation.is_some_and(|value| value == "true")
}
