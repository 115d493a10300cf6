//! What is wrong with each senseless frame: a change of a good one, and the code that it must be refused with.

use bytes::Bytes;
use headway_wire::message::RefusalCode::{DigestMismatch, Malformed, OverLimit, Unsupported};
use headway_wire::message::{
    Activations, Codec as CodecMessage, LogitBias, Open, RefusalCode, Sampling, Step, TokenIds,
    step,
};
use headway_wire::{Codec, codec};

use crate::inputs::{HIDDEN_SIZE, MAX_POSITIONS, NUM_LAYERS, VOCAB_SIZE, tokens};

/// A change, and the refusal that it must get.
pub type Case<T> = (fn(&mut T), RefusalCode);

/// Changes of an `Open` for split layer 1, 64 positions and a prompt of 4.
pub const OPENS: [Case<Open>; 22] = [
    (
        |open| open.model_digest = format!("sha256:{}", "0".repeat(64)),
        DigestMismatch,
    ),
    (|open| open.model_digest = "sha256:".to_owned(), Malformed),
    (|open| open.model_digest = "é".repeat(5000), Malformed),
    (|open| open.protocol_version = 0, Unsupported),
    (|open| open.protocol_version = u32::MAX, Unsupported),
    (|open| open.split_layer = NUM_LAYERS, Unsupported),
    (|open| open.split_layer = u32::MAX, OverLimit),
    (|open| open.codec = None, Malformed),
    (|open| open.codec = codec_message(77, 0), Unsupported),
    (|open| open.codec = codec_message(-1, 0), Unsupported),
    (|open| open.codec = codec_message(4, 0), Malformed),
    (|open| open.codec = codec_message(1, 32), Malformed),
    (|open| open.codec = codec_message(5, u32::MAX), Malformed),
    (|open| open.max_positions = 0, Malformed),
    (|open| open.max_positions = MAX_POSITIONS + 1, OverLimit),
    (|open| open.max_positions = u32::MAX, OverLimit),
    (|open| open.prompt_tokens = 0, Malformed),
    (|open| open.prompt_tokens = 65, Malformed),
    (|open| open.resume_positions = u32::MAX, Malformed),
    (|open| open.traceparent = "0".repeat(56), OverLimit),
    (
        |open| open.traceparent = "00-\r\nX-Injected: 1".to_owned(),
        Malformed,
    ),
    (|open| open.tracestate = "a".repeat(513), OverLimit),
];

const fn codec_message(kind: i32, group_size: u32) -> Option<CodecMessage> {
    Some(CodecMessage { kind, group_size })
}

/// Changes of a sampling that is greedy and nothing else.
pub const SAMPLINGS: [Case<Sampling>; 16] = [
    (|sampling| sampling.temperature = f32::NAN, Malformed),
    (|sampling| sampling.temperature = -1.0, Malformed),
    (|sampling| sampling.temperature = f32::INFINITY, Malformed),
    (|sampling| sampling.top_p = f32::NAN, Malformed),
    (|sampling| sampling.top_p = 1.5, Malformed),
    (|sampling| sampling.min_p = 1.0, Malformed),
    (|sampling| sampling.min_p = -0.1, Malformed),
    (|sampling| sampling.repetition_penalty = f32::NAN, Malformed),
    (|sampling| sampling.repetition_penalty = -1.0, Malformed),
    (
        |sampling| sampling.presence_penalty = f32::NEG_INFINITY,
        Malformed,
    ),
    (|sampling| sampling.frequency_penalty = 1e30, Malformed),
    (
        |sampling| sampling.logit_bias = biases(1, f32::NAN, 1),
        Malformed,
    ),
    (
        |sampling| sampling.logit_bias = biases(VOCAB_SIZE, 1.0, 1),
        Malformed,
    ),
    (
        |sampling| sampling.logit_bias = biases(1, 1.0, 1025),
        OverLimit,
    ),
    (|sampling| sampling.top_logprobs = 21, OverLimit),
    (|sampling| sampling.top_logprobs = u32::MAX, OverLimit),
];

fn biases(token_id: u32, bias: f32, count: usize) -> Vec<LogitBias> {
    vec![LogitBias { token_id, bias }; count]
}

/// Changes of a step with one token id, after two positions of a session of eight.
pub const TOKEN_STEPS: [Case<Step>; 12] = [
    (|step| step.position = 0, Malformed),
    (|step| step.position = 3, Malformed),
    (|step| step.position = u32::MAX, OverLimit),
    (|step| step.input = tokens(0, &[]).input, Malformed),
    (
        |step| step.input = tokens(0, &[VOCAB_SIZE]).input,
        Malformed,
    ),
    (
        |step| step.input = tokens(0, &[1, u32::MAX]).input,
        Malformed,
    ),
    (|step| step.input = tokens(0, &[1; 7]).input, OverLimit),
    (|step| step.input = tokens(0, &[1; 513]).input, OverLimit),
    (|step| step.input = None, Malformed),
    (|step| step.input = rows(1, Codec::F32), Malformed),
    (|step| step.history = history(&[1]), Malformed),
    (|step| step.first_guess = Some(VOCAB_SIZE), Malformed),
];

/// Changes of a step with one row of activations, after two positions of a session of eight with penalties.
pub const ROW_STEPS: [Case<Step>; 22] = [
    (|step| step.position = 0, Malformed),
    (|step| step.position = 5, Malformed),
    (|step| step.input = tokens(0, &[3]).input, Malformed),
    (|step| step.history = None, Malformed),
    (|step| step.history = history(&[]), Malformed),
    (|step| step.history = history(&[3, 4]), Malformed),
    (|step| step.history = history(&[VOCAB_SIZE]), Malformed),
    (
        |step| (step.input, step.history) = (rows(7, Codec::F32), history(&[3; 7])),
        OverLimit,
    ),
    (|step| activations(step).rows = 0, Malformed),
    (|step| activations(step).rows = 2, Malformed),
    (|step| activations(step).rows = u32::MAX, OverLimit),
    (|step| activations(step).columns = 0, Malformed),
    (|step| activations(step).columns = 63, Malformed),
    (|step| activations(step).columns = u32::MAX, OverLimit),
    (|step| activations(step).codec = None, Malformed),
    (
        |step| activations(step).codec = Some(Codec::Bf16.into()),
        Malformed,
    ),
    (
        |step| step.input = rows(1, Codec::Int8 { group_size: 32 }),
        Malformed,
    ),
    (|step| activations(step).data = Bytes::new(), Malformed),
    (
        |step| activations(step).data = vec![0; HIDDEN_SIZE * 4 - 1].into(),
        Malformed,
    ),
    (
        |step| activations(step).data = vec![0; HIDDEN_SIZE * 4 + 1].into(),
        Malformed,
    ),
    (|step| activations(step).data = row_of(f32::NAN), Malformed),
    (
        |step| activations(step).data = row_of(f32::NEG_INFINITY),
        Malformed,
    ),
];

fn activations(step: &mut Step) -> &mut Activations {
    match &mut step.input {
        Some(step::Input::Activations(activations)) => activations,
        other => panic!("a step of rows carries {other:?}"),
    }
}

fn history(ids: &[u32]) -> Option<TokenIds> {
    Some(TokenIds { ids: ids.to_vec() })
}

fn row_of(value: f32) -> Bytes {
    value.to_le_bytes().repeat(HIDDEN_SIZE).into()
}

/// Good rows; their values do not matter.
pub fn rows(count: usize, codec: Codec) -> Option<step::Input> {
    let values = vec![0.25; count * HIDDEN_SIZE];
    let activations = codec::encode(codec, &values, HIDDEN_SIZE).expect("the rows are finite");
    Some(step::Input::Activations(activations))
}
