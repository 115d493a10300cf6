//! What a session may ask for.

use bytes::Bytes;

use super::check;
use crate::codec::Codec;
use crate::error::FrameError;
use crate::limits::Limits;
use crate::message::{Open, Sampling};
use crate::prefix::PREFIX_DIGEST_BYTES;

pub(super) fn check(open: &Open, limits: &Limits) -> Result<(), FrameError> {
    // First of all: another version may give every other field another meaning.
    check::protocol_version("Open.protocol_version", open.protocol_version)?;
    check_digest(&open.model_digest)?;
    check::within("max_split_layer", limits.max_split_layer, open.split_layer)?;
    match open.codec {
        Some(codec) => drop(Codec::try_from(codec)?),
        None if open.split_layer == 0 => {}
        None => return Err(FrameError::Missing { part: "Open.codec" }),
    }
    check_positions(open, limits)?;
    check_prefix_digests(&open.prefix_digests, limits)?;
    check::text_bytes(
        "max_traceparent_bytes",
        limits.max_traceparent_bytes,
        &open.traceparent,
    )?;
    check::text_bytes(
        "max_tracestate_bytes",
        limits.max_tracestate_bytes,
        &open.tracestate,
    )?;
    check::printable("Open.traceparent", &open.traceparent)?;
    check::printable("Open.tracestate", &open.tracestate)?;
    open.sampling
        .as_ref()
        .map_or(Ok(()), |sampling| check_sampling(sampling, limits))
}

fn check_digest(digest: &str) -> Result<(), FrameError> {
    let is_lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    match digest.strip_prefix("sha256:") {
        Some(hex) if hex.len() == 64 && hex.bytes().all(is_lower_hex) => Ok(()),
        _ => {
            let expected = "sha256: and 64 lower-case hexadecimal digits";
            Err(check::invalid(
                "Open.model_digest",
                expected,
                check::quoted(digest),
            ))
        }
    }
}

fn check_positions(open: &Open, limits: &Limits) -> Result<(), FrameError> {
    check::within("max_positions", limits.max_positions, open.max_positions)?;
    check::at_least_one("Open.max_positions", open.max_positions)?;
    check::at_least_one("Open.prompt_tokens", open.prompt_tokens)?;
    let within_session = |field, got: u32| {
        let expected = || format!("at most Open.max_positions, {}", open.max_positions);
        if got <= open.max_positions {
            Ok(())
        } else {
            Err(check::invalid(field, expected(), got))
        }
    };
    within_session("Open.prompt_tokens", open.prompt_tokens)?;
    within_session("Open.resume_positions", open.resume_positions)
}

fn check_prefix_digests(digests: &Bytes, limits: &Limits) -> Result<(), FrameError> {
    if !digests.len().is_multiple_of(PREFIX_DIGEST_BYTES) {
        let expected = format!("{PREFIX_DIGEST_BYTES} bytes for each digest");
        let got = format!("{} bytes", digests.len());
        return Err(check::invalid("Open.prefix_digests", expected, got));
    }
    let count = digests.len() / PREFIX_DIGEST_BYTES;
    check::within("max_prefix_digests", limits.max_prefix_digests, count)
}

/// The zero of an absent field is off for every filter and penalty, `top_p` and `repetition_penalty` too.
fn check_sampling(sampling: &Sampling, limits: &Limits) -> Result<(), FrameError> {
    let Sampling {
        temperature,
        top_k: _,
        top_p,
        min_p,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        seed: _,
        logit_bias,
        logprobs: _,
        top_logprobs,
    } = sampling;
    check::in_range("Sampling.temperature", 0.0..=100.0, *temperature)?;
    check::in_range("Sampling.top_p", 0.0..=1.0, *top_p)?;
    // 1 would leave the most likely token only where it is certain.
    check::in_range("Sampling.min_p", 0.0..=1.0_f32.next_down(), *min_p)?;
    check::in_range(
        "Sampling.repetition_penalty",
        0.0..=100.0,
        *repetition_penalty,
    )?;
    check::in_range(
        "Sampling.presence_penalty",
        -100.0..=100.0,
        *presence_penalty,
    )?;
    check::in_range(
        "Sampling.frequency_penalty",
        -100.0..=100.0,
        *frequency_penalty,
    )?;
    check::within("max_logit_bias", limits.max_logit_bias, logit_bias.len())?;
    for entry in logit_bias {
        check::finite("LogitBias.bias", entry.bias)?;
    }
    check::within("max_top_logprobs", limits.max_top_logprobs, *top_logprobs)
}
