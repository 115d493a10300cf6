//! The generator of inputs: the same ones from the same seed.

use bytes::Bytes;
use headway_wire::frame::{decode_client_frame, encode_client_frame};
use headway_wire::message::RefusalCode::{Malformed, OverLimit};
use headway_wire::message::client_frame::Message;
use headway_wire::message::{ClientFrame, Open, RefusalCode, Sampling, Step, TokenIds, step};
use headway_wire::{Codec, Limits, PROTOCOL_VERSION};

use crate::{http, senseless};

/// Sizes of the model that is served.
pub const HIDDEN_SIZE: usize = 64;
pub const VOCAB_SIZE: u32 = 128;
pub const NUM_LAYERS: u32 = 3;
pub const MAX_POSITIONS: u32 = 256;

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
        let mut open = self.open(1);
        let case = turn % (senseless::OPENS.len() + senseless::SAMPLINGS.len());
        let code = match senseless::OPENS.get(case) {
            Some((change, code)) => {
                change(&mut open);
                *code
            }
            None => {
                let (change, code) = senseless::SAMPLINGS[case - senseless::OPENS.len()];
                change(open.sampling.get_or_insert_default());
                code
            }
        };
        session([frame(open)], Expected::Refusal(code))
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
        let case = turn % (senseless::TOKEN_STEPS.len() + senseless::ROW_STEPS.len());
        let (split_layer, first, mut step, (change, code)) = match senseless::TOKEN_STEPS.get(case)
        {
            Some(case) => (0, tokens(0, &[1, 2]), tokens(2, &[3]), *case),
            None => {
                let case = senseless::ROW_STEPS[case - senseless::TOKEN_STEPS.len()];
                (1, activations(0, &[1, 2]), activations(2, &[3]), case)
            }
        };
        change(&mut step);
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

pub fn tokens(position: u32, ids: &[u32]) -> Step {
    let input = Some(step::Input::TokenIds(TokenIds { ids: ids.to_vec() }));
    Step {
        position,
        input,
        sample: true,
        ..Step::default()
    }
}

/// As many rows as token ids.
fn activations(position: u32, ids: &[u32]) -> Step {
    Step {
        input: senseless::rows(ids.len(), Codec::F32),
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
