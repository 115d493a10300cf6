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
    /// `started`: when the engine began to put the step together; the first lap begins there. `meanwhile`: called while
    /// there is nothing for the host to do but to wait.
    ///
    /// # Errors
    /// [`DeviceError`] where the rows do not fit the model, or the device fails.
    fn run(
        &mut self,
        members: &mut [Member<'_>],
        started: Instant,
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<StepRun, DeviceError>;

    /// Takes in hidden states of rows that will enter at `entry_layer`, ahead of their step, where that saves time
    /// then. They may get lost again: the step is given the rows all the same.
    fn take_in(&mut self, _entry_layer: usize, _hidden_states: &[f32]) -> Option<TakenIn> {
        None
    }
}

/// What the engine does while the device computes: it takes in rows that have come, by the function it is given. False
/// where there were none.
pub(crate) type Meanwhile<'a> = dyn FnMut(&mut TakeIn<'_>) -> bool + 'a;

/// [`Device::take_in`].
pub(crate) type TakeIn<'a> = dyn FnMut(usize, &[f32]) -> Option<TakenIn> + 'a;

/// Rows that the device has taken in ahead of their step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TakenIn {
    #[cfg(feature = "cuda")]
    pub(crate) first: headway_cuda::TakenIn,
}

impl Device for Box<dyn Device> {
    fn run(
        &mut self,
        members: &mut [Member<'_>],
        started: Instant,
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<StepRun, DeviceError> {
        (**self).run(members, started, meanwhile)
    }

    fn take_in(&mut self, entry_layer: usize, hidden_states: &[f32]) -> Option<TakenIn> {
        (**self).take_in(entry_layer, hidden_states)
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
    /// Over the layers from `entry_layer` or a lower one to the last one; has blocks for `rows` more.
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
    /// `[rows, hidden_size]`. Where the device has taken them in: those and `usize` rows before them.
    HiddenStates(
        &'a [f32],
        #[cfg_attr(
            not(feature = "cuda"),
            expect(dead_code, reason = "only a GPU takes rows in ahead of their step")
        )]
        Option<(TakenIn, usize)>,
    ),
}

/// What came out of a step.
pub(crate) struct StepRun {
    pub(crate) times: StepTimes,
    /// For each member, in their order: nothing, or the draft tokens that are right and the token after them.
    pub(crate) samples: Vec<Vec<Sampled>>,
}
