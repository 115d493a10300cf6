//! The kernels of a step, recorded once and started together after that.
//!
//! Kernels find in device memory what changes from step to step, so that the same launches serve all steps of a kind.

use std::collections::BTreeMap;

use crate::calls::Graph;
use crate::error::CudaError;
use crate::gpu::Gpu;

/// The most graphs that are kept; each takes some hundred KB of the driver.
const MOST: usize = 64;

/// What the launches of a step depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GraphKey {
    pub(crate) first_layer: usize,
    /// As many as the kernels take.
    pub(crate) rows: usize,
    pub(crate) has_wanted: bool,
    pub(crate) has_items: bool,
    pub(crate) has_prompts: bool,
    pub(crate) has_merges: bool,
}

/// The graphs so far.
pub(crate) struct Graphs {
    is_on: bool,
    /// Of the step's array, which the kernels' arguments name.
    step: u64,
    /// Without a graph: a step of the kind has been started once, so that all its kernels are loaded.
    kinds: BTreeMap<GraphKey, Option<Graph>>,
}

/// How to start a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Kernel by kernel.
    Start,
    /// So that it becomes a graph.
    Record,
    /// As the graph it is.
    Replay,
}

impl Graphs {
    pub(crate) const fn new(is_on: bool) -> Self {
        Self {
            is_on,
            step: 0,
            kinds: BTreeMap::new(),
        }
    }

    /// What to do with a step of this kind, whose array is at `step`.
    pub(crate) fn next(&mut self, key: GraphKey, step: u64) -> Next {
        if !self.is_on {
            return Next::Start;
        }
        if step != self.step || self.kinds.len() > MOST {
            self.kinds.clear();
            self.step = step;
        }
        match self.kinds.get(&key) {
            None => {
                self.kinds.insert(key, None);
                Next::Start
            }
            Some(None) => Next::Record,
            Some(Some(_)) => Next::Replay,
        }
    }

    pub(crate) fn keep(&mut self, key: GraphKey, graph: Graph) {
        self.kinds.insert(key, Some(graph));
    }

    /// Starts the graph that was kept for the kind.
    pub(crate) fn replay(&self, key: GraphKey) -> Result<(), CudaError> {
        match self.kinds.get(&key) {
            Some(Some(graph)) => Ok(graph.launch()?),
            _ => Ok(()),
        }
    }
}

/// While it lasts, what is started is recorded instead.
#[must_use]
pub(crate) struct Recording(());

impl Recording {
    pub(crate) fn begin(gpu: &Gpu) -> Result<Self, CudaError> {
        Graph::begin(gpu.stream())?;
        Ok(Self(()))
    }

    pub(crate) fn end(self, gpu: &Gpu) -> Result<Graph, CudaError> {
        Ok(Graph::end(gpu.stream())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: GraphKey = GraphKey {
        first_layer: 3,
        rows: 8,
        has_wanted: true,
        has_items: true,
        has_prompts: false,
        has_merges: true,
    };

    #[test]
    fn a_kind_is_recorded_when_it_comes_the_second_time() {
        let mut graphs = Graphs::new(true);
        assert_eq!(graphs.next(KEY, 1), Next::Start);
        assert_eq!(graphs.next(KEY, 1), Next::Record);
        let other = GraphKey { rows: 16, ..KEY };
        assert_eq!(graphs.next(other, 1), Next::Start);
    }

    #[test]
    fn another_place_of_the_array_makes_all_graphs_useless() {
        let mut graphs = Graphs::new(true);
        assert_eq!(graphs.next(KEY, 1), Next::Start);
        assert_eq!(graphs.next(KEY, 2), Next::Start);
        assert_eq!(graphs.next(KEY, 2), Next::Record);
    }

    #[test]
    fn no_more_kinds_are_kept_than_the_bound() {
        let mut graphs = Graphs::new(true);
        for first_layer in 0..1000 {
            let key = GraphKey { first_layer, ..KEY };
            assert_eq!(graphs.next(key, 1), Next::Start);
            assert!(graphs.kinds.len() <= MOST + 1);
        }
    }

    #[test]
    fn without_graphs_every_step_is_started_kernel_by_kernel() {
        let mut graphs = Graphs::new(false);
        for _ in 0..3 {
            assert_eq!(graphs.next(KEY, 1), Next::Start);
        }
    }
}
