//! What a layer does with each row, as operations that can be trained through.
//!
//! Each is one pass over the rows on all threads, there and back: as candle's single operations they would be ten.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Tensor};
use headway_model::attention::exp;
use headway_model::config::RopeLayout;
use headway_model::simd::LANES;
use rayon::prelude::*;

use super::values::{contiguous, reading};

/// Rows that a thread takes at a time.
const ROWS: usize = 64;

/// RMS norm over the last dimension of `x`, times `weight`, `[columns]`.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    x.contiguous()?.apply_op2(weight, RmsNorm { eps })
}

/// `silu(gate) · up`, element by element.
pub(super) fn silu_product(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.apply_op2(up, SiluProduct)
}

/// Rotates `x`, `[texts, positions, heads, head_dim]`, by each position's angles; `cos` and `sin`: `[positions or more,
/// head_dim / 2]`.
pub(super) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor, layout: RopeLayout) -> Result<Tensor> {
    let sign = 1.0;
    x.contiguous()?
        .apply_op3(cos, sin, Rotation { layout, sign })
}

struct RmsNorm {
    eps: f32,
}

/// `1 / √(mean square + eps)`.
#[expect(clippy::cast_precision_loss, reason = "a row's columns")]
pub(super) fn inverse_rms(row: &[f32], eps: f32) -> f32 {
    (dot(row, row) / row.len() as f32 + eps).sqrt().recip()
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (contiguous(x, layout)?, contiguous(weight, weight_layout)?);
        let columns = weight.len();
        let mut out = vec![0.0; x.len()];
        let chunks = out.par_chunks_mut(ROWS * columns);
        chunks
            .zip(x.par_chunks(ROWS * columns))
            .for_each(|(out, x)| {
                let rows = out.chunks_exact_mut(columns);
                for (out, x) in rows.zip(x.chunks_exact(columns)) {
                    let scale = inverse_rms(x, self.eps);
                    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                        *out = x * scale * weight;
                    }
                }
            });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let (values, weights) = (reading(x), reading(weight));
        let of_out = reading(&gradient);
        let (of_x, of_weight) =
            self.gradients(values.values()?, weights.values()?, of_out.values()?);
        let of_x = Tensor::from_vec(of_x, x.shape(), &Device::Cpu)?;
        let of_weight = Tensor::from_vec(of_weight, weight.shape(), &Device::Cpu)?;
        Ok((Some(of_x), Some(of_weight)))
    }
}

impl RmsNorm {
    /// With respect to `x` and to the weight.
    fn gradients(&self, x: &[f32], weight: &[f32], gradient: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let columns = weight.len();
        let mut of_x = vec![0.0; x.len()];
        let parts: Vec<Vec<f32>> = of_x
            .par_chunks_mut(ROWS * columns)
            .zip(x.par_chunks(ROWS * columns))
            .zip(gradient.par_chunks(ROWS * columns))
            .map(|((of_x, x), gradient)| {
                let mut of_weight = vec![0.0; columns];
                let mut weighted = vec![0.0; columns];
                let rows = of_x.chunks_exact_mut(columns).zip(x.chunks_exact(columns));
                for ((of_x, x), gradient) in rows.zip(gradient.chunks_exact(columns)) {
                    let scale = inverse_rms(x, self.eps);
                    for i in 0..columns {
                        of_weight[i] += gradient[i] * x[i] * scale;
                        weighted[i] = gradient[i] * weight[i];
                    }
                    #[expect(clippy::cast_precision_loss, reason = "a row's columns")]
                    let along = dot(&weighted, x) * scale * scale / columns as f32;
                    for ((of_x, x), weighted) in of_x.iter_mut().zip(x).zip(&weighted) {
                        *of_x = scale * (weighted - x * along);
                    }
                }
                of_weight
            })
            .collect();
        let mut of_weight = vec![0.0; columns];
        for part in parts {
            let sums = of_weight.iter_mut().zip(part);
            sums.for_each(|(sum, part)| *sum += part);
        }
        (of_x, of_weight)
    }
}

struct SiluProduct;

/// `1 / (1 + e^-x)` of each.
#[inline(always)]
fn sigmoid(x: &[f32; LANES]) -> [f32; LANES] {
    // exp takes what is not above its offset, so of the two powers the one below 1.
    let mut power = x.map(|x| -x.abs());
    exp(&mut power, 0.0);
    let mut out = [0.0; LANES];
    for ((out, x), power) in out.iter_mut().zip(x).zip(power) {
        let numerator = if *x < 0.0 { power } else { 1.0 };
        *out = numerator / (1.0 + power);
    }
    out
}

/// Calls `work` with pieces of `out` and of each input, of [`LANES`] values; the last one may be padded.
fn for_lanes<const N: usize>(
    out: &mut [f32],
    inputs: [&[f32]; N],
    work: impl Fn([&[f32; LANES]; N]) -> [f32; LANES] + Sync,
) {
    const CHUNK: usize = 1 << 14;
    out.par_chunks_mut(CHUNK)
        .enumerate()
        .for_each(|(index, out)| {
            let inputs = inputs.map(|input| &input[index * CHUNK..][..out.len()]);
            let whole = out.len() / LANES;
            let pieces = inputs.map(|input| input.as_chunks::<LANES>());
            let (outs, last) = out.as_chunks_mut::<LANES>();
            for (i, out) in outs.iter_mut().enumerate().take(whole) {
                *out = work(pieces.map(|(pieces, _)| &pieces[i]));
            }
            let padded = pieces.map(|(_, rest)| {
                let mut padded = [0.0; LANES];
                padded[..rest.len()].copy_from_slice(rest);
                padded
            });
            let of_last = work(padded.each_ref());
            last.copy_from_slice(&of_last[..last.len()]);
        });
}

impl CustomOp2 for SiluProduct {
    fn name(&self) -> &'static str {
        "silu product"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (contiguous(gate, layout)?, contiguous(up, up_layout)?);
        let mut out = vec![0.0; gate.len()];
        for_lanes(&mut out, [gate, up], |[gate, up]| {
            let open = sigmoid(gate);
            std::array::from_fn(|i| gate[i] * open[i] * up[i])
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let (gates, ups) = (reading(gate), reading(up));
        let of_out = reading(&gradient);
        let (gates, ups, of_out) = (gates.values()?, ups.values()?, of_out.values()?);
        let mut of_gate = vec![0.0; gates.len()];
        for_lanes(&mut of_gate, [gates, ups, of_out], |[gate, up, of_out]| {
            let open = sigmoid(gate);
            std::array::from_fn(|i| {
                let slope = open[i] * gate[i].mul_add(1.0 - open[i], 1.0);
                slope * up[i] * of_out[i]
            })
        });
        let mut of_up = vec![0.0; gates.len()];
        for_lanes(&mut of_up, [gates, of_out], |[gate, of_out]| {
            let open = sigmoid(gate);
            std::array::from_fn(|i| gate[i] * open[i] * of_out[i])
        });
        let of_gate = Tensor::from_vec(of_gate, gate.shape(), &Device::Cpu)?;
        let of_up = Tensor::from_vec(of_up, up.shape(), &Device::Cpu)?;
        Ok((Some(of_gate), Some(of_up)))
    }
}

struct Rotation {
    layout: RopeLayout,
    /// -1 turns back.
    sign: f32,
}

impl CustomOp3 for Rotation {
    fn name(&self) -> &'static str {
        "rotation"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        cos: &CpuStorage,
        cos_layout: &Layout,
        sin: &CpuStorage,
        sin_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, positions, heads, head_dim) = layout.shape().dims4()?;
        let x = contiguous(x, layout)?;
        let (cos, sin) = (contiguous(cos, cos_layout)?, contiguous(sin, sin_layout)?);
        let (half, row) = (head_dim / 2, heads * head_dim);
        // The places of the i-th pair.
        let pair = |i: usize| match self.layout {
            RopeLayout::Half => (i, i + half),
            RopeLayout::Interleaved => (2 * i, 2 * i + 1),
        };
        let mut out = vec![0.0; x.len()];
        let rows = out.par_chunks_exact_mut(row).zip(x.par_chunks_exact(row));
        rows.enumerate().for_each(|(index, (out, x))| {
            let angles = index % positions * half..(index % positions + 1) * half;
            let (cos, sin) = (&cos[angles.clone()], &sin[angles]);
            let heads = out.chunks_exact_mut(head_dim);
            for (out, x) in heads.zip(x.chunks_exact(head_dim)) {
                for (i, (cos, sin)) in cos.iter().zip(sin).enumerate() {
                    let (a, b) = pair(i);
                    let sin = sin * self.sign;
                    out[a] = x[a] * cos - x[b] * sin;
                    out[b] = x[b] * cos + x[a] * sin;
                }
            }
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let back = Self {
            layout: self.layout,
            sign: -self.sign,
        };
        let gradient = gradient.contiguous()?.apply_op3_no_bwd(cos, sin, &back)?;
        Ok((Some(gradient), None, None))
    }
}

/// Lanes sum apart, so that the compiler keeps vectors.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_pieces, a_rest) = a.as_chunks::<LANES>();
    let (b_pieces, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0_f32; LANES];
    for (a, b) in a_pieces.iter().zip(b_pieces) {
        for i in 0..LANES {
            sums[i] = a[i].mul_add(b[i], sums[i]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// Probabilities in the place of logits; returns the logarithm of the sum of the logits' exponentials.
pub(super) fn softmax(logits: &mut [f32]) -> f32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (pieces, rest) = logits.as_chunks_mut::<LANES>();
    let mut totals = [0.0_f32; LANES];
    for piece in pieces {
        exp(piece, largest);
        for (total, value) in totals.iter_mut().zip(piece) {
            *total += *value;
        }
    }
    let mut padded = [f32::NEG_INFINITY; LANES];
    padded[..rest.len()].copy_from_slice(rest);
    exp(&mut padded, largest);
    rest.copy_from_slice(&padded[..rest.len()]);
    let total = totals.iter().chain(&padded).sum::<f32>();
    logits.iter_mut().for_each(|value| *value /= total);
    largest + total.ln()
}
