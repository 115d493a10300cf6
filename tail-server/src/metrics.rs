//! What `/metrics` tells, in Prometheus' text format. `docs/tail-metrics.md` lists it all.

mod definitions;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use prometheus::{
    Counter, CounterVec, Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Registry, TextEncoder,
};

use crate::accounting::{Share, Term};
use crate::batcher::Phase;
use crate::capacity::gauge_value;
use crate::kv_pool::Counts;
use crate::reload::Reloaded;

/// The values of the label `result`: good and bad.
const RELOAD_RESULTS: [&str; 2] = ["ok", "failed"];

/// The values of the label `verdict`: good and bad.
const DRAFT_VERDICTS: [&str; 2] = ["accepted", "rejected"];

/// The values of the label `state`.
const BLOCK_STATES: [&str; 4] = ["held", "promised", "kept", "free"];

/// The values of the label `part`.
const ANSWER_PARTS: [&str; 2] = ["prompt", "output"];

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
    /// Idle ones whose room was needed.
    pub(crate) sessions_evicted: IntCounter,
    /// Asked to move, so that sessions are spread over tails.
    sessions_rebalanced: IntCounter,
    refusals: IntCounterVec,
    /// From devices to the tail, activations included; WebSocket payloads.
    pub(crate) received_bytes: IntCounter,
    /// From the tail to devices; WebSocket payloads.
    pub(crate) sent_bytes: IntCounter,
    busy_seconds: Counter,
    layers_seconds: Counter,
    logits_seconds: Counter,
    compute_seconds: Counter,
    saved_seconds: CounterVec,
    pub(crate) queue_delay_seconds: Histogram,
    /// Of the engine steps that waited for sessions to come.
    pub(crate) gather_wait_seconds: Histogram,
    time_to_first_token_seconds: Histogram,
    time_per_output_token_seconds: Histogram,
    /// Reserved by sessions.
    pub(crate) kv_bytes: IntGauge,
    pub(crate) kv_limit_bytes: IntGauge,
    kv_blocks: IntGaugeVec,
    /// Positions that sessions found computed.
    pub(crate) reused_positions: IntCounter,
    draft_tokens: IntCounterVec,
    own_draft_tokens: IntCounterVec,
    on_device_tokens: IntCounterVec,
    answers: IntCounterVec,
    /// Sent to devices.
    output_tokens: IntCounter,
    pub(crate) draining: IntGauge,
    pub(crate) weight_bytes: IntGauge,
    /// Sessions whose prompt is not computed yet.
    pub(crate) queued_prompts: IntGauge,
    reloads: IntCounterVec,
    /// Of the model's files, what is here.
    model_download_bytes: IntGauge,
    /// Of the model's files, what is to be here.
    model_size_bytes: IntGauge,
    /// Over the network.
    model_received_bytes: IntCounter,
    model_failures: IntCounterVec,
    model_info: IntGaugeVec,
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
    /// By route.
    pub(crate) answers: BTreeMap<String, u64>,
    pub(crate) output_tokens: u64,
    /// Tokens of answers that devices gave alone, without their prompts.
    pub(crate) on_device_output_tokens: u64,
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
        for term in Term::ALL {
            metrics.saved_seconds.with_label_values(&[term.name()]);
        }
        for verdict in DRAFT_VERDICTS {
            metrics.draft_tokens.with_label_values(&[verdict]);
            metrics.own_draft_tokens.with_label_values(&[verdict]);
        }
        for part in ANSWER_PARTS {
            metrics.on_device_tokens.with_label_values(&[part]);
        }
        for route in Route::ALL {
            metrics.answers.with_label_values(&[route.name()]);
        }
        for state in BLOCK_STATES {
            metrics.kv_blocks.with_label_values(&[state]);
        }
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

    /// What the tail has done so far.
    pub(crate) fn counters(&self) -> Counters {
        let tokens = Phase::ALL.map(|phase| {
            let name = phase.name();
            (
                name.to_owned(),
                self.tokens.with_label_values(&[name]).get(),
            )
        });
        let saved_seconds = Term::ALL.map(|term| {
            let name = term.name();
            let saved = self.saved_seconds.with_label_values(&[name]).get();
            (name.to_owned(), saved)
        });
        let answers = Route::ALL.map(|route| {
            let name = route.name();
            let begun = self.answers.with_label_values(&[name]).get();
            (name.to_owned(), begun)
        });
        let [_, output] = ANSWER_PARTS;
        Counters {
            start_time_seconds: self.start_time_seconds.get(),
            busy_seconds: self.busy_seconds.get(),
            compute_seconds: self.compute_seconds.get(),
            saved_seconds: BTreeMap::from(saved_seconds),
            tokens: BTreeMap::from(tokens),
            sessions_opened: self.sessions_opened.get(),
            answers: BTreeMap::from(answers),
            output_tokens: self.output_tokens.get(),
            on_device_output_tokens: self.on_device_tokens.with_label_values(&[output]).get(),
        }
    }

    /// One engine step: how long the device was busy, and who is charged for it.
    pub(crate) fn record_step(&self, busy_ns: u64, shares: &[Share]) {
        self.steps.inc();
        self.busy_seconds.inc_by(seconds(busy_ns));
        self.compute_seconds
            .inc_by(seconds(shares.iter().map(|share| share.compute_ns).sum()));
        let saved_ns = shares.iter().map(|share| share.saved_ns).sum();
        self.record_saved(Term::HeadLayers, saved_ns);
    }

    /// Of a step's busy time, what its layers took, and the logits behind them.
    pub(crate) fn record_parts(&self, layers_ns: u64, logits_ns: u64) {
        self.layers_seconds.inc_by(seconds(layers_ns));
        self.logits_seconds.inc_by(seconds(logits_ns));
    }

    pub(crate) fn record_saved(&self, term: Term, saved_ns: u64) {
        self.saved_seconds
            .with_label_values(&[term.name()])
            .inc_by(seconds(saved_ns));
    }

    /// A verified draft of `guessed` tokens.
    pub(crate) fn record_draft(&self, guessed: usize, accepted: usize) {
        record_verdicts(&self.draft_tokens, guessed, accepted);
    }

    /// A verified draft of the tail's own, of `guessed` tokens.
    pub(crate) fn record_own_draft(&self, guessed: usize, accepted: usize) {
        record_verdicts(&self.own_draft_tokens, guessed, accepted);
    }

    /// An answer has begun.
    pub(crate) fn record_answer(&self, route: Route) {
        self.answers.with_label_values(&[route.name()]).inc();
    }

    /// `tokens` were sent to a device.
    pub(crate) fn record_output(&self, tokens: usize) {
        self.output_tokens.inc_by(tokens as u64);
    }

    /// An answer that a device gave without the tail.
    pub(crate) fn record_on_device(&self, prompt_tokens: u64, output_tokens: u64) {
        self.record_answer(Route::OnDevice);
        for (part, tokens) in ANSWER_PARTS.iter().zip([prompt_tokens, output_tokens]) {
            self.on_device_tokens
                .with_label_values(&[part])
                .inc_by(tokens);
        }
    }

    /// `sessions` were asked to move to other tails.
    pub(crate) fn record_rebalanced(&self, sessions: usize) {
        self.sessions_rebalanced.inc_by(sessions as u64);
    }

    pub(crate) fn show_kv_blocks(&self, counts: &Counts) {
        let blocks = [counts.held, counts.promised, counts.kept, counts.free];
        for (state, blocks) in BLOCK_STATES.iter().zip(blocks) {
            self.kv_blocks
                .with_label_values(&[state])
                .set(gauge_value(blocks));
        }
    }

    pub(crate) fn record_tokens(&self, phase: Phase, rows: usize) {
        self.tokens
            .with_label_values(&[phase.name()])
            .inc_by(rows as u64);
    }

    /// How long it took until tokens were sent, all of them in one frame.
    pub(crate) fn record_token_time(&self, time: TokenTime) {
        match time {
            TokenTime::First(took) => self.time_to_first_token_seconds.observe(took.as_secs_f64()),
            TokenTime::Later { took, tokens } => {
                let each = took.as_secs_f64() / f64::from(tokens);
                for _ in 0..tokens {
                    self.time_per_output_token_seconds.observe(each);
                }
            }
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

    /// How much of the model's files is here and is to be here; `came_bytes` more have come over the network.
    pub(crate) fn record_delivery(&self, done_bytes: u64, total_bytes: u64, came_bytes: u64) {
        let gauge = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.model_download_bytes.set(gauge(done_bytes));
        self.model_size_bytes.set(gauge(total_bytes));
        self.model_received_bytes.inc_by(came_bytes);
    }

    /// The model could not be fetched or loaded.
    pub(crate) fn record_delivery_failure(&self, reason: &str) {
        self.model_failures.with_label_values(&[reason]).inc();
    }

    /// Which model is served.
    pub(crate) fn show_model(&self, digest: &str, commit: Option<&str>) {
        let labels = [digest, commit.unwrap_or_default()];
        self.model_info.with_label_values(&labels).set(1);
    }

    /// All metrics in the text format.
    pub(crate) fn render(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// Where the layers of an answer ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// The first on the device, the others here.
    Split,
    /// All of them here.
    Tail,
    /// All of them on the device, which told of it.
    OnDevice,
}

impl Route {
    pub(crate) const ALL: [Self; 3] = [Self::Split, Self::Tail, Self::OnDevice];

    /// The route of a session with this split layer.
    pub(crate) const fn of_session(split_layer: u32) -> Self {
        match split_layer {
            0 => Self::Tail,
            _ => Self::Split,
        }
    }

    /// The value of the label `route`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Split => "split",
            Self::Tail => "tail",
            Self::OnDevice => "on_device",
        }
    }
}

/// What a sent token is measured as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenTime {
    /// Since the session's Open.
    First(Duration),
    /// Since the arrival of their step. More than one where draft tokens were right.
    Later { took: Duration, tokens: u32 },
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a step's nanoseconds are far below 2^52"
)]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn record_verdicts(counters: &IntCounterVec, guessed: usize, accepted: usize) {
    for (verdict, tokens) in DRAFT_VERDICTS.iter().zip([accepted, guessed - accepted]) {
        let counter = counters.with_label_values(&[verdict]);
        counter.inc_by(tokens as u64);
    }
}
