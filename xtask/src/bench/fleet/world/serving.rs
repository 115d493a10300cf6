//! Rows, steps and tokens.

use super::{Event, SessionRef, World, float, micros};
use crate::bench::fleet::scenario::MAX_CLASSES;
use crate::bench::fleet::step_costs::Entering;
use crate::bench::fleet::tail::Chunk;

impl World<'_> {
    pub(super) fn rows_arrive(&mut self, reference: SessionRef) {
        let Some(session) = self.current(reference) else {
            return;
        };
        let tail = &mut self.tails[session.tail as usize];
        if session.prompt_left > 0 {
            self.sessions[reference.index as usize].prompt_at = self.events.now();
            tail.prompt_ready(reference.index, session.prompt_left);
        } else {
            let task = self.scenario.workload.tasks[usize::from(session.task)];
            // The last token of an answer needs no guess behind it.
            let guesses = task.guesses.min(session.answer_left - 1);
            tail.answer_ready(reference.index, 1 + guesses);
        }
        if tail.is_idle() {
            self.begin_step(session.tail);
        }
    }

    fn begin_step(&mut self, tail_index: u32) {
        let tail = &mut self.tails[tail_index as usize];
        tail.plan(self.scenario.tail.step_rows);
        if tail.is_idle() {
            return;
        }
        let mut entering = [Entering::default(); MAX_CLASSES];
        let classes = &self.scenario.classes;
        for (entry, class) in entering.iter_mut().zip(classes) {
            entry.layer = class.split_layer;
        }
        let (mut rows, mut guessed, mut sampled) = (0, 0, 0);
        for chunk in &self.tails[tail_index as usize].running {
            let session = &self.sessions[chunk.session as usize];
            let entry = &mut entering[usize::from(session.class)];
            entry.rows += chunk.rows;
            rows += u64::from(chunk.rows);
            if chunk.is_prompt {
                sampled += u32::from(chunk.rows == session.prompt_left);
            } else {
                // Attention of a prompt's rows is in the cost of the rows.
                entry.positions += u64::from(chunk.rows) * u64::from(session.positions);
                guessed += u64::from(chunk.rows - 1);
                sampled += chunk.rows;
            }
        }
        let mut present = entering.iter().filter(|entry| entry.rows > 0).copied();
        let mut kinds = [Entering::default(); MAX_CLASSES];
        let count = kinds
            .iter_mut()
            .zip(&mut present)
            .map(|(kind, entry)| *kind = entry)
            .count();
        let time = self.scenario.tail.costs.step(&kinds[..count], sampled);
        if self.is_counted() {
            self.outcome.steps += 1;
            self.outcome.rows += rows;
            self.outcome.guessed_rows += guessed;
            self.outcome.used_us += time.used_us;
            self.outcome.counterfactual_us += time.counterfactual_us;
            self.note_waits(tail_index);
        }
        let took = micros(time.used_us).max(1);
        self.events.after(took, Event::StepEnds(tail_index));
    }

    /// How long the prompts waited that end with the step that begins.
    fn note_waits(&mut self, tail_index: u32) {
        let now = self.events.now();
        for chunk in &self.tails[tail_index as usize].running {
            let session = &self.sessions[chunk.session as usize];
            if chunk.is_prompt && chunk.rows == session.prompt_left && session.lost_at.is_none() {
                self.outcome.prompt_wait.add(now - session.prompt_at, 1);
            }
        }
    }

    pub(super) fn step_ends(&mut self, tail_index: u32) {
        let tail = &mut self.tails[tail_index as usize];
        if tail.is_lost {
            return;
        }
        let mut ended = std::mem::take(&mut tail.running);
        for chunk in &ended {
            if chunk.is_prompt {
                self.prompt_chunk_ends(chunk);
            } else {
                self.answer_ends(chunk);
            }
        }
        // The allocation is used again.
        ended.clear();
        self.tails[tail_index as usize].running = ended;
        self.begin_step(tail_index);
    }

    fn prompt_chunk_ends(&mut self, chunk: &Chunk) {
        let session = &mut self.sessions[chunk.session as usize];
        session.prompt_left -= chunk.rows;
        let (is_replay, is_done) = (session.has_first_token, session.prompt_left == 0);
        if is_done {
            self.tails[session.tail as usize].queued_prompts -= 1;
        }
        if self.is_counted() {
            if is_replay {
                self.outcome.replayed_rows += u64::from(chunk.rows);
            } else {
                self.outcome.prompt_rows += u64::from(chunk.rows);
            }
        }
        if is_done {
            self.tokens(chunk.session, 1);
        }
    }

    fn answer_ends(&mut self, chunk: &Chunk) {
        let session = self.sessions[chunk.session as usize];
        let acceptance = self.scenario.workload.tasks[usize::from(session.task)].acceptance;
        let mut tokens = 1;
        while tokens < chunk.rows && self.random.share() < acceptance {
            tokens += 1;
        }
        self.tokens(chunk.session, tokens);
    }

    /// A session has its next tokens.
    fn tokens(&mut self, index: u32, tokens: u32) {
        let before = self.sessions[index as usize];
        let now = self.events.now();
        let received_at = now + micros(self.way_us(before.rtt_us));
        let is_counted = self.is_counted();
        if is_counted {
            self.outcome.tokens += u64::from(tokens);
        }
        if !before.has_first_token {
            if is_counted {
                let took = received_at - before.requested_at;
                self.outcome.first_token.add(took, 1);
            }
            if let Some(window) = self.window() {
                window.first_token.add(received_at - before.requested_at, 1);
            }
        } else {
            let pause = received_at.saturating_sub(before.received_at);
            if is_counted {
                let each = pause / u64::from(tokens);
                self.outcome.token.add(each, u64::from(tokens));
                let answered = received_at.saturating_sub(before.sent_at);
                self.outcome.answered.add(answered, 1);
            }
            if let Some(window) = self.window() {
                window.pause.add(pause, 1);
            }
        }
        if before.has_first_token && before.lost_at.is_some() {
            self.without_tail -= 1;
            let pause = received_at.saturating_sub(before.received_at);
            self.outcome.recovery.add(pause, 1);
        }
        let session = &mut self.sessions[index as usize];
        session.has_first_token = true;
        session.lost_at = None;
        session.attempts = 0;
        session.received_at = received_at;
        session.positions += tokens;
        session.answer_left -= tokens;
        if session.answer_left == 0 {
            return self.answer_is_whole(index);
        }
        self.next_rows(index);
    }

    /// The device runs its layers and sends.
    fn next_rows(&mut self, index: u32) {
        let session = self.sessions[index as usize];
        let class = &self.scenario.classes[usize::from(session.class)];
        let [least, most] = class.token_us;
        let computed = self.random.between(least, most);
        let guesses = self.scenario.workload.tasks[usize::from(session.task)].guesses;
        let upload = f64::from(1 + guesses) * class.row_bytes / class.uplink;
        let sent = self.way_us(session.rtt_us);
        self.sessions[index as usize].sent_at = session.received_at + micros(computed);
        let received_in = float(session.received_at - self.events.now());
        let reference = self.reference(index);
        let delay = micros(received_in + computed + upload + sent);
        self.events.after(delay, Event::Rows(reference));
    }

    fn answer_is_whole(&mut self, index: u32) {
        let session = self.sessions[index as usize];
        self.count_sessions();
        self.on_tails -= 1;
        self.tails[session.tail as usize].leave(session.kv_bytes);
        self.sessions[index as usize].is_on_tail = false;
        if self.is_counted() {
            self.outcome.completed += 1;
            let stay = self.events.now() - session.entered_at;
            self.outcome.stay.add(stay, 1);
        }
        self.forget(index);
    }
}
