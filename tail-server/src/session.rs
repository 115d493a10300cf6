//! One WebSocket, one session: opened or refused, then steps in and results out, in order.
//!
//! A session is one task. It reads a frame only while fewer than [`MAX_PIPELINED_STEPS`] steps are in the
//! engine, and writes one result at a time with a time limit, so a device that floods or does not read
//! holds a known amount of memory for a known time.

mod connection;
mod steps;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::ws::WebSocket;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use headway_wire::PROTOCOL_VERSION;
use headway_wire::message::{GoAway, Open, Opened, StepResult, TokenLogprob, client_frame};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval_at, timeout};
use tracing::Instrument as _;

use self::connection::Connection;
use self::steps::StepChecker;
pub(crate) use self::steps::StepError;
use crate::admission::{Admission, Admitted};
use crate::capacity::Capacity;
use crate::config::Timeouts;
use crate::drain::{Drain, Stage};
use crate::engine::{
    EngineError, EngineHandle, EngineSession, MAX_PIPELINED_STEPS, OpenSession, StepOutput,
    StepReply,
};
use crate::error::Error;
use crate::metrics::Metrics;

/// The most memory of decoded rows that wait for the engine, all sessions together, in KiB. Where it is
/// taken, sessions stop reading until a step is done.
const MAX_QUEUED_ROWS_KIB: usize = 256 << 10;

/// What sessions are served with.
pub(crate) struct SessionService {
    pub(crate) admission: Admission,
    pub(crate) capacity: Capacity,
    pub(crate) engine: EngineHandle,
    pub(crate) drain: Arc<Drain>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) timeouts: Timeouts,
    queued_rows_kib: Arc<Semaphore>,
}

impl SessionService {
    pub(crate) fn new(
        admission: Admission,
        capacity: Capacity,
        engine: EngineHandle,
        drain: Arc<Drain>,
        metrics: Arc<Metrics>,
        timeouts: Timeouts,
    ) -> Self {
        let queued_rows_kib = Arc::new(Semaphore::new(MAX_QUEUED_ROWS_KIB));
        Self {
            admission,
            capacity,
            engine,
            drain,
            metrics,
            timeouts,
            queued_rows_kib,
        }
    }

    /// Serves one socket until it ends. An error refuses this session and touches no other.
    pub(crate) async fn serve(&self, socket: WebSocket) {
        let limits = *self.admission.limits();
        let mut connection =
            Connection::new(socket, limits, self.timeouts, Arc::clone(&self.metrics));
        match self.open_and_run(&mut connection).await {
            Ok(()) => connection.close().await,
            Err(error) => connection.refuse(&error).await,
        }
    }

    async fn open_and_run(&self, connection: &mut Connection) -> Result<(), Error> {
        // Before anything else, so that no change of the stage is missed.
        let mut stage = self.drain.stage();
        let first_frame = tokio::select! {
            // In this order, so that a tail that is leaving says so and not what else is wrong.
            biased;
            () = no_longer_serving(&mut stage) => return Err(Error::Draining),
            first_frame = self.first_frame(connection) => first_frame?,
        };
        let Some(open) = first_frame else {
            return Ok(());
        };
        let admitted = self.admission.admit(&open)?;
        let checker = StepChecker::new(&admitted, &self.admission);
        let session = self.open(admitted).await?;

        let id = session.id().0;
        let (split_layer, traceparent) = (open.split_layer, &open.traceparent);
        let span = tracing::info_span!("session", id, split_layer, traceparent);
        let running = RunningSession {
            service: self,
            connection,
            session,
            checker,
            stage,
        };
        let granted = Opened {
            protocol_version: PROTOCOL_VERSION,
            session_id: id,
            max_positions: open.max_positions,
            max_step_positions: self.admission.limits().max_step_positions,
        };
        running.run(granted).instrument(span).await
    }

    /// The frame that opens the session; `None` where the device leaves without one.
    async fn first_frame(&self, connection: &mut Connection) -> Result<Option<Open>, Error> {
        let waited = timeout(self.timeouts.open, connection.receive()).await;
        match waited.map_err(|_| Error::OpenTimeout {
            open_timeout: self.timeouts.open,
        })?? {
            None | Some(client_frame::Message::Close(_)) => Ok(None),
            Some(client_frame::Message::Open(open)) => Ok(Some(open)),
            Some(client_frame::Message::Step(_)) => Err(Error::StepBeforeOpen),
        }
    }

    async fn open(&self, admitted: Admitted) -> Result<EngineSession, Error> {
        let Admitted {
            split_layer,
            max_positions,
            sampler,
            kv_bytes,
            is_resumed,
            ..
        } = admitted;
        let reservation = self.capacity.reserve(kv_bytes)?;
        let open = OpenSession {
            entry_layer: split_layer,
            max_positions,
            sampler,
            reservation,
        };
        let session = self.engine.open(open).await?;
        self.metrics.sessions_opened.inc();
        if is_resumed {
            self.metrics.sessions_resumed.inc();
        }
        Ok(session)
    }
}

async fn no_longer_serving(stage: &mut watch::Receiver<Stage>) {
    // The sender outlives every session.
    let _ = stage.wait_for(|stage| *stage != Stage::Serving).await;
}

/// A session that has been opened.
struct RunningSession<'a> {
    service: &'a SessionService,
    connection: &'a mut Connection,
    session: EngineSession,
    checker: StepChecker,
    stage: watch::Receiver<Stage>,
}

impl RunningSession<'_> {
    async fn run(self, granted: Opened) -> Result<(), Error> {
        let Self {
            service,
            connection,
            session,
            mut checker,
            mut stage,
        } = self;
        tracing::info!(max_positions = granted.max_positions, "session opened");
        connection.send(granted).await?;

        let period = service.timeouts.ping_interval;
        let mut ping = interval_at(tokio::time::Instant::now() + period, period);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pending: FuturesOrdered<oneshot::Receiver<StepReply>> = FuturesOrdered::new();
        loop {
            let is_reading = pending.len() < MAX_PIPELINED_STEPS;
            tokio::select! {
                Some(reply) = pending.next() => {
                    let output = reply.map_err(|_| EngineError::Stopped)??;
                    connection.send(step_result(output)).await?;
                    if !is_reading {
                        // Nothing was read meanwhile, so its silence says nothing about the device.
                        connection.note_alive();
                    }
                }
                frame = connection.receive(), if is_reading => match frame? {
                    None | Some(client_frame::Message::Close(_)) => break,
                    Some(client_frame::Message::Open(_)) => return Err(Error::OpenedTwice),
                    Some(client_frame::Message::Step(step)) => {
                        let arrived = Instant::now();
                        let kib = checker.memory_kib(&step);
                        let memory = Arc::clone(&service.queued_rows_kib).acquire_many_owned(kib).await;
                        let memory = memory.map_err(|_| EngineError::Stopped)?;
                        pending.push_back(session.step(checker.check(step, arrived, memory)?).await?);
                    }
                },
                _ = ping.tick() => {
                    if is_reading && connection.is_silent() {
                        tracing::info!("the device has gone silent");
                        break;
                    }
                    connection.ping().await?;
                }
                _ = stage.changed() => {
                    let now = *stage.borrow_and_update();
                    match now {
                        Stage::Serving => {}
                        Stage::Draining { deadline } => connection.send(go_away(deadline)).await?,
                        Stage::Closing => return Err(Error::Draining),
                    }
                }
            }
        }
        tracing::info!("session closed");
        Ok(())
    }
}

fn go_away(deadline: tokio::time::Instant) -> GoAway {
    let left = deadline.saturating_duration_since(tokio::time::Instant::now());
    GoAway {
        deadline_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
        reason: "this tail is leaving; rebuild the session on another one".to_owned(),
    }
}

fn step_result(output: StepOutput) -> StepResult {
    let StepOutput {
        positions,
        sampled,
        compute_us,
        saved_us,
        queue_us,
    } = output;
    let mut result = StepResult {
        // Bounded by the session's `max_positions`, which came as a u32.
        positions: u32::try_from(positions).unwrap_or(u32::MAX),
        compute_us,
        saved_us,
        queue_us,
        ..StepResult::default()
    };
    if let Some(sampled) = sampled {
        result.token_id = Some(sampled.token_id);
        result.logprob = sampled.logprob;
        let top = sampled.top_logprobs.into_iter();
        result.top_logprobs = top
            .map(|(token_id, logprob)| TokenLogprob { token_id, logprob })
            .collect();
    }
    result
}
