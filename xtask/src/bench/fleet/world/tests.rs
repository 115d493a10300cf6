//! The simulation against closed forms: what queueing theory knows exactly, it must show.

use super::play;
use crate::bench::fleet::events::{Micros, SECOND};
use crate::bench::fleet::outcome::Outcome;
use crate::bench::fleet::random::float;
use crate::bench::fleet::scenario::{
    Arrivals, DeviceClass, Length, Outage, RetryPolicy, Scenario, TailShape, Task, Workload,
};
use crate::bench::fleet::step_costs::{Curve, StepCosts};

/// A step takes this long, whatever is in it.
const STEP: Micros = 1_000;

/// One kind of device at no distance that computes nothing, and one tail without limits.
fn plain() -> Scenario {
    Scenario {
        seed: 1,
        classes: vec![DeviceClass {
            name: "plain",
            share: 1.0,
            split_layer: 0,
            token_us: [0.0; 2],
            prompt_row_us: 0.0,
            rtt_us: 0.0,
            rtt_sigma: 0.0,
            uplink: 1.0,
            row_bytes: 0.0,
        }],
        arrivals: Arrivals::Thinking {
            devices: 1_000_000,
            think_us: 0.0,
        },
        workload: Workload {
            prompt: Length::fixed(1),
            answer: Length::fixed(1),
            answer_room: 1,
            tasks: vec![Task {
                share: 1.0,
                guesses: 0,
                acceptance: 0.0,
            }],
            network_jitter: 0.0,
            opening_rtts: 0.0,
        },
        tails: 1,
        tail: TailShape {
            max_sessions: u32::MAX,
            max_queued_prompts: u32::MAX,
            step_rows: 1,
            kv_bytes: u64::MAX,
            kv_bytes_position_layer: 0,
            costs: StepCosts {
                layers: 1,
                layer_us: Curve::flat(float(STEP)),
                attention_us: 0.0,
                least_attention_us: 0.0,
                logits_us: Curve::flat(0.0),
                host_share: 0.0,
            },
        },
        retry: RetryPolicy {
            max_attempts: 0,
            min_backoff: 100_000,
            max_backoff: 5 * SECOND,
            jitter: 0.5,
            retry_after_jitter: 0.0,
            deadline: 60 * SECOND,
            retry_after: SECOND,
            connect_timeout: 10 * SECOND,
            silence: 8 * SECOND,
        },
        outage: None,
        warm_up: 5 * SECOND,
        horizon: 305 * SECOND,
        drains: false,
    }
}

/// So many devices that requests come as if from infinitely many, `rate` a second.
fn requests_a_second(scenario: &mut Scenario, rate: f64) {
    scenario.arrivals = Arrivals::Thinking {
        devices: 1_000_000,
        think_us: 1_000_000.0 / rate * 1e6,
    };
}

#[test]
fn waits_are_those_of_one_server_with_fixed_service() {
    for load in [0.5, 0.8, 0.9] {
        let mut scenario = plain();
        requests_a_second(&mut scenario, load * 1e6 / float(STEP));
        let outcome = play(&scenario);
        // Pollaczek and Khinchine: ρ·s / 2(1 − ρ).
        let expected = load * float(STEP) / (2.0 * (1.0 - load));
        let got = outcome.prompt_wait.mean();
        assert!(
            (got / expected - 1.0).abs() < 0.05,
            "{load}: {got} for {expected}"
        );
        let utilisation = outcome.utilisation(1);
        assert!((utilisation - load).abs() < 0.01, "{utilisation}");
    }
}

#[test]
fn refusals_are_erlangs() {
    let (places, offered) = (20, 15.0);
    let mut scenario = plain();
    // Answers of 100 tokens that take 10 ms each on their device hold a place for a second and a bit.
    scenario.workload.answer = Length::fixed(101);
    scenario.classes[0].token_us = [10_000.0; 2];
    scenario.tail.step_rows = 1_024;
    scenario.tail.costs.layer_us = Curve::flat(1.0);
    scenario.tail.max_sessions = places;
    scenario.horizon = 2_005 * SECOND;
    let stay_s = 1.0 + 101.0 * 1e-6;
    requests_a_second(&mut scenario, offered / stay_s);
    let outcome = play(&scenario);
    let blocked = (1..=places).fold(1.0, |blocked, place| {
        offered * blocked / (offered * blocked + f64::from(place))
    });
    let got = float(outcome.refused) / float(outcome.requests);
    assert!((got / blocked - 1.0).abs() < 0.06, "{got} for {blocked}");
}

#[test]
fn the_mean_number_of_sessions_is_rate_times_stay() {
    let mut scenario = fleet();
    scenario.horizon = 120 * SECOND;
    let outcome = play(&scenario);
    let rate = float(outcome.completed) / outcome.seconds;
    let expected = rate * outcome.stay.mean() / 1e6;
    let got = outcome.sessions();
    assert!((got / expected - 1.0).abs() < 0.05, "{got} for {expected}");
}

/// Something of everything: kinds of devices, guesses, round trips, and tails that are too small at times.
fn fleet() -> Scenario {
    let mut scenario = plain();
    let near = DeviceClass {
        share: 0.5,
        split_layer: 1,
        token_us: [5_000.0, 9_000.0],
        prompt_row_us: 100.0,
        rtt_us: 20_000.0,
        rtt_sigma: 0.5,
        uplink: 10.0,
        row_bytes: 1_000.0,
        ..scenario.classes[0].clone()
    };
    let far = DeviceClass {
        split_layer: 3,
        rtt_us: 80_000.0,
        ..near.clone()
    };
    scenario.classes = vec![near, far];
    scenario.arrivals = Arrivals::Thinking {
        devices: 2_000,
        think_us: 20e6,
    };
    scenario.workload = Workload {
        prompt: Length {
            median: 100.0,
            sigma: 1.0,
            least: 1,
            most: 2_000,
        },
        answer: Length {
            median: 40.0,
            sigma: 1.0,
            least: 1,
            most: 400,
        },
        answer_room: 400,
        tasks: vec![
            Task {
                share: 0.5,
                guesses: 0,
                acceptance: 0.0,
            },
            Task {
                share: 0.5,
                guesses: 4,
                acceptance: 0.7,
            },
        ],
        network_jitter: 0.05,
        opening_rtts: 3.5,
    };
    scenario.tails = 10;
    scenario.tail.costs.layers = 4;
    scenario.tail.costs.layer_us = Curve::new(&[(1.0, 250.0), (1_000.0, 1_000.0)]);
    scenario.tail.step_rows = 256;
    scenario.tail.max_sessions = 64;
    scenario.retry.max_attempts = 16;
    scenario.warm_up = 20 * SECOND;
    scenario.horizon = 60 * SECOND;
    scenario
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_one_another() {
    let mut scenario = fleet();
    let first = play(&scenario);
    assert_eq!(first, play(&scenario));
    scenario.seed = 2;
    assert_ne!(first, play(&scenario));
}

#[test]
fn no_token_is_lost_or_counted_twice() {
    for outage in [None, Some(true), Some(false)] {
        let mut scenario = fleet();
        scenario.workload.answer = Length::fixed(37);
        scenario.workload.prompt = Length::fixed(50);
        scenario.warm_up = 0;
        scenario.drains = true;
        scenario.horizon = 40 * SECOND;
        scenario.outage = outage.map(|is_silent| Outage {
            at: 20 * SECOND,
            share: 0.3,
            is_silent,
            listed_for: 15 * SECOND,
        });
        let outcome = whole(&scenario);
        assert!(outcome.completed > 1_000, "{}", outcome.completed);
        assert_eq!(outcome.refused + outcome.broken, 0);
        assert_eq!(outcome.requests, outcome.completed);
        assert_eq!(outcome.tokens, outcome.completed * 37);
        assert_eq!(outcome.first_token.count(), outcome.completed);
        assert_eq!(outcome.token.count(), outcome.completed * 36);
        let is_disturbed = outage.is_some();
        assert_eq!(outcome.replayed_rows > 0, is_disturbed);
        if !is_disturbed {
            assert_eq!(outcome.prompt_rows, outcome.completed * 50);
            let decoded = outcome.rows - outcome.prompt_rows - outcome.guessed_rows;
            assert!(
                decoded < outcome.completed * 36,
                "guesses are right at times"
            );
        }
    }
}

/// A crowd, which ends by itself, so that all of it is within the horizon.
fn whole(scenario: &Scenario) -> Outcome {
    let mut scenario = scenario.clone();
    scenario.arrivals = Arrivals::Crowd {
        requests: 3_000,
        over_us: float(scenario.horizon),
    };
    scenario.horizon = 1_000 * SECOND;
    play(&scenario)
}

#[test]
fn a_full_tail_refuses_and_devices_come_back() {
    let mut scenario = fleet();
    scenario.tails = 2;
    let outcome = play(&scenario);
    assert!(outcome.refused_opens > outcome.refused && outcome.refused > 0);
    assert_eq!(outcome.most_sessions, scenario.tail.max_sessions);
    scenario.tails = 40;
    let outcome = play(&scenario);
    assert_eq!((outcome.refused_opens, outcome.refused), (0, 0));
}

#[test]
fn a_lost_zone_costs_time_and_computing_and_no_answer() {
    let mut scenario = fleet();
    scenario.tails = 20;
    scenario.warm_up = 10 * SECOND;
    scenario.horizon = 120 * SECOND;
    scenario.outage = Some(Outage {
        at: 30 * SECOND,
        share: 0.1,
        is_silent: true,
        listed_for: 20 * SECOND,
    });
    let outcome = play(&scenario);
    assert_eq!(outcome.broken, 0);
    assert!(outcome.replayed_rows > 0);
    let without: Vec<u64> = outcome
        .windows
        .iter()
        .map(|window| window.without_tail)
        .collect();
    assert_eq!(without[28], 0);
    assert!(without[31] > 0, "{without:?}");
    // Nobody hears of a silent loss before eight seconds have passed.
    assert!(outcome.recovery.quantile(0.01) > 8e6 * 0.97);
    let back = outcome.seconds_until_back(30 * SECOND, |window| &window.pause);
    assert!(back.is_some_and(|seconds| seconds < 60), "{back:?}");
}
