//! When the device began each layer of a step, by its own clock.
//!
//! Kernels write the times down on their way. Events between kernels would do as well, but no kernel starts before
//! an event in front of it, so that they would slow the step they measure.

use cudarc::driver::{CudaSlice, PinnedHostSlice};

use crate::calls::{pinned, start_copy_down};
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::kernels::Kernels;

/// When each layer of a step began, when the last one had ended, and when the last logits were there.
pub(crate) struct Stamps {
    device: CudaSlice<u64>,
    host: PinnedHostSlice<u64>,
    /// It is written down, or will be, when the layers of the step had ended.
    has_end: bool,
    has_logits: bool,
    /// The copy to the host has been started, behind everything that was to be noted.
    is_coming: bool,
}

impl Stamps {
    /// Of a tail of so many layers.
    pub(crate) fn new(gpu: &Gpu, layers: usize) -> Result<Self, CudaError> {
        Ok(Self {
            device: gpu.zeros(layers + 2)?,
            host: pinned(gpu.context(), layers + 2)?,
            has_end: false,
            has_logits: false,
            is_coming: false,
        })
    }

    /// Where the norms write when layers begin and end.
    pub(crate) fn address(&self, gpu: &Gpu) -> u64 {
        gpu.address(&self.device)
    }

    /// What was started last are logits.
    pub(crate) fn note_logits(&mut self, gpu: &Gpu, kernels: &Kernels) -> Result<(), CudaError> {
        (self.has_end, self.has_logits, self.is_coming) = (true, true, false);
        self.note(gpu, kernels, self.device.len() - 1)
    }

    /// What was started last ends the layers, for a stage whose rows go on.
    pub(crate) fn note_end(&mut self, gpu: &Gpu, kernels: &Kernels) -> Result<(), CudaError> {
        (self.has_end, self.is_coming) = (true, false);
        self.note(gpu, kernels, self.device.len() - 2)
    }

    /// Starts the copy to the host of what was noted so far.
    pub(crate) fn start_download(&mut self, gpu: &Gpu) -> Result<(), CudaError> {
        let all = self.device.len();
        start_copy_down(gpu.stream(), &self.device, 0..all, &mut self.host)?;
        self.is_coming = true;
        Ok(())
    }

    /// Waits for all that was started. How long the layers from `first` on took, counted from the tail's first one,
    /// and the logits; in nanoseconds.
    pub(crate) fn read(
        &mut self,
        gpu: &Gpu,
        kernels: &Kernels,
        first: usize,
    ) -> Result<(Vec<u64>, u64), CudaError> {
        let all = self.device.len();
        if !std::mem::take(&mut self.has_end) {
            // The norm that would have said so was not wanted.
            self.is_coming = false;
            self.note(gpu, kernels, all - 2)?;
        }
        if !std::mem::take(&mut self.is_coming) {
            self.start_download(gpu)?;
        }
        gpu.stream().synchronize()?;
        self.is_coming = false;
        let stamps = self.host.as_slice()?;
        let between = |pair: &[u64]| pair[1].saturating_sub(pair[0]);
        let layers_ns = stamps[first..all - 1].windows(2).map(between).collect();
        let logits_ns = match std::mem::take(&mut self.has_logits) {
            true => between(&stamps[all - 2..]),
            false => 0,
        };
        Ok((layers_ns, logits_ns))
    }

    fn note(&self, gpu: &Gpu, kernels: &Kernels, index: usize) -> Result<(), CudaError> {
        kernels.stamp(gpu, self.address(gpu) + 8 * index as u64)
    }
}
