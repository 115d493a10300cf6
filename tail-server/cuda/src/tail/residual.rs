//! Where a stage ends before the model does: its rows of the residual stream.

use std::ops::Range;

use cudarc::driver::CudaSlice;

use super::{Tail, small};
use crate::calls::copy_down;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::kernels::Planes;

impl Tail {
    /// Rows `range` of the step behind the stage's last layer, `[range.len(), hidden_size]`. Waits for the device.
    ///
    /// # Errors
    /// The device's fault.
    ///
    /// # Panics
    /// Where the model's last layer is among the stage's: that one gives logits.
    pub fn hidden_states(&mut self, range: Range<usize>) -> Result<&mut [f32], CudaError> {
        assert!(
            self.weights.end.is_none(),
            "a tail that ends with the model gives logits"
        );
        assert!(range.end <= self.step.rows(), "the step has these rows");
        let hidden_size = self.weights.config.hidden_size;
        let range = range.start * hidden_size..range.end * hidden_size;
        let len = range.len();
        self.guarded(|tail| {
            let (gpu, buffers) = (&tail.weights.gpu, &mut tail.buffers);
            tail.stamps.note_end(gpu, &tail.kernels)?;
            buffers.make_room(gpu, len)?;
            copy_down(gpu.stream(), &buffers.x, range, &mut buffers.host_rows)?;
            Ok(())
        })?;
        Ok(&mut self.buffers.host_rows.as_mut_slice()?[..len])
    }

    /// Rows of the residual stream, `[rows, hidden_size]`; those that are handed over come to the first ones.
    pub(crate) const fn residual_stream(&self) -> &CudaSlice<f32> {
        &self.buffers.x
    }

    /// What was started last has handed the rows over to the next stage.
    pub(crate) fn note_handed_over(&mut self) -> Result<(), CudaError> {
        let gpu = &self.weights.gpu;
        self.stamps.note_end(gpu, &self.kernels)
    }

    /// The last layer's product onto the residual stream, for at most `rows` rows.
    pub(super) fn add_product(
        &self,
        gpu: &Gpu,
        product: Planes,
        rows: usize,
    ) -> Result<(), CudaError> {
        let x = gpu.address(&self.buffers.x);
        let hidden_size = small(self.weights.config.hidden_size);
        let layer = small(self.weights.layers.len());
        let at = (self.step.address(gpu), layer);
        self.kernels
            .add_product(gpu, (x, product), small(rows), hidden_size, at)
    }
}
