//! The head layers at work for one generation, on a thread of their own.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::Made;
use crate::error::DeviceError;
use crate::head_layers::HeadPass;
use crate::replay::ReplayBuffer;

/// What the layers are to make.
type Work = Box<dyn FnOnce(&mut HeadPass) -> Result<Made, DeviceError> + Send>;

/// The head layers' side, where there is one.
pub(super) struct Head {
    pub(super) pass: Pass,
    pub(super) replay: ReplayBuffer,
    /// To be computed once the layers have caught up.
    queued: Option<Work>,
    /// While somebody waits for these layers.
    is_wanted: Arc<()>,
}

pub(super) enum Pass {
    Idle(Box<HeadPass>),
    /// Computes; gives the pass back with the rows.
    Busy(JoinHandle<(Box<HeadPass>, Result<Made, DeviceError>)>),
    /// Computes what went up as token ids; gives the pass back with the time it took.
    CatchingUp(JoinHandle<(Box<HeadPass>, Result<Duration, DeviceError>)>),
    /// A worker thread panicked and took the pass along; `ready` has reported it.
    Lost,
}

impl Head {
    pub(super) fn new(pass: HeadPass, replay: ReplayBuffer) -> Self {
        Self {
            pass: Pass::Idle(Box::new(pass)),
            replay,
            queued: None,
            is_wanted: Arc::new(()),
        }
    }

    /// True where rows are being made, or wait for the layers to catch up.
    pub(super) fn is_started(&self) -> bool {
        matches!(self.pass, Pass::Busy(_)) || self.queued.is_some()
    }

    /// Starts to make a step by `work`, off the async threads; where the layers catch up, once they have.
    pub(super) fn start(
        &mut self,
        work: impl FnOnce(&mut HeadPass) -> Result<Made, DeviceError> + Send + 'static,
    ) {
        self.start_work(Box::new(work));
    }

    fn start_work(&mut self, work: Work) {
        match std::mem::replace(&mut self.pass, Pass::Lost) {
            Pass::Idle(mut pass) => {
                self.pass = Pass::Busy(tokio::task::spawn_blocking(move || {
                    let made = work(&mut pass);
                    (pass, made)
                }));
            }
            catching_up @ Pass::CatchingUp(_) => {
                self.pass = catching_up;
                self.queued = Some(work);
            }
            other => self.pass = other,
        }
    }

    /// Starts to compute what is lacking of the keys and values of `token_ids`, `max_rows` at a time.
    pub(super) fn catch_up(&mut self, token_ids: &[u32], max_rows: usize) {
        match std::mem::replace(&mut self.pass, Pass::Lost) {
            Pass::Idle(mut pass) if pass.len() < token_ids.len() => {
                let lacking = token_ids[pass.len()..].to_vec();
                let is_wanted = Arc::downgrade(&self.is_wanted);
                self.pass = Pass::CatchingUp(tokio::task::spawn_blocking(move || {
                    let chunks = lacking.chunks(max_rows);
                    let compute = chunks
                        .take_while(|_| Weak::strong_count(&is_wanted) > 0)
                        .map(|chunk| pass.advance(chunk))
                        .sum();
                    (pass, compute)
                }));
            }
            other => self.pass = other,
        }
    }

    /// Where rows wait for the layers to catch up: until these have, and the rows are started. Returns the time that
    /// the layers took. Cancel safe.
    pub(super) async fn caught_up(&mut self) -> Result<Duration, DeviceError> {
        let (Pass::CatchingUp(worker), Some(_)) = (&mut self.pass, &self.queued) else {
            return Ok(Duration::ZERO);
        };
        let outcome = worker.await;
        // From here to the end nothing is awaited, so that a cancelled call loses nothing.
        self.pass = Pass::Lost;
        let work = self.queued.take();
        let (pass, compute) = outcome?;
        self.pass = Pass::Idle(pass);
        let compute = compute?;
        if let Some(work) = work {
            self.start_work(work);
        }
        Ok(compute)
    }
}
