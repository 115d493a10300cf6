//! The output that the threads of a kernel share.
#![expect(unsafe_code, reason = "threads write disjoint parts of one output")]

use std::marker::PhantomData;

use crate::threads::parallel;

/// Rows below which element-wise work is not worth handing to other threads.
const PARALLEL_ROWS: usize = 16;

/// Calls `work` with each row of `out`, `[rows, columns]`, on all threads where there are many.
pub(crate) fn for_rows(columns: usize, out: &mut [f32], work: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = out.len() / columns;
    if rows < PARALLEL_ROWS {
        return out
            .chunks_exact_mut(columns)
            .enumerate()
            .for_each(|(row, out)| work(row, out));
    }
    let out = DisjointOut::new(out, columns);
    parallel(rows, 1, |rows| {
        for row in rows {
            // SAFETY: every row is in one piece only.
            work(row, unsafe { out.row_mut(row) });
        }
    });
}

/// A row-major output `[rows, stride]` that several threads fill, each its own columns.
#[derive(Clone, Copy)]
pub(crate) struct DisjointOut<'a> {
    values: *mut f32,
    len: usize,
    stride: usize,
    first_column: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer is only written through `write`, whose callers keep columns disjoint.
unsafe impl Sync for DisjointOut<'_> {}
// SAFETY: as above.
unsafe impl Send for DisjointOut<'_> {}

impl<'a> DisjointOut<'a> {
    pub(crate) fn new(out: &'a mut [f32], stride: usize) -> Self {
        Self {
            values: out.as_mut_ptr(),
            len: out.len(),
            stride,
            first_column: 0,
            lifetime: PhantomData,
        }
    }

    /// The same output, with columns counted from `column`.
    pub(crate) fn at_column(&self, column: usize) -> Self {
        Self {
            first_column: self.first_column + column,
            ..*self
        }
    }

    /// Writes `values` to row `row`, from column `column` on.
    ///
    /// Callers on different threads must write different places; every kernel gives each tile of
    /// columns to one thread.
    #[inline(always)]
    pub(crate) fn write(&self, row: usize, column: usize, values: &[f32]) {
        let column = self.first_column + column;
        assert!(
            column + values.len() <= self.stride
                && row * self.stride + column + values.len() <= self.len
        );
        // SAFETY: inside the output (asserted), and no other thread writes these places.
        unsafe {
            let to = self.values.add(row * self.stride + column);
            std::ptr::copy_nonoverlapping(values.as_ptr(), to, values.len());
        }
    }

    /// Row `row`, for writing.
    ///
    /// # Safety
    /// No other reference to this row may be alive.
    #[expect(
        clippy::mut_from_ref,
        reason = "the rows that threads take are disjoint"
    )]
    unsafe fn row_mut(&self, row: usize) -> &mut [f32] {
        assert!((row + 1) * self.stride <= self.len);
        // SAFETY: inside the output (asserted), and the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.values.add(row * self.stride), self.stride) }
    }

    /// Adds `bias`, `[stride]`, to every row. Called after the threads are done.
    pub(crate) fn add_to_rows(self, bias: &[f32]) {
        assert_eq!(bias.len(), self.stride, "one bias for each output");
        // SAFETY: the kernels have returned, so this is the only access.
        let out = unsafe { std::slice::from_raw_parts_mut(self.values, self.len) };
        for row in out.chunks_exact_mut(self.stride) {
            row.iter_mut()
                .zip(bias)
                .for_each(|(value, bias)| *value += bias);
        }
    }
}
