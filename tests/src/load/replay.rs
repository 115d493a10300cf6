//! A device that plays a known answer on a tail, and compares every token.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use headway_wire::message::{Open, Step, StepResult, TokenIds};
use headway_wire::prefix::PREFIX_DIGEST_BYTES;
use headway_wire::{PREFIX_BLOCK_POSITIONS, PROTOCOL_VERSION};

use super::answers::{Answer, wire_u32};
use super::device::{Ended, Session};
use super::link::Link;

/// Prompt steps on their way at a time.
const MAX_UNANSWERED: usize = 3;

/// Which prefix digests a session offers.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Offer {
    /// None.
    #[default]
    Nothing,
    /// Those of what it will send.
    Right,
    /// So many right ones, and wrong ones after them.
    Partly(usize),
}

/// How a session is opened.
#[derive(Clone, Default)]
pub struct Opening {
    /// The model's digest.
    pub model_digest: Arc<str>,
    /// Bearer token.
    pub token: Option<String>,
    /// The tail may keep what this session leaves.
    pub keep_prefix: bool,
    /// Prefixes offered.
    pub offer: Offer,
    /// Tokens of the answer that are known from an earlier session.
    pub known: usize,
}

/// One session of a known answer.
pub struct Replay {
    answer: Arc<Answer>,
    /// The session.
    pub session: Session,
    /// Positions that the tail holds.
    held: usize,
    known: usize,
    /// What the results say, added up.
    pub compute_us: u64,
}

impl Replay {
    /// Opens a session for `answer`.
    ///
    /// # Errors
    /// How it ended instead.
    pub async fn open(link: &Link, answer: Arc<Answer>, opening: &Opening) -> Result<Self, Ended> {
        let open = open_frame(&answer, opening);
        let session = Session::open(link, opening.token.as_deref(), open).await?;
        let reused = session.opened.reused_positions as usize;
        let offered = match opening.offer {
            Offer::Nothing => 0,
            Offer::Right => answer.digests().len(),
            Offer::Partly(right) => right.min(answer.digests().len()),
        } * PREFIX_BLOCK_POSITIONS;
        let to_be_sent = answer.question().prompt_tokens + opening.known;
        if reused > offered || reused >= to_be_sent {
            return Err(Ended::Broken(format!(
                "{reused} positions are reused of {to_be_sent}, {offered} of which were offered rightly"
            )));
        }
        Ok(Self {
            answer,
            session,
            held: reused,
            known: opening.known,
            compute_us: 0,
        })
    }

    /// Tokens of the answer known so far.
    #[must_use]
    pub const fn known(&self) -> usize {
        self.known
    }

    /// True when the whole answer is there.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.known == self.answer.question().answer_tokens
    }

    /// Sends everything before the next token, at most `chunk` positions a step, and takes the token.
    ///
    /// # Errors
    /// How the session has ended.
    pub async fn prefill(&mut self, chunk: usize) -> Result<(), Ended> {
        let chunk = chunk.clamp(1, self.session.opened.max_step_positions as usize);
        let end = self.answer.question().prompt_tokens + self.known;
        let (mut sent, mut unanswered) = (self.held, VecDeque::new());
        while self.held < end {
            if sent < end && unanswered.len() < MAX_UNANSWERED {
                let next = end.min(sent + chunk);
                let step = self.step(sent, next, &[], next == end);
                self.session.step(step).await?;
                unanswered.push_back(next);
                sent = next;
                continue;
            }
            let result = self.session.result().await?;
            let expected = unanswered.pop_front().unwrap_or_default();
            self.take(&result, expected, 0)?;
        }
        Ok(())
    }

    /// Sends the last token and takes the next one.
    ///
    /// # Errors
    /// How the session has ended.
    pub async fn decode(&mut self) -> Result<(), Ended> {
        self.verify(0, 0).await
    }

    /// Sends the last token with a draft: `right` tokens of the answer, as far as it goes and the tail takes
    /// them, then `wrong` others.
    ///
    /// # Errors
    /// How the session has ended.
    pub async fn verify(&mut self, right: usize, wrong: usize) -> Result<(), Ended> {
        let (position, next) = (self.held, self.held + 1);
        let sequence = self.answer.sequence();
        // After the draft there is a token more, which must be known.
        let room = (sequence.len() - 1).saturating_sub(next);
        let most = room.min(self.session.opened.max_draft_tokens as usize);
        let right = right.min(most);
        let mut guesses = sequence[next..next + right].to_vec();
        let wrong = wrong.min(most - right);
        // Another token than the one that comes: the one after it in the vocabulary, or before the last.
        guesses.extend((0..wrong).map(|index| sequence[next + right + index] ^ 1));
        let step = self.step(position, next, &guesses, true);
        self.session.step(step).await?;
        let result = self.session.result().await?;
        self.take(&result, next, right)
    }

    fn step(&self, start: usize, end: usize, guesses: &[u32], sample: bool) -> Step {
        let draft = (!guesses.is_empty()).then(|| TokenIds {
            ids: guesses.to_vec(),
        });
        Step {
            position: wire_u32(start),
            input: Some(self.answer.input(start, end, guesses)),
            sample,
            history: self.answer.history(start, end, guesses),
            draft,
            first_guess: None,
        }
    }

    /// `end`: one past the step's last known position. `right`: how much of its draft is.
    fn take(&mut self, result: &StepResult, end: usize, right: usize) -> Result<(), Ended> {
        self.compute_us += result.compute_us;
        if result.draft_accepted != wire_u32(right) {
            let accepted = result.draft_accepted;
            let reason =
                format!("{accepted} tokens of a draft were accepted where {right} are right");
            return Err(Ended::Mismatch(reason));
        }
        let held = end + right;
        if result.positions != wire_u32(held) {
            let positions = result.positions;
            let reason = format!("a result is for {positions} positions; {held} were due");
            return Err(Ended::Broken(reason));
        }
        self.held = held;
        let prompt_tokens = self.answer.question().prompt_tokens;
        if held < prompt_tokens + self.known {
            return match result.token_id {
                None => Ok(()),
                Some(_) => Err(Ended::Broken("a token that nobody asked for".to_owned())),
            };
        }
        let token_id = self.answer.sequence()[held];
        if result.token_id != Some(token_id) {
            let got = result.token_id;
            let reason = format!("at position {held}: {got:?} came, {token_id} is right");
            return Err(Ended::Mismatch(reason));
        }
        self.check_logprobs(result, held - prompt_tokens, right)?;
        self.known = held + 1 - prompt_tokens;
        Ok(())
    }

    /// `index`: of the sampled token in the answer; the `right` ones before it were guessed.
    fn check_logprobs(&self, result: &StepResult, index: usize, right: usize) -> Result<(), Ended> {
        let expected = self.answer.logprob(index);
        if result.logprob.map(f32::to_bits) != expected.map(f32::to_bits) {
            let got = result.logprob;
            let reason = format!("log-probability {got:?} of token {index}, {expected:?} is right");
            return Err(Ended::Mismatch(reason));
        }
        let reports = result.draft_logprobs.iter().map(|report| report.logprob);
        let guessed = (index - right..index).filter_map(|index| self.answer.logprob(index));
        if reports
            .clone()
            .map(f32::to_bits)
            .eq(guessed.map(f32::to_bits))
        {
            return Ok(());
        }
        let reports: Vec<_> = reports.collect();
        let reason = format!("log-probabilities {reports:?} of the draft before token {index}");
        Err(Ended::Mismatch(reason))
    }
}

/// The frame that opens a session.
#[must_use]
pub fn open_frame(answer: &Answer, opening: &Opening) -> Open {
    let question = answer.question();
    let right = match opening.offer {
        Offer::Nothing => 0,
        Offer::Right => answer.digests().len(),
        Offer::Partly(right) => right.min(answer.digests().len()),
    };
    let mut prefix_digests: Vec<u8> = answer.digests()[..right].concat();
    if let Offer::Partly(_) = opening.offer {
        // As many wrong ones as one block has; they are nobody's.
        prefix_digests.extend([0xA5; 2 * PREFIX_DIGEST_BYTES]);
    }
    let prompt_tokens = question.prompt_tokens;
    Open {
        protocol_version: PROTOCOL_VERSION,
        model_digest: opening.model_digest.to_string(),
        split_layer: wire_u32(question.split_layer),
        codec: answer.wire_codec(),
        sampling: Some(answer.wire_sampling()),
        max_positions: wire_u32(prompt_tokens + question.answer_tokens),
        prompt_tokens: wire_u32(prompt_tokens),
        resume_positions: match opening.known {
            0 => 0,
            known => wire_u32(prompt_tokens + known),
        },
        traceparent: String::new(),
        tracestate: String::new(),
        prefix_digests: Bytes::from(prefix_digests),
        keep_prefix: opening.keep_prefix,
        prefill_token_ids: false,
    }
}
