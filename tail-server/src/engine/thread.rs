//! The engine's thread: commands in, one engine step after the other, and what becomes of a step that fails.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use headway_model::sampler::Sampled;
use tokio::sync::mpsc;

use super::arrivals::{Arrival, Arrivals};
use super::device::{Device, DeviceError, StepRun, TakeIn, TakenIn};
use super::gather::Gather;
use super::session::{Session, Used};
use super::{Command, Drafter, EngineError, SessionId};
use crate::accounting::{Rows, Share};
use crate::batcher::{Batcher, Chunk, Phase, Ready};
use crate::capacity::OutOfRoom;
use crate::savings::Savings;
use crate::watchdog::{Pulse, Watchdog};

/// What the engine's thread owns.
pub(super) struct Engine<D> {
    device: D,
    step_tokens: usize,
    batcher: Batcher,
    gather: Gather,
    sessions: BTreeMap<SessionId, Session>,
    watchdog: Arc<Watchdog>,
    savings: Arc<Savings>,
}

/// A session's part in an engine step. It is out of the map for as long as the step takes, so that a session
/// whose step fails is gone.
struct Running {
    id: SessionId,
    session: Session,
    rows: usize,
}

/// Commands that come while a step runs, in their order, and what the device has taken in of them.
struct Came<'a> {
    channel: &'a mut mpsc::Receiver<Command>,
    commands: Vec<(Command, Option<TakenIn>)>,
}

impl<'a> Came<'a> {
    const fn new(channel: &'a mut mpsc::Receiver<Command>) -> Self {
        Self {
            channel,
            commands: Vec::new(),
        }
    }

    /// Shows the next command's hidden states to the device. False where none came.
    fn take_next(&mut self, take_in: &mut TakeIn<'_>) -> bool {
        let Ok(command) = self.channel.try_recv() else {
            return false;
        };
        let taken_in = match &command {
            Command::Step {
                entry_layer,
                request,
                ..
            } => request
                .hidden_states()
                .and_then(|values| take_in(*entry_layer, values)),
            Command::Open { .. } | Command::Close { .. } => None,
        };
        self.commands.push((command, taken_in));
        true
    }
}

/// What a batch came to.
struct Computed {
    shares: Vec<Share>,
    samples: Vec<Vec<Sampled>>,
}

/// Why a batch came to nothing.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Room(#[from] OutOfRoom),
    #[error("the device gave {got} samples for {expected} sessions")]
    Samples { expected: usize, got: usize },
    #[error("panic: {message}")]
    Panic { message: String },
}

impl<D: Device> Engine<D> {
    pub(super) fn new(
        device: D,
        step_tokens: usize,
        watchdog: Arc<Watchdog>,
        savings: Arc<Savings>,
    ) -> Self {
        Self {
            device,
            step_tokens,
            batcher: Batcher::new(step_tokens),
            gather: Gather::default(),
            sessions: BTreeMap::new(),
            watchdog,
            savings,
        }
    }

    /// Until the last handle is dropped.
    pub(super) fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        // Says so wherever this function ends, also in a panic outside a step.
        let watchdog = Arc::clone(&self.watchdog);
        let _end = watchdog.until_dropped();
        let arrivals = Arrivals::here();
        loop {
            let ready: Vec<Ready> = self
                .sessions
                .iter()
                .filter_map(|(&id, session)| session.ready(id))
                .collect();
            if ready.is_empty() {
                self.watchdog.note(Pulse::Idle);
                self.gather.nothing_is_ready();
                let Some(command) = commands.blocking_recv() else {
                    return;
                };
                self.note_work();
                self.apply(command, None);
            } else if let Some(until) = self.wait_until(&ready) {
                match arrivals.next(&mut commands, until) {
                    Arrival::Came(command) => self.apply(command, None),
                    Arrival::Late => {}
                    Arrival::Closed => self.gather.all_left(),
                }
            } else {
                let chunks = self.batcher.plan(&ready);
                let mut came = Came::new(&mut commands);
                self.step(&chunks, &mut came);
                for (command, taken_in) in came.commands {
                    self.apply(command, taken_in);
                }
                self.note_work();
            }
            // Ends: a session with `MAX_PIPELINED_STEPS` in here sends nothing before it has an answer.
            while let Ok(command) = commands.try_recv() {
                self.apply(command, None);
            }
        }
    }

    /// Until when a step of what is ready should wait for other sessions; `None`: it should begin. Prompts fill a
    /// step by themselves, and a draft is many rows.
    fn wait_until(&mut self, ready: &[Ready]) -> Option<Instant> {
        let are_rows = ready.iter().all(|ready| ready.phase == Phase::Decode);
        let now = Instant::now();
        are_rows.then(|| self.gather.wait_until(ready.len(), self.step_tokens, now))?
    }

    /// From now on the next step is due.
    fn note_work(&self) {
        let since = Instant::now();
        self.watchdog.note(Pulse::Working { since });
    }

    /// `taken_in`: the command's hidden states are on the device already.
    fn apply(&mut self, command: Command, taken_in: Option<TakenIn>) {
        match command {
            Command::Open { session, open } => {
                let open = Session::new(*open);
                self.savings
                    .count_reused_prefix(open.first_layer(), open.reused_positions());
                self.sessions.insert(session, open);
            }
            Command::Step {
                session,
                entry_layer,
                request,
                reply,
                sent,
            } => {
                let taken_in = taken_in.or_else(|| {
                    let values = request.hidden_states()?;
                    self.device.take_in(entry_layer, values)
                });
                let is_pause = request.phase == Phase::Prefill;
                self.gather.came(session, sent, is_pause);
                match self.sessions.get_mut(&session) {
                    Some(open) => open.enqueue(*request, taken_in, reply),
                    // Its session failed in a batch; the receiver may be gone.
                    None => drop(reply.send(Err(EngineError::Failed))),
                }
            }
            Command::Close { session } => {
                self.gather.left(session);
                drop(self.sessions.remove(&session));
            }
        }
    }

    /// Runs one engine step.
    fn step(&mut self, chunks: &[Chunk], came: &mut Came<'_>) {
        let started = Instant::now();
        if let Some(waited) = self.gather.began(started) {
            let metrics = self.savings.metrics();
            metrics.gather_wait_seconds.observe(waited.as_secs_f64());
        }
        let mut batch: Vec<Running> = chunks
            .iter()
            .filter_map(|chunk| {
                Some(Running {
                    id: chunk.session,
                    session: self.sessions.remove(&chunk.session)?,
                    rows: chunk.rows,
                })
            })
            .collect();
        // What a panic leaves half done is the batch, which is thrown away, and the device's buffers, which
        // every batch fills anew.
        let computed = catch_unwind(AssertUnwindSafe(|| self.compute(&mut batch, started, came)));
        match computed {
            Ok(Ok(computed)) => self.finish(batch, computed, started),
            Ok(Err(fault)) => self.fail(batch, started, &fault),
            Err(payload) => {
                let message = panic_message(payload.as_ref());
                self.fail(batch, started, &Fault::Panic { message });
            }
        }
    }

    fn compute(
        &mut self,
        batch: &mut [Running],
        started: Instant,
        came: &mut Came<'_>,
    ) -> Result<Computed, Fault> {
        let metrics = self.savings.metrics();
        let mut tokens: BTreeMap<Phase, usize> = BTreeMap::new();
        for Running { session, rows, .. } in &mut *batch {
            let Some(begun) = session.begin(*rows, started)? else {
                continue;
            };
            *tokens.entry(begun.phase).or_default() += *rows;
            if let Some(queued) = begun.queued {
                self.savings.count_queue_delay(queued);
            }
        }
        for (phase, rows) in tokens {
            metrics.record_tokens(phase, rows);
        }
        let rows: Vec<Rows> = batch
            .iter()
            .map(|running| running.session.rows(running.rows))
            .collect();
        let mut members: Vec<_> = batch
            .iter_mut()
            .map(|running| {
                running
                    .session
                    .member(running.rows)
                    .expect("the plan was made from this session's waiting rows")
            })
            .collect();
        let mut meanwhile = |take_in: &mut TakeIn<'_>| came.take_next(take_in);
        let StepRun { times, samples } = self.device.run(&mut members, started, &mut meanwhile)?;
        let (expected, got) = (rows.len(), samples.len());
        if got != expected {
            return Err(Fault::Samples { expected, got });
        }
        let accepted: Vec<usize> = samples
            .iter()
            .map(|sampled| sampled.len().saturating_sub(1))
            .collect();
        let shares = self.savings.count_step(&times, &rows, &accepted);
        Ok(Computed { shares, samples })
    }

    fn finish(&mut self, batch: Vec<Running>, computed: Computed, started: Instant) {
        let Computed { shares, samples } = computed;
        let now = Instant::now();
        let sessions = batch.len();
        let mut are_rows = true;
        for ((running, share), sampled) in batch.into_iter().zip(shares).zip(samples) {
            let Running {
                id,
                mut session,
                rows,
            } = running;
            let mut used = Used {
                compute_ns: share.compute_ns,
                saved_ns: share.saved_ns,
                draft_saved_ns: 0,
            };
            let phase = session.ready(id).map(|ready| ready.phase);
            are_rows &= phase == Some(Phase::Decode);
            let accepted = sampled.len().saturating_sub(1);
            match session.drafter() {
                Some(Drafter::Device) => {
                    let (entry_layer, used_ns) = (session.entry_layer(), share.compute_ns);
                    let savings = &self.savings;
                    used.draft_saved_ns =
                        savings.count_draft(entry_layer, rows - 1, accepted, used_ns);
                }
                Some(Drafter::Tail) => self.savings.count_own_draft(rows - 1, accepted),
                None => {}
            }
            let is_answered = !sampled.is_empty();
            session.end_chunk(rows, used, sampled, now);
            if is_answered && session.ready(id).is_none() {
                self.gather.answered(id, now);
            }
            self.sessions.insert(id, session);
        }
        if are_rows {
            // The answers included: they are the host's part, which grows with the rows.
            self.gather.ended(sessions, started.elapsed());
        }
    }

    /// The time is still somebody's: it is charged to the batch, and saved nothing.
    fn fail(&mut self, batch: Vec<Running>, started: Instant, fault: &Fault) {
        tracing::error!(%fault, sessions = batch.len(), "an engine step failed");
        let busy_ns = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.savings.count_failed_step(busy_ns);
        for running in batch {
            self.gather.left(running.id);
            running.session.fail(EngineError::Failed);
        }
    }
}

/// What `panic!` was given, where that is text.
fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a message").to_owned()
}
