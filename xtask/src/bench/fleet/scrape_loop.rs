//! The operator's rounds over its tails, request by request: so many at a time, each waiting for the network and then for
//! a core of the operator; a pod that is gone is waited for until the timeout. A round that takes longer than the
//! interval puts off the next one, as `operator/src/savings/rounds.rs` does it.

use super::events::{Events, Micros};
use super::random::{Random, float, micros};

/// Rounds that are played; the first is left out of means.
const ROUNDS: u32 = 4;

/// Who asks whom, and what it costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ScrapeLoop {
    /// Pods of one operator.
    pub(super) pods: u32,
    /// Of them, those whose node is gone and whose container still counts as running.
    pub(super) gone: u32,
    pub(super) at_a_time: u32,
    pub(super) interval: Micros,
    pub(super) timeout: Micros,
    /// Processor time of one request, in microseconds.
    pub(super) cpu_us: f64,
    /// Cores that the operator may use.
    pub(super) cores: usize,
    /// Mean of what network and tail take, in microseconds.
    pub(super) latency_us: f64,
}

/// What came of the rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rounds {
    /// How long a round takes, in seconds.
    pub(super) round_s: f64,
    /// Between two times that a pod is asked, in seconds.
    pub(super) period_s: f64,
    /// Of the operator's cores.
    pub(super) busy_share: f64,
}

impl Rounds {
    /// By how much rounds are behind their interval, in seconds.
    pub(super) fn lag_s(&self, interval: Micros) -> f64 {
        (self.period_s - float(interval) / 1e6).max(0.0)
    }
}

/// What happens.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// An answer has arrived and wants a core.
    Arrived,
    /// A request is over.
    Done,
}

impl ScrapeLoop {
    /// Plays some rounds.
    pub(super) fn play(&self, random: &mut Random) -> Rounds {
        let (mut total, mut cpu) = (0, 0.0);
        for _ in 0..ROUNDS {
            total += self.round(random);
            cpu += f64::from(self.pods - self.gone) * self.cpu_us;
        }
        let round_us = float(total) / f64::from(ROUNDS);
        let period_us = round_us.max(float(self.interval));
        Rounds {
            round_s: round_us / 1e6,
            period_s: period_us / 1e6,
            busy_share: cpu / f64::from(ROUNDS) / period_us / self.cores.max(1) as f64,
        }
    }

    /// How long one round takes.
    fn round(&self, random: &mut Random) -> Micros {
        let mut events = Events::new();
        let mut left = self.pods;
        let mut gone_left = self.gone.min(self.pods);
        let mut cores = vec![0; self.cores.max(1)];
        let mut ask = |events: &mut Events<Event>, random: &mut Random| {
            if left == 0 {
                return;
            }
            // Those that are gone stand anywhere among the others.
            let is_gone = random.below(left as usize) < gone_left as usize;
            left -= 1;
            if is_gone {
                gone_left -= 1;
                events.after(self.timeout, Event::Done);
            } else {
                let wait = micros(random.exponential(self.latency_us));
                events.after(wait, Event::Arrived);
            }
        };
        for _ in 0..self.at_a_time {
            ask(&mut events, random);
        }
        while let Some(event) = events.next() {
            match event {
                Event::Arrived => {
                    let now = events.now();
                    let free = cores.iter_mut().min_by_key(|until| **until);
                    let Some(until) = free else { continue };
                    *until = now.max(*until) + micros(self.cpu_us);
                    events.after(*until - now, Event::Done);
                }
                Event::Done => ask(&mut events, random),
            }
        }
        events.now()
    }

    /// The most pods, `gone_share` of them gone, whose rounds fit into the interval.
    pub(super) fn most_pods(&self, gone_share: f64, random: &mut Random) -> u32 {
        let fits = |pods: u32, random: &mut Random| {
            let rounds = Self {
                pods,
                gone: share_of(pods, gone_share),
                ..*self
            };
            rounds.play(random).round_s * 1e6 <= float(self.interval)
        };
        let (mut fitting, mut not) = (0, 64);
        while fits(not, random) && not < 1 << 22 {
            fitting = not;
            not *= 2;
        }
        // To one part in a hundred.
        while not - fitting > (not / 100).max(1) {
            let middle = fitting.midpoint(not);
            if fits(middle, random) {
                fitting = middle;
            } else {
                not = middle;
            }
        }
        fitting
    }
}

/// So many of them, rounded.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of a number of pods"
)]
pub(super) fn share_of(pods: u32, share: f64) -> u32 {
    (f64::from(pods) * share).round() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOP: ScrapeLoop = ScrapeLoop {
        pods: 10_000,
        gone: 0,
        at_a_time: 64,
        interval: 10_000_000,
        timeout: 3_000_000,
        cpu_us: 100.0,
        cores: 1,
        latency_us: 500.0,
    };

    #[test]
    fn a_round_is_bound_by_the_core_by_the_network_or_by_those_who_do_not_answer() {
        let mut random = Random::new(1);
        let near = |got: f64, expected: f64| {
            assert!((got / expected - 1.0).abs() < 0.05, "{got} for {expected}");
        };
        // 10,000 times 100 us on one core.
        near(LOOP.play(&mut random).round_s, 1.0);
        // 10,000 times 100 ms, 64 at a time.
        let far = ScrapeLoop {
            latency_us: 100_000.0,
            ..LOOP
        };
        near(far.play(&mut random).round_s, 10_000.0 * 0.1 / 64.0);
        // 640 times 3 s, 64 at a time.
        let gone = ScrapeLoop { gone: 640, ..LOOP };
        let rounds = gone.play(&mut random);
        assert!((29.0..34.0).contains(&rounds.round_s), "{rounds:?}");
        assert!((19.0..24.0).contains(&rounds.lag_s(LOOP.interval)));
    }

    #[test]
    fn the_most_pods_are_those_whose_work_fills_the_interval() {
        let most = LOOP.most_pods(0.0, &mut Random::new(1));
        assert!((97_000..=101_000).contains(&most), "{most}");
        let four = ScrapeLoop { cores: 4, ..LOOP };
        let most_of_four = four.most_pods(0.0, &mut Random::new(1));
        assert!(most_of_four > 3 * most, "{most_of_four}");
    }
}
