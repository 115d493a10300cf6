//! What the engine asks of a device, whichever it is.

use std::time::Instant;

use headway_model::config::ModelConfig;
use headway_model::sampler::{Sampled, Sampler};
use headway_model::{ForwardError, KvCache};

use crate::accounting::StepTimes;

/// Runs the tail layers. The engine's thread owns it and is the only one to call it.
pub(crate) trait Device: Send + 'static {
    /// The model's shape.
    fn config(&self) -> &ModelConfig;

    /// Runs the members' rows through their layers and samples where that is wanted. The caches have
    /// advanced by the rows when this returns without an error; after an error or a panic the members'
    /// caches are not used again, and the device must be fit for the next batch.
    ///
    /// `members` are ordered by entry layer.
    ///
    /// `started`: when the engine began to put the step together; the first lap begins there.
    ///
    /// # Errors
    /// [`ForwardError`] where the rows do not fit the model.
    fn run(
        &mut self,
        members: &mut [Member<'_>],
        started: Instant,
    ) -> Result<StepRun, ForwardError>;
}

/// The rows of one session in a step.
pub(crate) struct Member<'a> {
    /// First layer the rows pass.
    pub(crate) entry_layer: usize,
    /// At least one.
    pub(crate) rows: usize,
    pub(crate) input: MemberRows<'a>,
    /// Over the layers from `entry_layer` to the last one; has room for `rows` more.
    pub(crate) cache: &'a mut KvCache,
    /// Set where a token is to be sampled after the last row.
    pub(crate) sampler: Option<&'a Sampler>,
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
    /// One for each member, in their order.
    pub(crate) samples: Vec<Option<Sampled>>,
}
