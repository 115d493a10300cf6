//! What follows the layers: the logits of the wanted rows, and what is found out about them.

use std::ops::Range;

use super::{Tail, small};
use crate::buffers::LOGITS_ROWS;
use crate::calls::copy_down;
use crate::error::CudaError;
use crate::kernels::NormRows;
use crate::sampling::{Summaries, SummaryPlan};

impl Tail {
    /// Starts to find out what decides about the tokens after the wanted rows `range`; at most [`LOGITS_ROWS`] of them.
    /// `plan` has a row for each. [`Tail::summaries`] gives what was found out.
    ///
    /// # Errors
    /// The device's fault.
    pub fn start_summaries(
        &mut self,
        range: Range<usize>,
        plan: &SummaryPlan,
    ) -> Result<(), CudaError> {
        assert_eq!(range.len(), plan.rows.len(), "a plan for each row");
        self.guarded(|tail| {
            let rows = small(range.len());
            let gpu = std::sync::Arc::clone(&tail.weights.gpu);
            tail.sampling.upload(&gpu, plan)?;
            tail.first_logits_row = tail.compute_logits(range)?;
            let skipped = tail.first_logits_row * tail.weights.config.vocab_size * 4;
            let logits = gpu.address(&tail.buffers.logits) + skipped as u64;
            tail.sampling.start(&gpu, logits, rows)?;
            tail.stamps.note_logits(&gpu, &tail.kernels)?;
            tail.sampling.start_download(&gpu)?;
            tail.stamps.start_download(&gpu)
        })
    }

    /// What was found out since [`Tail::start_summaries`]. Waits for the device.
    ///
    /// # Errors
    /// The device's fault.
    pub fn summaries(&mut self) -> Result<Summaries<'_>, CudaError> {
        self.guarded(|tail| Ok(tail.weights.gpu.stream().synchronize()?))?;
        Ok(self.sampling.summaries()?)
    }

    /// All logits of one row of the last call of [`Tail::start_summaries`], `[vocab_size]`, adjusted as its plan says.
    /// `index` is counted from the first row of that call. Waits for the device.
    ///
    /// # Errors
    /// The device's fault.
    pub fn logits_row(&mut self, index: usize) -> Result<&mut [f32], CudaError> {
        self.guarded(|tail| {
            let row = tail.first_logits_row + index;
            tail.fetch_logits(row..row + 1)
        })?;
        let vocab_size = self.weights.config.vocab_size;
        Ok(&mut self.buffers.host_rows.as_mut_slice()?[..vocab_size])
    }

    /// The logits after the wanted rows `range`, `[range.len(), vocab_size]`; at most [`LOGITS_ROWS`] of them. Waits
    /// for the device. For comparisons: copying many rows takes longer than the layers do.
    ///
    /// # Errors
    /// The device's fault.
    pub fn logits(&mut self, range: Range<usize>) -> Result<&mut [f32], CudaError> {
        let rows = range.len();
        self.guarded(|tail| {
            let first = tail.compute_logits(range)?;
            let gpu = std::sync::Arc::clone(&tail.weights.gpu);
            tail.stamps.note_logits(&gpu, &tail.kernels)?;
            tail.fetch_logits(first..first + rows)
        })?;
        let len = rows * self.weights.config.vocab_size;
        Ok(&mut self.buffers.host_rows.as_mut_slice()?[..len])
    }

    /// Starts the final norm and the lm_head, where the layers have not done so. Returns the first row's place among
    /// the logits in memory.
    fn compute_logits(&self, range: Range<usize>) -> Result<usize, CudaError> {
        assert!(
            range.len() <= LOGITS_ROWS,
            "no more rows than there is memory for"
        );
        if self.has_logits {
            return Ok(range.start);
        }
        let gpu = &self.weights.gpu;
        let rows = NormRows::Wanted {
            first: small(range.start),
            count: small(range.len()),
        };
        let end = self.weights.end.as_ref();
        let end = end.expect("only a stage with the model's last layer is asked for logits");
        let layer = self.weights.layers.len();
        self.add_norm(gpu, &end.output_norm, self.last, layer, rows)?;
        let (normed, to) = (&self.buffers.normed, &self.buffers.logits);
        self.products
            .planes(gpu, &end.lm_head, normed, range.len(), to)?;
        Ok(0)
    }

    /// Copies rows of the last logits to the host, and waits for them.
    fn fetch_logits(&mut self, range: Range<usize>) -> Result<(), CudaError> {
        let gpu = &self.weights.gpu;
        let vocab_size = self.weights.config.vocab_size;
        let buffers = &mut self.buffers;
        let range = range.start * vocab_size..range.end * vocab_size;
        buffers.make_room(gpu, range.len())?;
        let to = &mut buffers.host_rows;
        copy_down(gpu.stream(), &buffers.logits, range, to)?;
        Ok(())
    }
}
