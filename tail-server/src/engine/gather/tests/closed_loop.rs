//! Sessions that answer each token after some time, on a device whose steps take what they take: simulated.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;

/// Steps of a run, and those at its beginning that do not count.
const STEPS: usize = 1000;
const WARM_UP_STEPS: usize = 150;

/// A device and its sessions. Times in microseconds.
#[derive(Clone, Copy, Debug)]
struct Loop {
    sessions: u64,
    /// Of a step.
    fixed_us: f64,
    /// Of each of its rows.
    row_us: f64,
    /// The shortest and the longest time from an answer to the next row.
    think_us: [f64; 2],
    /// The last session takes so many times as long as the others.
    last_is_slower: f64,
    seed: u64,
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    rows_per_second: f64,
    /// Of all steps that count.
    rows_per_step: f64,
    waits: usize,
    /// The longest wait over the time that its step took.
    longest_wait: f64,
}

impl Loop {
    const GPU: Self = Self {
        sessions: 64,
        fixed_us: 4000.0,
        row_us: 10.0,
        think_us: [800.0, 1200.0],
        last_is_slower: 1.0,
        seed: 1,
    };

    fn step_us(&self, rows: usize) -> f64 {
        self.row_us.mul_add(as_f64(rows), self.fixed_us)
    }

    /// Each session's token as soon as it can be, with all in one step.
    fn ideal(&self) -> f64 {
        let sessions = usize::try_from(self.sessions).unwrap();
        let think_us = f64::midpoint(self.think_us[0], self.think_us[1]);
        as_f64(sessions) / (think_us + self.step_us(sessions)) * 1e6
    }

    fn think_us(&self, session: SessionId, random: &mut Random) -> f64 {
        let [least, most] = self.think_us;
        let is_last = session.0 + 1 == self.sessions;
        let times = if is_last { self.last_is_slower } else { 1.0 };
        times * random.between(least, most)
    }

    fn run(&self, gathers: bool) -> Outcome {
        let mut random = Random(self.seed);
        let mut gather = Gather::default();
        let start = Instant::now();
        let at = |us: f64| start + Duration::from_secs_f64(us / 1e6);
        // Whole nanoseconds have an order.
        let key = |us: f64| Duration::from_secs_f64(us / 1e6);
        let mut coming: BinaryHeap<Reverse<(Duration, SessionId)>> = (0..self.sessions)
            .map(|session| Reverse((key(random.between(0.0, 8000.0)), SessionId(session))))
            .collect();
        let mut ready: Vec<SessionId> = Vec::new();
        let (mut now_us, mut steps, mut outcome) = (0.0, 0, Outcome::default());
        let mut counted = (0.0, 0);
        while steps < STEPS {
            while let Some(&Reverse((came, session))) = coming.peek()
                && came <= key(now_us)
            {
                coming.pop();
                gather.came(session, start + came, false);
                ready.push(session);
            }
            let next_us = coming
                .peek()
                .map_or(f64::INFINITY, |Reverse((came, _))| came.as_secs_f64() * 1e6);
            if ready.is_empty() {
                now_us = next_us;
                continue;
            }
            let until = gather.wait_until(ready.len(), 4096, at(now_us));
            if let Some(until) = until.filter(|_| gathers) {
                now_us = next_us.min((until - start).as_secs_f64() * 1e6);
                continue;
            }
            steps += 1;
            let took_us = self.step_us(ready.len()) * random.between(0.98, 1.02);
            let waited = gather.began(at(now_us)).unwrap_or_default();
            if steps > WARM_UP_STEPS && gathers && !waited.is_zero() {
                outcome.waits += 1;
                let share = waited.as_secs_f64() * 1e6 / took_us;
                outcome.longest_wait = outcome.longest_wait.max(share);
            }
            now_us += took_us;
            gather.ended(ready.len(), Duration::from_secs_f64(took_us / 1e6));
            if steps == WARM_UP_STEPS {
                counted = (now_us, 0);
            }
            counted.1 += ready.len();
            for session in ready.drain(..) {
                gather.answered(session, at(now_us));
                let back_us = now_us + self.think_us(session, &mut random);
                coming.push(Reverse((key(back_us), session)));
            }
        }
        outcome.rows_per_second = as_f64(counted.1) / (now_us - counted.0) * 1e6;
        outcome.rows_per_step = as_f64(counted.1) / as_f64(STEPS - WARM_UP_STEPS);
        outcome
    }
}

/// Pseudo-random numbers (SplitMix64).
struct Random(u64);

impl Random {
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
    fn between(&mut self, least: f64, most: f64) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        let share = (z >> 11) as f64 / (1_u64 << 53) as f64;
        (most - least).mul_add(share, least)
    }
}

#[test]
fn groups_that_take_turns_become_one() {
    for seed in 1..=5 {
        let bench = Loop { seed, ..Loop::GPU };
        let (with, without) = (bench.run(true), bench.run(false));
        assert!(without.rows_per_step < 40.0, "{without:?}");
        assert!(with.rows_per_step > 58.0, "{with:?}");
        assert!(
            with.rows_per_second > 1.4 * without.rows_per_second,
            "{with:?} {without:?}"
        );
    }
}

#[test]
fn jittered_sessions_get_within_a_tenth_of_the_ideal() {
    for think_us in [
        [0.0, 400.0],
        [300.0, 900.0],
        [600.0, 1400.0],
        [1000.0, 1600.0],
    ] {
        let bench = Loop {
            think_us,
            ..Loop::GPU
        };
        let (with, ideal) = (bench.run(true), bench.ideal());
        assert!(
            with.rows_per_second > 0.9 * ideal,
            "{think_us:?}: {with:?} of {ideal}"
        );
    }
}

#[test]
fn waiting_is_never_slower_than_not_waiting() {
    for middle_us in [
        100.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0, 20_000.0, 60_000.0,
    ] {
        for spread in [0.05, 0.3, 0.9] {
            for (sessions, row_us) in [(64, 10.0), (64, 60.0), (8, 10.0), (3, 10.0), (256, 10.0)] {
                let bench = Loop {
                    sessions,
                    row_us,
                    think_us: [middle_us * (1.0 - spread), middle_us * (1.0 + spread)],
                    ..Loop::GPU
                };
                let (with, without) = (bench.run(true), bench.run(false));
                assert!(
                    with.rows_per_second > 0.98 * without.rows_per_second,
                    "{bench:?}\n{with:?}\n{without:?}"
                );
            }
        }
    }
}

#[test]
fn a_slow_session_delays_the_others_by_no_more_than_the_bound() {
    for last_is_slower in [2.0, 4.0, 16.0] {
        let bench = Loop {
            last_is_slower,
            ..Loop::GPU
        };
        let with = bench.run(true);
        assert!(with.longest_wait <= 0.5 / 0.97, "{with:?}");
        let alone = Loop {
            sessions: 63,
            ..Loop::GPU
        }
        .run(true);
        assert!(
            with.rows_per_second > 0.95 * alone.rows_per_second,
            "{with:?} {alone:?}"
        );
    }
}

#[test]
fn where_rows_cost_more_than_the_step_nobody_waits() {
    for fixed_us in [0.0, 200.0, 1000.0] {
        for think_us in [[10.0, 50.0], [500.0, 1500.0], [5000.0, 50_000.0]] {
            let bench = Loop {
                fixed_us,
                row_us: 1100.0,
                think_us,
                ..Loop::GPU
            };
            let with = bench.run(true);
            assert_eq!(with.waits, 0, "{bench:?}: {with:?}");
        }
    }
}
