//! Devices and tails, event by event. Pure: time is counted, and chance comes from the scenario's seed.
//!
//! The grain is the step of a tail: between two of its tokens a session is one event, the arrival of its next rows, and a
//! step is one event with all sessions in it. A device that thinks is no event: as thinking times are exponential, the next
//! of all requests is drawn from how many devices think.
//!
//! Left out: a session's place is free with its last token, not with its goodbye; a prompt's rows arrive together, when
//! their last one does; a step is not put off to gather rows; idle sessions are not evicted, since none is idle; prefixes
//! are not reused.

use super::events::{Events, Micros, SECOND};
use super::outcome::{Outcome, Window};
use super::random::{Random, float, micros};
use super::scenario::{Arrivals, MAX_CLASSES, Scenario, Task};
use super::tail::{SessionIndex, Tail};

mod serving;
mod sessions;
#[cfg(test)]
mod tests;

/// What happens.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A device may have a request.
    Arrival,
    /// A session's Open reaches a tail.
    Open(SessionRef),
    /// Rows of a session reach its tail.
    Rows(SessionRef),
    /// A tail's step ends.
    StepEnds(u32),
    /// The outage begins.
    Lose,
    /// New connections are not sent to lost tails any more.
    Unlist,
    /// A second is over.
    SecondEnds,
}

/// A session as an event knows it: events of an earlier life of it are void.
#[derive(Clone, Copy, Debug)]
struct SessionRef {
    index: SessionIndex,
    life: u32,
}

/// One answer, from its request to its end.
#[derive(Clone, Copy, Debug)]
struct Session {
    life: u32,
    class: u8,
    task: u8,
    tail: u32,
    is_on_tail: bool,
    has_first_token: bool,
    attempts: u32,
    rtt_us: f64,
    /// Positions to be computed before the next token, where the session is new on its tail.
    prompt_left: u32,
    /// Prompt and answer so far.
    positions: u32,
    answer_left: u32,
    kv_bytes: u64,
    requested_at: Micros,
    /// When it entered its tail.
    entered_at: Micros,
    /// When its prompt was all there.
    prompt_at: Micros,
    /// When its device had the last token.
    received_at: Micros,
    /// When its device sent the rows behind it.
    sent_at: Micros,
    lost_at: Option<Micros>,
}

/// A fleet under way.
pub(super) struct World<'a> {
    scenario: &'a Scenario,
    events: Events<Event>,
    random: Random,
    sessions: Vec<Session>,
    free: Vec<SessionIndex>,
    tails: Vec<Tail>,
    /// Tails that new connections are sent to.
    listed: Vec<u32>,
    /// Devices that think, by class.
    thinking: [u32; MAX_CLASSES],
    requests_left: u32,
    /// Answers whose tail was lost and that have no other one yet.
    without_tail: u64,
    on_tails: u64,
    counted_until: Micros,
    outcome: Outcome,
}

/// Plays a scenario.
pub(super) fn play(scenario: &Scenario) -> Outcome {
    let mut world = World::new(scenario);
    world.begin();
    world.run();
    world.finish()
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        assert!(
            (1..=MAX_CLASSES).contains(&scenario.classes.len()) && scenario.tails > 0,
            "a scenario has one to {MAX_CLASSES} kinds of devices, and a tail"
        );
        Self {
            scenario,
            events: Events::new(),
            random: Random::new(scenario.seed),
            sessions: Vec::new(),
            free: Vec::new(),
            tails: (0..scenario.tails).map(|_| Tail::default()).collect(),
            listed: (0..scenario.tails).collect(),
            thinking: [0; MAX_CLASSES],
            requests_left: 0,
            without_tail: 0,
            on_tails: 0,
            counted_until: scenario.warm_up,
            outcome: Outcome::default(),
        }
    }

    fn begin(&mut self) {
        match self.scenario.arrivals {
            Arrivals::Thinking { devices, .. } => {
                for (index, class) in self.scenario.classes.iter().enumerate() {
                    self.thinking[index] = rounded(f64::from(devices) * class.share);
                }
                self.events.after(0, Event::Arrival);
            }
            Arrivals::Crowd { requests, over_us } => {
                self.requests_left = requests;
                for _ in 0..requests {
                    let at = self.random.between(0.0, over_us);
                    self.events.after(micros(at), Event::Arrival);
                }
            }
        }
        if let Some(outage) = self.scenario.outage {
            self.events.after(outage.at, Event::Lose);
            self.events
                .after(outage.at + outage.listed_for, Event::Unlist);
            self.events.after(SECOND, Event::SecondEnds);
            self.outcome.windows.push(Window::default());
        }
    }

    fn run(&mut self) {
        while let Some(at) = self.events.next_at() {
            if at > self.scenario.horizon && !self.scenario.drains {
                break;
            }
            let Some(event) = self.events.next() else {
                break;
            };
            self.outcome.events += 1;
            match event {
                Event::Arrival => self.arrival(),
                Event::Open(session) => self.open(session),
                Event::Rows(session) => self.rows_arrive(session),
                Event::StepEnds(tail) => self.step_ends(tail),
                Event::Lose => self.lose_tails(),
                Event::Unlist => self.unlist(),
                Event::SecondEnds => self.second_ends(),
            }
        }
    }

    fn finish(mut self) -> Outcome {
        self.count_sessions();
        let counted = self.scenario.horizon.saturating_sub(self.scenario.warm_up);
        self.outcome.seconds = float(counted) / 1e6;
        self.outcome
    }

    /// Whether what happens now is counted.
    fn is_counted(&self) -> bool {
        (self.scenario.warm_up..=self.scenario.horizon).contains(&self.events.now())
    }

    /// The integral of the number of sessions, up to now; to be called before the number changes.
    fn count_sessions(&mut self) {
        let until = self.events.now().min(self.scenario.horizon);
        if until > self.counted_until {
            self.outcome.session_us += float(self.on_tails) * float(until - self.counted_until);
            self.counted_until = until;
        }
    }

    fn window(&mut self) -> Option<&mut Window> {
        self.outcome.windows.last_mut()
    }

    fn second_ends(&mut self) {
        let without_tail = self.without_tail;
        if let Some(window) = self.window() {
            window.without_tail = without_tail;
        }
        if self.events.now() < self.scenario.horizon {
            self.outcome.windows.push(Window::default());
            self.events.after(SECOND, Event::SecondEnds);
        }
    }

    /// One way of a message of this session.
    fn way_us(&mut self, rtt_us: f64) -> f64 {
        let jitter = self.scenario.workload.network_jitter * rtt_us;
        rtt_us / 2.0
            + if jitter > 0.0 {
                self.random.exponential(jitter)
            } else {
                0.0
            }
    }

    fn draw_task(&mut self) -> u8 {
        let mut drawn = self.random.share();
        let tasks = &self.scenario.workload.tasks;
        let found = (0_u8..).zip(tasks).find(|(_, task): &(u8, &Task)| {
            drawn -= task.share;
            drawn < 0.0
        });
        found.map_or(0, |(index, _)| index)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a number of devices"
)]
fn rounded(value: f64) -> u32 {
    value.round() as u32
}
