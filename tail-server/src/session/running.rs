//! An open session: steps in, results out, in order.

use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use headway_wire::message::{FreeRun, Opened, Step, client_frame};
use tokio::sync::{oneshot, watch};
use tokio::time::{MissedTickBehavior, interval_at};

use super::ahead::{Ahead, Verdict};
use super::connection::Connection;
use super::free_run::FreeRunning;
use super::replies::{LEAVING, SPREADING, go_away, passed_over, step_results, traced};
use super::steps::StepChecker;
use super::token_times::TokenTimes;
use super::{Access, SessionService, StepError};
use crate::capacity::QueuePlace;
use crate::drain::Stage;
use crate::engine::{Drafter, EngineError, EngineSession, MAX_PIPELINED_STEPS, StepReply};
use crate::error::Error;
use crate::live_sessions::{LiveSession, Notice};
use crate::metrics::{Route, TokenTime};
use crate::tenant_limits::TenantSession;
use crate::trace::SessionTrace;

/// Guesses of the tail's own that one engine step verifies, of all sessions together: beyond so many rows a step takes
/// noticeably longer, also on a GPU.
const MOST_OWN_GUESSES: usize = 32;

/// A session that has been opened.
pub(super) struct RunningSession<'a> {
    pub(super) service: &'a SessionService,
    pub(super) connection: &'a mut Connection,
    pub(super) session: EngineSession,
    pub(super) checker: StepChecker,
    pub(super) tenant_session: TenantSession,
    /// `None` once the prompt is computed.
    pub(super) waiting_prompt: Option<WaitingPrompt>,
    pub(super) live: LiveSession,
    pub(super) pending: FuturesOrdered<oneshot::Receiver<StepReply>>,
    pub(super) ahead: Ahead,
    pub(super) free_running: FreeRunning,
    /// Token ids are all that the session's rows are.
    pub(super) may_run_free: bool,
    pub(super) token_times: TokenTimes,
    pub(super) route: Route,
    pub(super) trace: SessionTrace,
    /// Nothing is read before: the tenant has used more than its rate.
    pub(super) read_at: Option<tokio::time::Instant>,
}

/// A prompt's place in the queue.
pub(super) struct WaitingPrompt {
    pub(super) positions: usize,
    pub(super) _place: QueuePlace,
}

impl RunningSession<'_> {
    /// Serves it to its end.
    pub(super) async fn run(
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
                    Some(client_frame::Message::FreeRun(free_run)) => self.run_free(free_run).await?,
                },
                () = wait_until(self.read_at), if self.read_at.is_some() => {
                    self.read_at = None;
                    // Nothing was read meanwhile, so its silence says nothing about the device.
                    self.connection.note_alive();
                    self.go_on().await?;
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
            return self.take(step, Drafter::Device).await;
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
                Verdict::Compute(step) => self.take(*step, Drafter::Device).await?,
                Verdict::PassOver => {
                    let result = passed_over(self.checker.received());
                    self.connection.send(result).await?;
                }
            }
        }
        Ok(())
    }

    /// Lets the tail go on by itself, as far as the device says.
    async fn run_free(&mut self, free_run: FreeRun) -> Result<(), Error> {
        if !self.may_run_free {
            return Err(StepError::FreeRun.into());
        }
        let (max, got) = (
            self.checker.max_positions(),
            free_run.until_position as usize,
        );
        if got > max {
            return Err(StepError::BeyondSession { max, got }.into());
        }
        self.free_running.set(free_run);
        self.go_on().await
    }

    /// Takes the row of the token that was sampled last, where the device has said so and nothing else is to be done.
    async fn go_on(&mut self) -> Result<(), Error> {
        let is_free = self.pending.is_empty() && self.ahead.is_empty() && self.read_at.is_none();
        if !is_free {
            return Ok(());
        }
        let admission = &self.service.admission;
        let most_rows = admission.limits().max_step_positions;
        let most = admission.max_draft_tokens().min(most_rows - 1) as usize;
        let sessions = self.service.room.live.busy() + 1;
        let most = most.min(MOST_OWN_GUESSES / sessions);
        match self.free_running.next_step(most, Instant::now()) {
            Some(step) => self.take(step, Drafter::Tail).await,
            None => Ok(()),
        }
    }

    /// Hands a step to the engine.
    async fn take(&mut self, step: Step, drafter: Drafter) -> Result<(), Error> {
        let arrived = Instant::now();
        let kib = self.checker.memory_kib(&step);
        let queued_rows_kib = Arc::clone(&self.service.queued_rows_kib);
        let memory = queued_rows_kib
            .acquire_many_owned(kib)
            .await
            .map_err(|_| EngineError::Stopped)?;
        let position = step.position as usize;
        self.free_running.taken(&step);
        let mut request = self.checker.check(step, arrived, memory)?;
        request.drafter = drafter;
        // Guesses that nobody asked for are charged where they are right.
        let charged = match drafter {
            Drafter::Device => request.rows,
            Drafter::Tail => request.rows - request.draft.len(),
        };
        self.charge(charged)?;
        self.live.note_busy(position + request.rows);
        self.pending.push_back(self.session.step(request).await?);
        Ok(())
    }

    /// Charges the tenant for rows.
    fn charge(&mut self, rows: usize) -> Result<(), Error> {
        let wait = self.tenant_session.charge(rows, Instant::now())?;
        if !wait.is_zero() {
            self.read_at = Some(tokio::time::Instant::now() + wait);
        }
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
        self.free_running
            .given(output.positions, &output.sampled, Instant::now());
        if output.drafter == Drafter::Tail {
            self.charge(tokens.saturating_sub(1))?;
        }
        for result in step_results(output) {
            self.connection.send(result).await?;
        }
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
        self.settle_ahead().await?;
        self.go_on().await
    }
}

async fn wait_until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
