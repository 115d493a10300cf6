//! Tells the tail of answers that were given here, without it, so that it can count what that saved.
//!
//! [`LocalModel`](crate::LocalModel) → [`Reporter::answered`] → queue → one task → the tail's
//! `POST /v1/on-device-answers`.
//!
//! An answer is never delayed and never fails for it. While the tail cannot be reached, answers wait in a
//! bounded queue, and the oldest are dropped when it is full. What is unsent when the process ends is lost.
//! Every try of a report carries the same id, by which the tail counts it once.

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use crate::error::TailError;
use crate::tail_api::TailApi;

#[cfg(test)]
mod tests;

/// The most answers that wait to be reported; 16 bytes each.
const MAX_WAITING_ANSWERS: usize = 1024;

/// The most answers of one report, which is the tail's limit.
const MAX_REPORT_ANSWERS: usize = 256;

/// How long to wait before a report that did not arrive is sent again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    /// Before the second try; it doubles with each one.
    pub(crate) min: Duration,
    /// The longest wait.
    pub(crate) max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            min: Duration::from_secs(1),
            max: Duration::from_secs(300),
        }
    }
}

/// One answer that was given here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct OnDeviceAnswer {
    prompt_tokens: usize,
    /// Without the token that ended the turn.
    output_tokens: usize,
}

/// What the tail is sent, as often as it takes.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct OnDeviceReport {
    /// 32 hexadecimal digits.
    report_id: String,
    /// At most [`MAX_REPORT_ANSWERS`].
    answers: Vec<OnDeviceAnswer>,
}

impl OnDeviceReport {
    fn new(answers: Vec<OnDeviceAnswer>) -> Self {
        // The hash keys are drawn by the system. An id need only be unlike others: what the tail has
        // counted under it already, it does not count again.
        let keys = RandomState::new();
        let report_id = format!("{:016x}{:016x}", keys.hash_one(0), keys.hash_one(1));
        Self { report_id, answers }
    }
}

/// Takes note of answers. Clones share one queue and one task; with the last clone the task ends, after one
/// more try for what is left.
#[derive(Clone)]
pub(crate) struct Reporter {
    handle: Arc<Handle>,
}

/// Closes the queue when it is dropped.
struct Handle {
    queue: Arc<watch::Sender<Queue>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.queue.send_modify(|queue| queue.is_closed = true);
    }
}

#[derive(Debug, Default)]
struct Queue {
    /// The oldest first; at most [`MAX_WAITING_ANSWERS`].
    waiting: VecDeque<OnDeviceAnswer>,
    /// Some were taken out, and the tail has not answered yet.
    is_sending: bool,
    /// Some were dropped, and the log says so.
    has_dropped: bool,
    /// Nobody answers any more.
    is_closed: bool,
}

impl Reporter {
    /// Starts the task that sends. To be called within a tokio runtime.
    pub(crate) fn start(api: TailApi, backoff: Backoff) -> Self {
        let queue = Arc::new(watch::Sender::new(Queue::default()));
        let sender = Sender {
            api,
            backoff,
            queue: Arc::clone(&queue),
        };
        tokio::spawn(sender.run());
        let handle = Arc::new(Handle { queue });
        Self { handle }
    }

    /// Queues an answer. One without a token is none.
    pub(crate) fn answered(&self, prompt_tokens: usize, output_tokens: usize) {
        if output_tokens == 0 {
            return;
        }
        self.handle.queue.send_modify(|queue| {
            queue.push(OnDeviceAnswer {
                prompt_tokens,
                output_tokens,
            });
        });
    }

    /// Waits until the tail was told of all answers, or has refused them, but no longer than `timeout`. True
    /// where nothing is left to send.
    pub(crate) async fn finish(&self, timeout: Duration) -> bool {
        let mut changes = self.handle.queue.subscribe();
        let finished = changes.wait_for(|queue| queue.waiting.is_empty() && !queue.is_sending);
        matches!(tokio::time::timeout(timeout, finished).await, Ok(Ok(_)))
    }
}

impl Queue {
    fn push(&mut self, answer: OnDeviceAnswer) {
        if self.waiting.len() >= MAX_WAITING_ANSWERS {
            self.waiting.pop_front();
            if !self.has_dropped {
                self.has_dropped = true;
                tracing::warn!(
                    max = MAX_WAITING_ANSWERS,
                    "too many answers wait to be reported to the tail; the oldest are dropped"
                );
            }
        }
        self.waiting.push_back(answer);
    }

    /// The next report's answers, the oldest first.
    fn take(&mut self) -> Vec<OnDeviceAnswer> {
        let count = self.waiting.len().min(MAX_REPORT_ANSWERS);
        self.is_sending = count > 0;
        self.waiting.drain(..count).collect()
    }
}

/// The task's side.
struct Sender {
    api: TailApi,
    backoff: Backoff,
    queue: Arc<watch::Sender<Queue>>,
}

impl Sender {
    /// Sends until the queue is closed and empty, or closed and the tail cannot be reached.
    async fn run(self) {
        let mut changes = self.queue.subscribe();
        loop {
            let ready = changes.wait_for(|queue| queue.is_closed || !queue.waiting.is_empty());
            // No error: this task has a sender.
            let _ = ready.await;
            let mut answers = Vec::new();
            self.queue.send_modify(|queue| answers = queue.take());
            if answers.is_empty() {
                return;
            }
            let is_done = self.deliver(&OnDeviceReport::new(answers)).await;
            self.queue.send_modify(|queue| queue.is_sending = false);
            if !is_done {
                return;
            }
        }
    }

    /// Sends one report until it has arrived or is refused for good. False where it was given up because the
    /// queue is closed.
    async fn deliver(&self, report: &OnDeviceReport) -> bool {
        let answers = report.answers.len();
        let mut wait = self.backoff.min;
        let mut tries = 0_u64;
        loop {
            tries += 1;
            let is_closed = self.queue.borrow().is_closed;
            match self.api.report_on_device_answers(report).await {
                Ok(()) => {
                    tracing::debug!(answers, tries, "the tail was told of answers given here");
                    return true;
                }
                Err(error) if is_final(&error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(
                        error,
                        answers,
                        "the tail takes no report of answers given here"
                    );
                    return true;
                }
                Err(error) if is_closed => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(
                        error,
                        answers,
                        "the tail was not told of answers given here"
                    );
                    return false;
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    if tries == 1 {
                        tracing::warn!(error, answers, "answers given here are reported later");
                    } else {
                        tracing::debug!(error, answers, tries, "not reported yet");
                    }
                }
            }
            self.sleep(wait).await;
            wait = wait.saturating_mul(2).min(self.backoff.max);
        }
    }

    /// Until the queue is closed, at the longest.
    async fn sleep(&self, wait: Duration) {
        let mut changes = self.queue.subscribe();
        let closed = changes.wait_for(|queue| queue.is_closed);
        // Either end will do.
        let _ = tokio::time::timeout(wait, closed).await;
    }
}

/// Whether the same report would be refused again. The tail, or credentials, may be another the next time.
fn is_final(error: &TailError) -> bool {
    match error {
        TailError::Status { status, .. } => {
            (400..500).contains(status) && !matches!(status, 401 | 408 | 429)
        }
        _ => false,
    }
}
