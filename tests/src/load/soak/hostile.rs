//! Devices that break the protocol. Each must hear by name what was wrong.

use fastrand::Rng;
use futures_util::SinkExt as _;
use headway_wire::frame::encode_client_frame;
use headway_wire::message::{ClientFrame, Open, RefusalCode, Step, TokenIds, step};
use tokio::io::AsyncWriteExt as _;
use tokio_tungstenite::tungstenite::Message;

use super::World;
use super::crowd::{any_open, note, one_token, opened};
use crate::load::device::{Ended, last_refusal, not_connected};
use crate::load::link::Socket;

/// More than any frame may have.
const OVERSIZED_BYTES: u64 = 64 << 20;
/// More than any step may have.
const OVERSIZED_ROWS: usize = 4_096;

/// What is sent where a session should be opened, or in one.
enum Sent {
    First(Message),
    /// Bytes on the connection, past the WebSocket library.
    FirstRaw(Vec<u8>),
    InSession(ClientFrame),
}

/// One frame that makes no sense, and the right answer.
pub(super) async fn garbage(world: &World, random: &mut Rng, tenant: &str) {
    let open = any_open(world, tenant);
    let (sent, code) = match random.u8(..10) {
        0 => {
            let bytes: Vec<u8> = (0..random.usize(1..4_000)).map(|_| 0xFF).collect();
            (
                Sent::First(Message::Binary(bytes.into())),
                RefusalCode::Malformed,
            )
        }
        1 => (
            Sent::First(Message::text("Open, please")),
            RefusalCode::Malformed,
        ),
        2 => (first(one_token(0).into()), RefusalCode::Malformed),
        3 => {
            let model_digest = format!("sha256:{:064x}", random.u128(..));
            let open = Open {
                model_digest,
                ..open
            };
            (first(open.into()), RefusalCode::DigestMismatch)
        }
        4 => {
            let protocol_version = random.u32(2..);
            let open = Open {
                protocol_version,
                ..open
            };
            (first(open.into()), RefusalCode::Unsupported)
        }
        5 => {
            let max_positions = 1 << 19;
            let open = Open {
                max_positions,
                ..open
            };
            (first(open.into()), RefusalCode::OverLimit)
        }
        6 => {
            // A frame's first byte with all reserved bits set.
            let bytes = vec![0xFF; random.usize(16..400)];
            (Sent::FirstRaw(bytes), RefusalCode::Malformed)
        }
        7 => (Sent::InSession(open.into()), RefusalCode::Malformed),
        8 => {
            let position = random.u32(1..9);
            (
                Sent::InSession(one_token(position).into()),
                RefusalCode::Malformed,
            )
        }
        _ => (
            Sent::InSession(unknown_token(random).into()),
            RefusalCode::Malformed,
        ),
    };
    expect(world, tenant, sent, code).await;
}

/// A frame that says it is larger than any may be, or a step of too many rows.
pub(super) async fn oversized(world: &World, random: &mut Rng, tenant: &str) {
    let sent = if random.bool() {
        // RFC 6455, section 5.2: the last fragment, binary; masked, a length of 8 bytes; the mask.
        let mut bytes = vec![0x82, 0x80 | 127];
        bytes.extend(OVERSIZED_BYTES.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(std::iter::repeat_n(0x11, random.usize(..10_000)));
        Sent::FirstRaw(bytes)
    } else {
        let step = Step {
            input: Some(step::Input::TokenIds(TokenIds {
                ids: vec![1; OVERSIZED_ROWS],
            })),
            ..one_token(0)
        };
        Sent::InSession(step.into())
    };
    expect(world, tenant, sent, RefusalCode::OverLimit).await;
}

/// No bearer token, or one that nobody has.
pub(super) async fn wrong_token(world: &World, random: &mut Rng) {
    let wrong = format!("{:032x}", random.u128(..));
    let token = random.bool().then_some(wrong.as_str());
    match world.main.socket(token).await {
        Err(error) => match not_connected(&error) {
            Ended::Turned(401) => world.tally.turned(401),
            other => world.tally.broken(format!("{other:?} for a wrong token")),
        },
        Ok(_) => world.tally.broken("a wrong token was let in".to_owned()),
    }
}

/// A token that is in no vocabulary.
fn unknown_token(random: &mut Rng) -> Step {
    let ids = vec![random.u32(1 << 24..)];
    Step {
        input: Some(step::Input::TokenIds(TokenIds { ids })),
        ..one_token(0)
    }
}

fn first(frame: ClientFrame) -> Sent {
    Sent::First(Message::Binary(encode_client_frame(&frame)))
}

/// Sends it and compares the refusal. A full tail may say that it is full first.
async fn expect(world: &World, tenant: &str, sent: Sent, code: RefusalCode) {
    let token = world.credentials.token(tenant);
    let refused = match sent {
        Sent::First(message) => match world.main.socket(Some(&token)).await {
            Err(error) => return note(world, not_connected(&error)),
            Ok(mut socket) => {
                // A tail that has refused already reads no more; its answer is looked at.
                let _ = socket.send(message).await;
                last_refusal(&mut socket).await
            }
        },
        Sent::FirstRaw(bytes) => match world.main.socket(Some(&token)).await {
            Err(error) => return note(world, not_connected(&error)),
            Ok(mut socket) => {
                let _ = write_raw(&mut socket, &bytes).await;
                last_refusal(&mut socket).await
            }
        },
        Sent::InSession(frame) => {
            let open = any_open(world, tenant);
            let Some(mut session) = opened(world, tenant, &open, None).await else {
                return;
            };
            let message = Message::Binary(encode_client_frame(&frame));
            let _ = session.socket().send(message).await;
            last_refusal(session.socket()).await
        }
    };
    match refused {
        Ok(refusal) if refusal.code() == code => world.tally.refusal(code),
        Ok(refusal) => note(world, Ended::Refused(refusal)),
        Err(ended) => note(world, ended),
    }
}

async fn write_raw(socket: &mut Socket, bytes: &[u8]) -> std::io::Result<()> {
    let stream = socket.get_mut();
    stream.write_all(bytes).await?;
    stream.flush().await
}
