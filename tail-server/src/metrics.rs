//! What `/metrics` tells, in Prometheus' text format.

use prometheus::{
    Counter, CounterVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry, TextEncoder,
};

use crate::accounting::Share;
use crate::batcher::Phase;

/// Upper bounds of the queue delay's buckets, in seconds: 0.5 ms to 16 s, each twice the one before.
const QUEUE_DELAY_BUCKETS: (f64, f64, usize) = (0.0005, 2.0, 16);

/// The tail's counters. One instance for each server, so that tests beside each other do not mix.
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) steps: IntCounter,
    tokens: IntCounterVec,
    /// Sessions that hold a KV cache.
    pub(crate) sessions: IntGauge,
    pub(crate) sessions_opened: IntCounter,
    pub(crate) sessions_resumed: IntCounter,
    refusals: IntCounterVec,
    /// From devices to the tail, activations included; WebSocket payloads.
    pub(crate) received_bytes: IntCounter,
    /// From the tail to devices; WebSocket payloads.
    pub(crate) sent_bytes: IntCounter,
    busy_seconds: Counter,
    compute_seconds: Counter,
    saved_seconds: CounterVec,
    pub(crate) queue_delay_seconds: Histogram,
    /// Reserved by sessions.
    pub(crate) kv_bytes: IntGauge,
    pub(crate) kv_limit_bytes: IntGauge,
    pub(crate) draining: IntGauge,
    pub(crate) weight_bytes: IntGauge,
    /// Sessions whose prompt is not computed yet.
    pub(crate) queued_prompts: IntGauge,
    reloads: IntCounterVec,
}

impl Metrics {
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let (start, factor, count) = QUEUE_DELAY_BUCKETS;
        let queue_delay = HistogramOpts::new(
            "headway_tail_queue_delay_seconds",
            "From a step's arrival to its first engine step.",
        )
        .buckets(prometheus::exponential_buckets(start, factor, count)?);
        let metrics = Self {
            registry: Registry::new(),
            steps: IntCounter::new("headway_tail_steps_total", "Engine steps.")?,
            tokens: counters(
                "headway_tail_tokens_total",
                "Rows that passed the tail layers.",
                "phase",
            )?,
            sessions: IntGauge::new("headway_tail_sessions", "Sessions that hold a KV cache.")?,
            sessions_opened: IntCounter::new(
                "headway_tail_sessions_opened_total",
                "Sessions opened.",
            )?,
            sessions_resumed: IntCounter::new(
                "headway_tail_sessions_resumed_total",
                "Sessions rebuilt from another tail.",
            )?,
            refusals: counters(
                "headway_tail_refusals_total",
                "Refusals sent to devices.",
                "code",
            )?,
            received_bytes: IntCounter::new(
                "headway_tail_received_bytes_total",
                "Payload bytes from devices.",
            )?,
            sent_bytes: IntCounter::new(
                "headway_tail_sent_bytes_total",
                "Payload bytes to devices.",
            )?,
            busy_seconds: Counter::new(
                "headway_tail_busy_seconds_total",
                "Time the device was busy.",
            )?,
            compute_seconds: Counter::new(
                "headway_tail_compute_seconds_total",
                "Device time attributed to sessions; equals the busy time.",
            )?,
            saved_seconds: CounterVec::new(
                Opts::new(
                    "headway_tail_saved_seconds_total",
                    "Device time saved, by what saved it.",
                ),
                &["term"],
            )?,
            queue_delay_seconds: Histogram::with_opts(queue_delay)?,
            kv_bytes: IntGauge::new("headway_tail_kv_bytes", "KV cache reserved by sessions.")?,
            kv_limit_bytes: IntGauge::new(
                "headway_tail_kv_limit_bytes",
                "The most KV cache of all sessions.",
            )?,
            draining: IntGauge::new(
                "headway_tail_draining",
                "1 while the tail lets its sessions leave.",
            )?,
            weight_bytes: IntGauge::new(
                "headway_tail_weight_bytes",
                "Memory that the tail's weights take.",
            )?,
            queued_prompts: IntGauge::new(
                "headway_tail_queued_prompts",
                "Sessions whose prompt is not computed yet.",
            )?,
            reloads: IntCounterVec::new(
                Opts::new(
                    "headway_tail_reloads_total",
                    "Files and key sets that were read again: tls, auth_keys, oidc_jwks; ok or failed.",
                ),
                &["what", "result"],
            )?,
        };
        metrics.register()?;
        Ok(metrics)
    }

    fn register(&self) -> Result<(), prometheus::Error> {
        // Exhaustive, so that a metric cannot be added and not shown.
        let Self {
            registry,
            steps,
            tokens,
            sessions,
            sessions_opened,
            sessions_resumed,
            refusals,
            received_bytes,
            sent_bytes,
            busy_seconds,
            compute_seconds,
            saved_seconds,
            queue_delay_seconds,
            kv_bytes,
            kv_limit_bytes,
            draining,
            weight_bytes,
            queued_prompts,
            reloads,
        } = self;
        let collectors: [Box<dyn prometheus::core::Collector>; 18] = [
            Box::new(steps.clone()),
            Box::new(tokens.clone()),
            Box::new(sessions.clone()),
            Box::new(sessions_opened.clone()),
            Box::new(sessions_resumed.clone()),
            Box::new(refusals.clone()),
            Box::new(received_bytes.clone()),
            Box::new(sent_bytes.clone()),
            Box::new(busy_seconds.clone()),
            Box::new(compute_seconds.clone()),
            Box::new(saved_seconds.clone()),
            Box::new(queue_delay_seconds.clone()),
            Box::new(kv_bytes.clone()),
            Box::new(kv_limit_bytes.clone()),
            Box::new(draining.clone()),
            Box::new(weight_bytes.clone()),
            Box::new(queued_prompts.clone()),
            Box::new(reloads.clone()),
        ];
        collectors
            .into_iter()
            .try_for_each(|collector| registry.register(collector))
    }

    /// One engine step: how long the device was busy, and who is charged for it.
    pub(crate) fn record_step(&self, busy_ns: u64, shares: &[Share]) {
        self.steps.inc();
        self.busy_seconds.inc_by(seconds(busy_ns));
        self.compute_seconds
            .inc_by(seconds(shares.iter().map(|share| share.compute_ns).sum()));
        // The other terms (on-device answers, accepted drafts, reused prefixes) are never mixed with this one.
        let saved_ns = shares.iter().map(|share| share.saved_ns).sum();
        self.saved_seconds
            .with_label_values(&["head_layers"])
            .inc_by(seconds(saved_ns));
    }

    pub(crate) fn record_tokens(&self, phase: Phase, rows: usize) {
        self.tokens
            .with_label_values(&[phase.name()])
            .inc_by(rows as u64);
    }

    /// `code`: the wire's name of the refusal code, in lower case.
    pub(crate) fn record_refusal(&self, code: &str) {
        self.refusals.with_label_values(&[code]).inc();
    }

    /// `what`: the name of what was read again; few, and none from outside.
    pub(crate) fn record_reload(&self, what: &str, is_good: bool) {
        let result = if is_good { "ok" } else { "failed" };
        self.reloads.with_label_values(&[what, result]).inc();
    }

    /// All metrics in the text format.
    pub(crate) fn render(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

fn counters(name: &str, help: &str, label: &str) -> Result<IntCounterVec, prometheus::Error> {
    IntCounterVec::new(Opts::new(name, help), &[label])
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a step's nanoseconds are far below 2^52"
)]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributed_time_equals_busy_time_in_the_text() {
        let metrics = Metrics::new().unwrap();
        let shares = [
            Share {
                compute_ns: 1_500_000_000,
                saved_ns: 250_000_000,
            },
            Share {
                compute_ns: 500_000_000,
                saved_ns: 0,
            },
        ];
        metrics.record_step(2_000_000_000, &shares);
        metrics.record_tokens(Phase::Decode, 3);
        metrics.record_refusal("over_limit");
        let text = metrics.render().unwrap();
        for line in [
            "headway_tail_busy_seconds_total 2",
            "headway_tail_compute_seconds_total 2",
            "headway_tail_saved_seconds_total{term=\"head_layers\"} 0.25",
            "headway_tail_tokens_total{phase=\"decode\"} 3",
            "headway_tail_refusals_total{code=\"over_limit\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
