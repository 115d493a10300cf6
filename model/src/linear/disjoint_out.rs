//! The output that the threads of a kernel share.
#![expect(unsafe_code, reason = "threads write disjoint parts of one output")]

use std::marker::PhantomData;

use crate::threads::parallel;

/// Rows below which element-wise work is not worth handing to other threads.
const PARALLEL_ROWS: usize = 16;

/// Calls `work` with each row of `out`, `[rows, columns]`, on all threads where there are many.
pub(crate) fn for_rows(columns: usize, out: &mut [f32], work: impl Fn(usize, &mut [f32]) + Sync) {
    for_chunks(columns, out.len() / columns, out, work);
}

/// Calls `work` with each chunk of `len` items of `out`, on all threads where they hold many rows.
pub(crate) fn for_chunks<T: Send>(
    len: usize,
    rows: usize,
    out: &mut [T],
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    assert!(out.len().is_multiple_of(len), "whole chunks");
    let chunks = out.len() / len;
    if rows < PARALLEL_ROWS {
        return out
            .chunks_exact_mut(len)
            .enumerate()
            .for_each(|(index, chunk)| work(index, chunk));
    }
    let out = Chunks(out.as_mut_ptr());
    parallel(chunks, 1, |indices| {
        for index in indices {
            // SAFETY: inside `out`, which is borrowed for as long as this runs, and every chunk is in one
            // piece only.
            work(index, unsafe { out.chunk(index, len) });
        }
    });
}

/// The start of a slice whose chunks are shared out among threads.
struct Chunks<T>(*mut T);

// SAFETY: every chunk is given to one thread only.
unsafe impl<T: Send> Sync for Chunks<T> {}

impl<T> Chunks<T> {
    /// # Safety
    /// The chunk must lie in the slice, and no other reference to it may be alive.
    #[expect(
        clippy::mut_from_ref,
        reason = "the chunks that threads take are disjoint"
    )]
    unsafe fn chunk(&self, index: usize, len: usize) -> &mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(index * len), len) }
    }
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
