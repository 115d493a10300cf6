//! RMS norm (arXiv:1910.07467): `x / sqrt(mean(x²) + eps) · weight`.

use crate::linear::for_rows;
use crate::simd::{LANES, Simd, Work, dispatch};

/// The weights of one norm.
pub struct RmsNorm {
    weight: Vec<f32>,
    eps: f32,
}

impl RmsNorm {
    /// `weight`: `[columns]`.
    #[must_use]
    pub const fn new(weight: Vec<f32>, eps: f32) -> Self {
        Self { weight, eps }
    }

    /// Bytes the weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(self.weight.as_slice())
    }

    /// Norms each row. `x` and `out`: `[rows, columns]`.
    pub fn forward(&self, x: &[f32], out: &mut [f32]) {
        let columns = self.weight.len();
        for_rows(columns, out, |row, out| {
            let x = &x[row * columns..(row + 1) * columns];
            dispatch(NormRow { norm: self, x, out });
        });
    }

    /// Norms each row in place. `x`: `[rows, columns]`.
    pub fn forward_in_place(&self, x: &mut [f32]) {
        let mut row = vec![0.0; self.weight.len()];
        for x in x.chunks_exact_mut(self.weight.len()) {
            row.copy_from_slice(x);
            dispatch(NormRow {
                norm: self,
                x: &row,
                out: x,
            });
        }
    }
}

struct NormRow<'a> {
    norm: &'a RmsNorm,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Work for NormRow<'_> {
    #[inline(always)]
    #[expect(
        clippy::cast_precision_loss,
        reason = "a row has far fewer than 2^24 columns"
    )]
    fn run<S: Simd>(self) {
        let mut squares = S::splat(0.0);
        let (chunks, rest) = self.x.as_chunks::<LANES>();
        for chunk in chunks {
            let x = S::load(chunk);
            squares = S::fma(x, x, squares);
        }
        let rest: f32 = rest.iter().map(|x| x * x).sum();
        let mean = (S::sum(squares) + rest) / self.x.len() as f32;
        let scale = 1.0 / (mean + self.norm.eps).sqrt();
        for ((out, x), weight) in self.out.iter_mut().zip(self.x).zip(&self.norm.weight) {
            *out = x * scale * weight;
        }
    }
}
