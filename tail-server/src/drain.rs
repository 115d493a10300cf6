//! How a tail leaves: it stops taking sessions, asks those it has to move, and goes when the last has gone
//! or the time is up.
//!
//! ```text
//! Serving ── shutdown ──► Draining ── last session gone, or deadline ──► Closing
//! ```
//!
//! This is also where sockets are counted, because the drain waits for that count to reach zero.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics::Metrics;

/// How long sessions that were closed at the deadline may take to say so to their devices.
const CLOSING_GRACE: Duration = Duration::from_secs(3);

/// Where the tail is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Takes sessions.
    Serving,
    /// Takes none; live ones go on until the deadline.
    Draining { deadline: Instant },
    /// Live sessions end now.
    Closing,
}

/// One tail's stage and number of sockets.
pub(crate) struct Drain {
    stage: watch::Sender<Stage>,
    sockets: watch::Sender<usize>,
    max_sockets: usize,
    metrics: Arc<Metrics>,
}

impl Drain {
    /// `max_sockets`: the most session sockets, those that have not opened a session included.
    pub(crate) fn new(max_sockets: usize, metrics: Arc<Metrics>) -> Self {
        let (stage, sockets) = (watch::Sender::new(Stage::Serving), watch::Sender::new(0));
        Self {
            stage,
            sockets,
            max_sockets,
            metrics,
        }
    }

    pub(crate) fn is_serving(&self) -> bool {
        *self.stage.borrow() == Stage::Serving
    }

    /// Follows the stage from now on.
    pub(crate) fn stage(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    /// Counts a socket until the guard is dropped; `None` where there are too many.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<SocketGuard> {
        let entered = self.sockets.send_if_modified(|sockets| {
            let has_room = *sockets < self.max_sockets;
            *sockets += usize::from(has_room);
            has_room
        });
        entered.then(|| SocketGuard {
            drain: Arc::clone(self),
        })
    }

    /// Goes from serving to closing. Returns when no socket is left, or a little after the deadline.
    pub(crate) async fn run(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        self.metrics.draining.set(1);
        self.stage.send_replace(Stage::Draining { deadline });
        tracing::info!(grace_ms = grace.as_millis(), "draining");
        if tokio::time::timeout_at(deadline, self.all_left())
            .await
            .is_err()
        {
            tracing::warn!(
                sockets = *self.sockets.borrow(),
                "the drain deadline has passed"
            );
        }
        self.stage.send_replace(Stage::Closing);
        if tokio::time::timeout(CLOSING_GRACE, self.all_left())
            .await
            .is_err()
        {
            tracing::warn!(
                sockets = *self.sockets.borrow(),
                "sessions did not end in time"
            );
        }
    }

    async fn all_left(&self) {
        // The sender is in `self`, so the channel cannot be closed.
        let _ = self
            .sockets
            .subscribe()
            .wait_for(|&sockets| sockets == 0)
            .await;
    }
}

/// One session socket; dropping it counts it out.
pub(crate) struct SocketGuard {
    drain: Arc<Drain>,
}

impl Drop for SocketGuard {
    fn drop(&mut self) {
        self.drain.sockets.send_modify(|sockets| *sockets -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(max_sockets: usize) -> Arc<Drain> {
        Arc::new(Drain::new(max_sockets, Arc::new(Metrics::new().unwrap())))
    }

    #[test]
    fn sockets_beyond_the_limit_do_not_enter() {
        let drain = drain(1);
        let first = drain.enter();
        assert!(first.is_some() && drain.enter().is_none());
        drop(first);
        assert!(drain.enter().is_some());
    }

    #[tokio::test]
    async fn a_tail_without_sessions_leaves_at_once() {
        let drain = drain(1);
        let a_day = Duration::from_secs(86_400);
        tokio::time::timeout(Duration::from_secs(30), drain.run(a_day))
            .await
            .unwrap();
        assert_eq!(*drain.stage().borrow(), Stage::Closing);
    }

    #[tokio::test]
    async fn a_tail_waits_for_its_last_session() {
        let drain = drain(1);
        let guard = drain.enter();
        let mut stage = drain.stage();
        let draining = tokio::spawn({
            let drain = Arc::clone(&drain);
            async move { drain.run(Duration::from_secs(86_400)).await }
        });
        stage
            .wait_for(|stage| matches!(stage, Stage::Draining { .. }))
            .await
            .unwrap();
        assert!(!draining.is_finished());
        drop(guard);
        draining.await.unwrap();
    }
}
