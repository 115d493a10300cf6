use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::load::{Load, Pod};

const TICK: Duration = Duration::from_secs(2);

fn policy() -> Policy {
    Policy {
        min: 1,
        max: 20,
        target_sessions: 10.0,
        target_kv: 0.8,
        target_queue_delay_ms: 100.0,
        stable: Duration::from_secs(60),
        panic: Duration::from_secs(6),
        scale_down_delay: Duration::from_secs(300),
    }
}

fn serving(sessions: f64) -> Pod {
    Pod {
        serves: true,
        load: Some(Load {
            sessions,
            kv: 0.0,
            is_active: sessions > 0.0,
        }),
    }
}

/// Sessions spread evenly over so many pods that serve.
fn even(sessions: f64, pods: u32) -> Sample {
    let each = serving(sessions / f64::from(pods.max(1)));
    Sample {
        pods: vec![each; pods as usize],
        waiting: if pods == 0 { sessions } else { 0.0 },
        queue_delay_ms: None,
    }
}

/// A model whose pods serve at once, and a clock.
struct Rig {
    policy: Policy,
    autoscaler: Autoscaler,
    now: Instant,
}

impl Rig {
    fn new(policy: Policy, replicas: u32) -> Self {
        let now = Instant::now();
        Self {
            policy,
            autoscaler: Autoscaler::new(replicas, now),
            now,
        }
    }

    fn tick(&mut self, sample: &Sample) -> Decision {
        self.now += TICK;
        self.autoscaler.decide(&self.policy, sample, self.now)
    }

    /// The same load for a while.
    fn load(&mut self, sessions: f64, seconds: u64) -> Decision {
        let mut last = None;
        for _ in 0..seconds / TICK.as_secs() {
            let sample = even(sessions, self.autoscaler.replicas());
            last = Some(self.tick(&sample));
        }
        last.unwrap()
    }
}

#[test]
fn steady_load_gets_the_pods_it_takes_and_changes_nothing_after() {
    let mut rig = Rig::new(policy(), 1);
    let decision = rig.load(35.0, 10);
    assert_eq!(decision.replicas, 4);
    for _ in 0..600 {
        let decision = rig.load(35.0, 2);
        assert_eq!((decision.replicas, decision.because), (4, Because::Enough));
    }
}

#[test]
fn a_burst_is_answered_within_the_panic_window_and_no_pod_goes_while_it_lasts() {
    let mut rig = Rig::new(
        Policy {
            scale_down_delay: Duration::ZERO,
            ..policy()
        },
        1,
    );
    rig.load(5.0, 120);
    let decision = rig.load(100.0, 6);
    assert!(
        decision.replicas >= 10 && decision.is_panicking,
        "{decision:?}"
    );
    let most = decision.replicas;
    let mut after = rig.load(5.0, 2);
    let mut lasted = Duration::ZERO;
    while after.is_panicking {
        assert!(after.replicas >= most, "{after:?}");
        lasted += TICK;
        after = rig.load(5.0, 2);
    }
    assert!(
        lasted >= rig.policy.stable - 2 * rig.policy.panic,
        "{lasted:?}"
    );
}

#[test]
fn pods_go_after_the_delay_and_no_more_than_half_of_them_within_another() {
    let mut rig = Rig::new(policy(), 1);
    rig.load(100.0, 400);
    assert_eq!(rig.autoscaler.replicas(), 10);
    let stood: Vec<u32> = (0..1000).map(|_| rig.load(1.0, 2).replicas).collect();
    let delay = 150;
    assert!(stood[..delay - 5].iter().all(|replicas| *replicas == 10));
    for (before, after) in stood.iter().zip(&stood[delay..]) {
        assert!(*after >= before / 2, "{before} to {after}");
    }
    assert_eq!(stood.last(), Some(&1));
}

#[test]
fn no_pod_goes_while_others_are_on_their_way_out() {
    let mut rig = Rig::new(policy(), 8);
    rig.load(1.0, 400);
    let replicas = rig.autoscaler.replicas();
    assert!(replicas < 8, "{replicas}");
    let mut rig = Rig::new(policy(), 8);
    let mut last = 8;
    for _ in 0..400 {
        // One too many, always.
        let mut sample = even(1.0, rig.autoscaler.replicas());
        sample.pods.push(Pod {
            serves: false,
            load: Some(Load::default()),
        });
        last = rig.tick(&sample).replicas;
    }
    assert_eq!(last, 8);
}

#[test]
fn an_operator_that_has_just_started_removes_nothing_before_the_delay() {
    // What the stable window holds is not known before it is full.
    for (delay, held) in [(0, 58), (300, 358)] {
        let scale_down_delay = Duration::from_secs(delay);
        let mut rig = Rig::new(
            Policy {
                scale_down_delay,
                ..policy()
            },
            7,
        );
        assert_eq!(rig.load(0.0, held).replicas, 7, "a delay of {delay} s");
        assert!(rig.load(0.0, 30).replicas < 7, "a delay of {delay} s");
    }
}

#[test]
fn pods_that_do_not_answer_are_not_taken_for_empty_ones() {
    let mut rig = Rig::new(policy(), 5);
    let silent = Pod {
        serves: true,
        load: None,
    };
    let all_silent = Sample {
        pods: vec![silent; 5],
        ..Sample::default()
    };
    for _ in 0..600 {
        assert_eq!(rig.tick(&all_silent).replicas, 5);
    }
    // One silent pod beside idle ones keeps itself, and calls for no other.
    let mut rig = Rig::new(policy(), 5);
    let mut last = 5;
    for _ in 0..600 {
        let mut pods = vec![serving(0.0); rig.autoscaler.replicas().saturating_sub(1) as usize];
        pods.push(silent);
        last = rig
            .tick(&Sample {
                pods,
                ..Sample::default()
            })
            .replicas;
        assert!(last <= 5);
    }
    assert_eq!(last, 1);
}

#[test]
fn sessions_of_a_pod_that_leaves_count_for_those_that_stay() {
    let mut rig = Rig::new(policy(), 1);
    let leaving = Pod {
        serves: false,
        ..serving(9.0)
    };
    let sample = Sample {
        pods: vec![serving(9.0), leaving],
        ..Sample::default()
    };
    assert_eq!(rig.tick(&sample).replicas, 2);
}

#[test]
fn a_full_fleet_that_turns_sessions_away_gets_more_than_its_own_sessions_ask_for() {
    let mut rig = Rig::new(policy(), 1);
    let sample = Sample {
        pods: vec![serving(14.0)],
        waiting: 60.0,
        ..Sample::default()
    };
    let decision = rig.tick(&sample);
    assert_eq!(decision.replicas, 8);
    assert!(decision.is_panicking);
}

#[test]
fn kv_cache_in_use_asks_for_pods_too() {
    let mut rig = Rig::new(policy(), 1);
    let load = Load {
        sessions: 1.0,
        kv: 1.0,
        is_active: true,
    };
    let full = Pod {
        serves: true,
        load: Some(load),
    };
    let sample = Sample {
        pods: vec![full],
        ..Sample::default()
    };
    let decision = rig.tick(&sample);
    assert_eq!(decision.replicas, 2);
    assert!(matches!(decision.because, Because::KvCache { .. }));
}

#[test]
fn a_queue_delay_adds_pods_one_settled_step_after_another_and_never_more_than_sessions() {
    let mut rig = Rig::new(policy(), 1);
    let mut steps = vec![1];
    for _ in 0..600 {
        let sample = Sample {
            queue_delay_ms: Some(900.0),
            ..even(5.0, rig.autoscaler.replicas())
        };
        let replicas = rig.tick(&sample).replicas;
        if steps.last() != Some(&replicas) {
            steps.push(replicas);
        }
    }
    assert_eq!(steps, [1, 2, 4, 5]);
}

#[test]
fn a_queue_delay_near_what_is_aimed_at_keeps_every_pod() {
    let mut rig = Rig::new(policy(), 4);
    for _ in 0..600 {
        let sample = Sample {
            queue_delay_ms: Some(60.0),
            ..even(4.0, rig.autoscaler.replicas())
        };
        assert_eq!(rig.tick(&sample).replicas, 4);
    }
}

#[test]
fn a_model_that_nobody_uses_goes_to_sleep_and_the_first_session_wakes_it() {
    let asleep = Policy { min: 0, ..policy() };
    let mut rig = Rig::new(asleep, 1);
    rig.load(3.0, 60);
    let decision = rig.load(0.0, 280);
    assert_eq!(decision.replicas, 1);
    let mut decision = rig.load(0.0, 2);
    while decision.replicas > 0 {
        decision = rig.load(0.0, 2);
    }
    assert_eq!(decision.because, Because::Idle);
    rig.load(0.0, 1000);
    let woken = rig.load(1.0, 2);
    assert_eq!(woken.replicas, 1);
    assert_eq!(woken.because, Because::Waiting { sessions: 1.0 });
    // It stays for the delay, though nobody comes back.
    assert_eq!(rig.load(0.0, 280).replicas, 1);
}

#[test]
fn a_tail_whose_sessions_are_shorter_than_a_look_is_not_idle() {
    let mut rig = Rig::new(Policy { min: 0, ..policy() }, 1);
    for tick in 0..2000 {
        let load = Load {
            is_active: tick % 60 == 0,
            ..Load::default()
        };
        let sample = Sample {
            pods: vec![Pod {
                serves: true,
                load: Some(load),
            }],
            ..Sample::default()
        };
        assert_eq!(rig.tick(&sample).replicas, 1);
    }
}

#[test]
fn noise_adds_no_pods() {
    let mut rig = Rig::new(policy(), 1);
    let mut noise = 1_u32;
    for _ in 0..900 {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let off = f64::from(noise >> 16) / 65_536.0 - 0.5;
        let sample = Sample {
            ..even(38.0 + 12.0 * off, rig.autoscaler.replicas())
        };
        assert!(rig.tick(&sample).replicas <= 4);
    }
}

#[test]
fn what_somebody_asks_for_holds_for_the_delay() {
    let mut rig = Rig::new(policy(), 1);
    rig.load(1.0, 400);
    rig.autoscaler.ask(6, rig.now);
    let decision = rig.load(1.0, 2);
    assert_eq!((decision.replicas, decision.because), (6, Because::Asked));
    assert_eq!(rig.load(1.0, 290).replicas, 6);
    assert!(rig.load(1.0, 60).replicas < 6);
}

#[test]
fn a_limit_is_told() {
    let mut rig = Rig::new(Policy { max: 3, ..policy() }, 1);
    let decision = rig.load(200.0, 20);
    assert_eq!((decision.replicas, decision.is_limited()), (3, true));
}

#[derive(Clone, Debug)]
struct Moment {
    sessions: f64,
    waiting: f64,
    silent: usize,
    queue_delay_ms: Option<f64>,
}

fn moments() -> impl Strategy<Value = Vec<Moment>> {
    let moment = (
        0.0..300.0_f64,
        prop_oneof![4 => Just(0.0), 1 => 0.0..50.0_f64],
        0..4_usize,
        proptest::option::of(0.0..500.0_f64),
    );
    let moment = moment.prop_map(|(sessions, waiting, silent, queue_delay_ms)| Moment {
        sessions,
        waiting,
        silent,
        queue_delay_ms,
    });
    proptest::collection::vec(moment, 1..300)
}

fn sample(moment: &Moment, replicas: u32, times: f64) -> Sample {
    let mut sample = even(moment.sessions * times, replicas);
    for pod in sample.pods.iter_mut().take(moment.silent) {
        pod.load = None;
    }
    sample.waiting += moment.waiting * times;
    sample.queue_delay_ms = moment.queue_delay_ms;
    sample
}

proptest! {
    #[test]
    fn the_number_is_within_bounds_and_never_falls_in_a_panic(
        moments in moments(),
        min in 0..5_u32,
        more in 0..30_u32,
        replicas in 0..50_u32,
        delay in 0..200_u64,
    ) {
        let policy = Policy {
            min,
            max: (min + more).max(1),
            scale_down_delay: Duration::from_secs(delay),
            ..policy()
        };
        let mut rig = Rig::new(policy.clone(), replicas);
        let mut before = policy.bounded(replicas);
        for moment in &moments {
            let decision = rig.tick(&sample(moment, before, 1.0));
            prop_assert!((policy.min..=policy.max).contains(&decision.replicas));
            if decision.is_panicking {
                prop_assert!(decision.replicas >= before);
            }
            prop_assert!(decision.replicas >= before / 2);
            before = decision.replicas;
        }
    }

    /// Both see the same pods; only the load differs.
    #[test]
    fn more_load_never_gives_fewer_pods(moments in moments(), replicas in 1..10_u32) {
        let policy = Policy { max: 1000, ..policy() };
        let mut light = Rig::new(policy.clone(), replicas);
        let mut heavy = Rig::new(policy, replicas);
        for moment in &moments {
            // A queue delay says nothing before all pods serve, which differs between the two.
            let moment = Moment { queue_delay_ms: None, ..moment.clone() };
            let one = light.tick(&sample(&moment, replicas, 1.0));
            let two = heavy.tick(&sample(&moment, replicas, 2.0));
            prop_assert!(two.wanted >= one.wanted, "{} and {}", one.wanted, two.wanted);
        }
    }

    #[test]
    fn nothing_falls_within_the_delay_after_a_start(moments in moments(), replicas in 1..20_u32) {
        let mut rig = Rig::new(policy(), replicas);
        for moment in moments.iter().take(140) {
            let decision = rig.tick(&sample(moment, replicas, 1.0));
            prop_assert!(decision.replicas >= replicas);
        }
    }
}
