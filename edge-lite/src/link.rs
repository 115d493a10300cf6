//! The link to a tail: round trip, jitter and bandwidth, estimated from the traffic itself.
//!
//! An exchange is a frame up and its answer down while nothing else is on its way. What the tail says it took is
//! taken off; the rest is the link's:
//!
//! ```text
//! elapsed − tail = round trip + up_bytes · up + down_bytes · down
//! ```
//!
//! with `up` and `down` in seconds a byte. An exchange of few bytes tells the round trip, one of many bytes the
//! bandwidth of its direction. The round trip is smoothed as TCP does it (RFC 6298), jitter is its mean deviation, and
//! the least round trip is that of the last minutes. Bandwidth is smoothed as time for a byte, because that is what
//! predictions add up.
//!
//! Times are of [`Instant`], which no clock that is set can change. One exchange that a sleeping device or a stalled
//! network stretched moves an estimate by a bounded factor only, and later ones move it back. What was not seen for
//! long counts little against what is seen now, and after [`MAX_AGE`] for nothing.

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Fewer bytes than these, both ways together, tell the round trip.
const SMALL_BYTES: u64 = 4 << 10;
/// As many bytes one way tell the bandwidth.
const LARGE_BYTES: u64 = 32 << 10;
/// The weight of a new sample beside a fresh estimate: RFC 6298's alpha, and its beta for the deviation.
const NEW: f64 = 1.0 / 8.0;
const NEW_DEVIATION: f64 = 1.0 / 4.0;
/// An estimate of this age counts as much as the sample that comes.
const HALF_AGE: Duration = Duration::from_secs(30);
/// An estimate of this age is forgotten.
pub const MAX_AGE: Duration = Duration::from_secs(600);
/// For how long the least round trip is kept: of this and the interval before it.
const LEAST_INTERVAL: Duration = Duration::from_secs(120);
/// A sample counts as at most so many times the estimate, and a little.
const MAX_FACTOR: f64 = 4.0;
const MAX_STEP_SECONDS: f64 = 0.1;
/// Below it, time on the wire cannot be told from noise: the bandwidth is then at least what this makes of it.
const NOISE_SECONDS: f64 = 0.0005;

/// What is known of a link at a moment; `None` for what was not seen yet, or not for long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Link {
    /// Smoothed round trip of a small frame and its answer, in milliseconds, without the tail's own time.
    pub rtt_ms: Option<f64>,
    /// The least round trip of the last minutes, in milliseconds.
    pub min_rtt_ms: Option<f64>,
    /// Mean deviation of the round trip, in milliseconds.
    pub jitter_ms: Option<f64>,
    /// From nothing to an open session: connecting, TLS where there is some, and Open, in milliseconds.
    pub open_ms: Option<f64>,
    /// Bits a second from here to the tail.
    pub up_bits_per_second: Option<f64>,
    /// Bits a second from the tail to here.
    pub down_bits_per_second: Option<f64>,
}

/// One frame up and its answer down, with nothing else on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Bytes sent.
    pub up_bytes: u64,
    /// Bytes received.
    pub down_bytes: u64,
    /// From the first byte sent to the last one received.
    pub elapsed: Duration,
    /// Of that, the tail's: waiting for its engine and computing.
    pub tail: Duration,
}

/// Learns what a link is like.
#[derive(Clone, Debug, Default)]
pub struct LinkEstimate {
    rtt: Option<Smoothed>,
    deviation_seconds: f64,
    least: Least,
    open: Option<Smoothed>,
    up: Option<Smoothed>,
    down: Option<Smoothed>,
}

impl LinkEstimate {
    /// Learns from an exchange that ended at `at`.
    pub fn observe(&mut self, at: Instant, exchange: Exchange) {
        let Exchange {
            up_bytes,
            down_bytes,
            elapsed,
            tail,
        } = exchange;
        let seconds = elapsed.saturating_sub(tail).as_secs_f64();
        let on_wire = |of: &Option<Smoothed>, bytes: u64| {
            of.map_or(0.0, |seconds_a_byte| seconds_a_byte.value * float(bytes))
        };
        let (up, down) = (on_wire(&self.up, up_bytes), on_wire(&self.down, down_bytes));
        if up_bytes + down_bytes <= SMALL_BYTES {
            self.observe_rtt(at, (seconds - up - down).max(0.0));
            return;
        }
        // The larger direction is what is learned of.
        let (bytes, other, direction) = if up_bytes >= down_bytes {
            (up_bytes, down, &mut self.up)
        } else {
            (down_bytes, up, &mut self.down)
        };
        let Some(rtt) = self.rtt.filter(|_| bytes >= LARGE_BYTES) else {
            return;
        };
        let left = (seconds - rtt.value - other).max(NOISE_SECONDS);
        let sample = left / float(bytes);
        Smoothed::observe(direction, at, sample, MAX_STEP_SECONDS / float(bytes));
    }

    /// Learns how long a session took to open, at `at`.
    pub fn observe_open(&mut self, at: Instant, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        Smoothed::observe(&mut self.open, at, seconds, MAX_STEP_SECONDS);
    }

    fn observe_rtt(&mut self, at: Instant, seconds: f64) {
        let before = self.rtt.map(|rtt| rtt.value);
        let (seen, gain) = Smoothed::observe(&mut self.rtt, at, seconds, MAX_STEP_SECONDS);
        self.deviation_seconds = match before {
            None => seen / 2.0,
            Some(before) => {
                let gain = gain.max(NEW_DEVIATION);
                self.deviation_seconds + gain * ((seen - before).abs() - self.deviation_seconds)
            }
        };
        self.least.observe(at, seconds);
    }

    /// What is known at `now`.
    #[must_use]
    pub fn link(&self, now: Instant) -> Link {
        let known = |of: &Option<Smoothed>| of.filter(|of| age(of.at, now) < MAX_AGE);
        let rtt = known(&self.rtt);
        let bits = |of: &Option<Smoothed>| Some(8.0 / known(of)?.value);
        Link {
            rtt_ms: rtt.map(|rtt| rtt.value * 1e3),
            min_rtt_ms: rtt.and(self.least.seconds()).map(|least| least * 1e3),
            jitter_ms: rtt.map(|_| self.deviation_seconds * 1e3),
            open_ms: known(&self.open).map(|open| open.value * 1e3),
            up_bits_per_second: bits(&self.up),
            down_bits_per_second: bits(&self.down),
        }
    }
}

/// A running mean, and when it was last added to.
#[derive(Clone, Copy, Debug)]
struct Smoothed {
    value: f64,
    at: Instant,
}

impl Smoothed {
    /// Adds a sample, cut to what one sample may say; gives it back as cut, and its weight.
    fn observe(of: &mut Option<Self>, at: Instant, sample: f64, most_more: f64) -> (f64, f64) {
        let known = of.filter(|known| age(known.at, at) < MAX_AGE);
        let Some(Self { value, at: before }) = known else {
            *of = Some(Self { value: sample, at });
            return (sample, 1.0);
        };
        let sample = sample.min(value * MAX_FACTOR + most_more);
        let halvings = age(before, at).as_secs_f64() / HALF_AGE.as_secs_f64();
        let gain = NEW.max(1.0 - 0.5_f64.powf(halvings));
        let value = value + gain * (sample - value);
        *of = Some(Self {
            value,
            at: before.max(at),
        });
        (sample, gain)
    }
}

/// The least of this interval and of the one before it.
#[derive(Clone, Copy, Debug, Default)]
struct Least {
    began: Option<Instant>,
    now: Option<f64>,
    before: Option<f64>,
}

impl Least {
    fn observe(&mut self, at: Instant, seconds: f64) {
        match self.began {
            Some(began) if age(began, at) < LEAST_INTERVAL => {}
            began => {
                let is_next = began.is_some_and(|began| age(began, at) < LEAST_INTERVAL * 2);
                self.before = self.now.filter(|_| is_next);
                (self.began, self.now) = (Some(at), None);
            }
        }
        self.now = Some(self.now.map_or(seconds, |least| least.min(seconds)));
    }

    fn seconds(&self) -> Option<f64> {
        [self.now, self.before]
            .into_iter()
            .flatten()
            .reduce(f64::min)
    }
}

fn age(at: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(at)
}

#[expect(clippy::cast_precision_loss, reason = "byte counts are far below 2^52")]
const fn float(bytes: u64) -> f64 {
    bytes as f64
}

/// One estimate for all sessions of a client.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedLink(Arc<Mutex<LinkEstimate>>);

impl SharedLink {
    pub(crate) fn observe(&self, exchange: Exchange) {
        let mut estimate = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        estimate.observe(Instant::now(), exchange);
    }

    pub(crate) fn observe_open(&self, elapsed: Duration) {
        let mut estimate = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        estimate.observe_open(Instant::now(), elapsed);
    }

    pub(crate) fn link(&self) -> Link {
        let estimate = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        estimate.link(Instant::now())
    }
}
