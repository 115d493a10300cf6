//! One WebSocket, one session: opened or refused, then steps in and results out, in order.
//!
//! A session is one task. It reads a frame only while fewer than `MAX_PIPELINED_STEPS` steps are in the
//! engine, and writes one result at a time with a time limit, so a device that floods or does not read
//! holds a known amount of memory for a known time. What a tenant has used up beyond its rate, its sessions
//! wait for by not being read.

mod ahead;
mod connection;
mod free_run;
mod guesser;
mod replies;
mod running;
mod steps;
mod token_times;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::ws::WebSocket;
use futures_util::stream::FuturesOrdered;
use headway_wire::PROTOCOL_VERSION;
use headway_wire::message::{Open, Opened, client_frame};
use tokio::sync::{Semaphore, watch};
use tokio::time::{timeout, timeout_at};
use tracing::Instrument as _;

use self::ahead::Ahead;
use self::connection::Connection;
use self::free_run::FreeRunning;
use self::guesser::Guesser;
use self::running::{RunningSession, WaitingPrompt};
use self::steps::StepChecker;
pub(crate) use self::steps::StepError;
use self::token_times::TokenTimes;
use crate::admission::{Admission, Admitted};
use crate::auth::{Authenticator, Identity, Tenant};
use crate::capacity::{Capacity, KvRequest, PromptQueue, SessionRoom};
use crate::config::Timeouts;
use crate::drain::{Drain, Stage};
use crate::engine::{EngineHandle, EngineSession, OpenSession};
use crate::error::Error;
use crate::live_sessions::LiveSessions;
use crate::metrics::{Metrics, Route};
use crate::tenant_limits::Tenants;
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
        let guesses_itself = open.split_layer == 0 && self.admission.max_draft_tokens() > 0;
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
            free_running: if guesses_itself {
                FreeRunning::guessing(Guesser::new(reused_positions))
            } else {
                FreeRunning::default()
            },
            may_run_free: open.split_layer == 0,
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
            // Those of split layer 0 send token ids, which are what the tail samples.
            free_running: open.split_layer == 0,
            tail_drafts: guesses_itself,
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
            Some(client_frame::Message::Step(_) | client_frame::Message::FreeRun(_)) => {
                Err(Error::StepBeforeOpen)
            }
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
