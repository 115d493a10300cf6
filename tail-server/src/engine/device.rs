//! What the engine asks of a device, whichever it is.

use std::time::Instant;

use headway_model::sampler::{Sampled, Sampler};
use headway_model::{ForwardError, KvTable};

use crate::accounting::StepTimes;

/// Runs the tail layers. The engine's thread owns it and is the only one to call it.
pub(crate) trait Device: Send + 'static {
    /// Runs the members' rows through their layers and samples where that is wanted. When this returns without
    /// an error, the tables have advanced by the rows, less those of draft tokens that were not accepted; after
    /// an error or a panic the members' tables are not used again, and the device must be fit for the next
    /// batch.
    ///
    /// `members` are ordered by entry layer. Their tables name blocks of the device's own KV memory.
    ///
    /// `started`: when the engine began to put the step together; the first lap begins there.
    ///
    /// # Errors
    /// [`DeviceError`] where the rows do not fit the model, or the device fails.
    fn run(&mut self, members: &mut [Member<'_>], started: Instant)
    -> Result<StepRun, DeviceError>;
}

impl Device for Box<dyn Device> {
    fn run(
        &mut self,
        members: &mut [Member<'_>],
        started: Instant,
    ) -> Result<StepRun, DeviceError> {
        (**self).run(members, started)
    }
}

/// Why a step came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    #[error(transparent)]
    Forward(#[from] ForwardError),
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] headway_cuda::CudaError),
}

/// The rows of one session in a step.
pub(crate) struct Member<'a> {
    /// First layer the rows pass.
    pub(crate) entry_layer: usize,
    /// At least one.
    pub(crate) rows: usize,
    pub(crate) input: MemberRows<'a>,
    /// Over the layers from `entry_layer` to the last one; has blocks for `rows` more.
    pub(crate) table: &'a mut KvTable,
    /// Set where tokens are to be sampled.
    pub(crate) sampling: Option<Sampling<'a>>,
}

/// What to sample. Without a draft: one token after the last row. With one: a token after each row whose
/// predecessors are all right, so that what is sampled after row `i` stands beside `draft[i]`.
pub(crate) struct Sampling<'a> {
    /// Is shown the draft tokens that are right.
    pub(crate) sampler: &'a mut Sampler,
    /// The token ids of the rows but the first one; empty where nothing is guessed.
    pub(crate) draft: &'a [u32],
}

/// What the rows are made of.
pub(crate) enum MemberRows<'a> {
    TokenIds(&'a [u32]),
    /// `[rows, hidden_size]`.
    HiddenStates(&'a [f32]),
}

/// What came out of a step.
pub(crate) struct StepRun {
    pub(crate) times: StepTimes,
    /// For each member, in their order: nothing, or the draft tokens that are right and the token after them.
    pub(crate) samples: Vec<Vec<Sampled>>,
}
