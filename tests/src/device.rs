//! A device: the client library with a test's settings, and what came out of it.

use anyhow::{Context as _, Result};
use edge_lite::{
    Client, ClientConfig, Codec, Error, Event, GenerateRequest, Generation, LocalConfig,
    LocalModel, Prompt, Quantization, Report, SamplingParams, TokenEvent, WeightDtype,
};

use crate::{artifact_cache_dir, golden_dir, smollm2};

/// Everything that a caller of the library was told of one generation.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Tokens with text and log-probabilities, in order.
    pub tokens: Vec<TokenEvent>,
    /// The report.
    pub report: Report,
}

/// Settings that lose nothing: f32 activations, head weights as they are.
#[must_use]
pub fn lossless(split_layer: usize) -> ClientConfig {
    ClientConfig {
        cache_dir: Some(artifact_cache_dir()),
        split_layer: Some(split_layer),
        codec: Some(Codec::F32),
        head_quantization: Some(Quantization::None),
        ..ClientConfig::default()
    }
}

/// A device with the layers `[0, split_layer)`.
///
/// # Errors
/// Where the tail does not serve that.
pub async fn connect(url: &str, split_layer: usize) -> Result<Client> {
    Ok(Client::connect(url, lossless(split_layer)).await?)
}

/// The unsplit real model: what every split is compared with.
///
/// # Errors
/// Where it cannot be loaded.
pub async fn unsplit(dtype: WeightDtype) -> Result<LocalModel> {
    let config = LocalConfig {
        dtype,
        ..LocalConfig::default()
    };
    let load = move || LocalModel::load(&smollm2(), &config);
    Ok(tokio::task::spawn_blocking(load).await??)
}

/// Reads a generation to its end.
///
/// # Errors
/// The error that ended it.
pub async fn finish(generation: Generation) -> Result<Answer, Error> {
    finish_after(Vec::new(), generation).await
}

/// Reads the rest of a generation whose first tokens have been taken already.
///
/// # Errors
/// The error that ended it.
pub async fn finish_after(
    mut tokens: Vec<TokenEvent>,
    mut generation: Generation,
) -> Result<Answer, Error> {
    while let Some(event) = generation.next().await {
        match event? {
            Event::Token(token) => tokens.push(token),
            Event::Rest { .. } => {}
            Event::Report(report) => {
                return Ok(Answer {
                    tokens,
                    report: *report,
                });
            }
        }
    }
    Err(edge_lite::DeviceError::WorkerLost.into())
}

/// Takes the first `count` tokens of a generation.
///
/// # Errors
/// Where it ends before.
pub async fn first_tokens(generation: &mut Generation, count: usize) -> Result<Vec<TokenEvent>> {
    let mut tokens = Vec::new();
    while tokens.len() < count {
        match generation
            .next()
            .await
            .context("the generation has ended")??
        {
            Event::Token(token) => tokens.push(token),
            other => anyhow::bail!("{other:?} after {} tokens", tokens.len()),
        }
    }
    Ok(tokens)
}

/// A request of exactly `max_tokens` tokens, which reports log-probabilities: they show a difference in the
/// arithmetic long before a token does.
#[must_use]
pub fn request(prompt: Prompt, max_tokens: usize, sampling: SamplingParams) -> GenerateRequest {
    GenerateRequest {
        max_tokens,
        ignore_end_of_turn: true,
        sampling: SamplingParams {
            logprobs: true,
            top_logprobs: 3,
            ..sampling
        },
        ..GenerateRequest::new(prompt)
    }
}

/// Draws that depend on everything a sampler can look at: the seed, and the tokens of prompt and answer.
#[must_use]
pub fn sampled(seed: u64) -> SamplingParams {
    SamplingParams {
        temperature: 0.8,
        top_p: 0.9,
        repetition_penalty: 1.1,
        seed,
        ..SamplingParams::default()
    }
}

/// A question for the model's chat template.
#[must_use]
pub fn chat(question: &str) -> Prompt {
    Prompt::user(question)
}

/// A raw prompt: the first `bytes` bytes of an English text, about four to a token.
///
/// # Errors
/// Where the text cannot be read.
pub fn prose(bytes: usize) -> Result<Prompt> {
    let text = std::fs::read_to_string(golden_dir().join("eval_text.txt"))?;
    let end = text.floor_char_boundary(bytes);
    Ok(Prompt::Raw(text[..end].to_owned()))
}
