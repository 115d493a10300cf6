//! What the simulation counts with: each number says where it was measured, or that nobody has.
//!
//! *Measured*: seen by a benchmark of this repository on the machine that its page names. *Computed*: follows from
//! measured numbers or from a model's shape. *Read*: a constant of this repository's code. *Assumed*: nobody measured it
//! here; `sensitivity.rs` shows what half and double of it change.

use super::events::{Micros, SECOND};
use super::scenario::{
    Arrivals, DeviceClass, Length, RetryPolicy, Scenario, TailShape, Task, Workload,
};
use super::step_costs::{Curve, StepCosts};

/// Layers of the model, a Llama-3.1-8B.
const LAYERS: u16 = 32;

/// One layer without attention by rows, in microseconds. Computed from `docs/benchmarks/cuda.md`, *Steps*, one H200 and
/// bf16: (device time of 16 layers − logits) / 16 − attention, at 1, 8, 64 and 256 sessions of 512 positions; prompts of
/// 512 and 2,048 tokens, whose attention stays in it. 2,275, 2,323, 3,039, 6,281, 6,797 and 25,528 us were measured.
const LAYER_US: [(f64, f64); 6] = [
    (1.0, 119.0),
    (8.0, 119.1),
    (64.0, 134.3),
    (256.0, 222.3),
    (512.0, 408.8),
    (2048.0, 1579.4),
];

/// One layer's attention for a row and a position, in microseconds: 36.0 us for 64 sessions of 512 positions. Measured,
/// `docs/benchmarks/cuda.md`, *Attention*.
const ATTENTION_US: f64 = 36.0 / (64.0 * 512.0);

/// Attention of one row of 512 positions, in microseconds. Measured, as above.
const LEAST_ATTENTION_US: f64 = 7.1;

/// `lm_head` and greedy sampling by rows, in microseconds. Measured at 1 and 64 rows, `docs/benchmarks/cuda.md`, *Products*
/// and *Sampling*; at 256 computed: operations at 794 TFLOP/s, and the measured sampling of 55.5 us.
const LOGITS_US: [(f64, f64); 3] = [(1.0, 257.0), (64.0, 314.0), (256.0, 420.0)];

/// The host's share of a step. Measured, `docs/benchmarks/cuda.md`, *Serving*: 3.1 to 4.9 %.
const HOST_SHARE: f64 = 0.042;

/// The most rows of a step on a GPU. Read: `tail-server --step-tokens`.
const STEP_ROWS: u32 = 1024;

/// Sessions of one tail: the most that `docs/benchmarks/cuda.md`, *Serving*, has measured; `--max-sessions`.
pub(super) const MAX_SESSIONS: u32 = 256;

/// Prompts that wait. Read: `tail-server --max-queue`.
const MAX_QUEUED_PROMPTS: u32 = 256;

/// Computed: 143 GB less 9 GB of weights, less a tenth, as `--max-kv-bytes` says.
const KV_BYTES: u64 = 120_000_000_000;

/// Computed: keys and values of 8 heads of 128 in bf16.
const KV_BYTES_POSITION_LAYER: u64 = 2 * 8 * 128 * 2;

/// Bytes of a row on the way up: codec f16, 4,096 values, and a frame's 30. Computed; `docs/benchmarks/split.md` measured
/// 1,182 for 576 values.
const ROW_BYTES: f64 = 8_222.0;

/// Round trips before a tail has a session's Open: TCP, WebSocket and half of the Open's own, which
/// `docs/benchmarks/split.md` shows (first tokens grow by three round trips), and one of TLS 1.3, which is assumed.
const OPENING_RTTS: f64 = 3.5;

/// Mean of what is added to each way, as a share of the round trip. Assumed.
const NETWORK_JITTER: f64 = 0.05;

/// Mean time from an answer to the next request of a device in the busiest hour. Assumed.
pub(super) const THINK_S: f64 = 300.0;

/// Tokens of prompts and answers. Assumed: chat with some long inputs; means 330 and 255.
const PROMPT: Length = Length {
    median: 200.0,
    sigma: 1.0,
    least: 8,
    most: 8_192,
};
const ANSWER: Length = Length {
    median: 170.0,
    sigma: 0.9,
    least: 1,
    most: 1_024,
};

/// What devices ask room for, beside the prompt. Assumed: `max_tokens` of 1,024.
const ANSWER_ROOM: u32 = 1_024;

/// Text that stands in the prompt: by lookup 3.4 to 4.1 tokens a step, 60 to 64 % of guesses right. Measured on SmolLM2,
/// `docs/benchmarks/drafts.md`; four guesses that are right with 0.8 each give 3.36 and 59 %. That a third of answers is
/// so is assumed.
const REPEATING: Task = Task {
    share: 0.3,
    guesses: 4,
    acceptance: 0.8,
};

/// New text: by lookup 1.09 to 1.14 tokens a step, 9 to 16 % of guesses right, less than one guess a step. Measured, as
/// above; one guess that is right with 0.11.
const NEW: Task = Task {
    share: 0.7,
    guesses: 1,
    acceptance: 0.11,
};

/// Kinds of devices. All of this is assumed: no device but the machines of the benchmarks was measured. Times are those of
/// weights in 4 bits (0.12 GB a layer) at 40, 130 and 330 GB/s; round trips those of mobile, wireless and wired networks.
fn devices() -> Vec<DeviceClass> {
    let class = |name, share, split_layer, layer_us: f64| {
        let layers = f64::from(split_layer);
        DeviceClass {
            name,
            share,
            split_layer,
            token_us: [layers * layer_us; 2],
            // Rows of a prompt share the weights.
            prompt_row_us: layers * layer_us / 8.0,
            rtt_us: 0.0,
            rtt_sigma: 0.5,
            uplink: 0.0,
            row_bytes: ROW_BYTES,
        }
    };
    let reached = |class: DeviceClass, rtt_ms: f64, uplink_mbit: f64| DeviceClass {
        rtt_us: rtt_ms * 1e3,
        uplink: uplink_mbit / 8.0,
        ..class
    };
    vec![
        reached(class("phone", 0.5, 8, 3_000.0), 60.0, 20.0),
        reached(class("laptop", 0.35, 16, 900.0), 30.0, 50.0),
        reached(class("workstation", 0.15, 24, 360.0), 15.0, 200.0),
    ]
}

/// What a device does after a failure. Read: `edge_lite::ReconnectPolicy`, `ClientConfig`'s timeouts, `recovery.rs` (half
/// of a back-off is left to chance, nothing of a retry-after), and the tail's `RETRY_AFTER_MS`.
pub(super) const RETRY: RetryPolicy = RetryPolicy {
    max_attempts: 16,
    min_backoff: 100_000,
    max_backoff: 5 * SECOND,
    jitter: 0.5,
    retry_after_jitter: 0.0,
    deadline: 60 * SECOND,
    retry_after: SECOND,
    connect_timeout: 10 * SECOND,
    silence: 8 * SECOND,
};

/// How long a node that says nothing still gets connections: the controller manager's `--node-monitor-grace-period`. Read
/// in Kubernetes' documentation.
pub(super) const NODE_GRACE: Micros = 40 * SECOND;

/// A tail on an H200.
pub(super) fn h200() -> TailShape {
    TailShape {
        max_sessions: MAX_SESSIONS,
        max_queued_prompts: MAX_QUEUED_PROMPTS,
        step_rows: STEP_ROWS,
        kv_bytes: KV_BYTES,
        kv_bytes_position_layer: KV_BYTES_POSITION_LAYER,
        costs: StepCosts {
            layers: LAYERS,
            layer_us: Curve::new(&LAYER_US),
            attention_us: ATTENTION_US,
            least_attention_us: LEAST_ATTENTION_US,
            logits_us: Curve::new(&LOGITS_US),
            host_share: HOST_SHARE,
        },
    }
}

/// So many devices on so many tails of one cluster, for two minutes of which the first is not counted.
pub(super) fn fleet(devices_count: u32, tails: u32, seed: u64) -> Scenario {
    Scenario {
        seed,
        classes: devices(),
        arrivals: Arrivals::Thinking {
            devices: devices_count,
            think_us: THINK_S * 1e6,
        },
        workload: Workload {
            prompt: PROMPT,
            answer: ANSWER,
            answer_room: ANSWER_ROOM,
            tasks: vec![REPEATING, NEW],
            network_jitter: NETWORK_JITTER,
            opening_rtts: OPENING_RTTS,
        },
        tails,
        tail: h200(),
        retry: RETRY,
        outage: None,
        warm_up: 60 * SECOND,
        horizon: 120 * SECOND,
        drains: false,
    }
}

/// The same with everything on the tails: token ids go up, nothing is guessed, devices compute nothing.
pub(super) fn all_cloud(fleet: &Scenario) -> Scenario {
    let mut cloud = fleet.clone();
    for class in &mut cloud.classes {
        class.split_layer = 0;
        class.token_us = [0.0; 2];
        class.prompt_row_us = 0.0;
        // A token id and a frame around it.
        class.row_bytes = 34.0;
    }
    for task in &mut cloud.workload.tasks {
        task.guesses = 0;
    }
    cloud
}
