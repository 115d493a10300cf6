//! The generator of inputs: the same ones from the same seed.

use bytes::Bytes;
use headway_wire::frame::{decode_client_frame, encode_client_frame};
use headway_wire::message::client_frame::Message;
use headway_wire::message::{
    Activations, ClientFrame, Codec as CodecMessage, LogitBias, Open, RefusalCode, Sampling, Step,
    TokenIds, step,
};
use headway_wire::{Codec, Limits, PROTOCOL_VERSION, codec};

use crate::http;

/// Sizes of the model that is served.
const HIDDEN_SIZE: usize = 64;
const VOCAB_SIZE: u32 = 128;
const NUM_LAYERS: u32 = 3;
const MAX_POSITIONS: u32 = 256;

/// One input.
#[derive(Debug)]
pub enum Input {
    /// A connection that does not become a session.
    Http {
        request: Vec<u8>,
        allows: &'static [u16],
    },
    /// Frames on a WebSocket.
    Session {
        sends: Vec<Send>,
        expected: Expected,
    },
}

#[derive(Debug)]
pub enum Send {
    /// A binary message.
    Frame(Bytes),
    Text(String),
    /// Bytes on the connection, past the WebSocket library.
    Raw(Vec<u8>),
}

/// What is right.
#[derive(Debug)]
pub enum Expected {
    Refusal(RefusalCode),
    /// Which one depends on the bytes.
    AnyRefusal,
    /// The bytes may be a good Open or Close by chance, or lie below the protocol of frames.
    Anything,
    /// The connection is dropped right after sending.
    NobodyReads,
}

use RefusalCode::{DigestMismatch, Malformed, OverLimit, Unsupported};

pub struct Generator {
    random: fastrand::Rng,
    digest: String,
    count: usize,
}

impl Generator {
    pub fn new(seed: u64, digest: String) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self {
            random,
            digest,
            count: 0,
        }
    }

    /// Kinds follow each other; what is drawn is which one of a kind.
    pub fn next(&mut self) -> Input {
        let count = self.count;
        self.count += 1;
        // Kinds with tables step through them, so that each of their entries comes often.
        let turn = count / 12;
        match count % 12 {
            0 => self.random_bytes(),
            1 => self.truncated_open(turn),
            2 => self.damaged_open(),
            3 => self.senseless_open(turn),
            4 => self.out_of_order(turn),
            5 | 6 => self.senseless_step(turn * 2 + count % 2),
            7 => self.damaged_step(),
            8 => self.broken_websocket(turn),
            9 => self.disconnect(turn),
            10 => http_request(turn),
            _ => http_range(turn),
        }
    }

    fn open(&self, split_layer: u32) -> Open {
        Open {
            protocol_version: PROTOCOL_VERSION,
            model_digest: self.digest.clone(),
            split_layer,
            codec: Some(Codec::F32.into()),
            sampling: Some(Sampling {
                temperature: 0.8,
                seed: 5,
                ..Sampling::default()
            }),
            max_positions: 64,
            prompt_tokens: 4,
            traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned(),
            ..Open::default()
        }
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.random.u8(..))
            .take(count)
            .collect()
    }

    fn random_bytes(&mut self) -> Input {
        let count = self.random.usize(0..300);
        let frame = Bytes::from(self.bytes(count));
        let expected = expected_of(&frame);
        session([Send::Frame(frame)], expected)
    }

    fn truncated_open(&mut self, turn: usize) -> Input {
        let frame = encode_client_frame(&self.open(1).into());
        let end = turn % frame.len();
        session(
            [Send::Frame(frame.slice(..end))],
            Expected::Refusal(Malformed),
        )
    }

    /// Some flipped bits make another good Open.
    fn damaged_open(&mut self) -> Input {
        let split_layer = self.random.u32(0..NUM_LAYERS);
        let frame = self.damaged(encode_client_frame(&self.open(split_layer).into()));
        session([Send::Frame(frame)], Expected::Anything)
    }

    fn damaged(&mut self, frame: Bytes) -> Bytes {
        let mut frame = frame.to_vec();
        for _ in 0..self.random.usize(1..=4) {
            let at = self.random.usize(0..frame.len());
            frame[at] ^= 1 << self.random.u32(0..8);
        }
        frame.into()
    }

    fn senseless_open(&mut self, turn: usize) -> Input {
        let opens = self.senseless_opens();
        let (open, code) = opens[turn % opens.len()].clone();
        session([frame(open)], Expected::Refusal(code))
    }

    fn senseless_opens(&self) -> Vec<(Open, RefusalCode)> {
        let good = || self.open(1);
        let codec = |kind, group_size| Some(CodecMessage { kind, group_size });
        let mut opens = vec![
            (
                Open {
                    model_digest: format!("sha256:{}", "0".repeat(64)),
                    ..good()
                },
                DigestMismatch,
            ),
            (
                Open {
                    model_digest: "sha256:".to_owned(),
                    ..good()
                },
                Malformed,
            ),
            (
                Open {
                    model_digest: "é".repeat(5000),
                    ..good()
                },
                Malformed,
            ),
            (
                Open {
                    protocol_version: 0,
                    ..good()
                },
                Unsupported,
            ),
            (
                Open {
                    protocol_version: u32::MAX,
                    ..good()
                },
                Unsupported,
            ),
            (
                Open {
                    split_layer: NUM_LAYERS,
                    ..good()
                },
                Unsupported,
            ),
            (
                Open {
                    split_layer: u32::MAX,
                    ..good()
                },
                OverLimit,
            ),
            (
                Open {
                    codec: None,
                    ..good()
                },
                Malformed,
            ),
            (
                Open {
                    codec: codec(77, 0),
                    ..good()
                },
                Unsupported,
            ),
            (
                Open {
                    codec: codec(-1, 0),
                    ..good()
                },
                Unsupported,
            ),
            (
                Open {
                    codec: codec(4, 0),
                    ..good()
                },
                Malformed,
            ),
            (
                Open {
                    codec: codec(1, 32),
                    ..good()
                },
                Malformed,
            ),
            (
                Open {
                    codec: codec(5, u32::MAX),
                    ..good()
                },
                Malformed,
            ),
            (
                Open {
                    max_positions: 0,
                    ..good()
                },
                Malformed,
            ),
            (
                Open {
                    max_positions: MAX_POSITIONS + 1,
                    ..good()
                },
                OverLimit,
            ),
            (
                Open {
                    max_positions: u32::MAX,
                    ..good()
                },
                OverLimit,
            ),
            (
                Open {
                    prompt_tokens: 0,
                    ..good()
                },
                Malformed,
            ),
            (
                Open {
                    prompt_tokens: 65,
                    ..good()
                },
                Malformed,
            ),
            (
                Open {
                    resume_positions: u32::MAX,
                    ..good()
                },
                Malformed,
            ),
            (
                Open {
                    traceparent: "0".repeat(56),
                    ..good()
                },
                OverLimit,
            ),
            (
                Open {
                    traceparent: "00-\r\nX-Injected: 1".to_owned(),
                    ..good()
                },
                Malformed,
            ),
            (
                Open {
                    tracestate: "a".repeat(513),
                    ..good()
                },
                OverLimit,
            ),
        ];
        let samplings = senseless_samplings().into_iter();
        opens.extend(samplings.map(|(sampling, code)| {
            (
                Open {
                    sampling: Some(sampling),
                    ..good()
                },
                code,
            )
        }));
        opens
    }

    fn out_of_order(&mut self, turn: usize) -> Input {
        let (open, close) = (self.open(0), ClientFrame { message: None });
        let malformed = Expected::Refusal(Malformed);
        match turn % 6 {
            0 => session([Send::Text("{\"open\":{}}".to_owned())], malformed),
            1 => session([frame(tokens(0, &[1]))], malformed),
            2 => session([frame(open.clone()), frame(open)], malformed),
            3 => session(
                [
                    frame(open),
                    frame(tokens(0, &[1, 2])),
                    Send::Text(String::new()),
                ],
                malformed,
            ),
            4 => session([frame(close)], malformed),
            _ => {
                let position = self.random.u32(1..MAX_POSITIONS);
                session([frame(open), frame(tokens(position, &[1]))], malformed)
            }
        }
    }

    fn senseless_step(&mut self, turn: usize) -> Input {
        let steps = senseless_steps();
        let (split_layer, step, code) = steps[turn % steps.len()].clone();
        let sampling = Sampling {
            repetition_penalty: 1.1,
            ..Sampling::default()
        };
        let open = Open {
            sampling: Some(sampling),
            max_positions: 8,
            ..self.open(split_layer)
        };
        // A good step first, so that the session has something to lose.
        let first = match split_layer {
            0 => tokens(0, &[1, 2]),
            _ => activations(0, &[1, 2]),
        };
        session(
            [frame(open), frame(first), frame(step)],
            Expected::Refusal(code),
        )
    }

    fn damaged_step(&mut self) -> Input {
        let split_layer = self.random.u32(0..NUM_LAYERS);
        let step = match split_layer {
            0 => tokens(0, &[1, 2, 3]),
            _ => activations(0, &[1, 2, 3]),
        };
        let damaged = self.damaged(encode_client_frame(&step.into()));
        // Where the damaged step is a good one, the next one comes out of order.
        let sends = [
            frame(self.open(split_layer)),
            Send::Frame(damaged),
            frame(tokens(200, &[1])),
        ];
        session(sends, Expected::Anything)
    }

    /// RFC 6455, section 5.2. The mask is zero, so that payloads are readable.
    fn broken_websocket(&mut self, turn: usize) -> Input {
        let header = |first: u8, length: &[u8]| [&[first][..], length, &[0; 4]].concat();
        let huge = |bytes: u64| [&[0xff][..], &bytes.to_be_bytes()].concat();
        let open = frame(self.open(1));
        let (broken, expected) = match turn % 8 {
            0 => (header(0x82, &huge(300 << 10)), Expected::Refusal(OverLimit)),
            1 => (header(0x82, &huge(1 << 40)), Expected::Refusal(OverLimit)),
            2 => (header(0x82, &huge(u64::MAX)), Expected::Anything),
            // Reserved bits, a reserved kind, no mask, a ping too long for one, an end without a start.
            3 => (header(0xf2, &[0x80]), Expected::Anything),
            4 => (header(0x8f, &[0x80]), Expected::Anything),
            5 => (vec![0x82, 0x01, 0x00], Expected::Anything),
            6 => {
                let ping = header(0x89, &[0xfe, 0x01, 0x00]);
                ([ping, vec![0; 256]].concat(), Expected::Anything)
            }
            _ => (header(0x80, &[0x80]), Expected::Anything),
        };
        session([open, Send::Raw(broken)], expected)
    }

    fn disconnect(&mut self, turn: usize) -> Input {
        let open = || frame(self.open(1));
        let half = vec![0x82, 0xfe, 0x10, 0x00, 0, 0, 0, 0, 1, 2, 3];
        let sends = match turn % 5 {
            0 => Vec::new(),
            1 => vec![open()],
            2 => vec![open(), Send::Raw(half)],
            3 => vec![open(), frame(activations(0, &[1, 2, 3]))],
            _ => vec![Send::Raw(vec![0x82])],
        };
        session(sends, Expected::NobodyReads)
    }
}

/// Random bytes can be a good frame; they are never a good Open, which has a digest.
fn expected_of(frame: &Bytes) -> Expected {
    match decode_client_frame(frame.clone(), &Limits::default()) {
        Ok(ClientFrame {
            message: Some(Message::Close(_)),
        }) => Expected::Anything,
        _ => Expected::AnyRefusal,
    }
}

fn senseless_samplings() -> Vec<(Sampling, RefusalCode)> {
    let off = Sampling::default;
    let bias = |token_id, bias| vec![LogitBias { token_id, bias }];
    vec![
        (
            Sampling {
                temperature: f32::NAN,
                ..off()
            },
            Malformed,
        ),
        (
            Sampling {
                temperature: -1.0,
                ..off()
            },
            Malformed,
        ),
        (
            Sampling {
                temperature: f32::INFINITY,
                ..off()
            },
            Malformed,
        ),
        (
            Sampling {
                top_p: f32::NAN,
                ..off()
            },
            Malformed,
        ),
        (
            Sampling {
                top_p: 1.5,
                ..off()
            },
            Malformed,
        ),
        (
            Sampling {
                min_p: 1.0,
                ..off()
            },
            Malformed,
        ),
        (
            Sampling {
                min_p: -0.1,
                ..off()
            },
            Malformed,
        ),
        (
            Sampling {
                repetition_penalty: f32::NAN,
                ..off()
            },
            Malformed,
        ),
        (
            Sampling {
                repetition_penalty: -1.0,
                ..off()
            },
            Malformed,
        ),
        (
            Sampling {
                presence_penalty: f32::NEG_INFINITY,
                ..off()
            },
            Malformed,
        ),
        (
            Sampling {
                frequency_penalty: 1e30,
                ..off()
            },
            Malformed,
        ),
        (
            Sampling {
                logit_bias: bias(1, f32::NAN),
                ..off()
            },
            Malformed,
        ),
        (
            Sampling {
                logit_bias: bias(VOCAB_SIZE, 1.0),
                ..off()
            },
            Malformed,
        ),
        (
            Sampling {
                logit_bias: bias(1, 1.0).repeat(1025),
                ..off()
            },
            OverLimit,
        ),
        (
            Sampling {
                top_logprobs: 21,
                ..off()
            },
            OverLimit,
        ),
        (
            Sampling {
                top_logprobs: u32::MAX,
                ..off()
            },
            OverLimit,
        ),
    ]
}

/// Steps that are wrong after two positions of a session of eight, with penalties.
fn senseless_steps() -> Vec<(u32, Step, RefusalCode)> {
    let good = || activations(2, &[3]);
    let with = |change: fn(&mut Activations)| {
        let mut step = good();
        if let Some(step::Input::Activations(activations)) = &mut step.input {
            change(activations);
        }
        step
    };
    let values = |value: f32| with_data(good(), value.to_le_bytes().repeat(HIDDEN_SIZE));
    let history = |ids: &[u32]| Some(TokenIds { ids: ids.to_vec() });
    vec![
        (0, tokens(0, &[1]), Malformed),
        (0, tokens(3, &[1]), Malformed),
        (0, tokens(u32::MAX, &[1]), OverLimit),
        (0, tokens(2, &[]), Malformed),
        (0, tokens(2, &[VOCAB_SIZE]), Malformed),
        (0, tokens(2, &[1, u32::MAX]), Malformed),
        (0, tokens(2, &[1; 7]), OverLimit),
        (0, tokens(2, &[1; 513]), OverLimit),
        (
            0,
            Step {
                input: None,
                ..tokens(2, &[1])
            },
            Malformed,
        ),
        (
            0,
            Step {
                history: history(&[1]),
                ..tokens(2, &[1])
            },
            Malformed,
        ),
        (0, good(), Malformed),
        (1, tokens(2, &[3]), Malformed),
        (
            1,
            Step {
                position: 0,
                ..good()
            },
            Malformed,
        ),
        (
            1,
            Step {
                position: 5,
                ..good()
            },
            Malformed,
        ),
        (
            1,
            Step {
                history: None,
                ..good()
            },
            Malformed,
        ),
        (
            1,
            Step {
                history: history(&[]),
                ..good()
            },
            Malformed,
        ),
        (
            1,
            Step {
                history: history(&[3, 4]),
                ..good()
            },
            Malformed,
        ),
        (
            1,
            Step {
                history: history(&[VOCAB_SIZE]),
                ..good()
            },
            Malformed,
        ),
        (1, activations(2, &[3; 7]), OverLimit),
        (1, with(|activations| activations.rows = 0), Malformed),
        (1, with(|activations| activations.rows = 2), Malformed),
        (
            1,
            with(|activations| activations.rows = u32::MAX),
            OverLimit,
        ),
        (1, with(|activations| activations.columns = 0), Malformed),
        (1, with(|activations| activations.columns = 63), Malformed),
        (
            1,
            with(|activations| activations.columns = u32::MAX),
            OverLimit,
        ),
        (1, with(|activations| activations.codec = None), Malformed),
        (
            1,
            with(|activations| activations.codec = Some(Codec::Bf16.into())),
            Malformed,
        ),
        (
            1,
            with_codec(good(), Codec::Int8 { group_size: 32 }),
            Malformed,
        ),
        (
            1,
            with(|activations| activations.data = Bytes::new()),
            Malformed,
        ),
        (
            1,
            with_data(good(), vec![0; HIDDEN_SIZE * 4 - 1]),
            Malformed,
        ),
        (
            1,
            with_data(good(), vec![0; HIDDEN_SIZE * 4 + 1]),
            Malformed,
        ),
        (1, values(f32::NAN), Malformed),
        (1, values(f32::NEG_INFINITY), Malformed),
    ]
}

fn with_data(step: Step, data: Vec<u8>) -> Step {
    match step.input {
        Some(step::Input::Activations(activations)) => {
            let input = step::Input::Activations(Activations {
                data: data.into(),
                ..activations
            });
            Step {
                input: Some(input),
                ..step
            }
        }
        _ => step,
    }
}

/// A good row in a codec that the session was not opened with.
fn with_codec(step: Step, codec: Codec) -> Step {
    let activations = codec::encode(codec, &[0.5; HIDDEN_SIZE], HIDDEN_SIZE).expect("finite rows");
    Step {
        input: Some(step::Input::Activations(activations)),
        ..step
    }
}

fn tokens(position: u32, ids: &[u32]) -> Step {
    let input = Some(step::Input::TokenIds(TokenIds { ids: ids.to_vec() }));
    Step {
        position,
        input,
        sample: true,
        history: None,
    }
}

/// As many rows as token ids; their values do not matter.
fn activations(position: u32, ids: &[u32]) -> Step {
    let rows = vec![0.25; ids.len() * HIDDEN_SIZE];
    let activations = codec::encode(Codec::F32, &rows, HIDDEN_SIZE).expect("finite rows");
    Step {
        input: Some(step::Input::Activations(activations)),
        history: Some(TokenIds { ids: ids.to_vec() }),
        ..tokens(position, &[])
    }
}

fn frame(message: impl Into<ClientFrame>) -> Send {
    Send::Frame(encode_client_frame(&message.into()))
}

fn session(sends: impl Into<Vec<Send>>, expected: Expected) -> Input {
    Input::Session {
        sends: sends.into(),
        expected,
    }
}

fn http_request(turn: usize) -> Input {
    let count = http::REQUESTS.len() + http::LAYERS.len();
    if let Some((request, allows)) = http::REQUESTS.get(turn % count) {
        return Input::Http {
            request: request.as_bytes().to_vec(),
            allows,
        };
    }
    let layers = http::LAYERS[turn % count - http::REQUESTS.len()];
    let target = format!("/v1/head/none?layers={layers}");
    Input::Http {
        request: get(&target, ""),
        allows: &[400, 404],
    }
}

/// A range may be ignored (RFC 9110, section 14.2); what it must not do is fail.
fn http_range(turn: usize) -> Input {
    let range = http::RANGES[turn % http::RANGES.len()];
    let request = get("/v1/head/none/layer-0", &format!("Range: {range}\r\n"));
    Input::Http {
        request,
        allows: &[200, 206, 400, 416],
    }
}

fn get(target: &str, headers: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: t\r\n{headers}Connection: close\r\n\r\n").into_bytes()
}
