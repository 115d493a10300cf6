//! One prompt on both models.

use std::time::{Duration, Instant};

use headway_model::sampler::{SamplingParams, argmax};
use serde::{Deserialize, Serialize};

use super::overlap::rouge_l;
use super::prompts::CalibrationPrompt;
use crate::client::Client;
use crate::device_layers::Sequence;
use crate::error::{DeviceError, Error};
use crate::event::Event;
use crate::local::{LocalModel, Measure};
use crate::request::{GenerateRequest, Prompt};
use crate::router::check_same_vocabulary;
use crate::router::features::RequestFeatures;
use crate::router::uncertainty::Uncertainty;
use crate::vocabulary::Vocabulary;

/// Positions whose logits are held at a time.
const LOGIT_ROWS: usize = 32;

/// The full model.
pub enum Full {
    /// In this process. Its seconds are those of this device.
    Model(Box<LocalModel>),
    /// On a tail. Its seconds are those that the tail attributes.
    Tail(Box<Client>),
}

/// What was recorded of one prompt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The prompt's name.
    pub id: String,
    /// Its kind.
    pub task: String,
    /// What it looks like.
    pub features: RequestFeatures,
    /// Of each token of the local answer, the end of its turn included.
    pub uncertainties: Vec<Uncertainty>,
    /// Whether the full model would have chosen each of them.
    pub agrees: Vec<bool>,
    /// Tokens of the full model's own answer, the end of its turn included.
    pub full_tokens: usize,
    /// The full model's seconds for prompt and answer.
    pub full_seconds: f64,
    /// Of those, for the prompt, where they are told apart.
    pub full_prompt_seconds: Option<f64>,
    /// Whether both answers are the same.
    pub is_same_answer: bool,
    /// How alike they are.
    pub rouge_l: f64,
}

impl Record {
    /// Share of the local answer's tokens that the full model would have chosen.
    #[must_use]
    pub fn agreement(&self) -> f64 {
        let agreed = self.agrees.iter().filter(|agrees| **agrees).count();
        agreed as f64 / self.agrees.len().max(1) as f64
    }
}

impl Full {
    /// Checks that `local` can stand in for it. Gives the digests of both, this one's first.
    pub(super) async fn check(&self, local: &LocalModel) -> Result<(String, String), Error> {
        check_same_vocabulary(self.vocabulary(), local.vocabulary())?;
        let digest = async |model: LocalModel| {
            let digest = tokio::task::spawn_blocking(move || model.model_digest()).await;
            digest.map_err(DeviceError::Worker)?
        };
        let full = match self {
            Self::Model(model) => digest(LocalModel::clone(model)).await?,
            Self::Tail(client) => client.manifest().model_digest.clone(),
        };
        Ok((full, digest(local.clone()).await?))
    }

    fn vocabulary(&self) -> &Vocabulary {
        match self {
            Self::Model(model) => model.vocabulary(),
            Self::Tail(client) => client.vocabulary(),
        }
    }
}

/// The full model's side of a record.
struct FullAnswer {
    tokens: Vec<u32>,
    seconds: f64,
    prompt_seconds: Option<f64>,
    agrees: Vec<bool>,
}

pub(super) async fn record(
    full: &Full,
    local: &LocalModel,
    prompt: &CalibrationPrompt,
    max_tokens: usize,
) -> Result<Record, Error> {
    let request = GenerateRequest {
        max_tokens: prompt.max_tokens.min(max_tokens).max(1),
        ..GenerateRequest::new(Prompt::Chat(prompt.messages()))
    };
    let token_ids = local.vocabulary().token_ids(&request.prompt)?;
    let features = RequestFeatures::of(&request, token_ids.len());
    let max_tokens = request.max_tokens;
    let (answer, uncertainties) = {
        let (local, token_ids) = (local.clone(), token_ids.clone());
        let answer = move || answer_here(&local, &token_ids, max_tokens);
        tokio::task::spawn_blocking(answer)
            .await
            .map_err(DeviceError::Worker)??
    };
    let by_full = match full {
        Full::Model(model) => {
            let (model, answer) = (LocalModel::clone(model), answer.clone());
            let answered = move || full_here(&model, &token_ids, &answer, max_tokens);
            tokio::task::spawn_blocking(answered)
                .await
                .map_err(DeviceError::Worker)??
        }
        Full::Tail(client) => full_there(client, &token_ids, &answer, max_tokens).await?,
    };
    Ok(Record {
        id: prompt.id.clone(),
        task: prompt.task.clone(),
        features,
        uncertainties,
        is_same_answer: answer == by_full.tokens,
        rouge_l: rouge_l(&answer, &by_full.tokens),
        agrees: by_full.agrees,
        full_tokens: by_full.tokens.len(),
        full_seconds: by_full.seconds,
        full_prompt_seconds: by_full.prompt_seconds,
    })
}

/// The greedy answer, with the end of its turn, and how sure the model was. Blocks.
fn answer_here(
    model: &LocalModel,
    prompt: &[u32],
    max_tokens: usize,
) -> Result<(Vec<u32>, Vec<Uncertainty>), Error> {
    let positions = prompt.len() + max_tokens;
    let mut pass = model.pass(positions, &SamplingParams::default(), prompt.len())?;
    let (mut sequence, mut uncertainties) = (prompt.to_vec(), Vec::new());
    while sequence.len() < positions.min(model.max_positions()) {
        let Some(next) = pass.advance(&sequence, Measure::Uncertainty)? else {
            continue;
        };
        sequence.push(next.sampled.token_id);
        uncertainties.push(next.uncertainty);
        if model.vocabulary().ends_turn(next.sampled.token_id) {
            break;
        }
    }
    Ok((sequence.split_off(prompt.len()), uncertainties))
}

/// The full model here: its own answer, and then what it says to `answer`. Blocks.
fn full_here(
    model: &LocalModel,
    prompt: &[u32],
    answer: &[u32],
    max_tokens: usize,
) -> Result<FullAnswer, Error> {
    let mut sequence = model.sequence(prompt.len() + max_tokens.max(answer.len()));
    let began = Instant::now();
    let mut next = argmax(&last_logits(&mut sequence, prompt)?);
    let first = next;
    let prompt_time = began.elapsed();
    let mut tokens = Vec::new();
    loop {
        tokens.push(next);
        if tokens.len() >= max_tokens || model.vocabulary().ends_turn(next) {
            break;
        }
        next = argmax(&sequence.logits(&[next])?);
    }
    let time = began.elapsed();
    sequence.truncate(prompt.len());
    let chosen = [
        vec![first],
        chosen_behind(&mut sequence, &answer[..answer.len().saturating_sub(1)])?,
    ]
    .concat();
    Ok(FullAnswer {
        tokens,
        seconds: time.as_secs_f64(),
        prompt_seconds: Some(prompt_time.as_secs_f64()),
        agrees: answer
            .iter()
            .zip(chosen)
            .map(|(local, full)| *local == full)
            .collect(),
    })
}

fn last_logits(sequence: &mut Sequence, prompt: &[u32]) -> Result<Vec<f32>, DeviceError> {
    const CHUNK: usize = 256;
    let last = prompt.len().saturating_sub(1) / CHUNK * CHUNK;
    for chunk in prompt[..last].chunks(CHUNK) {
        sequence.extend(chunk)?;
    }
    sequence.logits(&prompt[last..])
}

/// The most likely token behind each of `token_ids`.
fn chosen_behind(sequence: &mut Sequence, token_ids: &[u32]) -> Result<Vec<u32>, DeviceError> {
    let mut chosen = Vec::with_capacity(token_ids.len());
    for chunk in token_ids.chunks(LOGIT_ROWS) {
        let logits = sequence.all_logits(chunk)?;
        let vocab_size = logits.len() / chunk.len();
        chosen.extend(logits.chunks_exact(vocab_size).map(argmax));
    }
    Ok(chosen)
}

/// The full model on a tail. It has no way to say what it thinks of each token of an answer, so it goes on behind every
/// token on which it disagreed, up to the next one.
async fn full_there(
    client: &Client,
    prompt: &[u32],
    answer: &[u32],
    max_tokens: usize,
) -> Result<FullAnswer, Error> {
    let ask = |token_ids: Vec<u32>, max_tokens: usize| GenerateRequest {
        max_tokens,
        ..GenerateRequest::new(Prompt::TokenIds(token_ids))
    };
    let report = client
        .generate(ask(prompt.to_vec(), max_tokens))
        .await?
        .finish()
        .await?;
    let mut tokens = report.token_ids;
    // The token that ended the turn is not among them; it is the one of its kind that the local answer may have.
    let ended = report.finish_reason == crate::report::FinishReason::EndOfTurn;
    let end = answer
        .last()
        .copied()
        .filter(|last| client.vocabulary().ends_turn(*last));
    tokens.extend(end.filter(|_| ended));
    let seconds = Duration::from_micros(report.tail_compute_us).as_secs_f64();
    let mut agrees = Vec::with_capacity(answer.len());
    let mut common = tokens
        .iter()
        .zip(answer)
        .take_while(|(full, local)| full == local)
        .count();
    loop {
        agrees.resize(common.min(answer.len()), true);
        if agrees.len() >= answer.len() {
            break;
        }
        agrees.push(false);
        let known = agrees.len();
        if known >= answer.len() {
            break;
        }
        let behind = [prompt, &answer[..known]].concat();
        common = known
            + agreed_tokens(client, ask(behind, answer.len() - known), &answer[known..]).await?;
    }
    Ok(FullAnswer {
        tokens,
        seconds,
        prompt_seconds: None,
        agrees,
    })
}

/// How many tokens of `answer` come first.
async fn agreed_tokens(
    client: &Client,
    request: GenerateRequest,
    answer: &[u32],
) -> Result<usize, Error> {
    let mut generation = client.generate(request).await?;
    for (agreed, token_id) in answer.iter().enumerate() {
        match generation.next().await {
            Some(Ok(Event::Token(token))) if token.token_id == *token_id => {}
            Some(Ok(Event::Report(_) | Event::Rest { .. })) => {
                // It ended its turn here, as the local answer may have.
                return Ok(agreed + usize::from(client.vocabulary().ends_turn(*token_id)));
            }
            Some(Err(error)) => return Err(error),
            _ => return Ok(agreed),
        }
    }
    Ok(answer.len())
}
