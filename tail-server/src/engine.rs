//! The engine: one thread that owns the device and every session's KV cache.
//!
//! Sessions talk to it in [`Command`]s over a bounded channel and get each step's answer over a oneshot.
//! The thread blocks for commands where it has nothing to do, or where a step gains by waiting a moment, and never
//! awaits.
//!
//! Invariants:
//! - Only this thread runs device work on behalf of sessions.
//! - A session's rows are run in the order in which they came, one chunk in each engine step.
//! - An error or a panic in a step ends the sessions of that step with [`EngineError::Failed`], no others;
//!   their KV caches are freed before they hear of it.

mod arrivals;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
#[cfg(test)]
pub(crate) mod faulty;
mod gather;
mod sampling;
mod session;
#[cfg(test)]
mod tests;
mod thread;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use headway_model::sampler::{Sampled, Sampler};
use headway_wire::PrefixDigest;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

pub(crate) use self::cpu::CpuDevice;
#[cfg(feature = "cuda")]
pub(crate) use self::cuda::CudaDevice;
pub(crate) use self::device::Device;
use self::thread::Engine;
use crate::batcher::Phase;
use crate::capacity::SessionRoom;
use crate::savings::Savings;
use crate::watchdog::Watchdog;

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
    /// The first layer that its hidden states pass. Token ids pass all, and come before them.
    pub(crate) entry_layer: usize,
    pub(crate) sampler: Sampler,
    /// Its blocks of the KV cache; given back when the engine has done with the session.
    pub(crate) room: SessionRoom,
}

/// The rows of a step.
pub(crate) enum StepInput {
    TokenIds(Vec<u32>),
    /// `[rows, hidden_size]`, row-major.
    HiddenStates(Vec<f32>),
}

/// Whose guesses a step verifies. What the tail's own save is nobody's credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drafter {
    Device,
    Tail,
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
    /// Guesses: the token ids of the rows but the first one. Empty where nothing is guessed.
    pub(crate) draft: Vec<u32>,
    pub(crate) drafter: Drafter,
    /// Of the session's next blocks, as far as the rows complete them.
    pub(crate) digests: Vec<PrefixDigest>,
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
    /// Draft tokens that are right, and the token after them; empty where no sample was asked for.
    pub(crate) sampled: Vec<Sampled>,
    /// As in the request.
    pub(crate) drafter: Drafter,
    pub(crate) phase: Phase,
    pub(crate) rows: usize,
    pub(crate) compute_us: u64,
    pub(crate) saved_us: u64,
    pub(crate) draft_saved_us: u64,
    /// From the frame's arrival to the step's first engine step.
    pub(crate) queue_us: u64,
    /// As in the request.
    pub(crate) arrived: Instant,
    /// When the step's last rows were done.
    pub(crate) computed: Instant,
}

pub(crate) type StepReply = Result<StepOutput, EngineError>;

enum Command {
    Open {
        session: SessionId,
        open: Box<OpenSession>,
    },
    Step {
        session: SessionId,
        /// Where its rows enter that are hidden states.
        entry_layer: usize,
        request: Box<StepRequest>,
        reply: oneshot::Sender<StepReply>,
        /// When the session handed it in.
        sent: Instant,
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
        device: impl Device,
        step_tokens: usize,
        max_sessions: usize,
        watchdog: Arc<Watchdog>,
        savings: Arc<Savings>,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (commands, receiver) = mpsc::channel(max_sessions + COMMAND_SLOTS);
        let engine = Engine::new(device, step_tokens, watchdog, savings);
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
        let entry_layer = open.entry_layer;
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
            entry_layer,
            commands: self.commands.clone(),
            close_slot: Some(close_slot),
        })
    }
}

/// An open session; dropping it frees its KV cache.
pub(crate) struct EngineSession {
    session: SessionId,
    entry_layer: usize,
    commands: mpsc::Sender<Command>,
    close_slot: Option<mpsc::OwnedPermit<Command>>,
}

impl StepRequest {
    /// Its hidden states, where it has some.
    fn hidden_states(&self) -> Option<&[f32]> {
        match &self.input {
            StepInput::HiddenStates(values) => Some(values),
            StepInput::TokenIds(_) => None,
        }
    }
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
            entry_layer: self.entry_layer,
            request: Box::new(request),
            reply,
            sent: Instant::now(),
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
