//! Frames over one WebSocket: size limits, time limits, pings, and a polite end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::Bytes;
use headway_wire::frame::{decode_client_frame, encode_server_frame};
use headway_wire::message::{Refusal, RefusalCode, ServerFrame, client_frame};
use headway_wire::{FrameError, Limits};
use tokio::time::timeout;

use crate::config::Timeouts;
use crate::error::{Error, code_name, refusal};
use crate::metrics::Metrics;

/// How long to wait, after the last frame, for the device to close too. Without it the kernel may reset the
/// connection and throw away a refusal that the device has not read yet.
const LINGER: Duration = Duration::from_secs(2);

/// Messages read and thrown away while lingering.
const LINGER_MESSAGES: usize = 64;

pub(super) struct Connection {
    socket: WebSocket,
    limits: Limits,
    timeouts: Timeouts,
    metrics: Arc<Metrics>,
    last_heard: Instant,
}

impl Connection {
    /// The socket must have been limited to `limits.max_frame_bytes` already.
    pub(super) fn new(
        socket: WebSocket,
        limits: Limits,
        timeouts: Timeouts,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            socket,
            limits,
            timeouts,
            metrics,
            last_heard: Instant::now(),
        }
    }

    /// The next frame; `None` where the device has closed or gone. Loses nothing when cancelled.
    pub(super) async fn receive(&mut self) -> Result<Option<client_frame::Message>, Error> {
        loop {
            let message = match self.socket.recv().await {
                None => return Ok(None),
                Some(Ok(message)) => message,
                Some(Err(error)) => return self.broken(error),
            };
            self.note_alive();
            match message {
                Message::Binary(bytes) => {
                    self.metrics.received_bytes.inc_by(bytes.len() as u64);
                    return Ok(decode_client_frame(bytes, &self.limits)?.message);
                }
                Message::Text(_) => return Err(Error::TextMessage),
                Message::Close(_) => return Ok(None),
                // The WebSocket library answers pings by itself.
                Message::Ping(_) | Message::Pong(_) => {}
            }
        }
    }

    /// A device that goes away without a close is no error; one that breaks the WebSocket protocol or sends
    /// too large a message is told.
    fn broken(&self, error: axum::Error) -> Result<Option<client_frame::Message>, Error> {
        use tungstenite::error::{CapacityError, Error as WsError, ProtocolError};

        let error = error.into_inner();
        tracing::debug!(%error, "the WebSocket broke");
        match error.downcast_ref::<WsError>() {
            Some(WsError::Capacity(CapacityError::MessageTooLong { size, .. })) => {
                let (max_bytes, got_bytes) = (self.limits.max_frame_bytes, *size);
                Err(FrameError::TooLarge {
                    max_bytes,
                    got_bytes,
                }
                .into())
            }
            Some(
                WsError::ConnectionClosed
                | WsError::AlreadyClosed
                | WsError::Io(_)
                | WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake),
            ) => Ok(None),
            _ => Err(Error::WebSocket),
        }
    }

    pub(super) async fn send(&mut self, frame: impl Into<ServerFrame>) -> Result<(), Error> {
        let bytes = encode_server_frame(&frame.into());
        self.metrics.sent_bytes.inc_by(bytes.len() as u64);
        self.write(Message::Binary(bytes)).await
    }

    pub(super) async fn ping(&mut self) -> Result<(), Error> {
        self.write(Message::Ping(Bytes::new())).await
    }

    async fn write(&mut self, message: Message) -> Result<(), Error> {
        match timeout(self.timeouts.write, self.socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Error::PeerGone),
            Err(_) => Err(Error::WriteTimeout),
        }
    }

    /// The device has given a sign of life.
    pub(super) fn note_alive(&mut self) {
        self.last_heard = Instant::now();
    }

    /// No sign of life for longer than the idle limit.
    pub(super) fn is_silent(&self) -> bool {
        self.last_heard.elapsed() > self.timeouts.idle
    }

    /// Tells the device why the session ends, and ends it.
    pub(super) async fn refuse(mut self, error: &Error) {
        if matches!(error, Error::PeerGone | Error::WriteTimeout) {
            tracing::info!(%error, "session lost");
            return;
        }
        let refusal = refusal(error);
        self.metrics.record_refusal(code_name(refusal.code()));
        tracing::info!(
            code = code_name(refusal.code()),
            reason = refusal.message,
            "session refused"
        );
        let close = close_frame(&refusal);
        if self.send(refusal).await.is_ok() && self.write(Message::Close(Some(close))).await.is_ok()
        {
            self.linger().await;
        }
    }

    /// Ends a session that is over.
    pub(super) async fn close(mut self) {
        let close = CloseFrame {
            code: close_code::NORMAL,
            reason: "".into(),
        };
        if self.write(Message::Close(Some(close))).await.is_ok() {
            self.linger().await;
        }
    }

    async fn linger(&mut self) {
        let drained = async {
            for _ in 0..LINGER_MESSAGES {
                if !matches!(self.socket.recv().await, Some(Ok(_))) {
                    return;
                }
            }
        };
        // Either way the socket is dropped next.
        let _ = timeout(LINGER, drained).await;
    }
}

fn close_frame(refusal: &Refusal) -> CloseFrame {
    let code = match refusal.code() {
        RefusalCode::Draining | RefusalCode::NoCapacity => close_code::AGAIN,
        RefusalCode::OverLimit => close_code::SIZE,
        RefusalCode::Internal => close_code::ERROR,
        _ => close_code::POLICY,
    };
    CloseFrame {
        code,
        reason: code_name(refusal.code()).into(),
    }
}
