//! Waiting for a command until a point in time. The channel itself can only wait for ever.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

use tokio::sync::mpsc;

/// Wakes the thread that made it.
pub(super) struct Arrivals {
    waker: Waker,
}

/// How a wait ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival<T> {
    Came(T),
    /// Nothing came in time.
    Late,
    /// Nothing will come any more.
    Closed,
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Arrivals {
    /// For the thread that calls this.
    pub(super) fn here() -> Self {
        Self {
            waker: Waker::from(Arc::new(Unpark(thread::current()))),
        }
    }

    /// Waits for the next item, at most until `deadline`; the thread sleeps meanwhile.
    pub(super) fn next<T>(&self, channel: &mut mpsc::Receiver<T>, deadline: Instant) -> Arrival<T> {
        let mut context = Context::from_waker(&self.waker);
        loop {
            match channel.poll_recv(&mut context) {
                Poll::Ready(Some(item)) => return Arrival::Came(item),
                Poll::Ready(None) => return Arrival::Closed,
                Poll::Pending => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Arrival::Late;
            }
            // Returns at once where the waker was called in between, and may for no reason.
            thread::park_timeout(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn what_is_there_comes_whatever_the_deadline() {
        let (sender, mut receiver) = mpsc::channel(1);
        sender.try_send(7).unwrap();
        let arrival = Arrivals::here().next(&mut receiver, Instant::now());
        assert_eq!(arrival, Arrival::Came(7));
    }

    #[test]
    fn a_wait_ends_at_its_deadline_and_not_before() {
        let (_sender, mut receiver) = mpsc::channel::<u32>(1);
        let deadline = Instant::now() + Duration::from_millis(3);
        assert_eq!(
            Arrivals::here().next(&mut receiver, deadline),
            Arrival::Late
        );
        assert!(Instant::now() >= deadline);
    }

    #[test]
    fn an_item_and_the_end_wake_the_thread() {
        let (sender, mut receiver) = mpsc::channel(1);
        let (asks, asked) = std::sync::mpsc::sync_channel(2);
        let waits = thread::spawn(move || {
            let arrivals = Arrivals::here();
            asks.send(()).unwrap();
            let came = arrivals.next(&mut receiver, Instant::now() + LONG);
            asks.send(()).unwrap();
            (came, arrivals.next(&mut receiver, Instant::now() + LONG))
        });
        asked.recv().unwrap();
        sender.blocking_send(7).unwrap();
        asked.recv().unwrap();
        drop(sender);
        assert_eq!(waits.join().unwrap(), (Arrival::Came(7), Arrival::Closed));
    }
}
