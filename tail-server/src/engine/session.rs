//! A session inside the engine: its KV cache, its sampler, and the steps that wait.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use headway_model::sampler::{Sampled, Sampler};
use tokio::sync::oneshot;

use super::device::{Member, MemberRows, Sampling, TakenIn};
use super::{
    Drafter, EngineError, MAX_PIPELINED_STEPS, OpenSession, SessionId, StepInput, StepOutput,
    StepReply, StepRequest,
};
use crate::accounting::Rows;
use crate::batcher::{Phase, Ready};
use crate::capacity::{OutOfRoom, SessionRoom};

/// One session. Dropping it gives its room back.
pub(super) struct Session {
    /// Where hidden states enter.
    entry_layer: usize,
    sampler: Sampler,
    room: SessionRoom,
    waiting: VecDeque<Waiting>,
    /// What rounding to microseconds has not reported yet, so that a session's reports add up.
    unreported: Used,
}

/// Device time of a session, and what it saved.
#[derive(Clone, Copy, Default)]
pub(super) struct Used {
    pub(super) compute_ns: u64,
    pub(super) saved_ns: u64,
    pub(super) draft_saved_ns: u64,
}

impl Used {
    pub(super) fn add(&mut self, other: Self) {
        self.compute_ns += other.compute_ns;
        self.saved_ns += other.saved_ns;
        self.draft_saved_ns += other.draft_saved_ns;
    }
}

struct Waiting {
    request: StepRequest,
    reply: oneshot::Sender<StepReply>,
    rows_done: usize,
    /// The device has its hidden states.
    taken_in: Option<TakenIn>,
    queued: Option<Duration>,
    used: Used,
}

/// What beginning a chunk tells the metrics.
pub(super) struct Begun {
    pub(super) phase: Phase,
    /// How long the step had waited; `None` where an earlier chunk has told it.
    pub(super) queued: Option<Duration>,
}

impl Session {
    pub(super) fn new(open: OpenSession) -> Self {
        let OpenSession {
            entry_layer,
            sampler,
            room,
        } = open;
        Self {
            entry_layer,
            sampler,
            room,
            waiting: VecDeque::with_capacity(MAX_PIPELINED_STEPS),
            unreported: Used::default(),
        }
    }

    /// Where the rows of the first step that waits enter: token ids pass all layers.
    pub(super) fn entry_layer(&self) -> usize {
        match self.waiting.front().map(|first| &first.request.input) {
            Some(StepInput::TokenIds(_)) => 0,
            Some(StepInput::HiddenStates(_)) | None => self.entry_layer,
        }
    }

    /// The first layer that any of its rows passes.
    pub(super) fn first_layer(&self) -> usize {
        self.room.table().layers().start
    }

    /// Positions that came with the room.
    pub(super) fn reused_positions(&self) -> usize {
        self.room.reused_positions()
    }

    pub(super) fn enqueue(
        &mut self,
        request: StepRequest,
        taken_in: Option<TakenIn>,
        reply: oneshot::Sender<StepReply>,
    ) {
        self.waiting.push_back(Waiting {
            request,
            reply,
            rows_done: 0,
            taken_in,
            queued: None,
            used: Used::default(),
        });
    }

    /// What the session could put into the next engine step: rows of its first step that is not done.
    pub(super) fn ready(&self, id: SessionId) -> Option<Ready> {
        let first = self.waiting.front()?;
        let rows = first.request.rows - first.rows_done;
        Some(Ready {
            session: id,
            entry_layer: self.entry_layer(),
            rows,
            phase: first.request.phase,
        })
    }

    /// Whose guesses the session's first step verifies; `None` where there are none.
    pub(super) fn drafter(&self) -> Option<Drafter> {
        let request = &self.waiting.front()?.request;
        (!request.draft.is_empty()).then_some(request.drafter)
    }

    /// Notes that the next `rows` rows enter an engine step, takes their blocks, and shows them to the sampler.
    /// `None` where nothing waits.
    pub(super) fn begin(&mut self, rows: usize, now: Instant) -> Result<Option<Begun>, OutOfRoom> {
        let Some(first) = self.waiting.front_mut() else {
            return Ok(None);
        };
        self.room.grow(rows)?;
        self.room
            .note_digests(std::mem::take(&mut first.request.digests));
        let position = self.room.table().len();
        let request = &first.request;
        // Guesses are shown when they have turned out right.
        let known = rows - request.draft.len().min(rows);
        let token_ids = request.history.iter().skip(first.rows_done).take(known);
        for (offset, &token_id) in token_ids.enumerate() {
            self.sampler.observe(position + offset, token_id);
        }
        let mut begun = Begun {
            phase: request.phase,
            queued: None,
        };
        if first.queued.is_none() {
            let queued = now.saturating_duration_since(request.arrived);
            first.queued = Some(queued);
            begun.queued = Some(queued);
        }
        Ok(Some(begun))
    }

    /// For the accounting of an engine step with `rows` of this session's rows.
    pub(super) fn rows(&self, rows: usize) -> Rows {
        let first = self.waiting.front();
        let sampled = first.filter(|first| first.samples_after(rows));
        Rows {
            entry_layer: self.entry_layer(),
            rows,
            sampled: sampled.map_or(0, |first| first.request.draft.len() + 1),
            phase: first.map_or(Phase::Prefill, |first| first.request.phase),
        }
    }

    /// The session's next `rows` rows, for the device.
    pub(super) fn member(&mut self, rows: usize) -> Option<Member<'_>> {
        let entry_layer = self.entry_layer();
        let first = self.waiting.front()?;
        let (start, end) = (first.rows_done, first.rows_done + rows);
        let input = match &first.request.input {
            StepInput::TokenIds(token_ids) => MemberRows::TokenIds(token_ids.get(start..end)?),
            StepInput::HiddenStates(values) => {
                let hidden_size = values.len() / first.request.rows;
                let values = values.get(start * hidden_size..end * hidden_size)?;
                MemberRows::HiddenStates(values, first.taken_in.map(|rows| (rows, start)))
            }
        };
        let sampling = first.samples_after(rows).then_some(Sampling {
            sampler: &mut self.sampler,
            draft: &first.request.draft,
        });
        Some(Member {
            entry_layer,
            rows,
            input,
            table: self.room.table_mut(),
            sampling,
        })
    }

    /// Notes that `rows` rows are done, and answers the step where they were its last.
    pub(super) fn end_chunk(
        &mut self,
        rows: usize,
        used: Used,
        sampled: Vec<Sampled>,
        now: Instant,
    ) {
        self.room.keep_full_columns(now);
        let Some(first) = self.waiting.front_mut() else {
            return;
        };
        first.rows_done += rows;
        first.used.add(used);
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
        let (arrived, phase) = (request.arrived, request.phase);
        // Before the answer: a session may be waiting for this memory.
        drop(request.memory);
        let unreported = &mut self.unreported;
        let output = StepOutput {
            positions: self.room.table().len(),
            sampled,
            drafter: request.drafter,
            phase,
            rows: request.rows,
            compute_us: whole_us(&mut unreported.compute_ns, used.compute_ns),
            saved_us: whole_us(&mut unreported.saved_ns, used.saved_ns),
            draft_saved_us: whole_us(&mut unreported.draft_saved_ns, used.draft_saved_ns),
            queue_us: u64::try_from(queued.unwrap_or_default().as_micros()).unwrap_or(u64::MAX),
            arrived,
            computed: now,
        };
        // A device that has gone does not read it; its `Close` is on the way.
        drop(reply.send(Ok(output)));
    }

    /// Frees the session and then tells every waiting step that it will not be done: whoever hears of it
    /// and opens the session again finds the room.
    pub(super) fn fail(self, error: EngineError) {
        let Self { waiting, room, .. } = self;
        let replies: Vec<_> = waiting.into_iter().map(|waiting| waiting.reply).collect();
        drop(room);
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
