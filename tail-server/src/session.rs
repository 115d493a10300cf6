//! One WebSocket, one session: opened or refused, then steps in and results out, in order.
//!
//! A session is one task. It reads a frame only while fewer than [`MAX_PIPELINED_STEPS`] steps are in the
//! engine, and writes one result at a time with a time limit, so a device that floods or does not read
//! holds a known amount of memory for a known time. What a tenant has used up beyond its rate, its sessions
//! wait for by not being read.

mod connection;
mod steps;
mod token_times;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::ws::WebSocket;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use headway_wire::PROTOCOL_VERSION;
use headway_wire::message::{GoAway, Open, Opened, Step, StepResult, TokenLogprob, client_frame};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval_at, timeout};
use tracing::Instrument as _;

use self::connection::Connection;
use self::steps::StepChecker;
pub(crate) use self::steps::StepError;
use self::token_times::TokenTimes;
use crate::admission::{Admission, Admitted};
use crate::auth::{Authenticator, Identity};
use crate::capacity::{Capacity, PromptQueue, QueuePlace};
use crate::config::Timeouts;
use crate::drain::{Drain, Stage};
use crate::engine::{
    EngineError, EngineHandle, EngineSession, MAX_PIPELINED_STEPS, OpenSession, StepOutput,
    StepReply,
};
use crate::error::Error;
use crate::metrics::Metrics;
use crate::tenant_limits::{TenantSession, Tenants};

/// The most memory of decoded rows that wait for the engine, all sessions together, in KiB. Where it is
/// taken, sessions stop reading until a step is done.
const MAX_QUEUED_ROWS_KIB: usize = 256 << 10;

/// What sessions are served with.
pub(crate) struct SessionService {
    pub(crate) admission: Admission,
    pub(crate) room: Room,
    pub(crate) engine: EngineHandle,
    pub(crate) drain: Arc<Drain>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) timeouts: Timeouts,
    queued_rows_kib: Arc<Semaphore>,
}

/// What there is room for, in each respect.
pub(crate) struct Room {
    pub(crate) capacity: Capacity,
    pub(crate) queue: PromptQueue,
    pub(crate) tenants: Tenants,
}

/// Who opens a session, and who says whether they still may.
pub(crate) struct Access {
    pub(crate) authenticator: Arc<Authenticator>,
    pub(crate) identity: Identity,
}

impl SessionService {
    pub(crate) fn new(
        admission: Admission,
        room: Room,
        engine: EngineHandle,
        drain: Arc<Drain>,
        metrics: Arc<Metrics>,
        timeouts: Timeouts,
    ) -> Self {
        let queued_rows_kib = Arc::new(Semaphore::new(MAX_QUEUED_ROWS_KIB));
        Self {
            admission,
            room,
            engine,
            drain,
            metrics,
            timeouts,
            queued_rows_kib,
        }
    }

    /// Serves one socket until it ends. An error refuses this session and touches no other.
    pub(crate) async fn serve(&self, socket: WebSocket, access: Access) {
        let limits = *self.admission.limits();
        let mut connection =
            Connection::new(socket, limits, self.timeouts, Arc::clone(&self.metrics));
        match self.open_and_run(&mut connection, &access).await {
            Ok(()) => connection.close().await,
            Err(error) => connection.refuse(&error).await,
        }
    }

    async fn open_and_run(
        &self,
        connection: &mut Connection,
        access: &Access,
    ) -> Result<(), Error> {
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
        let opened = Instant::now();
        let admitted = self.admission.admit(&open)?;
        let token_times = TokenTimes::new(opened, admitted.is_resumed);
        let checker = StepChecker::new(&admitted, &self.admission);
        let tenant = &access.identity.tenant;
        let tenant_session = self.room.tenants.enter(tenant, Instant::now())?;
        let queue_place = self.room.queue.enter()?;
        let prompt_positions = admitted.prefill_positions;
        let session = self.open(admitted).await?;

        let id = session.id().0;
        let (split_layer, traceparent) = (open.split_layer, &open.traceparent);
        let span = tracing::info_span!("session", id, %tenant, split_layer, traceparent);
        let running = RunningSession {
            service: self,
            connection,
            session,
            checker,
            tenant_session,
            waiting_prompt: Some(WaitingPrompt {
                positions: prompt_positions,
                _place: queue_place,
            }),
            pending: FuturesOrdered::new(),
            token_times,
            read_at: None,
        };
        let granted = Opened {
            protocol_version: PROTOCOL_VERSION,
            session_id: id,
            max_positions: open.max_positions,
            max_step_positions: self.admission.limits().max_step_positions,
        };
        running.run(granted, stage, access).instrument(span).await
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
        let reservation = self.room.capacity.reserve(kv_bytes)?;
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
    tenant_session: TenantSession,
    /// `None` once the prompt is computed.
    waiting_prompt: Option<WaitingPrompt>,
    pending: FuturesOrdered<oneshot::Receiver<StepReply>>,
    token_times: TokenTimes,
    /// Nothing is read before: the tenant has used more than its rate.
    read_at: Option<tokio::time::Instant>,
}

/// A prompt's place in the queue.
struct WaitingPrompt {
    positions: usize,
    _place: QueuePlace,
}

impl RunningSession<'_> {
    async fn run(
        mut self,
        granted: Opened,
        mut stage: watch::Receiver<Stage>,
        access: &Access,
    ) -> Result<(), Error> {
        tracing::info!(max_positions = granted.max_positions, "session opened");
        self.connection.send(granted).await?;

        let period = self.service.timeouts.ping_interval;
        let mut ping = interval_at(tokio::time::Instant::now() + period, period);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let credentials_ended = access.authenticator.ended(&access.identity);
        tokio::pin!(credentials_ended);
        loop {
            let is_reading = self.is_reading();
            tokio::select! {
                Some(reply) = self.pending.next() => self.answer(reply, is_reading).await?,
                frame = self.connection.receive(), if is_reading => match frame? {
                    None | Some(client_frame::Message::Close(_)) => break,
                    Some(client_frame::Message::Open(_)) => return Err(Error::OpenedTwice),
                    Some(client_frame::Message::Step(step)) => self.take(step).await?,
                },
                () = wait_until(self.read_at), if self.read_at.is_some() => {
                    self.read_at = None;
                    // Nothing was read meanwhile, so its silence says nothing about the device.
                    self.connection.note_alive();
                }
                _ = ping.tick() => {
                    if is_reading && self.connection.is_silent() {
                        tracing::info!("the device has gone silent");
                        break;
                    }
                    self.connection.ping().await?;
                }
                _ = stage.changed() => {
                    let now = *stage.borrow_and_update();
                    match now {
                        Stage::Serving => {}
                        Stage::Draining { deadline } => self.connection.send(go_away(deadline)).await?,
                        Stage::Closing => return Err(Error::Draining),
                    }
                }
                () = &mut credentials_ended => return Err(Error::CredentialsEnded),
            }
        }
        tracing::info!("session closed");
        Ok(())
    }

    fn is_reading(&self) -> bool {
        self.pending.len() < MAX_PIPELINED_STEPS && self.read_at.is_none()
    }

    /// Hands a step to the engine.
    async fn take(&mut self, step: Step) -> Result<(), Error> {
        let arrived = Instant::now();
        let kib = self.checker.memory_kib(&step);
        let queued_rows_kib = Arc::clone(&self.service.queued_rows_kib);
        let memory = queued_rows_kib
            .acquire_many_owned(kib)
            .await
            .map_err(|_| EngineError::Stopped)?;
        let request = self.checker.check(step, arrived, memory)?;
        let wait = self.tenant_session.charge(request.rows, Instant::now())?;
        if !wait.is_zero() {
            self.read_at = Some(tokio::time::Instant::now() + wait);
        }
        self.pending.push_back(self.session.step(request).await?);
        Ok(())
    }

    /// Sends the oldest step's result.
    async fn answer(
        &mut self,
        reply: Result<StepReply, oneshot::error::RecvError>,
        was_reading: bool,
    ) -> Result<(), Error> {
        let output = reply.map_err(|_| EngineError::Stopped)??;
        if self
            .waiting_prompt
            .as_ref()
            .is_some_and(|prompt| output.positions >= prompt.positions)
        {
            self.waiting_prompt = None;
        }
        let token_of = output.sampled.is_some().then_some(output.arrived);
        self.connection.send(step_result(output)).await?;
        if let Some(arrived) = token_of
            && let Some(time) = self.token_times.sent(arrived, Instant::now())
        {
            self.service.metrics.record_token_time(time);
        }
        if !was_reading {
            // Nothing was read meanwhile, so its silence says nothing about the device.
            self.connection.note_alive();
        }
        Ok(())
    }
}

async fn wait_until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
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
        arrived: _,
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
