//! From sampled tokens to the answer's text, and to its end.

use std::time::Instant;

use headway_model::sampler::{Sampled, Sampler, SamplingParams};
use headway_model::tokenizer::TokenStream;

use crate::error::{DeviceError, Error, RequestError};
use crate::event::TokenEvent;
use crate::report::{FinishReason, Report, Route, Timings, Totals};
use crate::request::{GenerateRequest, TraceContext};
use crate::router::reason::Segment;
use crate::stop::StopStrings;
use crate::vocabulary::Vocabulary;

/// A request that has been checked against the model.
pub(crate) struct Plan {
    pub(crate) started: Instant,
    pub(crate) prompt: Vec<u32>,
    /// Tokens of the answer, such that prompt and answer fit the positions.
    pub(crate) max_tokens: usize,
    pub(crate) sampling: SamplingParams,
    pub(crate) trace: TraceContext,
    /// Nothing of it may leave this device.
    pub(crate) local_only: bool,
    stop: Vec<String>,
    pub(crate) ignore_end_of_turn: bool,
}

impl Plan {
    /// Checks `request` and encodes its prompt. Blocks for long prompts.
    pub(crate) fn new(
        request: GenerateRequest,
        vocabulary: &Vocabulary,
        max_positions: usize,
    ) -> Result<Self, Error> {
        let started = Instant::now();
        request.check()?;
        let prompt = vocabulary.token_ids(&request.prompt)?;
        if prompt.len() >= max_positions {
            return Err(RequestError::PromptTooLong {
                prompt_tokens: prompt.len(),
                max_positions,
            }
            .into());
        }
        // Refuses here what the tail would refuse.
        Sampler::new(request.sampling.clone(), prompt.len()).map_err(RequestError::Sampling)?;
        Ok(Self {
            started,
            max_tokens: request.max_tokens.min(max_positions - prompt.len()),
            prompt,
            sampling: request.sampling,
            trace: request.trace.unwrap_or_default(),
            local_only: request.local_only,
            stop: request.stop,
            ignore_end_of_turn: request.ignore_end_of_turn,
        })
    }

    /// Positions that prompt and answer take.
    pub(crate) fn positions(&self) -> usize {
        self.prompt.len() + self.max_tokens
    }
}

/// The answer so far.
pub(crate) struct Answer<'v> {
    vocabulary: &'v Vocabulary,
    stream: TokenStream<'v>,
    stop: StopStrings,
    max_tokens: usize,
    ignore_end_of_turn: bool,
    token_ids: Vec<u32>,
    text: String,
    clock: Clock,
}

/// What one more token brought.
pub(crate) struct Taken {
    pub(crate) event: Option<TokenEvent>,
    pub(crate) finish: Option<FinishReason>,
}

/// Where the layers ran and what it cost.
pub(crate) struct Account {
    pub(crate) prompt_tokens: usize,
    pub(crate) split_layer: usize,
    pub(crate) num_layers: usize,
    pub(crate) head_weight_bytes: usize,
    pub(crate) route: Route,
    pub(crate) segments: Vec<Segment>,
    pub(crate) totals: Totals,
}

impl<'v> Answer<'v> {
    pub(crate) fn new(vocabulary: &'v Vocabulary, plan: &Plan) -> Self {
        Self {
            vocabulary,
            stream: vocabulary.tokenizer().stream(),
            stop: StopStrings::new(plan.stop.clone()),
            max_tokens: plan.max_tokens,
            ignore_end_of_turn: plan.ignore_end_of_turn,
            token_ids: Vec::new(),
            text: String::new(),
            clock: Clock::new(plan.started),
        }
    }

    /// The session is open; `connected` is when connecting began.
    pub(crate) fn opened(&mut self, connect_began: Instant) {
        self.clock.opened(connect_began, Instant::now());
    }

    /// A tail may grant fewer positions than were asked for.
    pub(crate) fn limit_tokens(&mut self, max_tokens: usize) {
        self.max_tokens = self.max_tokens.min(max_tokens);
    }

    /// Tokens that the answer may still take.
    pub(crate) fn tokens_left(&self) -> usize {
        self.max_tokens.saturating_sub(self.token_ids.len())
    }

    /// Tokens that the answer has.
    pub(crate) fn tokens(&self) -> usize {
        self.token_ids.len()
    }

    pub(crate) fn take(&mut self, sampled: Sampled) -> Result<Taken, DeviceError> {
        let Sampled {
            token_id,
            logprob,
            top_logprobs,
        } = sampled;
        self.clock.token(Instant::now());
        if self.vocabulary.ends_turn(token_id) && !self.ignore_end_of_turn {
            return Ok(Taken {
                event: None,
                finish: Some(FinishReason::EndOfTurn),
            });
        }
        self.token_ids.push(token_id);
        let passed = self.stop.push(&self.stream.push(token_id)?);
        self.text.push_str(&passed.text);
        let is_last = self.token_ids.len() >= self.max_tokens;
        let finish = if passed.stopped {
            Some(FinishReason::Stop)
        } else {
            is_last.then_some(FinishReason::Length)
        };
        let event = TokenEvent {
            token_id,
            text: passed.text,
            logprob,
            top_logprobs,
        };
        Ok(Taken {
            event: Some(event),
            finish,
        })
    }

    /// The text that was held back, when no token follows; and whether it held a stop string.
    pub(crate) fn rest(
        &mut self,
        finish: FinishReason,
    ) -> Result<(String, FinishReason), DeviceError> {
        if finish == FinishReason::Stop {
            return Ok((String::new(), finish));
        }
        let mut passed = self.stop.push(&self.stream.finish()?);
        let finish = if passed.stopped {
            FinishReason::Stop
        } else {
            finish
        };
        passed.text.push_str(&self.stop.finish());
        self.text.push_str(&passed.text);
        Ok((passed.text, finish))
    }

    pub(crate) fn report(self, finish_reason: FinishReason, account: Account) -> Report {
        let Account {
            prompt_tokens,
            split_layer,
            num_layers,
            head_weight_bytes,
            route,
            segments,
            totals,
        } = account;
        Report {
            text: self.text,
            token_ids: self.token_ids,
            prompt_tokens,
            split_layer,
            num_layers,
            head_weight_bytes,
            route,
            segments,
            finish_reason,
            timings_ms: self.clock.timings(Instant::now()),
            head_compute_ms: totals.head_compute_ms,
            bytes_up: totals.bytes_up,
            bytes_down: totals.bytes_down,
            reconnects: totals.reconnects,
            token_id_positions: totals.token_id_positions,
            replayed_positions: totals.replayed_positions,
            reused_positions: totals.reused_positions,
            token_steps: totals.token_steps,
            draft_tokens: totals.draft_tokens,
            accepted_draft_tokens: totals.accepted_draft_tokens,
            tail_draft_saved_us: totals.tail_draft_saved_us,
            tail_compute_us: totals.tail_compute_us,
            tail_saved_us: totals.tail_saved_us,
            tail_queue_us: totals.tail_queue_us,
        }
    }
}

/// The moments that timings are made of.
struct Clock {
    started: Instant,
    connect_began: Option<Instant>,
    opened: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl Clock {
    fn new(started: Instant) -> Self {
        Self {
            started,
            connect_began: None,
            opened: None,
            first_token: None,
            last_token: None,
        }
    }

    fn opened(&mut self, began: Instant, now: Instant) {
        self.connect_began.get_or_insert(began);
        self.opened.get_or_insert(now);
    }

    fn token(&mut self, now: Instant) {
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
    }

    fn timings(&self, now: Instant) -> Timings {
        let ms = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from).as_secs_f64() * 1e3,
            _ => 0.0,
        };
        let started = Some(self.started);
        Timings {
            connect: ms(self.connect_began, self.opened),
            prefill: ms(self.opened.or(started), self.first_token),
            first_token: ms(started, self.first_token),
            decode: ms(self.first_token, self.last_token),
            total: ms(started, Some(now)),
        }
    }
}
