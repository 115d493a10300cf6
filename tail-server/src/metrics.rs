//! What `/metrics` tells, in Prometheus' text format. `docs/tail-metrics.md` lists it all.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use prometheus::core::Collector;
use prometheus::{
    Counter, CounterVec, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge,
    Opts, Registry, TextEncoder,
};

use crate::accounting::Share;
use crate::batcher::Phase;
use crate::reload::Reloaded;

/// Upper bounds of the queue delay's buckets, in seconds: 0.5 ms to 16 s, each twice the one before.
const QUEUE_DELAY_BUCKETS: (f64, f64, usize) = (0.0005, 2.0, 16);

/// 5 ms to 41 s: a prompt's upload and all its rows.
const FIRST_TOKEN_BUCKETS: (f64, f64, usize) = (0.005, 2.0, 14);

/// 1 ms to 4 s: one row in a step with others.
const OUTPUT_TOKEN_BUCKETS: (f64, f64, usize) = (0.001, 2.0, 13);

/// What the layers that ran on devices saved. The other terms (on-device answers, accepted drafts, reused
/// prefixes) are never mixed with this one.
const HEAD_LAYERS: &str = "head_layers";

/// The values of the label `result`: good and bad.
const RELOAD_RESULTS: [&str; 2] = ["ok", "failed"];

/// The tail's counters. One instance for each server, so that tests beside each other do not mix.
pub struct Metrics {
    registry: Registry,
    start_time_seconds: Gauge,
    pub(crate) steps: IntCounter,
    /// Engine steps that came to nothing.
    pub(crate) engine_faults: IntCounter,
    /// 1 while the engine cannot be relied on.
    pub(crate) engine_stalled: IntGauge,
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
    time_to_first_token_seconds: Histogram,
    time_per_output_token_seconds: Histogram,
    /// Reserved by sessions.
    pub(crate) kv_bytes: IntGauge,
    pub(crate) kv_limit_bytes: IntGauge,
    pub(crate) draining: IntGauge,
    pub(crate) weight_bytes: IntGauge,
    /// Sessions whose prompt is not computed yet.
    pub(crate) queued_prompts: IntGauge,
    reloads: IntCounterVec,
}

/// What a tail has done up to a moment: the counters that outlive it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Counters {
    /// When the tail started, in seconds since 1970.
    pub(crate) start_time_seconds: f64,
    pub(crate) busy_seconds: f64,
    pub(crate) compute_seconds: f64,
    /// By term.
    pub(crate) saved_seconds: BTreeMap<String, f64>,
    /// By phase.
    pub(crate) tokens: BTreeMap<String, u64>,
    pub(crate) sessions_opened: u64,
}

impl Metrics {
    /// All metrics at zero, for a tail that starts now.
    ///
    /// # Errors
    /// Where a metric has a wrong name, or two have the same.
    pub fn new() -> Result<Self, prometheus::Error> {
        let metrics = Self::unregistered()?;
        for collector in metrics.collectors() {
            metrics.registry.register(collector)?;
        }
        // At zero from the start, so that the first increase is seen as one.
        metrics.saved_seconds.with_label_values(&[HEAD_LAYERS]);
        for phase in Phase::ALL {
            metrics.tokens.with_label_values(&[phase.name()]);
        }
        let since_1970 = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        // Whole milliseconds: a number that survives any reader.
        #[allow(
            clippy::cast_precision_loss,
            reason = "milliseconds since 1970 are far below 2^52"
        )]
        let start_time_seconds = since_1970.as_millis() as f64 / 1e3;
        metrics.start_time_seconds.set(start_time_seconds);
        Ok(metrics)
    }

    #[allow(
        clippy::too_many_lines,
        reason = "a list: each metric's name and what it says"
    )]
    fn unregistered() -> Result<Self, prometheus::Error> {
        Ok(Self {
            registry: Registry::new(),
            start_time_seconds: Gauge::new(
                "headway_tail_start_time_seconds",
                "When the tail started, in seconds since 1970.",
            )?,
            engine_faults: IntCounter::new(
                "headway_tail_engine_faults_total",
                "Engine steps that failed; their sessions were refused.",
            )?,
            engine_stalled: IntGauge::new(
                "headway_tail_engine_stalled",
                "1 while the engine has work and a step is overdue, or its thread has ended.",
            )?,
            time_to_first_token_seconds: histogram(
                "headway_tail_time_to_first_token_seconds",
                "From a session's Open to its first token being sent; moved sessions are left out.",
                FIRST_TOKEN_BUCKETS,
            )?,
            time_per_output_token_seconds: histogram(
                "headway_tail_time_per_output_token_seconds",
                "From the arrival of a step to its token being sent, for each token after the first.",
                OUTPUT_TOKEN_BUCKETS,
            )?,
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
            queue_delay_seconds: histogram(
                "headway_tail_queue_delay_seconds",
                "From a step's arrival to its first engine step.",
                QUEUE_DELAY_BUCKETS,
            )?,
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
        })
    }

    fn collectors(&self) -> Vec<Box<dyn Collector>> {
        // Exhaustive, so that a metric cannot be added and not shown.
        let Self {
            registry: _,
            start_time_seconds,
            steps,
            engine_faults,
            engine_stalled,
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
            time_to_first_token_seconds,
            time_per_output_token_seconds,
            kv_bytes,
            kv_limit_bytes,
            draining,
            weight_bytes,
            queued_prompts,
            reloads,
        } = self;
        vec![
            Box::new(start_time_seconds.clone()),
            Box::new(steps.clone()),
            Box::new(engine_faults.clone()),
            Box::new(engine_stalled.clone()),
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
            Box::new(time_to_first_token_seconds.clone()),
            Box::new(time_per_output_token_seconds.clone()),
            Box::new(kv_bytes.clone()),
            Box::new(kv_limit_bytes.clone()),
            Box::new(draining.clone()),
            Box::new(weight_bytes.clone()),
            Box::new(queued_prompts.clone()),
            Box::new(reloads.clone()),
        ]
    }

    /// What the tail has done so far.
    pub(crate) fn counters(&self) -> Counters {
        let tokens = Phase::ALL.map(|phase| {
            let name = phase.name();
            (
                name.to_owned(),
                self.tokens.with_label_values(&[name]).get(),
            )
        });
        let head_layers = self.saved_seconds.with_label_values(&[HEAD_LAYERS]).get();
        Counters {
            start_time_seconds: self.start_time_seconds.get(),
            busy_seconds: self.busy_seconds.get(),
            compute_seconds: self.compute_seconds.get(),
            saved_seconds: BTreeMap::from([(HEAD_LAYERS.to_owned(), head_layers)]),
            tokens: BTreeMap::from(tokens),
            sessions_opened: self.sessions_opened.get(),
        }
    }

    /// One engine step: how long the device was busy, and who is charged for it.
    pub(crate) fn record_step(&self, busy_ns: u64, shares: &[Share]) {
        self.steps.inc();
        self.busy_seconds.inc_by(seconds(busy_ns));
        self.compute_seconds
            .inc_by(seconds(shares.iter().map(|share| share.compute_ns).sum()));
        let saved_ns = shares.iter().map(|share| share.saved_ns).sum();
        self.saved_seconds
            .with_label_values(&[HEAD_LAYERS])
            .inc_by(seconds(saved_ns));
    }

    pub(crate) fn record_tokens(&self, phase: Phase, rows: usize) {
        self.tokens
            .with_label_values(&[phase.name()])
            .inc_by(rows as u64);
    }

    /// How long a token took until it was sent.
    pub(crate) fn record_token_time(&self, time: TokenTime) {
        match time {
            TokenTime::First(took) => self.time_to_first_token_seconds.observe(took.as_secs_f64()),
            TokenTime::Later(took) => self
                .time_per_output_token_seconds
                .observe(took.as_secs_f64()),
        }
    }

    /// `code`: the wire's name of the refusal code, in lower case.
    pub(crate) fn record_refusal(&self, code: &str) {
        self.refusals.with_label_values(&[code]).inc();
    }

    pub(crate) fn record_reload(&self, what: Reloaded, is_good: bool) {
        let [ok, failed] = RELOAD_RESULTS;
        let result = if is_good { ok } else { failed };
        self.reloads.with_label_values(&[what.name(), result]).inc();
    }

    /// All metrics in the text format.
    pub(crate) fn render(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// What a sent token is measured as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenTime {
    /// Since the session's Open.
    First(Duration),
    /// Since the arrival of its step.
    Later(Duration),
}

fn histogram(
    name: &str,
    help: &str,
    buckets: (f64, f64, usize),
) -> Result<Histogram, prometheus::Error> {
    let (start, factor, count) = buckets;
    let options = HistogramOpts::new(name, help);
    Histogram::with_opts(options.buckets(prometheus::exponential_buckets(start, factor, count)?))
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
