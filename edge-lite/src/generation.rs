//! A generation as its caller sees it: a stream of events that can be cancelled.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use tokio::sync::{mpsc, watch};

use crate::error::{DeviceError, Error};
use crate::event::Event;
use crate::report::Report;

/// Events that wait for a slow caller; then the generation waits, too.
const MAX_WAITING_EVENTS: usize = 64;

/// A stream of [`Event`]s. The last one is the report; an error ends the stream, too.
///
/// Dropping it cancels the generation, and the tail's session is closed.
pub struct Generation {
    events: mpsc::Receiver<Result<Event, Error>>,
    cancel: watch::Sender<bool>,
}

/// Where a generation's events go.
pub(crate) type Events = mpsc::Sender<Result<Event, Error>>;

/// The generating side of the channel.
pub(crate) struct Progress {
    pub(crate) events: Events,
    pub(crate) cancelled: Cancelled,
}

/// Whether the caller wants no more.
pub(crate) struct Cancelled(watch::Receiver<bool>);

impl Cancelled {
    /// Returns when the generation was cancelled or dropped.
    pub(crate) async fn wait(&mut self) {
        // An error says that the sender is gone, with the generation.
        let _ = self.0.wait_for(|cancelled| *cancelled).await;
    }

    /// True when the generation was cancelled or dropped.
    pub(crate) fn is_set(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

impl Generation {
    pub(crate) fn channel() -> (Self, Progress) {
        let (sender, events) = mpsc::channel(MAX_WAITING_EVENTS);
        let (cancel, cancelled) = watch::channel(false);
        (
            Self { events, cancel },
            Progress {
                events: sender,
                cancelled: Cancelled(cancelled),
            },
        )
    }

    /// The next event; `None` after the report or an error.
    pub async fn next(&mut self) -> Option<Result<Event, Error>> {
        self.events.recv().await
    }

    /// Ends the generation early. The report still comes, with what there is.
    pub fn cancel(&self) {
        self.cancel.send_replace(true);
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// The error that ended the generation.
    pub async fn finish(mut self) -> Result<Report, Error> {
        while let Some(event) = self.next().await {
            if let Event::Report(report) = event? {
                return Ok(*report);
            }
        }
        Err(DeviceError::WorkerLost.into())
    }
}

impl Stream for Generation {
    type Item = Result<Event, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_recv(context)
    }
}
