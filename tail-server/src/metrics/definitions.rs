//! Each metric's name, help and buckets, once.

use prometheus::core::Collector;
use prometheus::{
    Counter, CounterVec, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

use super::Metrics;

/// Upper bounds of the queue delay's buckets, in seconds: 0.5 ms to 16 s, each twice the one before.
const QUEUE_DELAY_BUCKETS: (f64, f64, usize) = (0.0005, 2.0, 16);

/// 50 us to 0.8 s: at most half of a step.
const GATHER_WAIT_BUCKETS: (f64, f64, usize) = (0.000_05, 2.0, 15);

/// 5 ms to 41 s: a prompt's upload and all its rows.
const FIRST_TOKEN_BUCKETS: (f64, f64, usize) = (0.005, 2.0, 14);

/// 1 ms to 4 s: one row in a step with others.
const OUTPUT_TOKEN_BUCKETS: (f64, f64, usize) = (0.001, 2.0, 13);

impl Metrics {
    #[allow(
        clippy::too_many_lines,
        reason = "a list: each metric's name and what it says"
    )]
    pub(super) fn unregistered() -> Result<Self, prometheus::Error> {
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
            sessions_evicted: IntCounter::new(
                "headway_tail_sessions_evicted_total",
                "Idle sessions that were ended because their room was needed.",
            )?,
            sessions_rebalanced: IntCounter::new(
                "headway_tail_sessions_rebalanced_total",
                "Sessions that were asked to move to another tail.",
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
            layers_seconds: Counter::new(
                "headway_tail_layers_seconds_total",
                "Of the busy time, what the layers took.",
            )?,
            logits_seconds: Counter::new(
                "headway_tail_logits_seconds_total",
                "Of the busy time, what final norm, lm_head and sampling took on the device.",
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
            gather_wait_seconds: histogram(
                "headway_tail_gather_wait_seconds",
                "How long an engine step waited for sessions about to come, of those that did.",
                GATHER_WAIT_BUCKETS,
            )?,
            kv_bytes: IntGauge::new("headway_tail_kv_bytes", "KV cache reserved by sessions.")?,
            kv_limit_bytes: IntGauge::new(
                "headway_tail_kv_limit_bytes",
                "The most KV cache of all sessions.",
            )?,
            kv_blocks: IntGaugeVec::new(
                Opts::new("headway_tail_kv_blocks", "Blocks of KV cache by state."),
                &["state"],
            )?,
            reused_positions: IntCounter::new(
                "headway_tail_reused_positions_total",
                "Positions that sessions found computed.",
            )?,
            draft_tokens: counters(
                "headway_tail_draft_tokens_total",
                "Guessed tokens that were verified.",
                "verdict",
            )?,
            own_draft_tokens: counters(
                "headway_tail_own_draft_tokens_total",
                "Tokens that the tail guessed by itself and verified.",
                "verdict",
            )?,
            on_device_tokens: counters(
                "headway_tail_on_device_tokens_total",
                "Tokens of answers that devices gave without the tail, as they report them.",
                "part",
            )?,
            answers: counters(
                "headway_tail_answers_total",
                "Answers begun, by where their layers ran.",
                "route",
            )?,
            output_tokens: IntCounter::new(
                "headway_tail_output_tokens_total",
                "Tokens sent to devices.",
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
            model_download_bytes: IntGauge::new(
                "headway_tail_model_download_bytes",
                "Of the model's files, what is here.",
            )?,
            model_size_bytes: IntGauge::new(
                "headway_tail_model_size_bytes",
                "Of the model's files, what is to be here.",
            )?,
            model_received_bytes: IntCounter::new(
                "headway_tail_model_received_bytes_total",
                "Of the model's files, what came over the network.",
            )?,
            model_failures: counters(
                "headway_tail_model_failures_total",
                "Attempts to fetch or load the model that failed.",
                "reason",
            )?,
            model_info: IntGaugeVec::new(
                Opts::new("headway_tail_model_info", "1: the model that is served."),
                &["digest", "commit"],
            )?,
        })
    }

    #[expect(clippy::too_many_lines, reason = "two lines a metric")]
    pub(super) fn collectors(&self) -> Vec<Box<dyn Collector>> {
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
            sessions_evicted,
            sessions_rebalanced,
            refusals,
            received_bytes,
            sent_bytes,
            busy_seconds,
            layers_seconds,
            logits_seconds,
            compute_seconds,
            saved_seconds,
            queue_delay_seconds,
            gather_wait_seconds,
            time_to_first_token_seconds,
            time_per_output_token_seconds,
            kv_bytes,
            kv_limit_bytes,
            kv_blocks,
            reused_positions,
            draft_tokens,
            own_draft_tokens,
            on_device_tokens,
            answers,
            output_tokens,
            draining,
            weight_bytes,
            queued_prompts,
            reloads,
            model_download_bytes,
            model_size_bytes,
            model_received_bytes,
            model_failures,
            model_info,
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
            Box::new(sessions_evicted.clone()),
            Box::new(sessions_rebalanced.clone()),
            Box::new(refusals.clone()),
            Box::new(received_bytes.clone()),
            Box::new(sent_bytes.clone()),
            Box::new(busy_seconds.clone()),
            Box::new(layers_seconds.clone()),
            Box::new(logits_seconds.clone()),
            Box::new(compute_seconds.clone()),
            Box::new(saved_seconds.clone()),
            Box::new(queue_delay_seconds.clone()),
            Box::new(gather_wait_seconds.clone()),
            Box::new(time_to_first_token_seconds.clone()),
            Box::new(time_per_output_token_seconds.clone()),
            Box::new(kv_bytes.clone()),
            Box::new(kv_limit_bytes.clone()),
            Box::new(kv_blocks.clone()),
            Box::new(reused_positions.clone()),
            Box::new(draft_tokens.clone()),
            Box::new(own_draft_tokens.clone()),
            Box::new(on_device_tokens.clone()),
            Box::new(answers.clone()),
            Box::new(output_tokens.clone()),
            Box::new(draining.clone()),
            Box::new(weight_bytes.clone()),
            Box::new(queued_prompts.clone()),
            Box::new(reloads.clone()),
            Box::new(model_download_bytes.clone()),
            Box::new(model_size_bytes.clone()),
            Box::new(model_received_bytes.clone()),
            Box::new(model_failures.clone()),
            Box::new(model_info.clone()),
        ]
    }
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
