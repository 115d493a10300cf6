//! From a request to a place on a tail: arrivals, refusals, and what a device does after them and after a loss.

use super::{Event, Session, SessionRef, World, float, micros};
use crate::bench::fleet::events::{Micros, SECOND};
use crate::bench::fleet::scenario::Arrivals;
use crate::bench::fleet::tail::{SessionIndex, Tail};

impl World<'_> {
    pub(super) fn arrival(&mut self) {
        match self.scenario.arrivals {
            Arrivals::Thinking { devices, think_us } => {
                if self.events.now() >= self.scenario.horizon {
                    return;
                }
                // The next of all devices, were all of them thinking; one that does not is passed over.
                let wait = self.random.exponential(think_us / f64::from(devices));
                self.events.after(micros(wait), Event::Arrival);
                if let Some(class) = self.draw_thinking(devices) {
                    self.thinking[class] -= 1;
                    self.request(class);
                }
            }
            Arrivals::Crowd { .. } => {
                self.requests_left -= 1;
                self.request(0);
            }
        }
    }

    /// The class of one of all devices; `None` where it is one that does not think.
    fn draw_thinking(&mut self, devices: u32) -> Option<usize> {
        let mut drawn = self.random.below(devices as usize);
        for (class, thinking) in self.thinking.iter().enumerate() {
            let thinking = *thinking as usize;
            if drawn < thinking {
                return Some(class);
            }
            drawn -= thinking;
        }
        None
    }

    fn request(&mut self, class: usize) {
        let shape = &self.scenario.classes[class];
        let rtt_us = self.random.log_normal(shape.rtt_us, shape.rtt_sigma);
        let workload = &self.scenario.workload;
        let prompt = workload.prompt.draw(&mut self.random);
        let answer = workload.answer.draw(&mut self.random);
        let task = self.draw_task();
        let layers = self.scenario.tail.costs.layers - shape.split_layer;
        let room = u64::from(prompt + workload.answer_room.max(answer));
        let session = Session {
            life: 0,
            class: u8::try_from(class).unwrap_or_default(),
            task,
            tail: 0,
            is_on_tail: false,
            has_first_token: false,
            attempts: 0,
            rtt_us,
            prompt_left: prompt,
            positions: prompt,
            answer_left: answer,
            kv_bytes: room * u64::from(layers) * self.scenario.tail.kv_bytes_position_layer,
            requested_at: self.events.now(),
            entered_at: 0,
            prompt_at: 0,
            received_at: 0,
            sent_at: 0,
            lost_at: None,
        };
        self.outcome.requests += u64::from(self.is_counted());
        let index = self.keep(session);
        self.connect(index, 0);
    }

    fn keep(&mut self, session: Session) -> SessionIndex {
        match self.free.pop() {
            Some(index) => {
                let place = &mut self.sessions[index as usize];
                let life = place.life + 1;
                *place = Session { life, ..session };
                index
            }
            None => {
                self.sessions.push(session);
                u32::try_from(self.sessions.len() - 1).unwrap_or(u32::MAX)
            }
        }
    }

    pub(super) fn reference(&self, index: SessionIndex) -> SessionRef {
        let life = self.sessions[index as usize].life;
        SessionRef { index, life }
    }

    /// The session, unless it has another life by now.
    pub(super) fn current(&self, session: SessionRef) -> Option<Session> {
        let found = self.sessions[session.index as usize];
        (found.life == session.life).then_some(found)
    }

    /// Begins a connection after a wait.
    fn connect(&mut self, index: SessionIndex, wait: Micros) {
        let rtt_us = self.sessions[index as usize].rtt_us;
        let opening = micros(self.scenario.workload.opening_rtts * rtt_us);
        let reference = self.reference(index);
        self.events.after(wait + opening, Event::Open(reference));
    }

    /// A connection reaches one of the tails that are listed.
    pub(super) fn open(&mut self, reference: SessionRef) {
        let Some(session) = self.current(reference) else {
            return;
        };
        if self.listed.is_empty() {
            let timeout = self.scenario.retry.connect_timeout;
            return self.fail(reference.index, timeout, 0);
        }
        let tail_index = self.listed[self.random.below(self.listed.len())];
        let tail = &mut self.tails[tail_index as usize];
        if tail.is_lost {
            let is_silent = self.scenario.outage.is_some_and(|outage| outage.is_silent);
            // The first packets, too, get no answer.
            let opening = micros(self.scenario.workload.opening_rtts * session.rtt_us);
            let timeout = self.scenario.retry.connect_timeout.saturating_sub(opening);
            let known_after = if is_silent { timeout } else { 0 };
            return self.fail(reference.index, known_after, 0);
        }
        let second = self.events.now() / SECOND;
        let opens = note_open(tail, second);
        let has_room = tail.has_room(&self.scenario.tail, session.kv_bytes);
        let is_counted = self.is_counted();
        self.outcome.opens += u64::from(is_counted);
        self.outcome.refused_opens += u64::from(is_counted && !has_room);
        if let Some(window) = self.window() {
            window.opens += 1;
            window.refused_opens += u64::from(!has_room);
            window.most_opens_of_a_tail = window.most_opens_of_a_tail.max(opens);
        }
        if has_room {
            self.enter(reference, tail_index);
        } else {
            let heard = micros(self.way_us(session.rtt_us));
            self.fail(reference.index, heard, self.scenario.retry.retry_after);
        }
    }

    fn enter(&mut self, reference: SessionRef, tail_index: u32) {
        self.count_sessions();
        self.on_tails += 1;
        let now = self.events.now();
        let session = &mut self.sessions[reference.index as usize];
        session.tail = tail_index;
        session.is_on_tail = true;
        session.entered_at = now;
        let session = *session;
        let tail = &mut self.tails[tail_index as usize];
        tail.enter(session.kv_bytes);
        if self.scenario.warm_up <= now {
            self.outcome.most_sessions = self.outcome.most_sessions.max(tail.sessions);
        }
        let class = &self.scenario.classes[usize::from(session.class)];
        let rows = f64::from(session.prompt_left);
        // Its layers run on the prompt while the connection is made; those of a rebuilding were run before.
        let computed = if session.has_first_token {
            0.0
        } else {
            let begun = float(now - session.requested_at);
            (rows * class.prompt_row_us - begun).max(0.0)
        };
        let upload = rows * class.row_bytes / class.uplink;
        let opened = self.way_us(session.rtt_us);
        let sent = self.way_us(session.rtt_us);
        let delay = opened.max(computed) + upload + sent;
        self.events.after(micros(delay), Event::Rows(reference));
    }

    /// `edge_lite::recovery`: what a device does after a failure that it hears of `heard_after` from now.
    fn fail(&mut self, index: SessionIndex, heard_after: Micros, retry_after: Micros) {
        let policy = self.scenario.retry;
        let now = self.events.now() + heard_after;
        let session = &mut self.sessions[index as usize];
        let lost_at = *session.lost_at.get_or_insert(now);
        let attempts = session.attempts;
        session.attempts += 1;
        let full = match attempts {
            0 => 0,
            doublings => policy
                .min_backoff
                .saturating_mul(1 << (doublings - 1).min(16))
                .min(policy.max_backoff),
        };
        let kept = 1.0 - policy.jitter * self.random.share();
        let asked = 1.0 + policy.retry_after_jitter * self.random.share();
        let wait = micros(float(full) * kept).max(micros(float(retry_after) * asked));
        if attempts >= policy.max_attempts || now - lost_at + wait > policy.deadline {
            return self.give_up(index);
        }
        self.connect(index, heard_after + wait);
    }

    fn give_up(&mut self, index: SessionIndex) {
        let session = self.sessions[index as usize];
        if self.is_counted() {
            if session.has_first_token {
                self.outcome.broken += 1;
            } else {
                self.outcome.refused += 1;
            }
        }
        if session.has_first_token {
            self.without_tail -= 1;
        }
        self.forget(index);
    }

    /// The device thinks about its next request.
    pub(super) fn forget(&mut self, index: SessionIndex) {
        let session = &mut self.sessions[index as usize];
        session.life += 1;
        self.thinking[usize::from(session.class)] += 1;
        self.free.push(index);
    }

    /// Tails are lost, with all that they hold.
    pub(super) fn lose_tails(&mut self) {
        let Some(outage) = self.scenario.outage else {
            return;
        };
        self.count_sessions();
        let lost = micros(float(self.tails.len() as u64) * outage.share);
        let lost = u32::try_from(lost).unwrap_or(u32::MAX);
        for tail in self.tails.iter_mut().take(lost as usize) {
            *tail = Tail::lost();
        }
        for index in 0..self.sessions.len() {
            let session = &mut self.sessions[index];
            if !session.is_on_tail || session.tail >= lost {
                continue;
            }
            session.is_on_tail = false;
            session.life += 1;
            if session.has_first_token {
                self.without_tail += 1;
            }
            // All of it is computed again.
            session.prompt_left = session.positions;
            self.on_tails -= 1;
            let rtt_us = session.rtt_us;
            let heard = if outage.is_silent {
                float(self.scenario.retry.silence) + self.random.share() * rtt_us
            } else {
                self.way_us(rtt_us)
            };
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            self.fail(index, micros(heard), 0);
        }
    }

    pub(super) fn unlist(&mut self) {
        let tails = &self.tails;
        self.listed.retain(|&tail| !tails[tail as usize].is_lost);
    }
}

/// How often the tail was asked for a session in this second.
fn note_open(tail: &mut Tail, second: u64) -> u32 {
    if tail.opens_second != second {
        tail.opens_second = second;
        tail.opens = 0;
    }
    tail.opens += 1;
    tail.opens
}
