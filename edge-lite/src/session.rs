//! One generation on a tail: sends positions, receives tokens, and outlives the tail.
//!
//! The state is the sequence of tokens and how much of it the present connection has been sent. A first
//! prompt, a decode step and a rebuilt session are then the same thing: send what the tail lacks, and ask
//! for a token after the last row.

mod ahead;
mod free_run;
mod messages;
mod steps;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use headway_model::sampler::{Sampled, Sampler, SamplingParams};
use headway_wire::message::Open;
use headway_wire::{Codec, PROTOCOL_VERSION};

use self::ahead::Ahead;
use self::free_run::Pace;
use self::messages::sampling;
pub(crate) use self::steps::MAX_UNANSWERED_STEPS;
use crate::answer::{Account, Answer, Plan};
use crate::config::ReconnectPolicy;
use crate::connection::{Connection, Dialer};
use crate::drafting::{DraftModel, DraftPass, Drafter, Drafting};
use crate::error::{DeviceError, Error, TailError};
use crate::event::Event;
use crate::generation::{Events, Progress};
use crate::head_layers::HeadLayers;
use crate::prefix;
use crate::recovery::{Recovery, jitter};
use crate::report::{FinishReason, Route, Totals};
use crate::router::reason::Segment;
use crate::rows::{Rows, RowsConfig, wire_u32};
use crate::vocabulary::Vocabulary;

/// How long a session stays on a tail that goes away after it could not move.
const MIN_MOVE_WAIT: Duration = Duration::from_millis(200);
/// The same after a tail of another model: likely all others are.
const OTHER_MODEL_MOVE_WAIT: Duration = Duration::from_secs(1);

/// What all generations of a client share.
#[derive(Clone)]
pub(crate) struct SessionConfig {
    pub(crate) dialer: Dialer,
    pub(crate) model_digest: String,
    pub(crate) split_layer: usize,
    pub(crate) num_layers: usize,
    pub(crate) hidden_size: usize,
    pub(crate) codec: Codec,
    pub(crate) head_layers: Option<HeadLayers>,
    pub(crate) vocabulary: Arc<Vocabulary>,
    pub(crate) prompt_chunk_positions: usize,
    pub(crate) max_replay_bytes: usize,
    pub(crate) prefill_token_ids: bool,
    pub(crate) reuse_prefix: bool,
    pub(crate) free_running: bool,
    pub(crate) drafting: Drafting,
    pub(crate) draft_model: Option<DraftModel>,
    pub(crate) reconnect: ReconnectPolicy,
    /// A tail refused a session because it serves another model.
    pub(crate) is_outdated: Arc<AtomicBool>,
}

impl SessionConfig {
    /// Bytes that the head weights take in memory, with those of a model that guesses.
    pub(crate) fn head_weight_bytes(&self) -> usize {
        let head_layers = self.head_layers.as_ref();
        let draft_model = self.draft_model.as_ref();
        head_layers.map_or(0, |head_layers| head_layers.layers().weight_bytes())
            + draft_model.map_or(0, DraftModel::weight_bytes)
    }
}

/// Runs one generation to its end and reports it.
pub(crate) async fn run(config: Arc<SessionConfig>, plan: Plan, progress: Progress) {
    let Progress {
        events,
        mut cancelled,
    } = progress;
    let vocabulary = Arc::clone(&config.vocabulary);
    let mut answer = Answer::new(&vocabulary, &plan);
    let mut session = Session::new(&config, &plan);
    let finish = tokio::select! {
        biased;
        () = cancelled.wait() => Ok(FinishReason::Cancelled),
        finish = session.drive(&mut answer, &events) => finish,
    };
    let totals = session.close().await;
    let account = Account {
        prompt_tokens: plan.prompt.len(),
        split_layer: config.split_layer,
        num_layers: config.num_layers,
        head_weight_bytes: config.head_weight_bytes(),
        route: Route::of(config.split_layer, config.num_layers),
        segments: vec![Segment::only(
            Route::of(config.split_layer, config.num_layers),
            answer.tokens(),
        )],
        totals,
    };
    // Where nobody listens any more, there is nobody to tell.
    match finish.and_then(|finish| Ok(answer.rest(finish)?)) {
        Ok((text, finish)) => {
            if !text.is_empty() {
                let _ = events.send(Ok(Event::Rest { text })).await;
            }
            let report = Box::new(answer.report(finish, account));
            let _ = events.send(Ok(Event::Report(report))).await;
        }
        Err(error) => drop(events.send(Err(error)).await),
    }
}

/// Where a session goes on that has begun elsewhere: on another connection, or with another engine.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progressed {
    /// Positions that some tail was sent.
    pub(crate) sent_before: usize,
    /// Some session of this generation was open.
    pub(crate) was_open: bool,
}

pub(crate) struct Session<'a> {
    config: &'a SessionConfig,
    plan: &'a Plan,
    /// Prompt and answer.
    sequence: Vec<u32>,
    rows: Rows,
    drafter: Option<Drafter>,
    ahead: Ahead,
    /// When the row of the last token was started whose result is not there, and how many guesses stood behind it.
    begun: Option<(Instant, usize)>,
    /// How fast tokens come from a tail that goes on by itself.
    pace: Pace,
    connection: Option<Connection>,
    recovery: Recovery,
    /// Positions that some tail was sent; what is sent again below is a replay.
    sent_before: usize,
    was_open: bool,
    /// Not to move away from a tail that goes away before this moment.
    move_at: Option<Instant>,
    totals: Totals,
}

impl<'a> Session<'a> {
    fn new(config: &'a SessionConfig, plan: &'a Plan) -> Self {
        Self::resume(config, plan, plan.prompt.clone(), Progressed::default())
    }

    /// Goes on behind `sequence`, the prompt and what was answered so far.
    pub(crate) fn resume(
        config: &'a SessionConfig,
        plan: &'a Plan,
        sequence: Vec<u32>,
        progressed: Progressed,
    ) -> Self {
        let rows = RowsConfig {
            codec: config.codec,
            hidden_size: config.hidden_size,
            capacity: plan.positions(),
            sends_history: plan.sampling.needs_history(),
            max_replay_bytes: config.max_replay_bytes,
            digests: offers_prefix(config, plan),
            token_positions: if asks_token_prefill(config) {
                plan.prompt.len()
            } else {
                0
            },
        };
        Self {
            config,
            plan,
            sequence,
            rows: Rows::new(config.head_layers.as_ref(), draft_pass(config, plan), &rows),
            drafter: Drafter::new(config.drafting, config.draft_model.is_some()),
            ahead: Ahead::default(),
            begun: None,
            pace: Pace::default(),
            connection: None,
            recovery: Recovery::new(config.reconnect),
            sent_before: progressed.sent_before,
            was_open: progressed.was_open,
            move_at: None,
            totals: Totals::default(),
        }
    }

    async fn drive(
        &mut self,
        answer: &mut Answer<'_>,
        events: &Events,
    ) -> Result<FinishReason, Error> {
        loop {
            for sampled in self.next_tokens(answer).await? {
                let token_id = sampled.token_id;
                let taken = answer.take(sampled)?;
                if let Some(event) = taken.event
                    && events.send(Ok(Event::Token(event))).await.is_err()
                {
                    return Ok(FinishReason::Cancelled);
                }
                if let Some(finish) = taken.finish {
                    return Ok(finish);
                }
                self.push(token_id);
            }
        }
    }

    /// The token after the sequence, from whichever tail gives it, and those behind it that were guessed.
    pub(crate) async fn next_tokens(
        &mut self,
        answer: &mut Answer<'_>,
    ) -> Result<Vec<Sampled>, Error> {
        loop {
            let error = match self.try_next_tokens(answer).await {
                Ok(tokens) => {
                    self.recovery.alive();
                    return Ok(tokens);
                }
                Err(Error::Tail(error)) => error,
                Err(error) => return Err(error),
            };
            self.lose_connection();
            let wait = self.recovery.wait_after(error, Instant::now(), jitter())?;
            self.rows.settle().await?;
            tokio::time::sleep(wait).await;
        }
    }

    async fn try_next_tokens(&mut self, answer: &mut Answer<'_>) -> Result<Vec<Sampled>, Error> {
        if self.connection.is_none() {
            let prefix_digests = self.prefix_digests().await?;
            let began = Instant::now();
            self.connection = Some(self.open(prefix_digests).await?);
            answer.opened(began);
        } else {
            self.move_where_asked().await?;
        }
        let granted = self
            .connection
            .as_ref()
            .map_or(0, |connection| connection.opened.max_positions as usize);
        if granted < self.sequence.len() {
            let reason = format!(
                "{granted} positions were granted; {} are needed",
                self.sequence.len()
            );
            return Err(TailError::Protocol { reason }.into());
        }
        // The last token of an answer needs no position of its own.
        answer.limit_tokens(granted + 1 - self.plan.prompt.len());
        // The token behind the last row is one of those that are left.
        let most_rows = granted.min(self.sequence.len() + answer.tokens_left() - 1);
        self.step_to_tokens(most_rows).await
    }

    /// What to offer of the sequence: prompt and answer so far.
    async fn prefix_digests(&mut self) -> Result<Bytes, DeviceError> {
        if !offers_prefix(self.config, self.plan) {
            return Ok(Bytes::new());
        }
        let max_digests = self.config.dialer.limits.max_prefix_digests;
        let positions = prefix::offered_positions(self.sequence.len(), max_digests);
        let max_rows = max_chunk_rows(self.config);
        let sequence = &self.sequence;
        self.rows
            .prefix_digests(sequence, positions, max_rows)
            .await
    }

    async fn open(&mut self, prefix_digests: Bytes) -> Result<Connection, TailError> {
        let open = Open {
            protocol_version: PROTOCOL_VERSION,
            model_digest: self.config.model_digest.clone(),
            split_layer: wire_u32(self.config.split_layer),
            codec: Some(self.config.codec.into()),
            sampling: Some(sampling(&self.plan.sampling)),
            max_positions: wire_u32(self.plan.positions()),
            prompt_tokens: wire_u32(self.plan.prompt.len()),
            resume_positions: wire_u32(self.sent_before),
            traceparent: self.plan.trace.traceparent.clone(),
            tracestate: self.plan.trace.tracestate.clone(),
            prefix_digests,
            keep_prefix: self.config.reuse_prefix,
            prefill_token_ids: asks_token_prefill(self.config),
        };
        let opened = Connection::open(&self.config.dialer, open).await;
        let connection = opened.inspect_err(|error| {
            if error.is_of_another_model() {
                self.config.is_outdated.store(true, Ordering::Relaxed);
            }
        })?;
        self.rows
            .prefill_by_token_ids(connection.opened.prefill_token_ids);
        // Nothing is sent yet: what stands as sent was there.
        self.totals.reused_positions += connection.sent() as u64;
        if self.was_open {
            self.totals.reconnects += 1;
            tracing::info!(positions = self.sequence.len(), "the session is rebuilt");
        }
        self.was_open = true;
        Ok(connection)
    }

    /// Moves off a tail that goes away. Where no other takes the session, it stays: the old tail answers
    /// until its deadline, and after that the loss is an ordinary one.
    async fn move_where_asked(&mut self) -> Result<(), DeviceError> {
        let is_asked = self
            .connection
            .as_ref()
            // What the tail does by itself can be left to itself.
            .is_some_and(|connection| {
                connection.go_away.is_some()
                    && connection.unanswered() == connection.unanswered_free()
            });
        if !is_asked
            || self.rows.is_started()
            || self.move_at.is_some_and(|moment| Instant::now() < moment)
        {
            return Ok(());
        }
        let prefix_digests = self.prefix_digests().await?;
        match self.open(prefix_digests).await {
            Ok(connection) => {
                let old = self.connection.replace(connection);
                if let Some(old) = old {
                    self.count_traffic(&old);
                    // The goodbye can take a while and changes nothing here.
                    tokio::spawn(old.close());
                }
                self.move_at = None;
            }
            Err(error) => {
                let least = match error.is_of_another_model() {
                    true => OTHER_MODEL_MOVE_WAIT,
                    false => MIN_MOVE_WAIT,
                };
                let wait = error.retry_after().unwrap_or_default().max(least);
                tracing::info!(%error, wait_ms = wait.as_millis(), "no other tail takes the session yet");
                self.move_at = Some(Instant::now() + wait);
            }
        }
        Ok(())
    }

    /// Positions that the tail has not been sent, and must compute before the next token.
    pub(crate) fn lacking(&self) -> usize {
        let sent = self.connection.as_ref().map_or(0, Connection::sent);
        self.sequence.len().saturating_sub(sent)
    }

    /// For a session that takes over from this one.
    pub(crate) const fn progressed(&self) -> Progressed {
        Progressed {
            sent_before: self.sent_before,
            was_open: self.was_open,
        }
    }

    /// Leaves the connection as it is, without a goodbye that nobody would answer.
    pub(crate) fn lose_connection(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.count_traffic(&connection);
        }
        self.move_at = None;
        self.ahead = Ahead::default();
        self.begun = None;
        self.pace.lost();
        self.rows.forget_unverified();
    }

    fn count_traffic(&mut self, connection: &Connection) {
        self.totals.bytes_up += connection.traffic.up_bytes;
        self.totals.bytes_down += connection.traffic.down_bytes;
    }

    /// Closes the session on the tail, and gives the account.
    pub(crate) async fn close(mut self) -> Totals {
        if let Some(connection) = self.connection.take() {
            let traffic = connection.close().await;
            self.totals.bytes_up += traffic.up_bytes;
            self.totals.bytes_down += traffic.down_bytes;
        }
        self.totals.head_compute_ms = self.rows.compute().as_secs_f64() * 1e3;
        self.totals
    }
}

/// What guesses for this generation, where a model does.
fn draft_pass(config: &SessionConfig, plan: &Plan) -> Option<DraftPass> {
    let model = config.draft_model.as_ref()?;
    let sampling = SamplingParams {
        logit_bias: Vec::new(),
        logprobs: false,
        top_logprobs: 0,
        ..plan.sampling.clone()
    };
    // The request's parameters were checked.
    let sampler = Sampler::new(sampling, plan.prompt.len()).ok()?;
    Some(model.pass(plan.positions(), Arc::new(sampler)))
}

/// True where the session offers digests. A sampler that must see every token id reuses nothing, and waiting for
/// the digests would be for nothing.
fn offers_prefix(config: &SessionConfig, plan: &Plan) -> bool {
    config.reuse_prefix && !plan.sampling.needs_history()
}

/// True where the prompt is to go up as token ids although layers run here.
fn asks_token_prefill(config: &SessionConfig) -> bool {
    config.prefill_token_ids && config.head_layers.is_some()
}

/// Rows that are made at a time: within the client's chunk and half a frame, which leaves room for everything that
/// stands beside the rows.
fn max_chunk_rows(config: &SessionConfig) -> usize {
    let row_bytes = config.codec.encoded_bytes_max(1, config.hidden_size).max(1);
    let in_frame = config.dialer.limits.max_frame_bytes / 2 / row_bytes;
    config.prompt_chunk_positions.min(in_frame).max(1)
}
