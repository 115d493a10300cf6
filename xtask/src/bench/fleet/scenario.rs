//! What is simulated: devices, their requests, tails, and what happens to them.

use super::events::Micros;
use super::random::Random;
use super::step_costs::StepCosts;

/// Kinds of devices that one simulation can have.
pub(super) const MAX_CLASSES: usize = 4;

/// Everything that a run depends on, the seed included.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) seed: u64,
    /// At most [`MAX_CLASSES`], in the order of their split layers.
    pub(super) classes: Vec<DeviceClass>,
    pub(super) arrivals: Arrivals,
    pub(super) workload: Workload,
    pub(super) tails: u32,
    pub(super) tail: TailShape,
    pub(super) retry: RetryPolicy,
    pub(super) outage: Option<Outage>,
    /// Nothing is counted before.
    pub(super) warm_up: Micros,
    /// No request comes and nothing is counted after.
    pub(super) horizon: Micros,
    /// Whether what was begun is played to its end after the horizon.
    pub(super) drains: bool,
}

/// Devices of one kind.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct DeviceClass {
    pub(super) name: &'static str,
    /// Of all devices.
    pub(super) share: f64,
    /// Layers that it runs.
    pub(super) split_layer: u16,
    /// What its layers take for the rows of one token, at least and at most, in microseconds.
    pub(super) token_us: [f64; 2],
    /// What its layers take for one row of a prompt, in microseconds.
    pub(super) prompt_row_us: f64,
    /// Median of devices' round trips, in microseconds.
    pub(super) rtt_us: f64,
    /// Deviation of the logarithm of round trips between devices.
    pub(super) rtt_sigma: f64,
    /// Uplink in bytes a microsecond.
    pub(super) uplink: f64,
    /// Bytes that one row is on the way up.
    pub(super) row_bytes: f64,
}

/// When requests come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Arrivals {
    /// Each device thinks for an exponential time between the end of an answer and its next request.
    Thinking {
        /// There are so many.
        devices: u32,
        /// Mean, in microseconds.
        think_us: f64,
    },
    /// So many requests at all, which come evenly over this time.
    Crowd {
        /// There are so many.
        requests: u32,
        /// In microseconds.
        over_us: f64,
    },
}

/// What is asked and answered.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Workload {
    pub(super) prompt: Length,
    pub(super) answer: Length,
    /// Tokens for which room is asked, beside the prompt.
    pub(super) answer_room: u32,
    /// Kinds of answers; shares add up to 1.
    pub(super) tasks: Vec<Task>,
    /// Added to each way of a message, as a mean share of the round trip.
    pub(super) network_jitter: f64,
    /// Round trips from the first packet to the tail's knowing of the session.
    pub(super) opening_rtts: f64,
}

/// How well an answer can be guessed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Task {
    /// Of all answers.
    pub(super) share: f64,
    /// Guesses behind each row.
    pub(super) guesses: u32,
    /// How likely each is right where those before it are.
    pub(super) acceptance: f64,
}

/// A number of tokens, log-normal within bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Length {
    pub(super) median: f64,
    pub(super) sigma: f64,
    pub(super) least: u32,
    pub(super) most: u32,
}

impl Length {
    /// Always the same.
    #[cfg(test)]
    pub(super) fn fixed(tokens: u32) -> Self {
        Self {
            median: f64::from(tokens),
            sigma: 0.0,
            least: tokens,
            most: tokens,
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates, and is bounded"
    )]
    pub(super) fn draw(&self, random: &mut Random) -> u32 {
        let drawn = random.log_normal(self.median, self.sigma).round() as u32;
        drawn.clamp(self.least, self.most)
    }
}

/// One tail's limits and costs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TailShape {
    pub(super) max_sessions: u32,
    pub(super) max_queued_prompts: u32,
    /// The most rows of one step.
    pub(super) step_rows: u32,
    pub(super) kv_bytes: u64,
    /// Keys and values of one position in one layer.
    pub(super) kv_bytes_position_layer: u64,
    pub(super) costs: StepCosts,
}

/// What a device does after a failure; `edge_lite::ReconnectPolicy`, and what else its waits depend on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct RetryPolicy {
    /// Attempts after a failure, counted anew from each token on.
    pub(super) max_attempts: u32,
    pub(super) min_backoff: Micros,
    pub(super) max_backoff: Micros,
    /// The share of a back-off that is left to chance.
    pub(super) jitter: f64,
    /// What is added to a tail's retry-after at most, as a share of it.
    pub(super) retry_after_jitter: f64,
    /// No attempt begins later than this after the failure.
    pub(super) deadline: Micros,
    /// What a tail that has no room asks for.
    pub(super) retry_after: Micros,
    /// A connection that is not there after this fails.
    pub(super) connect_timeout: Micros,
    /// A connection that says nothing for this is lost.
    pub(super) silence: Micros,
}

/// Tails that are lost at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Outage {
    pub(super) at: Micros,
    /// Of all tails.
    pub(super) share: f64,
    /// Whether nothing answers for them, as when a zone has no power. Otherwise connections are reset at once.
    pub(super) is_silent: bool,
    /// How long new connections are still sent to them.
    pub(super) listed_for: Micros,
}
