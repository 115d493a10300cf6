//! Splitting a kernel's tiles over the threads, and the output that they share.
#![expect(unsafe_code, reason = "threads write disjoint parts of one output")]

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

/// Runs `work` on consecutive pieces of `0..items`, on all threads of the current rayon pool.
///
/// `pieces_per_thread`: more than one lets a fast thread take work from a slow one, at the price of
/// more hand-overs.
pub(crate) fn parallel(items: usize, pieces_per_thread: usize, work: impl Fn(Range<usize>) + Sync) {
    let threads = rayon::current_num_threads();
    if threads == 1 || items < 2 {
        return work(0..items);
    }
    let piece = items.div_ceil(threads * pieces_per_thread);
    (0..items.div_ceil(piece))
        .into_par_iter()
        .with_max_len(1)
        .for_each(|i| work(i * piece..items.min((i + 1) * piece)));
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
