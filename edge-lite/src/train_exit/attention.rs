//! Causal attention that can be trained through.
//!
//! Scores are not kept for the way back but computed again: they are the largest thing of a step.

use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::row_operations::{dot, softmax};
use super::values::{contiguous, reading};

/// Positions whose gradients pass over the keys and values together.
const TOGETHER: usize = 4;

/// Every position's attention to the positions up to its own, of the same text.
///
/// `q`: `[texts, positions, heads, head_dim]`; `k` and `v`: `[texts, positions, kv_heads, head_dim]`. Returns the shape of
/// `q`.
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    q.contiguous()?
        .apply_op3(&k.contiguous()?, &v.contiguous()?, Attention)
}

struct Attention;

/// Sizes of one call.
#[derive(Clone, Copy)]
struct Sizes {
    positions: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scale: f32,
}

impl Sizes {
    fn of(q: &Shape, k: &Shape) -> Result<Self> {
        let (_, positions, heads, head_dim) = q.dims4()?;
        let (_, _, kv_heads, _) = k.dims4()?;
        #[expect(clippy::cast_precision_loss, reason = "the width of a head")]
        let scale = 1.0 / (head_dim as f32).sqrt();
        Ok(Self {
            positions,
            heads,
            kv_heads,
            head_dim,
            scale,
        })
    }

    /// One key-value head of one text of `values`, `[positions, head_dim]`.
    fn head(&self, values: &[f32], heads: usize, text: usize, head: usize) -> Vec<f32> {
        let (row, width) = (heads * self.head_dim, self.head_dim);
        let text = &values[text * self.positions * row..][..self.positions * row];
        text.chunks_exact(row)
            .flat_map(|row| &row[head * width..][..width])
            .copied()
            .collect()
    }

    /// `[head_dim, positions]` of `[positions, head_dim]`.
    fn transposed(&self, head: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; head.len()];
        for (position, row) in head.chunks_exact(self.head_dim).enumerate() {
            for (to, value) in out.chunks_exact_mut(self.positions).zip(row) {
                to[position] = *value;
            }
        }
        out
    }

    /// Attention weights of one query, at `weights.len()` positions.
    fn weights(&self, q: &[f32], keys: &[f32], weights: &mut Vec<f32>, seen: usize) {
        weights.clear();
        weights.resize(seen, 0.0);
        add_rows(weights, q, keys, self.positions);
        weights.iter_mut().for_each(|score| *score *= self.scale);
        softmax(weights);
    }
}

/// `out += Σ factorᵢ · rowᵢ`, where row `i` begins at `rows[i · stride]`.
fn add_rows(out: &mut [f32], factors: &[f32], rows: &[f32], stride: usize) {
    let len = out.len();
    let (fours, rest) = factors.as_chunks::<4>();
    for (index, [a, b, c, d]) in fours.iter().enumerate() {
        let row = |i: usize| &rows[(4 * index + i) * stride..][..len];
        let (x, y, z, w) = (row(0), row(1), row(2), row(3));
        for i in 0..len {
            let sum = a.mul_add(x[i], b * y[i]) + c.mul_add(z[i], d * w[i]);
            out[i] += sum;
        }
    }
    for (index, factor) in (4 * fours.len()..).zip(rest) {
        let row = &rows[index * stride..][..len];
        for (out, value) in out.iter_mut().zip(row) {
            *out = factor.mul_add(*value, *out);
        }
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "causal attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = Sizes::of(q_layout.shape(), k_layout.shape())?;
        let (q, k, v) = (
            contiguous(q, q_layout)?,
            contiguous(k, k_layout)?,
            contiguous(v, v_layout)?,
        );
        let Sizes {
            positions,
            heads,
            kv_heads,
            head_dim,
            ..
        } = sizes;
        let texts = q.len() / (positions * heads * head_dim);
        let group = heads / kv_heads;
        // Of each text and key-value head, `[positions, group · head_dim]`.
        let contexts: Vec<Vec<f32>> = (0..texts * kv_heads)
            .into_par_iter()
            .map(|item| {
                let (text, kv_head) = (item / kv_heads, item % kv_heads);
                let keys = sizes.transposed(&sizes.head(k, kv_heads, text, kv_head));
                let values = sizes.head(v, kv_heads, text, kv_head);
                let mut out = vec![0.0; positions * group * head_dim];
                let mut weights = Vec::new();
                for (index, context) in out.chunks_exact_mut(head_dim).enumerate() {
                    let (position, head) = (index / group, kv_head * group + index % group);
                    let at = ((text * positions + position) * heads + head) * head_dim;
                    let q = &q[at..at + head_dim];
                    sizes.weights(q, &keys, &mut weights, position + 1);
                    add_rows(context, &weights, &values, head_dim);
                }
                out
            })
            .collect();
        let out = joined(&contexts, kv_heads, group * head_dim);
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        context: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let sizes = Sizes::of(q.shape(), k.shape())?;
        let [q_read, k_read, v_read, context, gradient] =
            [q, k, v, context, &gradient].map(reading);
        let forward = Forward {
            sizes,
            q: q_read.values()?,
            k: k_read.values()?,
            v: v_read.values()?,
            context: context.values()?,
            gradient: gradient.values()?,
        };
        let items = q.dim(0)? * sizes.kv_heads;
        let gradients: Vec<[Vec<f32>; 3]> = (0..items)
            .into_par_iter()
            .map(|item| forward.gradients(item / sizes.kv_heads, item % sizes.kv_heads))
            .collect();
        let tensor = |which: usize, of: &Tensor| {
            let parts: Vec<&[f32]> = gradients.iter().map(|parts| &*parts[which]).collect();
            let row = of.elem_count() / (items * sizes.positions);
            let values = joined(&parts, sizes.kv_heads, row);
            Tensor::from_vec(values, of.shape(), &Device::Cpu).map(Some)
        };
        Ok((tensor(0, q)?, tensor(1, k)?, tensor(2, v)?))
    }
}

/// `[texts, positions, kv_heads, row]` of the parts `[positions, row]` of each text and key-value head.
fn joined<T: AsRef<[f32]> + Sync>(parts: &[T], kv_heads: usize, row: usize) -> Vec<f32> {
    let len: usize = parts.iter().map(|part| part.as_ref().len()).sum();
    let mut out = Vec::with_capacity(len);
    for text in parts.chunks_exact(kv_heads) {
        let positions = text[0].as_ref().len() / row;
        for position in 0..positions {
            for part in text {
                out.extend_from_slice(&part.as_ref()[position * row..][..row]);
            }
        }
    }
    out
}

/// What went in and came out, and the gradient of what came out.
struct Forward<'a> {
    sizes: Sizes,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    context: &'a [f32],
    gradient: &'a [f32],
}

impl Forward<'_> {
    /// The parts of one text and key-value head: of q, `[positions, group, head_dim]`, of k and v, `[positions, head_dim]`.
    fn gradients(&self, text: usize, kv_head: usize) -> [Vec<f32>; 3] {
        let sizes = self.sizes;
        let Sizes {
            positions,
            heads,
            kv_heads,
            head_dim,
            scale,
        } = sizes;
        let group = heads / kv_heads;
        let k = sizes.head(self.k, kv_heads, text, kv_head);
        let v = sizes.head(self.v, kv_heads, text, kv_head);
        let (keys, values) = (sizes.transposed(&k), sizes.transposed(&v));
        let mut of_q = vec![0.0; positions * group * head_dim];
        let (mut of_k, mut of_v) = (vec![0.0; k.len()], vec![0.0; v.len()]);
        // Of the positions that go together, one row each: weights, and gradients of scores.
        let mut weights = [const { Vec::new() }; TOGETHER];
        let mut slopes = [const { Vec::new() }; TOGETHER];
        for head_in_group in 0..group {
            let head = kv_head * group + head_in_group;
            let q = sizes.head(self.q, heads, text, head);
            let context = sizes.head(self.context, heads, text, head);
            let gradient = sizes.head(self.gradient, heads, text, head);
            for first in (0..positions).step_by(TOGETHER) {
                let together = first..(first + TOGETHER).min(positions);
                for (position, (weights, slopes)) in
                    together.clone().zip(weights.iter_mut().zip(&mut slopes))
                {
                    let at = position * head_dim..(position + 1) * head_dim;
                    let of_context = &gradient[at.clone()];
                    sizes.weights(&q[at.clone()], &keys, weights, position + 1);
                    slopes.clear();
                    slopes.resize(position + 1, 0.0);
                    add_rows(slopes, of_context, &values, positions);
                    let mean = dot(of_context, &context[at]);
                    for (slope, weight) in slopes.iter_mut().zip(&*weights) {
                        *slope = (*slope - mean) * weight * scale;
                    }
                    let of_q =
                        &mut of_q[(position * group + head_in_group) * head_dim..][..head_dim];
                    add_rows(of_q, slopes, &k, head_dim);
                }
                for seen in 0..together.end {
                    let of = |rows: &[Vec<f32>; TOGETHER]| {
                        std::array::from_fn::<_, TOGETHER, _>(|i| {
                            let is_there = i < together.len() && seen <= first + i;
                            if is_there { rows[i][seen] } else { 0.0 }
                        })
                    };
                    let at = seen * head_dim..(seen + 1) * head_dim;
                    let used = together.len();
                    let rows = first * head_dim;
                    add_rows(
                        &mut of_k[at.clone()],
                        &of(&slopes)[..used],
                        &q[rows..],
                        head_dim,
                    );
                    add_rows(
                        &mut of_v[at],
                        &of(&weights)[..used],
                        &gradient[rows..],
                        head_dim,
                    );
                }
            }
        }
        [of_q, of_k, of_v]
    }
}
