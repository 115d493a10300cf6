//! What devices will send and what they must get, computed before the load begins.
//!
//! A row's arithmetic does not depend on the rows beside it (see `headway_model`), and a draw depends on seed
//! and position alone. So an answer is known to the token, for lossy codecs too: the reference here encodes the
//! head layers' rows and decodes them again before it runs the tail's layers. And since the answer is known, so
//! are the rows of its tokens: a device that is played sends them without computing anything.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use headway_model::sampler::{Sampler, SamplingParams};
use headway_model::weights::{WeightDtype, Weights};
use headway_model::{Decoder, KvCache, LayerRange, ModelConfig};
use headway_wire::message::{self, Activations, LogitBias, Sampling, TokenIds, step};
use headway_wire::prefix::PrefixDigest;
use headway_wire::{Codec, Limits, PrefixHasher, codec};

use crate::golden_dir;

/// Prompt tokens that the reference computes at a time.
const PROMPT_CHUNK: usize = 256;

/// What one answer is the answer to.
#[derive(Clone, Debug)]
pub struct Question {
    /// Where the prompt begins in the text, in tokens; the text repeats.
    pub start: usize,
    /// Length of the prompt, at least 1.
    pub prompt_tokens: usize,
    /// Length of the answer, at least 1; an end of turn does not end it.
    pub answer_tokens: usize,
    /// Layers on the device.
    pub split_layer: usize,
    /// How rows go up; not looked at where `split_layer` is 0.
    pub codec: Codec,
    /// How the tail samples.
    pub sampling: SamplingParams,
}

impl Question {
    /// Greedy, and token ids go up.
    #[must_use]
    pub fn plain(start: usize, prompt_tokens: usize, answer_tokens: usize) -> Self {
        Self {
            start,
            prompt_tokens,
            answer_tokens,
            split_layer: 0,
            codec: Codec::F32,
            sampling: SamplingParams::default(),
        }
    }
}

/// A question with all that a device of it sends, and what it must get.
pub struct Answer {
    question: Question,
    /// Prompt and answer.
    sequence: Vec<u32>,
    /// One for each token of the answer where log-probabilities were asked for.
    logprobs: Vec<Option<f32>>,
    /// Encoded rows of all positions but the last, which no device sends; none where token ids go up.
    rows: Vec<Bytes>,
    digests: Vec<PrefixDigest>,
    hidden_size: usize,
}

impl Answer {
    /// The question.
    #[must_use]
    pub const fn question(&self) -> &Question {
        &self.question
    }

    /// Prompt and answer.
    #[must_use]
    pub fn sequence(&self) -> &[u32] {
        &self.sequence
    }

    /// The natural-log probability of a token of the answer, where it was asked for.
    #[must_use]
    pub fn logprob(&self, index: usize) -> Option<f32> {
        self.logprobs.get(index).copied().flatten()
    }

    /// Digests of ever longer beginnings of what is sent.
    #[must_use]
    pub fn digests(&self) -> &[PrefixDigest] {
        &self.digests
    }

    /// `Open.codec`.
    #[must_use]
    pub fn wire_codec(&self) -> Option<message::Codec> {
        (self.question.split_layer > 0).then(|| self.question.codec.into())
    }

    /// `Open.sampling`.
    #[must_use]
    pub fn wire_sampling(&self) -> Sampling {
        wire_sampling(&self.question.sampling)
    }

    /// The rows of positions `[start, end)`, and after them those of `guesses`, as a step carries them. A guess
    /// that is no token of this answer goes up as a copy of the row before it: the tail must throw it away
    /// unseen, as its token tells.
    #[must_use]
    pub fn input(&self, start: usize, end: usize, guesses: &[u32]) -> step::Input {
        if self.question.split_layer == 0 {
            let known = &self.sequence[start..end];
            let ids = [known, guesses].concat();
            return step::Input::TokenIds(TokenIds { ids });
        }
        let mut data = Vec::new();
        for row in &self.rows[start..end] {
            data.extend_from_slice(row);
        }
        for (position, guess) in (end..).zip(guesses) {
            let is_right = self.sequence.get(position) == Some(guess);
            let row = if is_right { position } else { end - 1 };
            data.extend_from_slice(&self.rows[row.min(self.rows.len() - 1)]);
        }
        step::Input::Activations(Activations {
            codec: self.wire_codec(),
            rows: wire_u32(end - start + guesses.len()),
            columns: wire_u32(self.hidden_size),
            data: data.into(),
        })
    }

    /// `Step.history` for the same rows, where the sampling needs it.
    #[must_use]
    pub fn history(&self, start: usize, end: usize, guesses: &[u32]) -> Option<TokenIds> {
        let is_needed = self.question.split_layer > 0 && self.question.sampling.needs_history();
        is_needed.then(|| TokenIds {
            ids: [&self.sequence[start..end], guesses].concat(),
        })
    }
}

/// Computes answers with all layers of one model, in this process.
pub struct Reference {
    decoder: Decoder,
    text: Vec<u32>,
}

impl Reference {
    /// Loads the model, and a text to take prompts from. Blocks.
    ///
    /// # Errors
    /// Where either cannot be read.
    pub fn load(model: &Path) -> Result<Self> {
        let weights = Weights::open(model)?;
        let layers = LayerRange::new(0, weights.config().num_layers);
        let text = std::fs::read_to_string(golden_dir().join("eval_text.txt"))?;
        let text = weights.tokenizer()?.encode(&text)?;
        ensure!(!text.is_empty(), "a text without tokens");
        Ok(Self {
            decoder: Decoder::load(&weights, layers, WeightDtype::Native)?,
            text,
        })
    }

    /// The model's sizes.
    #[must_use]
    pub const fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    /// Computes an answer. Blocks.
    ///
    /// # Errors
    /// Where the question does not fit the model.
    pub fn answer(&self, question: Question) -> Result<Arc<Answer>> {
        let text = self.text.iter().copied().cycle();
        let prompt: Vec<u32> = text
            .skip(question.start % self.text.len())
            .take(question.prompt_tokens)
            .collect();
        let mut pass = Pass::new(&self.decoder, &question);
        let mut sampler = Sampler::new(question.sampling.clone(), prompt.len())?;
        for (position, token_id) in prompt.iter().enumerate() {
            sampler.observe(position, *token_id);
        }
        let mut last = Vec::new();
        for chunk in prompt.chunks(PROMPT_CHUNK) {
            last = pass.forward(chunk)?;
        }
        let (mut sequence, mut logprobs) = (prompt, Vec::new());
        loop {
            let hidden_size = self.config().hidden_size;
            let row = &last[last.len() - hidden_size..];
            let mut logits = self.decoder.logits(row)?;
            let sampled = sampler.sample(&mut logits, sequence.len());
            sampler.observe(sequence.len(), sampled.token_id);
            sequence.push(sampled.token_id);
            logprobs.push(sampled.logprob);
            if logprobs.len() == question.answer_tokens {
                break;
            }
            last = pass.forward(&[sampled.token_id])?;
        }
        let digests = digests(&question, &sequence, &pass.rows);
        Ok(Arc::new(Answer {
            sequence,
            logprobs,
            rows: pass.rows,
            digests,
            hidden_size: self.config().hidden_size,
            question,
        }))
    }
}

/// The head layers, the wire and the tail layers of one session.
struct Pass<'a> {
    decoder: &'a Decoder,
    head: LayerRange,
    tail: LayerRange,
    head_cache: KvCache,
    tail_cache: KvCache,
    codec: Codec,
    rows: Vec<Bytes>,
}

impl<'a> Pass<'a> {
    fn new(decoder: &'a Decoder, question: &Question) -> Self {
        let config = decoder.config();
        let head = LayerRange::new(0, question.split_layer);
        let tail = LayerRange::new(question.split_layer, config.num_layers);
        let capacity = question.prompt_tokens + question.answer_tokens;
        Self {
            decoder,
            head,
            tail,
            head_cache: KvCache::new(config, head, capacity),
            tail_cache: KvCache::new(config, tail, capacity),
            codec: question.codec,
            rows: Vec::new(),
        }
    }

    /// Returns the hidden states behind the last layer, `[token_ids.len(), hidden_size]`.
    fn forward(&mut self, token_ids: &[u32]) -> Result<Vec<f32>> {
        let mut hidden_states = self.decoder.embed(token_ids)?;
        if !self.head.is_empty() {
            let columns = self.decoder.config().hidden_size;
            self.decoder
                .forward(self.head, &mut hidden_states, &mut self.head_cache)?;
            let sent = codec::encode(self.codec, &hidden_states, columns)?;
            let rows = codec::encoded_rows(&sent, self.codec);
            self.rows.extend(rows.map(Bytes::copy_from_slice));
            hidden_states = codec::decode(&sent, self.codec, columns, &Limits::default())?;
        }
        self.decoder
            .forward(self.tail, &mut hidden_states, &mut self.tail_cache)
            .context("the tail layers")?;
        Ok(hidden_states)
    }
}

/// Digests of all that is sent: everything but the last token.
fn digests(question: &Question, sequence: &[u32], rows: &[Bytes]) -> Vec<PrefixDigest> {
    let split_layer = wire_u32(question.split_layer);
    if question.split_layer == 0 {
        let mut hasher = PrefixHasher::new(split_layer, None);
        let ids = sequence[..sequence.len() - 1].iter();
        return ids
            .filter_map(|token_id| hasher.push(&token_id.to_le_bytes()))
            .collect();
    }
    let mut hasher = PrefixHasher::new(split_layer, Some(question.codec));
    rows.iter().filter_map(|row| hasher.push(row)).collect()
}

/// `Open.sampling` of some parameters.
#[must_use]
pub fn wire_sampling(params: &SamplingParams) -> Sampling {
    let logit_bias = params
        .logit_bias
        .iter()
        .map(|&(token_id, bias)| LogitBias { token_id, bias });
    Sampling {
        temperature: params.temperature,
        top_k: wire_u32(params.top_k),
        top_p: params.top_p,
        min_p: params.min_p,
        repetition_penalty: params.repetition_penalty,
        presence_penalty: params.presence_penalty,
        frequency_penalty: params.frequency_penalty,
        seed: params.seed,
        logit_bias: logit_bias.collect(),
        logprobs: params.logprobs,
        top_logprobs: wire_u32(params.top_logprobs),
    }
}

/// Positions and sizes here are those of sessions, all of which are 32 bits on the wire.
#[must_use]
pub fn wire_u32(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny_llama;

    /// A text of this model would need its words; numbers do.
    fn reference() -> Result<Reference> {
        let weights = Weights::open(&tiny_llama())?;
        let layers = LayerRange::new(0, weights.config().num_layers);
        Ok(Reference {
            decoder: Decoder::load(&weights, layers, WeightDtype::Native)?,
            text: (1..100).collect(),
        })
    }

    #[test]
    fn without_loss_every_split_has_the_same_answer() -> Result<()> {
        let reference = reference()?;
        let whole = reference.answer(Question::plain(3, 40, 12))?;
        for split_layer in 1..reference.config().num_layers {
            let question = Question {
                split_layer,
                ..Question::plain(3, 40, 12)
            };
            let split = reference.answer(question)?;
            assert_eq!(split.sequence(), whole.sequence());
            assert_eq!(split.rows.len(), 40 + 11);
            assert_eq!(split.digests().len(), 51 / 32);
        }
        Ok(())
    }

    #[test]
    fn a_step_carries_known_rows_and_guesses() -> Result<()> {
        let answer = reference()?.answer(Question::plain(0, 10, 6))?;
        let guesses = [answer.sequence()[11], 7];
        let step::Input::TokenIds(TokenIds { ids }) = answer.input(10, 11, &guesses) else {
            anyhow::bail!("token ids go up");
        };
        assert_eq!(ids, [answer.sequence()[10], guesses[0], guesses[1]]);
        let question = Question {
            split_layer: 1,
            ..Question::plain(0, 10, 6)
        };
        let answer = reference()?.answer(question)?;
        let step::Input::Activations(sent) = answer.input(10, 11, &guesses) else {
            anyhow::bail!("rows go up");
        };
        assert_eq!(sent.rows, 3);
        assert_eq!(sent.data.len(), 3 * 4 * answer.hidden_size);
        Ok(())
    }
}
