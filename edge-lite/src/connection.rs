//! One WebSocket to a tail: one session from Open to Close.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use headway_wire::message::{
    ClientFrame, Close, FreeRun, GoAway, Open, Opened, ServerFrame, Step, StepResult, server_frame,
};
use headway_wire::{Limits, frame};
use reqwest::header::AUTHORIZATION;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream};

use crate::config::ClientConfig;
use crate::credentials::Token;
use crate::error::{Refused, TailError};
use crate::link::{Exchange, SharedLink};
use crate::liveness::bound_silence;
use crate::prefix;
use crate::rows::wire_u32;
use crate::tail_api::{error_sentence, starting};
use crate::tail_url::TailUrl;
pub(crate) use crate::unanswered::Answered;
use crate::unanswered::UnansweredSteps;

/// How long a polite goodbye may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// What one read from the socket takes at most; results are small.
const READ_BUFFER_BYTES: usize = 16 << 10;

/// How to reach a tail.
#[derive(Clone)]
pub(crate) struct Dialer {
    pub(crate) url: TailUrl,
    pub(crate) tls: Arc<rustls::ClientConfig>,
    pub(crate) token: Option<Token>,
    pub(crate) limits: Limits,
    pub(crate) connect_timeout: Duration,
    pub(crate) result_timeout: Duration,
    /// Learns from what is sent and answered.
    pub(crate) link: SharedLink,
    pub(crate) silence_timeout: Duration,
}

impl Dialer {
    /// With what `config` says of connections, and a link of which nothing is known.
    pub(crate) fn new(url: TailUrl, tls: Arc<rustls::ClientConfig>, config: &ClientConfig) -> Self {
        Self {
            url,
            tls,
            token: config.credentials.token.clone(),
            limits: config.limits,
            connect_timeout: config.connect_timeout,
            result_timeout: config.result_timeout,
            silence_timeout: config.silence_timeout,
            link: SharedLink::default(),
        }
    }
}

/// Bytes on a WebSocket: payloads and frame headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) up_bytes: u64,
    pub(crate) down_bytes: u64,
}

/// A frame whose answer tells of the link.
#[derive(Clone, Copy)]
struct Sent {
    at: Instant,
    up_bytes: u64,
    /// Received before it was sent.
    down_bytes_before: u64,
}

/// An open session.
pub(crate) struct Connection {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    dialer: Dialer,
    pub(crate) opened: Opened,
    pub(crate) go_away: Option<GoAway>,
    steps: UnansweredSteps,
    /// Of a step that was sent while no other was on its way: its time is the link's and its own.
    alone: Option<Sent>,
    pub(crate) traffic: Traffic,
}

impl Connection {
    /// Connects and opens a session. Its first step starts at [`Connection::sent`].
    pub(crate) async fn open(dialer: &Dialer, open: Open) -> Result<Self, TailError> {
        let (after, began) = (dialer.connect_timeout, Instant::now());
        let opened = timeout(after, Self::open_now(dialer, open))
            .await
            .unwrap_or(Err(TailError::Timeout {
                what: "opened session",
                after,
            }))?;
        dialer.link.observe_open(began.elapsed());
        Ok(opened)
    }

    async fn open_now(dialer: &Dialer, open: Open) -> Result<Self, TailError> {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .max_message_size(Some(dialer.limits.max_frame_bytes))
            .max_frame_size(Some(dialer.limits.max_frame_bytes));
        let connector = dialer
            .url
            .is_tls()
            .then(|| Connector::Rustls(Arc::clone(&dialer.tls)));
        let url = dialer.url.session();
        let failed = |source| connect_error(url.to_string(), source);
        let mut request = url.as_str().into_client_request().map_err(failed)?;
        if let Some(token) = &dialer.token {
            let authorization = token.authorization().await?;
            request.headers_mut().insert(AUTHORIZATION, authorization);
        }
        // A decode step is one small frame: waiting to fill a packet would cost more than the step.
        let no_delay = true;
        let connected = tokio_tungstenite::connect_async_tls_with_config(
            request,
            Some(config),
            no_delay,
            connector,
        )
        .await;
        let (socket, _) = connected.map_err(failed)?;
        if let Err(error) = bound_silence(socket.get_ref(), dialer.silence_timeout) {
            // The limits on results still hold.
            tracing::debug!(%error, "the system cannot watch this connection");
        }
        let mut connection = Self {
            socket,
            dialer: dialer.clone(),
            opened: Opened::default(),
            go_away: None,
            steps: UnansweredSteps::default(),
            alone: None,
            traffic: Traffic::default(),
        };
        let offered_bytes = open.prefix_digests.len();
        let sent = connection.send(open.into()).await?;
        loop {
            match connection.next_message().await? {
                server_frame::Message::Opened(opened) => {
                    connection.steps.sent =
                        prefix::first_position(offered_bytes, opened.reused_positions)?;
                    connection.opened = opened;
                    connection.exchanged(sent, Duration::ZERO);
                    return Ok(connection);
                }
                server_frame::Message::GoAway(go_away) => connection.go_away = Some(go_away),
                server_frame::Message::Refusal(refusal) => {
                    return Err(Refused::from(refusal).into());
                }
                server_frame::Message::StepResult(_) => {
                    return Err(protocol("a result came before Opened"));
                }
            }
        }
    }

    /// Positions sent, and those before them that did not have to be.
    pub(crate) fn sent(&self) -> usize {
        self.steps.sent
    }

    /// Steps sent and not yet answered.
    pub(crate) fn unanswered(&self) -> usize {
        self.steps.len()
    }

    /// Of them, those that run ahead.
    pub(crate) fn unanswered_ahead(&self) -> usize {
        self.steps.ahead()
    }

    /// Sends a step whose last position is `end - 1`, guesses included.
    pub(crate) async fn send_step(&mut self, step: Step, end: usize) -> Result<(), TailError> {
        let is_alone = self.steps.len() == 0;
        self.steps.push(&step, end);
        let after = self.dialer.result_timeout;
        let sent =
            timeout(after, self.send(step.into()))
                .await
                .unwrap_or(Err(TailError::Timeout {
                    what: "sent step",
                    after,
                }))?;
        if is_alone {
            self.alone = Some(sent);
        }
        Ok(())
    }

    /// Of those unanswered, the ones that the tail takes by itself.
    pub(crate) fn unanswered_free(&self) -> usize {
        self.steps.free()
    }

    /// The round trip of the link, as far as it is known.
    pub(crate) fn round_trip(&self) -> Duration {
        let rtt_ms = self.dialer.link.link().rtt_ms.unwrap_or(0.0);
        Duration::try_from_secs_f64(rtt_ms / 1e3).unwrap_or_default()
    }

    /// Lets the tail go on by itself until it holds `until` positions, or has sampled one of `stop_token_ids`.
    pub(crate) async fn run_free(
        &mut self,
        until: usize,
        stop_token_ids: Vec<u32>,
    ) -> Result<(), TailError> {
        let free_run = FreeRun {
            until_position: wire_u32(until),
            stop_token_ids,
        };
        self.steps.run_free(until);
        let after = self.dialer.result_timeout;
        let sent = timeout(after, self.send(free_run.into())).await;
        let late = TailError::Timeout {
            what: "sent word to run free",
            after,
        };
        sent.unwrap_or(Err(late)).map(drop)
    }

    /// The next result. Cancel safe. Waits without a limit while no step is unanswered, so that a refusal
    /// or the end of the connection is seen then, too.
    pub(crate) async fn next_result(&mut self) -> Result<Answered, TailError> {
        let after = self.dialer.result_timeout;
        loop {
            let message = if self.steps.len() == 0 {
                self.next_message().await?
            } else {
                let late = Err(TailError::Timeout {
                    what: "step result",
                    after,
                });
                timeout(after, self.next_message()).await.unwrap_or(late)?
            };
            match message {
                server_frame::Message::StepResult(result) => return self.answered(result),
                server_frame::Message::Refusal(refusal) => {
                    return Err(Refused::from(refusal).into());
                }
                server_frame::Message::Opened(_) => return Err(protocol("Opened came twice")),
                // The steps that were sent are still answered; the session moves before its next one.
                server_frame::Message::GoAway(go_away) => {
                    let GoAway {
                        deadline_ms,
                        reason,
                    } = &go_away;
                    tracing::info!(deadline_ms, reason, "the tail goes away");
                    self.go_away = Some(go_away);
                }
            }
        }
    }

    /// Says goodbye, so that the tail frees the session at once. Errors change nothing any more.
    pub(crate) async fn close(mut self) -> Traffic {
        let goodbye = async {
            self.send(Close {}.into()).await?;
            self.socket
                .close(None)
                .await
                .map_err(|source| self.socket_error(source))
        };
        if let Ok(Err(error)) = timeout(CLOSE_TIMEOUT, goodbye).await {
            tracing::debug!(%error, "the connection was gone before its end");
        }
        self.traffic
    }

    fn answered(&mut self, result: StepResult) -> Result<Answered, TailError> {
        let answered = self.steps.answered(result)?;
        if let Some(sent) = self.alone.take() {
            let result = &answered.result;
            let tail_us = result.compute_us.saturating_add(result.queue_us);
            self.exchanged(sent, Duration::from_micros(tail_us));
        }
        Ok(answered)
    }

    /// What was sent is answered now.
    fn exchanged(&self, sent: Sent, tail: Duration) {
        self.dialer.link.observe(Exchange {
            up_bytes: sent.up_bytes,
            down_bytes: self.traffic.down_bytes - sent.down_bytes_before,
            elapsed: sent.at.elapsed(),
            tail,
        });
    }

    async fn send(&mut self, frame: ClientFrame) -> Result<Sent, TailError> {
        let payload = frame::encode_client_frame(&frame);
        let up_bytes = (payload.len() + frame_header_bytes(payload.len(), true)) as u64;
        self.traffic.up_bytes += up_bytes;
        let frame = Sent {
            at: Instant::now(),
            up_bytes,
            down_bytes_before: self.traffic.down_bytes,
        };
        let sent = self.socket.send(Message::Binary(payload)).await;
        sent.map_err(|source| self.socket_error(source))?;
        Ok(frame)
    }

    async fn next_message(&mut self) -> Result<server_frame::Message, TailError> {
        loop {
            let message = match self.socket.next().await {
                None => return Err(TailError::Closed),
                Some(message) => message.map_err(|source| self.socket_error(source))?,
            };
            self.traffic.down_bytes +=
                (message.len() + frame_header_bytes(message.len(), false)) as u64;
            match message {
                Message::Binary(payload) => return self.decode(payload),
                Message::Close(_) => return Err(TailError::Closed),
                Message::Text(_) => return Err(protocol("a text message came")),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    fn decode(&self, payload: Bytes) -> Result<server_frame::Message, TailError> {
        let ServerFrame { message } = frame::decode_server_frame(payload, &self.dialer.limits)?;
        message.ok_or_else(|| protocol("an empty frame came"))
    }

    fn socket_error(&self, source: tungstenite::Error) -> TailError {
        TailError::Socket {
            url: self.dialer.url.session().to_string(),
            source: Box::new(source),
        }
    }
}

/// A tail that does not let this device in answers the upgrade with 401; whoever stands in for tails that are not there
/// yet says so.
fn connect_error(url: String, source: tungstenite::Error) -> TailError {
    if let tungstenite::Error::Http(response) = &source {
        let body = response.body().as_deref().unwrap_or_default();
        if let Some(starting) = starting(&url, response.headers(), body) {
            return starting;
        }
    }
    match &source {
        tungstenite::Error::Http(response) if response.status().as_u16() == 401 => {
            let message = error_sentence(response.body().as_deref().unwrap_or_default());
            TailError::Unauthenticated { url, message }
        }
        _ => TailError::Socket {
            url,
            source: Box::new(source),
        },
    }
}

pub(crate) fn protocol(reason: &str) -> TailError {
    TailError::Protocol {
        reason: reason.to_owned(),
    }
}

/// RFC 6455, section 5.2: 2 bytes, 0, 2 or 8 for the length, and 4 for the mask of a client's frame.
fn frame_header_bytes(payload_bytes: usize, masked: bool) -> usize {
    let length_bytes = match payload_bytes {
        0..=125 => 0,
        126..=65_535 => 2,
        _ => 8,
    };
    2 + length_bytes + if masked { 4 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_headers_grow_with_the_payload_and_the_mask() {
        assert_eq!(frame_header_bytes(125, false), 2);
        assert_eq!(frame_header_bytes(126, true), 8);
        assert_eq!(frame_header_bytes(70_000, true), 14);
    }
}
