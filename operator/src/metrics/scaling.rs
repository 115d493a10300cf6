//! What the operator decides on numbers of pods, and why.

use std::collections::BTreeSet;

use prometheus::core::Collector;
use prometheus::{GaugeVec, IntCounterVec, Opts};

use crate::savings::shelf::Key;

const MODEL: [&str; 2] = ["namespace", "splitmodel"];

/// The values of the label `direction`.
const DIRECTIONS: [&str; 2] = ["up", "down"];

/// How one SplitModel stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scaled {
    /// Pods that the load asks for, whatever the bounds.
    pub(crate) wanted: u32,
    /// Pods that there should be.
    pub(crate) stands: u32,
    /// Sessions that no tail takes.
    pub(crate) waiting: f64,
    /// Whether a burst is under way.
    pub(crate) is_panicking: bool,
}

/// Metrics of all SplitModels whose number of pods the operator decides on.
#[derive(Clone)]
pub(super) struct Scaling {
    wanted: GaugeVec,
    desired: GaugeVec,
    waiting: GaugeVec,
    panicking: GaugeVec,
    scalings: IntCounterVec,
    starting: IntCounterVec,
}

impl Scaling {
    pub(super) fn new() -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| GaugeVec::new(Opts::new(name, help), &MODEL);
        Ok(Self {
            wanted: gauge(
                "headway_operator_wanted_replicas",
                "Tails that the load asks for, whatever autoscaling.min and max allow.",
            )?,
            desired: gauge(
                "headway_operator_desired_replicas",
                "Tails that the operator has decided on.",
            )?,
            waiting: gauge(
                "headway_operator_waiting_sessions",
                "Sessions that no tail takes, because all are full or none runs.",
            )?,
            panicking: gauge(
                "headway_operator_panicking",
                "1 while a burst is under way, in which no tail goes.",
            )?,
            scalings: IntCounterVec::new(
                Opts::new(
                    "headway_operator_scalings_total",
                    "Decisions to have more tails, or fewer.",
                ),
                &["namespace", "splitmodel", "direction"],
            )?,
            starting: IntCounterVec::new(
                Opts::new(
                    "headway_operator_starting_answers_total",
                    "Sessions that the operator answered in place of tails that were not there.",
                ),
                &MODEL,
            )?,
        })
    }

    pub(super) fn collectors(&self) -> [Box<dyn Collector>; 6] {
        [
            Box::new(self.wanted.clone()),
            Box::new(self.desired.clone()),
            Box::new(self.waiting.clone()),
            Box::new(self.panicking.clone()),
            Box::new(self.scalings.clone()),
            Box::new(self.starting.clone()),
        ]
    }

    pub(super) fn show(&self, (namespace, name): &Key, scaled: Scaled) {
        let Scaled {
            wanted,
            stands,
            waiting,
            is_panicking,
        } = scaled;
        let panicking = if is_panicking { 1.0 } else { 0.0 };
        for (gauge, value) in [
            (&self.wanted, f64::from(wanted)),
            (&self.desired, f64::from(stands)),
            (&self.waiting, waiting),
            (&self.panicking, panicking),
        ] {
            gauge.with_label_values(&[namespace, name]).set(value);
        }
    }

    pub(super) fn scaled(&self, (namespace, name): &Key, is_up: bool) {
        let [up, down] = DIRECTIONS;
        let direction = if is_up { up } else { down };
        self.scalings
            .with_label_values(&[namespace.as_str(), name, direction])
            .inc();
    }

    pub(super) fn told_starting(&self, (namespace, name): &Key) {
        self.starting
            .with_label_values(&[namespace.as_str(), name])
            .inc();
    }

    /// Leaves out what is shown of SplitModels that are not in `present`, but for what was answered in their place.
    pub(super) fn keep(&self, present: &BTreeSet<Key>) {
        let label = |metric: &prometheus::proto::Metric, name: &str| -> String {
            let labels = metric.get_label();
            let found = labels.iter().find(|label| label.name() == name);
            found.map_or_else(String::new, |label| label.value().to_owned())
        };
        let shown = self.desired.collect();
        let shown = shown.iter().flat_map(|family| family.get_metric());
        for metric in shown {
            let key = (label(metric, "namespace"), label(metric, "splitmodel"));
            if present.contains(&key) {
                continue;
            }
            let (namespace, name) = (key.0.as_str(), key.1.as_str());
            for gauge in [&self.wanted, &self.desired, &self.waiting, &self.panicking] {
                // It may not be there.
                let _ = gauge.remove_label_values(&[namespace, name]);
            }
            for direction in DIRECTIONS {
                let _ = self
                    .scalings
                    .remove_label_values(&[namespace, name, direction]);
            }
        }
    }

    /// Shows nothing: another operator decides.
    pub(super) fn reset(&self) {
        for gauge in [&self.wanted, &self.desired, &self.waiting, &self.panicking] {
            gauge.reset();
        }
        self.scalings.reset();
        self.starting.reset();
    }
}
