//! Frames: one binary WebSocket message each way. Decoding checks the size, then the protobuf, then every
//! value, so that what comes out can be acted on without another look at its form.
//!
//! Left to the tail, which alone knows: the model's digest, layers and vocabulary, the session's position,
//! and whether it has room.

mod check;
mod open;
mod server;
mod step;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use prost::Message;

use crate::error::FrameError;
use crate::limits::Limits;
use crate::message::{ClientFrame, Open, Refusal, ServerFrame, Step, client_frame, server_frame};
use crate::message::{Close, FreeRun, GoAway, Opened, StepResult};

/// Encodes a frame from the device to the tail. Checks nothing: the tail does.
pub fn encode_client_frame(frame: &ClientFrame) -> Bytes {
    frame.encode_to_vec().into()
}

/// Decodes and checks a frame from the device. The activations' data shares the memory of `bytes`; they are
/// still encoded, and [`crate::codec::decode`] checks them against the session.
///
/// # Errors
/// [`FrameError`]; its `refusal_code` is what to answer.
pub fn decode_client_frame(bytes: Bytes, limits: &Limits) -> Result<ClientFrame, FrameError> {
    check_size(&bytes, limits)?;
    let frame = ClientFrame::decode(bytes).map_err(FrameError::Malformed)?;
    match &frame.message {
        None => {
            return Err(FrameError::Missing {
                part: "ClientFrame.message",
            });
        }
        Some(client_frame::Message::Open(open)) => open::check(open, limits)?,
        Some(client_frame::Message::Step(step)) => step::check(step, limits)?,
        Some(client_frame::Message::FreeRun(free_run)) => step::check_free_run(free_run, limits)?,
        Some(client_frame::Message::Close(Close {})) => {}
    }
    Ok(frame)
}

/// Encodes a frame from the tail to the device. Checks nothing: the device does.
pub fn encode_server_frame(frame: &ServerFrame) -> Bytes {
    frame.encode_to_vec().into()
}

/// Decodes and checks a frame from the tail.
///
/// # Errors
/// [`FrameError`]: the tail speaks another protocol, or is not a tail.
pub fn decode_server_frame(bytes: Bytes, limits: &Limits) -> Result<ServerFrame, FrameError> {
    check_size(&bytes, limits)?;
    let frame = ServerFrame::decode(bytes).map_err(FrameError::Malformed)?;
    match &frame.message {
        None => {
            return Err(FrameError::Missing {
                part: "ServerFrame.message",
            });
        }
        Some(server_frame::Message::Opened(opened)) => server::check_opened(opened, limits)?,
        Some(server_frame::Message::StepResult(result)) => {
            server::check_step_result(result, limits)?
        }
        Some(server_frame::Message::Refusal(refusal)) => server::check_refusal(refusal, limits)?,
        Some(server_frame::Message::GoAway(go_away)) => server::check_go_away(go_away, limits)?,
    }
    Ok(frame)
}

fn check_size(bytes: &Bytes, limits: &Limits) -> Result<(), FrameError> {
    let (max_bytes, got_bytes) = (limits.max_frame_bytes, bytes.len());
    if got_bytes > max_bytes {
        Err(FrameError::TooLarge {
            max_bytes,
            got_bytes,
        })
    } else {
        Ok(())
    }
}

impl From<Open> for ClientFrame {
    fn from(open: Open) -> Self {
        Self {
            message: Some(client_frame::Message::Open(open)),
        }
    }
}

impl From<Step> for ClientFrame {
    fn from(step: Step) -> Self {
        Self {
            message: Some(client_frame::Message::Step(step)),
        }
    }
}

impl From<FreeRun> for ClientFrame {
    fn from(free_run: FreeRun) -> Self {
        Self {
            message: Some(client_frame::Message::FreeRun(free_run)),
        }
    }
}

impl From<Close> for ClientFrame {
    fn from(close: Close) -> Self {
        Self {
            message: Some(client_frame::Message::Close(close)),
        }
    }
}

impl From<Opened> for ServerFrame {
    fn from(opened: Opened) -> Self {
        Self {
            message: Some(server_frame::Message::Opened(opened)),
        }
    }
}

impl From<StepResult> for ServerFrame {
    fn from(result: StepResult) -> Self {
        Self {
            message: Some(server_frame::Message::StepResult(result)),
        }
    }
}

impl From<Refusal> for ServerFrame {
    fn from(refusal: Refusal) -> Self {
        Self {
            message: Some(server_frame::Message::Refusal(refusal)),
        }
    }
}

impl From<GoAway> for ServerFrame {
    fn from(go_away: GoAway) -> Self {
        Self {
            message: Some(server_frame::Message::GoAway(go_away)),
        }
    }
}
