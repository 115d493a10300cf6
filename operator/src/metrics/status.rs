//! What the statuses of SplitModels say, as metrics: savings, and what is in the way. They are read each time somebody
//! asks, so counters go on where they were when another operator takes over.

use std::sync::{Arc, Mutex, PoisonError};

use kube::ResourceExt as _;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{CounterVec, GaugeVec, Opts};

use crate::crd::SplitModel;
use crate::crd::pricing::Pricing;
use crate::crd::status::{Answers, Savings, Tokens};
use crate::savings::report::CURRENT;

/// What the statuses of SplitModels say.
#[derive(Clone)]
pub(super) struct StatusCollector {
    splitmodels: Arc<Mutex<Vec<Arc<SplitModel>>>>,
    /// Without values, for their descriptions.
    families: Arc<Families>,
}

struct Families {
    used: CounterVec,
    saved: CounterVec,
    tokens: CounterVec,
    answers: CounterVec,
    unread_endings: CounterVec,
    money: GaugeVec,
    current: GaugeVec,
    degraded: GaugeVec,
}

impl Families {
    fn new() -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str, label: Option<&str>| {
            let labels: Vec<&str> = ["namespace", "splitmodel"]
                .into_iter()
                .chain(label)
                .collect();
            CounterVec::new(Opts::new(name, help), &labels)
        };
        Ok(Self {
            used: counter(
                "headway_operator_used_gpu_seconds_total",
                "GPU-seconds that the tails of a SplitModel used.",
                None,
            )?,
            saved: counter(
                "headway_operator_saved_gpu_seconds_total",
                "GPU-seconds saved, by what saved them.",
                Some("term"),
            )?,
            tokens: counter(
                "headway_operator_output_tokens_total",
                "Tokens of answers, by who gave them.",
                Some("by"),
            )?,
            answers: counter(
                "headway_operator_answers_total",
                "Answers, by where their layers ran.",
                Some("route"),
            )?,
            unread_endings: counter(
                "headway_operator_unread_endings_total",
                "Runs of tails whose last counters could not be read.",
                None,
            )?,
            money: GaugeVec::new(
                Opts::new(
                    "headway_operator_money_saved",
                    "What was saved, at the price in spec.pricing.",
                ),
                &["namespace", "splitmodel", "currency"],
            )?,
            current: GaugeVec::new(
                Opts::new(
                    "headway_operator_savings_current",
                    "1 while the savings of a SplitModel are up to date.",
                ),
                &["namespace", "splitmodel"],
            )?,
            degraded: GaugeVec::new(
                Opts::new(
                    "headway_operator_degraded",
                    "1 for a SplitModel with the condition Degraded, by the condition's reason.",
                ),
                &["namespace", "splitmodel", "reason"],
            )?,
        })
    }

    fn collectors(&self) -> [&dyn Collector; 8] {
        // Exhaustive, so that none is forgotten.
        let Self {
            used,
            saved,
            tokens,
            answers,
            unread_endings,
            money,
            current,
            degraded,
        } = self;
        [
            used,
            saved,
            tokens,
            answers,
            unread_endings,
            money,
            current,
            degraded,
        ]
    }

    fn add(&self, splitmodel: &SplitModel) {
        let Some(status) = &splitmodel.status else {
            return;
        };
        let (namespace, name) = (
            splitmodel.namespace().unwrap_or_default(),
            splitmodel.name_any(),
        );
        let own = [namespace.as_str(), name.as_str()];
        let conditions = status.conditions.iter();
        for condition in conditions.filter(|condition| condition.type_ == "Degraded") {
            let labels = [&own[..], &[condition.reason.as_str()]].concat();
            if condition.status == "True" {
                self.degraded.with_label_values(&labels).set(1.0);
            }
        }
        if let Some(savings) = &status.savings {
            self.add_savings(&own, savings, splitmodel.spec.pricing.as_ref());
            let mut conditions = status.conditions.iter();
            let is_current = conditions
                .any(|condition| condition.type_ == CURRENT && condition.status == "True");
            let current = self.current.with_label_values(&own);
            current.set(if is_current { 1.0 } else { 0.0 });
        }
    }

    fn add_savings(&self, own: &[&str; 2], savings: &Savings, pricing: Option<&Pricing>) {
        let add = |family: &CounterVec, label: &[&str], value: f64| {
            let labels = [&own[..], label].concat();
            family.with_label_values(&labels).inc_by(value.max(0.0));
        };
        add(&self.used, &[], savings.used_gpu_seconds);
        for (term, seconds) in terms(savings) {
            add(&self.saved, &[term], seconds);
        }
        let Tokens { tails, devices } = savings.tokens;
        for (by, count) in [("tails", tails), ("devices", devices)] {
            add(&self.tokens, &[by], as_f64(count));
        }
        let Answers {
            split,
            tail,
            on_device,
        } = savings.answers;
        for (route, count) in [("split", split), ("tail", tail), ("on_device", on_device)] {
            add(&self.answers, &[route], as_f64(count));
        }
        add(&self.unread_endings, &[], as_f64(savings.unread_endings));
        if let Some(pricing) = pricing {
            let labels = [&own[..], &[pricing.currency.as_str()]].concat();
            let amount = pricing.amount(savings.saved_gpu_seconds);
            self.money.with_label_values(&labels).set(amount);
        }
    }
}

fn terms(savings: &Savings) -> [(&'static str, f64); 4] {
    [
        ("head_layers", savings.head_layers_gpu_seconds),
        ("on_device_answers", savings.on_device_answers_gpu_seconds),
        ("accepted_drafts", savings.accepted_drafts_gpu_seconds),
        ("reused_prefixes", savings.reused_prefixes_gpu_seconds),
    ]
}

#[allow(
    clippy::cast_precision_loss,
    reason = "Prometheus has no other numbers"
)]
fn as_f64(count: i64) -> f64 {
    count as f64
}

impl StatusCollector {
    pub(super) fn new() -> prometheus::Result<Self> {
        Ok(Self {
            splitmodels: Arc::default(),
            families: Arc::new(Families::new()?),
        })
    }

    /// From now on, shows the statuses of `splitmodels`.
    pub(super) fn show(&self, splitmodels: Vec<Arc<SplitModel>>) {
        *self
            .splitmodels
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = splitmodels;
    }
}

impl Collector for StatusCollector {
    fn desc(&self) -> Vec<&Desc> {
        let all = self.families.collectors().into_iter();
        all.flat_map(|family| family.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok(families) = Families::new() else {
            return Vec::new();
        };
        let splitmodels = self
            .splitmodels
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for splitmodel in &splitmodels {
            families.add(splitmodel);
        }
        let all = families.collectors().into_iter();
        all.flat_map(Collector::collect).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    pub(crate) fn splitmodel() -> SplitModel {
        let splitmodel = json!({
            "metadata": {"name": "smol", "namespace": "ml"},
            "spec": {
                "model": {"source": "hf://org/smol"},
                "auth": {"allowAnonymous": true},
                "pricing": {"gpuHour": "2.40", "currency": "EUR"},
            },
            "status": {
                "savings": {
                    "usedGpuSeconds": 12.5,
                    "savedGpuSeconds": 3600,
                    "headLayersGpuSeconds": 3600,
                    "tokens": {"tails": 70},
                    "answers": {"split": 3},
                },
                "conditions": [{
                    "type": "SavingsCurrent", "status": "True", "reason": "AllScraped", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }, {
                    "type": "Degraded", "status": "True", "reason": "RolloutStopped", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }],
            },
        });
        serde_json::from_value(splitmodel).unwrap()
    }

    #[test]
    fn values_are_those_of_the_status_however_often_they_are_asked_for() {
        let collector = StatusCollector::new().unwrap();
        collector.show(vec![Arc::new(splitmodel())]);
        let registry = prometheus::Registry::new();
        registry.register(Box::new(collector.clone())).unwrap();
        for _ in 0..2 {
            let text = prometheus::TextEncoder::new()
                .encode_to_string(&registry.gather())
                .unwrap();
            for line in [
                "headway_operator_used_gpu_seconds_total{namespace=\"ml\",splitmodel=\"smol\"} 12.5",
                "headway_operator_saved_gpu_seconds_total{namespace=\"ml\",splitmodel=\"smol\",term=\"head_layers\"} 3600",
                "headway_operator_output_tokens_total{by=\"tails\",namespace=\"ml\",splitmodel=\"smol\"} 70",
                "headway_operator_answers_total{namespace=\"ml\",route=\"split\",splitmodel=\"smol\"} 3",
                "headway_operator_money_saved{currency=\"EUR\",namespace=\"ml\",splitmodel=\"smol\"} 2.4",
                "headway_operator_savings_current{namespace=\"ml\",splitmodel=\"smol\"} 1",
                "headway_operator_degraded{namespace=\"ml\",reason=\"RolloutStopped\",splitmodel=\"smol\"} 1",
                "# TYPE headway_operator_used_gpu_seconds_total counter",
            ] {
                assert!(text.contains(line), "{line} is not in\n{text}");
            }
        }
        collector.show(Vec::new());
        assert!(registry.gather().is_empty());
    }
}
