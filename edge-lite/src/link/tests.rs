//! What the estimate makes of exchanges over links that are known.

use super::*;

/// A link that is exactly so.
#[derive(Clone, Copy)]
struct True {
    rtt_ms: f64,
    up_bits: f64,
    down_bits: f64,
}

const DSL: True = True {
    rtt_ms: 30.0,
    up_bits: 5e6,
    down_bits: 50e6,
};

impl True {
    fn exchange(self, up_bytes: u64, down_bytes: u64, tail_ms: u64) -> Exchange {
        let tail = Duration::from_millis(tail_ms);
        let seconds = self.rtt_ms / 1e3
            + float(up_bytes) * 8.0 / self.up_bits
            + float(down_bytes) * 8.0 / self.down_bits;
        Exchange {
            up_bytes,
            down_bytes,
            elapsed: Duration::from_secs_f64(seconds) + tail,
            tail,
        }
    }
}

fn is_near(value: Option<f64>, expected: f64, part: f64) -> bool {
    value.is_some_and(|value| (value - expected).abs() <= expected * part)
}

/// After many exchanges of each size, a second apart.
fn learned(link: True, began: Instant) -> (LinkEstimate, Instant) {
    let mut estimate = LinkEstimate::default();
    let mut at = began;
    for tail_ms in 0..40 {
        for (up, down) in [(80, 60), (300_000, 60), (200, 400_000)] {
            at += Duration::from_secs(1);
            estimate.observe(at, link.exchange(up, down, tail_ms));
        }
    }
    (estimate, at)
}

#[test]
fn nothing_is_known_of_a_link_that_was_not_used() {
    let link = LinkEstimate::default().link(Instant::now());
    assert_eq!(link, Link::default());
}

#[test]
fn small_frames_tell_the_round_trip_and_large_ones_the_bandwidths() {
    let (estimate, at) = learned(DSL, Instant::now());
    let link = estimate.link(at);
    assert!(is_near(link.rtt_ms, 30.0, 0.02), "{link:?}");
    assert!(is_near(link.min_rtt_ms, 30.0, 0.02), "{link:?}");
    assert!(is_near(link.up_bits_per_second, 5e6, 0.02), "{link:?}");
    assert!(is_near(link.down_bits_per_second, 50e6, 0.02), "{link:?}");
    assert!(link.jitter_ms.is_some_and(|ms| ms < 1.0), "{link:?}");
}

#[test]
fn a_large_frame_tells_nothing_before_the_round_trip_is_known() {
    let mut estimate = LinkEstimate::default();
    let at = Instant::now();
    estimate.observe(at, DSL.exchange(300_000, 60, 0));
    assert_eq!(estimate.link(at), Link::default());
}

#[test]
fn a_link_without_a_limit_is_fast_and_not_infinite() {
    let unlimited = True {
        rtt_ms: 1.0,
        up_bits: f64::INFINITY,
        down_bits: f64::INFINITY,
    };
    let (estimate, at) = learned(unlimited, Instant::now());
    let up = estimate.link(at).up_bits_per_second;
    assert!(up.is_some_and(|up| up.is_finite() && up > 1e9), "{up:?}");
}

#[test]
fn one_stretched_exchange_spoils_no_estimate() {
    let (mut estimate, mut at) = learned(DSL, Instant::now());
    let asleep = Exchange {
        elapsed: Duration::from_secs(8 * 3600),
        ..DSL.exchange(80, 60, 0)
    };
    at += Duration::from_secs(1);
    estimate.observe(at, asleep);
    let rtt = estimate.link(at).rtt_ms;
    assert!(rtt.is_some_and(|ms| ms < 60.0), "{rtt:?}");
    for _ in 0..40 {
        at += Duration::from_secs(1);
        estimate.observe(at, DSL.exchange(80, 60, 0));
    }
    assert!(is_near(estimate.link(at).rtt_ms, 30.0, 0.05));
}

#[test]
fn a_link_that_has_changed_is_followed() {
    let (mut estimate, mut at) = learned(DSL, Instant::now());
    let far = True {
        rtt_ms: 300.0,
        ..DSL
    };
    for _ in 0..60 {
        at += Duration::from_millis(300);
        estimate.observe(at, far.exchange(80, 60, 0));
    }
    let link = estimate.link(at);
    assert!(is_near(link.rtt_ms, 300.0, 0.05), "{link:?}");
    at += 2 * LEAST_INTERVAL;
    estimate.observe(at, far.exchange(80, 60, 0));
    assert!(is_near(estimate.link(at).min_rtt_ms, 300.0, 0.01));
}

#[test]
fn old_estimates_count_little_and_then_nothing() {
    let (mut estimate, at) = learned(DSL, Instant::now());
    let far = True {
        rtt_ms: 90.0,
        ..DSL
    };
    let later = at + 3 * HALF_AGE;
    estimate.observe(later, far.exchange(80, 60, 0));
    let rtt = estimate.link(later).rtt_ms;
    assert!(rtt.is_some_and(|ms| ms > 70.0), "{rtt:?}");
    assert_eq!(estimate.link(later + MAX_AGE).rtt_ms, None);
    let next = later + 2 * MAX_AGE;
    estimate.observe(next, DSL.exchange(80, 60, 0));
    assert!(estimate.link(next).rtt_ms.is_some_and(|ms| ms < 31.0));
}

#[test]
fn opening_is_remembered_beside_the_round_trip() {
    let (mut estimate, at) = learned(DSL, Instant::now());
    assert_eq!(estimate.link(at).open_ms, None);
    estimate.observe_open(at, Duration::from_millis(120));
    let link = estimate.link(at);
    assert!(is_near(link.open_ms, 120.0, 0.01), "{link:?}");
    assert!(is_near(link.rtt_ms, 30.0, 0.02), "{link:?}");
}

#[test]
fn a_moment_before_the_last_one_is_no_harm() {
    let began = Instant::now() + Duration::from_secs(100);
    let (mut estimate, _) = learned(DSL, began);
    estimate.observe(began, DSL.exchange(80, 60, 0));
    assert!(is_near(estimate.link(began).rtt_ms, 30.0, 0.05));
}

#[test]
fn a_tail_that_says_it_took_longer_than_all_took_makes_no_negative_time() {
    let mut estimate = LinkEstimate::default();
    let at = Instant::now();
    let exchange = Exchange {
        tail: Duration::from_secs(10),
        ..DSL.exchange(80, 60, 0)
    };
    estimate.observe(at, exchange);
    assert_eq!(estimate.link(at).rtt_ms, Some(0.0));
}
