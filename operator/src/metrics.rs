//! The operator's own metrics, in Prometheus' text format. `docs/operator.md` lists them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{
    Encoder as _, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use self::scaling::Scaling;
use self::status::StatusCollector;
use crate::crd::SplitModel;
use crate::kinds::OwnedKind;
use crate::savings::shelf::Key;

mod scaling;
mod status;

pub(crate) use self::scaling::Scaled;

/// The operator's own metrics.
pub struct Metrics {
    registry: Registry,
    reconciliations: IntCounterVec,
    duration: Histogram,
    writes: IntCounterVec,
    status_writes: IntCounter,
    splitmodels: IntGaugeVec,
    leader: IntGauge,
    watch_errors: IntCounterVec,
    scrapes: IntCounterVec,
    statuses: StatusCollector,
    scaling: Scaling,
}

/// SplitModels by their condition `Ready`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SplitModelCounts {
    pub(crate) ready: i64,
    /// Scaled to zero on purpose.
    pub(crate) asleep: i64,
    pub(crate) not_ready: i64,
}

impl SplitModelCounts {
    pub(crate) fn of(splitmodels: &[Arc<SplitModel>]) -> Self {
        let mut counts = Self::default();
        for splitmodel in splitmodels {
            let status = splitmodel.status.as_ref();
            let mut conditions = status.iter().flat_map(|status| &status.conditions);
            let ready = conditions.find(|condition| condition.type_ == "Ready");
            match ready.map(|ready| (ready.status.as_str(), ready.reason.as_str())) {
                Some(("True", _)) => counts.ready += 1,
                Some((_, "ScaledToZero")) => counts.asleep += 1,
                _ => counts.not_ready += 1,
            }
        }
        counts
    }
}

impl Metrics {
    /// All metrics at zero.
    ///
    /// # Errors
    /// Where two metrics have one name.
    pub fn new() -> prometheus::Result<Self> {
        let metrics = Self {
            registry: Registry::new(),
            reconciliations: IntCounterVec::new(
                Opts::new(
                    "headway_operator_reconciliations_total",
                    "Reconciliations by result: applied, paused, invalid, deleted, waiting or failed.",
                ),
                &["result"],
            )?,
            duration: Histogram::with_opts(
                HistogramOpts::new(
                    "headway_operator_reconciliation_seconds",
                    "Time of one reconciliation.",
                )
                .buckets(prometheus::exponential_buckets(0.0005, 2.0, 16)?),
            )?,
            writes: IntCounterVec::new(
                Opts::new(
                    "headway_operator_writes_total",
                    "Writes of owned objects to the API server by verb and kind.",
                ),
                &["verb", "kind"],
            )?,
            status_writes: IntCounter::new(
                "headway_operator_status_writes_total",
                "Writes of SplitModels' status.",
            )?,
            splitmodels: IntGaugeVec::new(
                Opts::new(
                    "headway_operator_splitmodels",
                    "SplitModels by their condition Ready: true, false, or asleep where no pod is wanted; only the leader counts.",
                ),
                &["ready"],
            )?,
            leader: IntGauge::new(
                "headway_operator_leader",
                "1 on the replica that reconciles.",
            )?,
            watch_errors: IntCounterVec::new(
                Opts::new(
                    "headway_operator_watch_errors_total",
                    "Watches that failed and were started again, by kind.",
                ),
                &["kind"],
            )?,
            scrapes: IntCounterVec::new(
                Opts::new(
                    "headway_operator_scrapes_total",
                    "Tails that were asked what they have counted: ok or failed.",
                ),
                &["result"],
            )?,
            statuses: StatusCollector::new()?,
            scaling: Scaling::new()?,
        };
        let all: [Box<dyn prometheus::core::Collector>; 9] = [
            Box::new(metrics.reconciliations.clone()),
            Box::new(metrics.duration.clone()),
            Box::new(metrics.writes.clone()),
            Box::new(metrics.status_writes.clone()),
            Box::new(metrics.splitmodels.clone()),
            Box::new(metrics.leader.clone()),
            Box::new(metrics.watch_errors.clone()),
            Box::new(metrics.scrapes.clone()),
            Box::new(metrics.statuses.clone()),
        ];
        for collector in all.into_iter().chain(metrics.scaling.collectors()) {
            metrics.registry.register(collector)?;
        }
        Ok(metrics)
    }

    /// In Prometheus' text format.
    ///
    /// # Errors
    /// Where a metric has no value to write.
    pub fn render(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }

    pub(crate) fn reconciled(&self, result: &'static str, took: Duration) {
        self.reconciliations.with_label_values(&[result]).inc();
        self.duration.observe(took.as_secs_f64());
    }

    pub(crate) fn written(&self, verb: &'static str, kind: OwnedKind) {
        let kind = kind.api_resource().kind;
        self.writes.with_label_values(&[verb, kind.as_str()]).inc();
    }

    pub(crate) fn status_written(&self) {
        self.status_writes.inc();
    }

    pub(crate) fn watch_failed(&self, kind: &str) {
        self.watch_errors.with_label_values(&[kind]).inc();
    }

    pub(crate) fn set_leader(&self, is_leader: bool) {
        self.leader.set(i64::from(is_leader));
        if !is_leader {
            self.splitmodels.reset();
            self.statuses.show(Vec::new());
            self.scaling.reset();
        }
    }

    pub(crate) fn scraped(&self, is_ok: bool) {
        let result = if is_ok { "ok" } else { "failed" };
        self.scrapes.with_label_values(&[result]).inc();
    }

    /// Statuses as the API server holds them: no restart takes back what they say.
    pub(crate) fn show_statuses(&self, splitmodels: Vec<Arc<SplitModel>>) {
        self.statuses.show(splitmodels);
    }

    pub(crate) fn show_scaled(&self, key: &Key, scaled: Scaled) {
        self.scaling.show(key, scaled);
    }

    /// The operator has decided to have more tails, or fewer.
    pub(crate) fn scaled(&self, key: &Key, is_up: bool) {
        self.scaling.scaled(key, is_up);
    }

    /// A session was told that the first tail is being started.
    pub(crate) fn told_starting(&self, key: &Key) {
        self.scaling.told_starting(key);
    }

    /// Forgets SplitModels that are not in `present`.
    pub(crate) fn keep_scaled(&self, present: &BTreeSet<Key>) {
        self.scaling.keep(present);
    }

    pub(crate) fn set_splitmodels(&self, counts: SplitModelCounts) {
        let SplitModelCounts {
            ready,
            asleep,
            not_ready,
        } = counts;
        for (label, count) in [("true", ready), ("asleep", asleep), ("false", not_ready)] {
            self.splitmodels.with_label_values(&[label]).set(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_in_the_documented_table_and_no_other() {
        let metrics = Metrics::new().unwrap();
        metrics.reconciled("applied", Duration::from_millis(1));
        metrics.written("apply", OwnedKind::Service);
        metrics.set_splitmodels(SplitModelCounts::default());
        metrics.watch_failed("Service");
        metrics.scraped(true);
        let key = ("ml".to_owned(), "smol".to_owned());
        let scaled = Scaled {
            wanted: 3,
            stands: 2,
            waiting: 1.0,
            is_panicking: false,
        };
        metrics.show_scaled(&key, scaled);
        metrics.scaled(&key, true);
        metrics.told_starting(&key);
        metrics.show_statuses(vec![Arc::new(status::tests::splitmodel())]);
        let gathered = metrics.registry.gather();
        let live: BTreeSet<String> = gathered
            .iter()
            .map(|family| family.name().to_owned())
            .collect();
        let page = include_str!("../../docs/operator.md");
        let rows = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `headway_operator_"));
        let documented: BTreeSet<String> = rows
            .filter_map(|row| Some(format!("headway_operator_{}", row.split_once('`')?.0)))
            .collect();
        assert_eq!(live, documented);
    }
}
