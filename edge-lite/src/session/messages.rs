//! What a session says and hears of sampling, in the protocol's words.

use headway_model::sampler::{Sampled, SamplingParams};
use headway_wire::message::{LogitBias, Sampling, StepResult, TokenLogprob};

use crate::error::TailError;
use crate::rows::wire_u32;

/// The guesses that stand, and the token after them. `guesses`: those behind the step's first row, at least.
pub(super) fn sampled(
    result: StepResult,
    guesses: impl IntoIterator<Item = u32>,
) -> Result<Vec<Sampled>, TailError> {
    let token_id = result.token_id.ok_or(TailError::Closed)?;
    let tops = |entries: &[TokenLogprob]| {
        let entries = entries.iter();
        entries
            .map(|entry| (entry.token_id, entry.logprob))
            .collect()
    };
    let right = guesses.into_iter().take(result.draft_accepted as usize);
    let mut logprobs = result.draft_logprobs.iter();
    let mut tokens: Vec<Sampled> = right
        .map(|token_id| {
            let logprobs = logprobs.next();
            Sampled {
                token_id,
                logprob: logprobs.map(|logprobs| logprobs.logprob),
                top_logprobs: logprobs
                    .map_or_else(Vec::new, |logprobs| tops(&logprobs.top_logprobs)),
            }
        })
        .collect();
    tokens.push(Sampled {
        token_id,
        logprob: result.logprob,
        top_logprobs: tops(&result.top_logprobs),
    });
    Ok(tokens)
}

pub(super) fn sampling(params: &SamplingParams) -> Sampling {
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
