//! The engine: one thread that owns the device and every session's KV cache.
//!
//! Sessions talk to it in [`Command`]s over a bounded channel and get each step's answer over a oneshot.
//! The thread blocks for commands where it has nothing to do, and never awaits.
//!
//! Invariants:
//! - Only this thread runs device work on behalf of sessions.
//! - A session's rows are run in the order in which they came, one chunk in each engine step.
//! - An error or a panic in a step ends the sessions of that step with [`EngineError::Failed`], no others.

mod cpu;
mod session;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use headway_model::sampler::{Sampled, Sampler};
use headway_model::{Decoder, ForwardError, KvCache, LayerRange};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use self::cpu::{CpuDevice, StepRun};
use self::session::Session;
use crate::accounting::{Rows, Share, StepTimes, attribute};
use crate::batcher::{Batcher, Chunk, Phase, Ready};
use crate::capacity::Reservation;
use crate::metrics::Metrics;

/// Steps of one session that may be in the engine: one runs, the others are there when it is done.
pub(crate) const MAX_PIPELINED_STEPS: usize = 4;

/// Commands in the channel beside the sessions' reserved slots. A full channel makes sessions wait, and
/// with them their devices.
const COMMAND_SLOTS: usize = 256;

/// Numbers a session of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SessionId(pub(crate) u64);

/// Why the engine did not answer a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EngineError {
    #[error("the step failed inside the tail; rebuild the session here or on another tail")]
    Failed,
    #[error("the engine has stopped; rebuild the session on another tail")]
    Stopped,
}

/// What a session is to the engine.
pub(crate) struct OpenSession {
    /// The first layer its rows pass.
    pub(crate) entry_layer: usize,
    /// KV capacity, in positions.
    pub(crate) max_positions: usize,
    pub(crate) sampler: Sampler,
    /// Given back when the KV cache is dropped.
    pub(crate) reservation: Reservation,
}

/// The rows of a step.
pub(crate) enum StepInput {
    TokenIds(Vec<u32>),
    /// `[rows, hidden_size]`, row-major.
    HiddenStates(Vec<f32>),
}

/// One step of a session: consecutive positions.
pub(crate) struct StepRequest {
    pub(crate) input: StepInput,
    /// At least one.
    pub(crate) rows: usize,
    /// The token ids of the rows where the sampler must see them, otherwise empty.
    pub(crate) history: Vec<u32>,
    /// Sample a token after the last row.
    pub(crate) sample: bool,
    pub(crate) phase: Phase,
    /// When the frame arrived.
    pub(crate) arrived: Instant,
    /// The memory the rows take while they wait; given back when the step is done.
    pub(crate) memory: OwnedSemaphorePermit,
}

/// The answer to a step.
#[derive(Debug)]
pub(crate) struct StepOutput {
    /// Positions in the KV cache.
    pub(crate) positions: usize,
    pub(crate) sampled: Option<Sampled>,
    pub(crate) compute_us: u64,
    pub(crate) saved_us: u64,
    /// From the frame's arrival to the step's first engine step.
    pub(crate) queue_us: u64,
}

pub(crate) type StepReply = Result<StepOutput, EngineError>;

enum Command {
    Open {
        session: SessionId,
        open: Box<OpenSession>,
    },
    Step {
        session: SessionId,
        request: Box<StepRequest>,
        reply: oneshot::Sender<StepReply>,
    },
    Close {
        session: SessionId,
    },
}

/// The way to the engine. The thread ends when the last handle, sessions included, is dropped.
pub(crate) struct EngineHandle {
    commands: mpsc::Sender<Command>,
    next_session: AtomicU64,
}

impl EngineHandle {
    /// Starts the engine thread. `max_sessions`: how many can be open at a time.
    pub(crate) fn start(
        decoder: Decoder,
        step_tokens: usize,
        max_sessions: usize,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (commands, receiver) = mpsc::channel(max_sessions + COMMAND_SLOTS);
        let engine = Engine {
            device: CpuDevice::new(decoder),
            batcher: Batcher::new(step_tokens),
            sessions: BTreeMap::new(),
            metrics,
        };
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || engine.run(receiver))?;
        Ok((
            Self {
                commands,
                next_session: AtomicU64::new(1),
            },
            thread,
        ))
    }

    /// Opens a session.
    pub(crate) async fn open(&self, open: OpenSession) -> Result<EngineSession, EngineError> {
        let stopped = |_| EngineError::Stopped;
        // Reserved now, so that closing needs no room and cannot fail, wherever the session is dropped.
        let close_slot = self
            .commands
            .clone()
            .reserve_owned()
            .await
            .map_err(stopped)?;
        let session = SessionId(self.next_session.fetch_add(1, Ordering::Relaxed));
        let command = Command::Open {
            session,
            open: Box::new(open),
        };
        self.commands
            .send(command)
            .await
            .map_err(|_| EngineError::Stopped)?;
        Ok(EngineSession {
            session,
            commands: self.commands.clone(),
            close_slot: Some(close_slot),
        })
    }
}

/// An open session; dropping it frees its KV cache.
pub(crate) struct EngineSession {
    session: SessionId,
    commands: mpsc::Sender<Command>,
    close_slot: Option<mpsc::OwnedPermit<Command>>,
}

impl EngineSession {
    pub(crate) fn id(&self) -> SessionId {
        self.session
    }

    /// Hands in the session's next step; waits while the engine's channel is full.
    pub(crate) async fn step(
        &self,
        request: StepRequest,
    ) -> Result<oneshot::Receiver<StepReply>, EngineError> {
        let (reply, receiver) = oneshot::channel();
        let command = Command::Step {
            session: self.session,
            request: Box::new(request),
            reply,
        };
        self.commands
            .send(command)
            .await
            .map_err(|_| EngineError::Stopped)?;
        Ok(receiver)
    }
}

impl Drop for EngineSession {
    fn drop(&mut self) {
        if let Some(close_slot) = self.close_slot.take() {
            close_slot.send(Command::Close {
                session: self.session,
            });
        }
    }
}

struct Engine {
    device: CpuDevice,
    batcher: Batcher,
    sessions: BTreeMap<SessionId, Session>,
    metrics: Arc<Metrics>,
}

impl Engine {
    fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            let ready: Vec<Ready> = self
                .sessions
                .iter()
                .filter_map(|(&id, session)| session.ready(id))
                .collect();
            if ready.is_empty() {
                let Some(command) = commands.blocking_recv() else {
                    return;
                };
                self.apply(command);
            } else {
                let chunks = self.batcher.plan(&ready);
                self.step(&chunks);
            }
            // Ends: a session with `MAX_PIPELINED_STEPS` in here sends nothing before it has an answer.
            while let Ok(command) = commands.try_recv() {
                self.apply(command);
            }
        }
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::Open { session, open } => {
                let OpenSession {
                    entry_layer,
                    max_positions,
                    sampler,
                    reservation,
                } = *open;
                let config = self.device.decoder().config();
                let layers = LayerRange::new(entry_layer, config.num_layers);
                let cache = KvCache::new(config, layers, max_positions);
                self.sessions.insert(
                    session,
                    Session::new(entry_layer, cache, sampler, reservation),
                );
            }
            Command::Step {
                session,
                request,
                reply,
            } => match self.sessions.get_mut(&session) {
                Some(open) => open.enqueue(*request, reply),
                // Its session failed in a batch; the receiver may be gone.
                None => drop(reply.send(Err(EngineError::Failed))),
            },
            Command::Close { session } => drop(self.sessions.remove(&session)),
        }
    }

    /// Runs one engine step. The sessions leave the map for it, so that one that fails is gone.
    fn step(&mut self, chunks: &[Chunk]) {
        let started = Instant::now();
        let mut batch: Vec<(SessionId, Session, usize)> = chunks
            .iter()
            .filter_map(|chunk| {
                Some((
                    chunk.session,
                    self.sessions.remove(&chunk.session)?,
                    chunk.rows,
                ))
            })
            .collect();
        for (_, session, rows) in &mut batch {
            let Some(begun) = session.begin(*rows, started) else {
                continue;
            };
            self.metrics.record_tokens(begun.phase, *rows);
            if let Some(queued) = begun.queued {
                self.metrics
                    .queue_delay_seconds
                    .observe(queued.as_secs_f64());
            }
        }

        let rows: Vec<Rows> = batch
            .iter()
            .map(|(_, session, rows)| session.rows(*rows))
            .collect();
        let run = catch_unwind(AssertUnwindSafe(|| {
            let mut members: Vec<_> = batch
                .iter_mut()
                .map(|(_, session, rows)| {
                    session
                        .member(*rows)
                        .expect("the plan was made from this session's waiting rows")
                })
                .collect();
            self.device.run(&mut members, started)
        }));
        match run {
            Ok(Ok(StepRun { times, samples })) => self.finish(batch, &rows, &times, samples),
            Ok(Err(error)) => self.fail(batch, &rows, started, Some(&error)),
            Err(_panic) => self.fail(batch, &rows, started, None),
        }
    }

    fn finish(
        &mut self,
        batch: Vec<(SessionId, Session, usize)>,
        rows: &[Rows],
        times: &StepTimes,
        samples: Vec<Option<Sampled>>,
    ) {
        let shares = attribute(times, rows);
        self.metrics.record_step(times.busy_ns(), &shares);
        for (((id, mut session, rows), share), sampled) in
            batch.into_iter().zip(shares).zip(samples)
        {
            session.end_chunk(rows, share, sampled);
            self.sessions.insert(id, session);
        }
    }

    /// The time is still somebody's: it is shared by rows, and saved nothing.
    fn fail(
        &mut self,
        batch: Vec<(SessionId, Session, usize)>,
        rows: &[Rows],
        started: Instant,
        error: Option<&ForwardError>,
    ) {
        match error {
            Some(error) => tracing::error!(%error, sessions = batch.len(), "an engine step failed"),
            None => tracing::error!(sessions = batch.len(), "an engine step panicked"),
        }
        let busy_ns = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let times = StepTimes {
            assemble_ns: busy_ns,
            ..StepTimes::default()
        };
        let shares: Vec<Share> = attribute(&times, rows);
        self.metrics.record_step(busy_ns, &shares);
        for (_, session, _) in batch {
            session.fail(EngineError::Failed);
        }
    }
}
