//! A session inside the engine: its KV cache, its sampler, and the steps that wait.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use headway_model::KvCache;
use headway_model::sampler::{Sampled, Sampler};
use tokio::sync::oneshot;

use super::device::{Member, MemberRows};
use super::{
    EngineError, MAX_PIPELINED_STEPS, SessionId, StepInput, StepOutput, StepReply, StepRequest,
};
use crate::accounting::{Rows, Share};
use crate::batcher::{Phase, Ready};
use crate::capacity::Reservation;

/// One session. Dropping it frees the cache and then the room it stood for.
pub(super) struct Session {
    entry_layer: usize,
    cache: KvCache,
    sampler: Sampler,
    waiting: VecDeque<Waiting>,
    /// What rounding to microseconds has not reported yet, so that a session's reports add up.
    unreported: Share,
    _reservation: Reservation,
}

struct Waiting {
    request: StepRequest,
    reply: oneshot::Sender<StepReply>,
    rows_done: usize,
    queued: Option<Duration>,
    used: Share,
}

/// What beginning a chunk tells the metrics.
pub(super) struct Begun {
    pub(super) phase: Phase,
    /// How long the step had waited; `None` where an earlier chunk has told it.
    pub(super) queued: Option<Duration>,
}

impl Session {
    pub(super) fn new(
        entry_layer: usize,
        cache: KvCache,
        sampler: Sampler,
        reservation: Reservation,
    ) -> Self {
        Self {
            entry_layer,
            cache,
            sampler,
            waiting: VecDeque::with_capacity(MAX_PIPELINED_STEPS),
            unreported: Share::default(),
            _reservation: reservation,
        }
    }

    pub(super) fn enqueue(&mut self, request: StepRequest, reply: oneshot::Sender<StepReply>) {
        self.waiting.push_back(Waiting {
            request,
            reply,
            rows_done: 0,
            queued: None,
            used: Share::default(),
        });
    }

    /// What the session could put into the next engine step: rows of its first step that is not done.
    pub(super) fn ready(&self, id: SessionId) -> Option<Ready> {
        let first = self.waiting.front()?;
        let rows = first.request.rows - first.rows_done;
        Some(Ready {
            session: id,
            entry_layer: self.entry_layer,
            rows,
            phase: first.request.phase,
        })
    }

    /// Notes that the next `rows` rows enter an engine step, and shows them to the sampler.
    pub(super) fn begin(&mut self, rows: usize, now: Instant) -> Option<Begun> {
        let first = self.waiting.front_mut()?;
        let position = self.cache.len();
        let token_ids = first
            .request
            .history
            .iter()
            .skip(first.rows_done)
            .take(rows);
        for (offset, &token_id) in token_ids.enumerate() {
            self.sampler.observe(position + offset, token_id);
        }
        let begun = Begun {
            phase: first.request.phase,
            queued: None,
        };
        if first.queued.is_some() {
            return Some(begun);
        }
        let queued = now.saturating_duration_since(first.request.arrived);
        first.queued = Some(queued);
        Some(Begun {
            queued: Some(queued),
            ..begun
        })
    }

    /// For the accounting of an engine step with `rows` of this session's rows.
    pub(super) fn rows(&self, rows: usize) -> Rows {
        let samples = self
            .waiting
            .front()
            .is_some_and(|first| first.samples_after(rows));
        Rows {
            entry_layer: self.entry_layer,
            rows,
            sampled: usize::from(samples),
        }
    }

    /// The session's next `rows` rows, for the device.
    pub(super) fn member(&mut self, rows: usize) -> Option<Member<'_>> {
        let first = self.waiting.front()?;
        let (start, end) = (first.rows_done, first.rows_done + rows);
        let input = match &first.request.input {
            StepInput::TokenIds(token_ids) => MemberRows::TokenIds(token_ids.get(start..end)?),
            StepInput::HiddenStates(values) => {
                let hidden_size = values.len() / first.request.rows;
                MemberRows::HiddenStates(values.get(start * hidden_size..end * hidden_size)?)
            }
        };
        let sampler = first.samples_after(rows).then_some(&self.sampler);
        Some(Member {
            entry_layer: self.entry_layer,
            rows,
            input,
            cache: &mut self.cache,
            sampler,
        })
    }

    /// Notes that `rows` rows are done, and answers the step where they were its last.
    pub(super) fn end_chunk(&mut self, rows: usize, share: Share, sampled: Option<Sampled>) {
        let Some(first) = self.waiting.front_mut() else {
            return;
        };
        first.rows_done += rows;
        first.used.compute_ns += share.compute_ns;
        first.used.saved_ns += share.saved_ns;
        if first.rows_done < first.request.rows {
            return;
        }
        let Some(Waiting {
            request,
            reply,
            queued,
            used,
            ..
        }) = self.waiting.pop_front()
        else {
            return;
        };
        let arrived = request.arrived;
        // Before the answer: a session may be waiting for this memory.
        drop(request.memory);
        let output = StepOutput {
            positions: self.cache.len(),
            sampled,
            compute_us: whole_us(&mut self.unreported.compute_ns, used.compute_ns),
            saved_us: whole_us(&mut self.unreported.saved_ns, used.saved_ns),
            queue_us: u64::try_from(queued.unwrap_or_default().as_micros()).unwrap_or(u64::MAX),
            arrived,
        };
        // A device that has gone does not read it; its `Close` is on the way.
        drop(reply.send(Ok(output)));
    }

    /// Frees the session and then tells every waiting step that it will not be done: whoever hears of it
    /// and opens the session again finds the room.
    pub(super) fn fail(self, error: EngineError) {
        let Self {
            waiting,
            cache,
            _reservation: reservation,
            ..
        } = self;
        let replies: Vec<_> = waiting.into_iter().map(|waiting| waiting.reply).collect();
        drop(cache);
        drop(reservation);
        for reply in replies {
            // A device that has gone does not read it.
            drop(reply.send(Err(error)));
        }
    }
}

impl Waiting {
    /// True where a sample is wanted and `rows` more rows are the last.
    fn samples_after(&self, rows: usize) -> bool {
        self.request.sample && self.rows_done + rows == self.request.rows
    }
}

/// Adds to what is unreported and takes the whole microseconds out.
fn whole_us(unreported_ns: &mut u64, used_ns: u64) -> u64 {
    let total_ns = *unreported_ns + used_ns;
    *unreported_ns = total_ns % 1000;
    total_ns / 1000
}
