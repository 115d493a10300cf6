//! One WebSocket, one session: opened or refused, then steps in and results out, in order.
//!
//! A session is one task. It reads a frame only while fewer than [`MAX_PIPELINED_STEPS`] steps are in the
//! engine, and writes one result at a time with a time limit, so a device that floods or does not read
//! holds a known amount of memory for a known time. What a tenant has used up beyond its rate, its sessions
//! wait for by not being read.

mod ahead;
mod connection;
mod replies;
mod steps;
mod token_times;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::ws::WebSocket;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use headway_wire::PROTOCOL_VERSION;
use headway_wire::message::{Open, Opened, Step, client_frame};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval_at, timeout, timeout_at};
use tracing::Instrument as _;

use self::ahead::{Ahead, Verdict};
use self::connection::Connection;
use self::replies::{LEAVING, SPREADING, go_away, passed_over, step_result, traced};
use self::steps::StepChecker;
pub(crate) use self::steps::StepError;
use self::token_times::TokenTimes;
use crate::admission::{Admission, Admitted};
use crate::auth::{Authenticator, Identity, Tenant};
use crate::capacity::{Capacity, KvRequest, PromptQueue, QueuePlace, SessionRoom};
use crate::config::Timeouts;
use crate::drain::{Drain, Stage};
use crate::engine::{
    EngineError, EngineHandle, EngineSession, MAX_PIPELINED_STEPS, OpenSession, StepReply,
};
use crate::error::Error;
use crate::live_sessions::{LiveSession, LiveSessions, Notice};
use crate::metrics::{Metrics, Route, TokenTime};
use crate::tenant_limits::{TenantSession, Tenants};
use crate::trace::{SessionFacts, SessionTrace, TraceHeaders};
use crate::watchdog::Watchdog;

/// The most memory of decoded rows that wait for the engine, all sessions together, in KiB. Where it is
/// taken, sessions stop reading until a step is done.
const MAX_QUEUED_ROWS_KIB: usize = 256 << 10;

/// How long a newcomer waits for the room of an idle session that was told to end.
const EVICTION_WAIT: Duration = Duration::from_secs(2);

/// What sessions are served with.
pub(crate) struct SessionService {
    pub(crate) admission: Admission,
    pub(crate) room: Room,
    pub(crate) engine: EngineHandle,
    pub(crate) drain: Arc<Drain>,
    pub(crate) watchdog: Arc<Watchdog>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) timeouts: Timeouts,
    /// Decoded rows of all sessions that wait for the engine.
    pub(crate) queued_rows_kib: Arc<Semaphore>,
}

/// What there is room for, in each respect.
pub(crate) struct Room {
    pub(crate) capacity: Capacity,
    pub(crate) queue: PromptQueue,
    pub(crate) tenants: Tenants,
    pub(crate) live: LiveSessions,
    /// Sessions that have been idle for longer make room for newcomers.
    pub(crate) evict_idle: Duration,
}

/// Who opens a session, and who says whether they still may.
pub(crate) struct Access {
    pub(crate) authenticator: Arc<Authenticator>,
    pub(crate) identity: Identity,
}

/// Room for the decoded rows that wait for the engine.
pub(crate) fn queued_rows() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MAX_QUEUED_ROWS_KIB))
}

impl SessionService {
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
        // What a stalled engine was given, nobody would get.
        self.watchdog.check(opened)?;
        let Identity { tenant, device, .. } = &access.identity;
        let tenant_session = self.room.tenants.enter(tenant, device.as_ref(), opened)?;
        let queue_place = self.room.queue.enter()?;
        let room = self.take_room(&admitted, tenant).await?;
        let reused_positions = room.reused_positions();
        let checker = StepChecker::new(&admitted, &self.admission, reused_positions);
        let prompt_positions = admitted.prefill_positions;
        let prefill_token_ids = admitted.prefill_token_ids;
        let session = self.open(admitted, room).await?;

        let session_id = session.id().0;
        let headers = TraceHeaders {
            traceparent: &open.traceparent,
            tracestate: &open.tracestate,
        };
        let facts = SessionFacts {
            session_id,
            tenant: tenant.as_str(),
            split_layer: open.split_layer,
            max_positions: open.max_positions,
        };
        let trace = SessionTrace::new(headers, facts);
        let span = trace.span().clone();
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
            live: self.room.live.enter(Instant::now()),
            pending: FuturesOrdered::new(),
            ahead: Ahead::default(),
            token_times,
            route: Route::of_session(open.split_layer),
            trace,
            read_at: None,
        };
        let granted = Opened {
            protocol_version: PROTOCOL_VERSION,
            session_id,
            max_positions: open.max_positions,
            max_step_positions: self.admission.limits().max_step_positions,
            // Bounded by the session's positions, which came as a u32.
            reused_positions: u32::try_from(reused_positions).unwrap_or(u32::MAX),
            max_draft_tokens: self.admission.max_draft_tokens(),
            prefill_token_ids,
            max_ahead_steps: self.admission.max_ahead_steps(),
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

    /// Takes the session's room; where there is none, that of a session that has been idle for long.
    async fn take_room(&self, admitted: &Admitted, tenant: &Tenant) -> Result<SessionRoom, Error> {
        let request = KvRequest {
            tenant,
            codec: admitted.digested().1,
            layers: admitted.layers,
            positions: admitted.max_positions,
            prefix: &admitted.prefix,
            keeps_prefix: admitted.keeps_prefix,
        };
        let deadline = tokio::time::Instant::now() + EVICTION_WAIT;
        let mut has_evicted = false;
        loop {
            // Before the look at the room, so that what is given back in between is seen.
            let released = self.room.capacity.released();
            let now = Instant::now();
            let error = match self.room.capacity.reserve(&request, now) {
                Ok(room) => return Ok(room),
                Err(error) => error,
            };
            if !error.may_pass() {
                return Err(error.into());
            }
            if self.room.live.evict_idlest(self.room.evict_idle, now) {
                self.metrics.sessions_evicted.inc();
                has_evicted = true;
            }
            if !has_evicted || timeout_at(deadline, released).await.is_err() {
                return Err(error.into());
            }
        }
    }

    async fn open(&self, admitted: Admitted, room: SessionRoom) -> Result<EngineSession, Error> {
        let open = OpenSession {
            entry_layer: admitted.split_layer,
            sampler: admitted.sampler,
            room,
        };
        let session = self.engine.open(open).await?;
        self.metrics.sessions_opened.inc();
        if admitted.is_resumed {
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
    live: LiveSession,
    pending: FuturesOrdered<oneshot::Receiver<StepReply>>,
    ahead: Ahead,
    token_times: TokenTimes,
    route: Route,
    trace: SessionTrace,
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
                    Some(client_frame::Message::Step(step)) => self.receive(step).await?,
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
                        Stage::Draining { deadline } => {
                            self.connection.send(go_away(deadline, LEAVING)).await?;
                        }
                        Stage::Closing => return Err(Error::Draining),
                    }
                }
                notice = self.live.notice() => match notice {
                    Notice::Evicted => return Err(Error::Evicted),
                    Notice::Leave { deadline } => {
                        self.connection.send(go_away(deadline, SPREADING)).await?;
                    }
                },
                () = &mut credentials_ended => return Err(Error::CredentialsEnded),
            }
        }
        tracing::info!("session closed");
        Ok(())
    }

    fn is_reading(&self) -> bool {
        let has_room = self.pending.len() < MAX_PIPELINED_STEPS && !self.ahead.is_full();
        has_room && self.read_at.is_none()
    }

    /// Hands a step to the engine, or lets it wait for the result that it runs ahead of.
    async fn receive(&mut self, step: Step) -> Result<(), Error> {
        let position = step.position as usize;
        if step.first_guess.is_none() {
            if !self.ahead.is_empty() {
                return Err(StepError::AheadUnanswered { position }.into());
            }
            return self.take(step).await;
        }
        if self.service.admission.max_ahead_steps() == 0 {
            return Err(StepError::Ahead { position }.into());
        }
        self.ahead.wait(step);
        self.settle_ahead().await
    }

    /// Goes on with the steps that run ahead, as far as the results before them are there.
    async fn settle_ahead(&mut self) -> Result<(), Error> {
        while self.pending.is_empty()
            && let Some(verdict) = self.ahead.next()
        {
            match verdict {
                Verdict::Compute(step) => self.take(*step).await?,
                Verdict::PassOver => {
                    let result = passed_over(self.checker.received());
                    self.connection.send(result).await?;
                }
            }
        }
        Ok(())
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
        let position = step.position as usize;
        let request = self.checker.check(step, arrived, memory)?;
        let end = position + request.rows;
        let wait = self.tenant_session.charge(request.rows, Instant::now())?;
        if !wait.is_zero() {
            self.read_at = Some(tokio::time::Instant::now() + wait);
        }
        self.live.note_busy(end);
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
        self.checker.answered(output.positions);
        if self.pending.is_empty() {
            self.live.note_idle(output.positions, Instant::now());
        }
        let (mut moments, facts) = traced(&output);
        let tokens = output.sampled.len();
        let token_id = output.sampled.last().map(|sampled| sampled.token_id);
        self.ahead.given(output.positions, token_id);
        self.connection.send(step_result(output)).await?;
        moments.sent = Instant::now();
        if tokens > 0 {
            let metrics = &self.service.metrics;
            metrics.record_output(tokens);
            let time = self.token_times.sent(tokens, moments.arrived, moments.sent);
            if let Some(TokenTime::First(_)) = time {
                metrics.record_answer(self.route);
            }
            if let Some(time) = time {
                metrics.record_token_time(time);
            }
        }
        self.trace.step(moments, facts);
        if !was_reading {
            // Nothing was read meanwhile, so its silence says nothing about the device.
            self.connection.note_alive();
        }
        self.settle_ahead().await
    }
}

async fn wait_until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
