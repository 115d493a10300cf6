//! One session as a device has it: frames out, frames in, and how it ended.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use headway_wire::message::{
    Close, Open, Opened, Refusal, RefusalCode, Step, StepResult, server_frame,
};
use headway_wire::{Limits, frame};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{self, Message};

use super::link::{Link, Socket};

/// A session that has not moved for so long is stuck. A tail makes a tenant wait for half of it at most.
pub const STUCK_AFTER: Duration = Duration::from_secs(60);
/// How long a goodbye may take, on either side.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a session has ended before its end.
#[derive(Clone, Debug)]
pub enum Ended {
    /// The tail refused it, with a reason.
    Refused(Refusal),
    /// The tail answered with this HTTP status instead of a WebSocket.
    Turned(u16),
    /// The connection ended without a reason.
    Lost(String),
    /// Nothing came for [`STUCK_AFTER`].
    Stuck(&'static str),
    /// A token, or its probability, is not the known one.
    Mismatch(String),
    /// The tail broke the protocol.
    Broken(String),
}

impl Ended {
    /// The refusal's code, where it was refused.
    #[must_use]
    pub fn refusal_code(&self) -> Option<RefusalCode> {
        match self {
            Self::Refused(refusal) => Some(refusal.code()),
            _ => None,
        }
    }
}

/// An open session.
pub struct Session {
    socket: Socket,
    /// What the tail granted.
    pub opened: Opened,
}

impl Session {
    /// Connects and opens a session.
    ///
    /// # Errors
    /// How it ended instead.
    pub async fn open(link: &Link, token: Option<&str>, open: Open) -> Result<Self, Ended> {
        let socket = link.socket(token).await;
        Self::open_on(socket.map_err(|error| not_connected(&error))?, open).await
    }

    /// Opens a session on a socket.
    ///
    /// # Errors
    /// How it ended instead.
    pub async fn open_on(socket: Socket, open: Open) -> Result<Self, Ended> {
        let mut session = Self {
            socket,
            opened: Opened::default(),
        };
        session.send(open.into()).await?;
        match session.next("Opened").await? {
            server_frame::Message::Opened(opened) => session.opened = opened,
            other => return Err(unexpected(&other)),
        }
        Ok(session)
    }

    /// Sends a step.
    ///
    /// # Errors
    /// How the session has ended.
    pub async fn step(&mut self, step: Step) -> Result<(), Ended> {
        self.send(step.into()).await
    }

    /// The next result.
    ///
    /// # Errors
    /// How the session has ended.
    pub async fn result(&mut self) -> Result<StepResult, Ended> {
        match self.next("a result").await? {
            server_frame::Message::StepResult(result) => Ok(result),
            other => Err(unexpected(&other)),
        }
    }

    /// Reads for a while in which nothing should come, as a device does whose user thinks.
    ///
    /// # Errors
    /// How the session has ended meanwhile.
    pub async fn idle(&mut self, pause: Duration) -> Result<(), Ended> {
        match timeout(pause, self.message()).await {
            Err(_) => Ok(()),
            Ok(message) => Err(unexpected(&message?)),
        }
    }

    /// Says goodbye, and waits a moment for the tail to do so, too.
    pub async fn close(mut self) {
        let goodbye = async {
            let frame = frame::encode_client_frame(&Close {}.into());
            self.socket.send(Message::Binary(frame)).await?;
            self.socket.close(None).await?;
            while self.socket.next().await.is_some_and(|came| came.is_ok()) {}
            Ok::<(), tungstenite::Error>(())
        };
        // A connection that is gone already is closed.
        let _ = timeout(CLOSE_TIMEOUT, goodbye).await;
    }

    /// The socket, to do with it what no device does.
    pub const fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    async fn send(&mut self, frame: headway_wire::message::ClientFrame) -> Result<(), Ended> {
        let payload = Message::Binary(frame::encode_client_frame(&frame));
        let sent = timeout(STUCK_AFTER, self.socket.send(payload)).await;
        match sent.map_err(|_| Ended::Stuck("a frame to leave"))? {
            Ok(()) => Ok(()),
            // A tail that has refused reads no more. What it said before is here already.
            Err(error) => Err(self.last_words(&error.to_string()).await),
        }
    }

    async fn last_words(&mut self, error: &str) -> Ended {
        let said = async {
            loop {
                match self.message().await {
                    Ok(server_frame::Message::Refusal(refusal)) => return Ended::Refused(refusal),
                    Ok(_) => {}
                    Err(ended) => return ended,
                }
            }
        };
        let said = timeout(CLOSE_TIMEOUT, said).await;
        said.unwrap_or_else(|_| Ended::Lost(error.to_owned()))
    }

    async fn next(&mut self, what: &'static str) -> Result<server_frame::Message, Ended> {
        timeout(STUCK_AFTER, self.message())
            .await
            .unwrap_or(Err(Ended::Stuck(what)))
    }

    /// The next message but a farewell that nobody has to follow. Cancel safe.
    async fn message(&mut self) -> Result<server_frame::Message, Ended> {
        loop {
            let lost = |reason: &str| Err(Ended::Lost(reason.to_owned()));
            match self.socket.next().await {
                None => return lost("the end of the connection"),
                Some(Err(error)) => return lost(&error.to_string()),
                Some(Ok(Message::Binary(bytes))) => match decoded(bytes)? {
                    server_frame::Message::GoAway(_) => {}
                    server_frame::Message::Refusal(refusal) => {
                        return Err(Ended::Refused(refusal));
                    }
                    other => return Ok(other),
                },
                Some(Ok(Message::Close(frame))) => {
                    let reason = frame.map_or(String::new(), |frame| frame.to_string());
                    return lost(&format!("a close: {reason}"));
                }
                Some(Ok(Message::Text(_))) => return Err(Ended::Broken("a text".to_owned())),
                Some(Ok(_)) => {}
            }
        }
    }
}

/// Reads from a socket, whatever was said on it, until the tail refuses or ends it.
pub async fn last_refusal(socket: &mut Socket) -> Result<Refusal, Ended> {
    let refused = async {
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Binary(bytes) = message
                && let server_frame::Message::Refusal(refusal) = decoded(bytes)?
            {
                return Ok(refusal);
            }
        }
        Err(Ended::Lost("the end of the connection".to_owned()))
    };
    timeout(STUCK_AFTER, refused)
        .await
        .unwrap_or(Err(Ended::Stuck("a refusal")))
}

/// Why there is no WebSocket.
#[must_use]
pub fn not_connected(error: &tungstenite::Error) -> Ended {
    match error {
        tungstenite::Error::Http(response) => Ended::Turned(response.status().as_u16()),
        tungstenite::Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            Ended::Stuck("a connection")
        }
        other => Ended::Lost(other.to_string()),
    }
}

fn decoded(bytes: bytes::Bytes) -> Result<server_frame::Message, Ended> {
    let broken = |reason: String| Ended::Broken(reason);
    let frame = frame::decode_server_frame(bytes, &Limits::default());
    let message = frame.map_err(|error| broken(error.to_string()))?.message;
    message.ok_or_else(|| broken("an empty frame".to_owned()))
}

fn unexpected(message: &server_frame::Message) -> Ended {
    Ended::Broken(format!("{message:?} where something else was due"))
}
