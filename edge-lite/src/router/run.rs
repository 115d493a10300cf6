//! One routed answer: segments on the local model and on sessions of the tail, until it ends.
//!
//! The state is again the sequence of tokens. Each engine is given what it lacks of it and asked for the token after it,
//! so that one goes on where another stopped. The local model keeps its keys and values for when it is its turn again.

mod patience;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use headway_model::sampler::Sampled;

use self::patience::{PATIENCE_PER_POSITION, impatient, sentence, within};
use self::watch::Watch;
use super::decision::{Decision, Side};
use super::reason::{RouteReason, Segment};
use super::{Routed, Shared};
use crate::answer::{Account, Answer, Plan};
use crate::client::Client;
use crate::error::{DeviceError, Error, TailError};
use crate::event::Event;
use crate::generation::Progress;
use crate::local::{LocalModel, LocalPass, Measure, Next};
use crate::report::{FinishReason, Route, Totals};
use crate::session::{Progressed, Session};

/// How often an answer goes back to a tail that comes and goes.
const MAX_RETURNS: usize = 8;

/// Runs one answer to its end and reports it.
pub(super) async fn run(shared: Arc<Shared>, routed: Routed, progress: Progress) {
    let events = progress.events.clone();
    let vocabulary = Arc::clone(&shared.vocabulary);
    let mut answer = Run {
        shared: &shared,
        plan: &routed.plan,
        routed: &routed,
        answer: Answer::new(&vocabulary, &routed.plan),
        progress,
        sequence: routed.plan.prompt.clone(),
        segments: Vec::new(),
        pass: None,
        progressed: Progressed::default(),
        tail: None,
        returns: 0,
        totals: Totals::default(),
    };
    let finish = answer.drive(routed.first.clone()).await;
    // Where nobody listens any more, there is nobody to tell.
    match finish.and_then(|finish| Ok(answer.answer.rest(finish)?)) {
        Ok((text, finish)) => {
            let report = Event::Report(Box::new(answer.report(finish)));
            if !text.is_empty() {
                let _ = events.send(Ok(Event::Rest { text })).await;
            }
            let _ = events.send(Ok(report)).await;
        }
        Err(error) => drop(events.send(Err(error)).await),
    }
}

/// Why a segment ended.
enum End {
    Finished(FinishReason),
    /// The next one goes on.
    Move(Decision),
}

struct Run<'a> {
    shared: &'a Shared,
    plan: &'a Plan,
    routed: &'a Routed,
    answer: Answer<'a>,
    progress: Progress,
    /// Prompt and answer.
    sequence: Vec<u32>,
    segments: Vec<Segment>,
    /// The local model's side; away while it computes.
    pass: Option<Box<LocalPass>>,
    /// The tail's side.
    progressed: Progressed,
    /// The tail that was asked last.
    tail: Option<Client>,
    returns: usize,
    totals: Totals,
}

impl Run<'_> {
    async fn drive(&mut self, first: Decision) -> Result<FinishReason, Error> {
        let mut next = first;
        loop {
            tracing::debug!(side = ?next.side, reason = %next.reason, "a segment begins");
            let end = match (next.side, &self.shared.local) {
                (Side::Device, Some(local)) => self.on_device(local, next).await?,
                _ => self.on_tail(next.reason).await?,
            };
            match end {
                End::Finished(finish) => return Ok(finish),
                End::Move(decision) => next = decision,
            }
        }
    }

    /// The local model's tokens, from here on.
    async fn on_device(&mut self, local: &LocalModel, decision: Decision) -> Result<End, Error> {
        self.answer.opened(self.plan.started);
        if self.pass.is_none() {
            let (sampling, prompt_tokens) = (&self.plan.sampling, self.plan.prompt.len());
            let pass = local.pass(self.plan.positions(), sampling, prompt_tokens)?;
            self.pass = Some(Box::new(pass));
        }
        let mut reason = decision.reason;
        let mut watch = Watch::new(self.shared, decision.is_watched);
        if let Some(tokens) = watch.probe_tokens() {
            let held = match self.probe(tokens).await? {
                Ok(held) => held,
                Err(cancelled) => return Ok(End::Finished(cancelled)),
            };
            let uncertainties: Vec<_> = held.iter().map(|next| next.uncertainty).collect();
            match watch.judge(self.routed, &uncertainties) {
                Err(unsure) => {
                    self.sequence.truncate(self.plan.prompt.len());
                    self.rewind()?;
                    return Ok(End::Move(Decision::to_tail(unsure)));
                }
                Ok(sure) => reason = sure,
            }
            self.segments.push(Segment::new(Route::Device, reason));
            for next in held {
                // Its token is in the sequence already.
                if let Some(end) = self.take(next.sampled).await? {
                    return Ok(End::Finished(end));
                }
            }
        } else {
            self.segments.push(Segment::new(Route::Device, reason));
        }
        loop {
            if let Some(end) = self.leaves_device(local, decision.waits_for_tail) {
                return Ok(end);
            }
            let next = match self.device_token(watch.measure()).await? {
                Some(next) => next,
                None => return Ok(End::Finished(FinishReason::Cancelled)),
            };
            let token_id = next.sampled.token_id;
            if let Some(end) = self.take(next.sampled).await? {
                return Ok(End::Finished(end));
            }
            self.sequence.push(token_id);
            if let Some(lost) = watch.push(next.uncertainty)
                && self.routed.may_leave
                && self.shared.link.is_here()
            {
                return Ok(End::Move(Decision::to_tail(lost)));
            }
        }
    }

    /// Whether the next token is not the device's, though nothing went wrong.
    fn leaves_device(&mut self, local: &LocalModel, waits_for_tail: bool) -> Option<End> {
        let can_leave = self.routed.may_leave && self.shared.link.is_here();
        let most = local.max_positions();
        if self.sequence.len() >= most {
            let positions = self.plan.positions();
            let no_room = RouteReason::NoRoom { positions, most };
            return Some(match can_leave {
                true => End::Move(Decision::to_tail(no_room)),
                false => End::Finished(FinishReason::Length),
            });
        }
        let returns = waits_for_tail && self.shared.config.return_to_tail;
        if returns && can_leave && self.returns < MAX_RETURNS {
            self.returns += 1;
            return Some(End::Move(Decision::to_tail(RouteReason::TailBack)));
        }
        None
    }

    /// Up to `count` tokens that are in the sequence and not yet in the answer.
    async fn probe(&mut self, count: usize) -> Result<Result<Vec<Next>, FinishReason>, Error> {
        let mut held = Vec::new();
        while held.len() < count.min(self.plan.max_tokens) {
            let Some(next) = self.device_token(Measure::Uncertainty).await? else {
                return Ok(Err(FinishReason::Cancelled));
            };
            let token_id = next.sampled.token_id;
            self.sequence.push(token_id);
            held.push(next);
            if self.shared.vocabulary.ends_turn(token_id) {
                break;
            }
        }
        Ok(Ok(held))
    }

    /// The local model's next token; `None` where the caller wants no more.
    async fn device_token(&mut self, measure: Measure) -> Result<Option<Next>, Error> {
        loop {
            if self.progress.cancelled.is_set() {
                return Ok(None);
            }
            let mut pass = self.pass.take().ok_or(DeviceError::WorkerLost)?;
            let sequence = self.sequence.clone();
            let before = pass.compute();
            let worker = tokio::task::spawn_blocking(move || {
                let next = pass.advance(&sequence, measure);
                (pass, next)
            });
            let (pass, next) = worker.await.map_err(DeviceError::Worker)?;
            self.totals.head_compute_ms += (pass.compute() - before).as_secs_f64() * 1e3;
            self.pass = Some(pass);
            if let Some(next) = next? {
                return Ok(Some(next));
            }
        }
    }

    fn rewind(&mut self) -> Result<(), Error> {
        match &mut self.pass {
            Some(pass) => pass.rewind(self.sequence.len()),
            None => Ok(()),
        }
    }

    /// The tail's tokens, from here on.
    async fn on_tail(&mut self, reason: RouteReason) -> Result<End, Error> {
        let link = &self.shared.link;
        let Some(client) = link.client().or_else(|| link.last_client()) else {
            return Ok(End::Move(Decision::back_to_device(
                TailError::Closed.to_string(),
            )));
        };
        self.tail = Some(client.clone());
        self.segments.push(Segment::new(client.route(), reason));
        let can_stay_here = self
            .shared
            .local
            .as_ref()
            .is_some_and(|local| self.sequence.len() < local.max_positions());
        let config = match can_stay_here {
            true => Arc::new(impatient(client.session(), self.shared.config.patience)),
            false => Arc::clone(client.session()),
        };
        let patience = can_stay_here.then_some(self.shared.config.patience);
        let sequence = self.sequence.clone();
        let mut session = Session::resume(&config, self.plan, sequence, self.progressed);
        let end = self.session(&mut session, patience).await;
        self.progressed = session.progressed();
        let end = match end {
            Err(Error::Tail(error)) if can_stay_here => {
                session.lose_connection();
                tracing::info!(%error, "the tail is lost; the device goes on");
                link.lost(&client);
                let error = sentence(&error);
                Ok(End::Move(Decision::back_to_device(error)))
            }
            end => end,
        };
        let part = session.close().await;
        self.totals.add(&part);
        end
    }

    /// Reads a session to its end, or to its loss.
    async fn session(
        &mut self,
        session: &mut Session<'_>,
        patience: Option<Duration>,
    ) -> Result<End, Error> {
        loop {
            let lacking = u32::try_from(session.lacking()).unwrap_or(u32::MAX);
            let after = patience.map(|patience| patience + PATIENCE_PER_POSITION * lacking);
            let tokens = tokio::select! {
                biased;
                () = self.progress.cancelled.wait() => return Ok(End::Finished(FinishReason::Cancelled)),
                tokens = within(after, session.next_tokens(&mut self.answer)) => tokens?,
            };
            for sampled in tokens {
                let token_id = sampled.token_id;
                if let Some(end) = self.take(sampled).await? {
                    return Ok(End::Finished(end));
                }
                self.sequence.push(token_id);
                session.push(token_id);
            }
        }
    }

    /// Shows a token.
    async fn take(&mut self, sampled: Sampled) -> Result<Option<FinishReason>, Error> {
        let before = self.answer.tokens();
        let taken = self.answer.take(sampled)?;
        if let Some(segment) = self.segments.last_mut() {
            segment.tokens += self.answer.tokens() - before;
        }
        if let Some(event) = taken.event {
            let sent = tokio::select! {
                biased;
                sent = self.progress.events.send(Ok(Event::Token(event))) => sent.is_ok(),
                () = self.progress.cancelled.wait() => false,
            };
            if !sent {
                return Ok(Some(FinishReason::Cancelled));
            }
        }
        Ok(taken.finish)
    }

    /// The account of all segments; what was answered here alone is told to the tail.
    fn report(mut self, finish: FinishReason) -> crate::report::Report {
        // A segment that came to no token is explained by the one after it.
        let last = self.segments.last().cloned();
        self.segments.retain(|segment| segment.tokens > 0);
        if self.segments.is_empty() {
            self.segments.extend(last);
        }
        let local = self.shared.local.as_ref();
        let is_all_here = self
            .segments
            .iter()
            .all(|segment| segment.route == Route::Device);
        let tail = self.tail.as_ref().filter(|_| !is_all_here);
        let (split_layer, num_layers, route) = match (tail, local) {
            (None, Some(local)) => (local.num_layers(), local.num_layers(), Route::Device),
            (Some(client), _) => {
                let num_layers = client.manifest().identity.config.num_layers;
                (client.choice().split_layer, num_layers, client.route())
            }
            (None, None) => (0, 0, Route::Cloud),
        };
        let head_bytes =
            self.shared
                .link
                .last_client()
                .map_or(0, |client| match client.local_model() {
                    // They are the local model's.
                    Some(_) => 0,
                    None => client.head_weight_bytes(),
                });
        let account = Account {
            prompt_tokens: self.plan.prompt.len(),
            split_layer,
            num_layers,
            head_weight_bytes: head_bytes + local.map_or(0, LocalModel::weight_bytes),
            route,
            segments: self.segments,
            totals: self.totals,
        };
        let report = self.answer.report(finish, account);
        // A session that was open has cost the tail something, whatever came of it.
        let is_alone = is_all_here && !self.progressed.was_open && !self.plan.local_only;
        let client = self.shared.link.last_client().filter(|_| is_alone);
        if let Some(reporter) = client.as_ref().and_then(Client::reporter) {
            reporter.answered(report.prompt_tokens, report.token_ids.len());
        }
        report
    }
}
