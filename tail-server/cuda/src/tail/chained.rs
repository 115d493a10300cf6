//! The layers of a step of few rows, as chains.

use cudarc::driver::CudaSlice;

use super::{Tail, small};
use crate::chain::{Link, LinkNorm, LinkRows, Shared};
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::graphs::GraphKey;
use crate::kernels::Planes;
use crate::products::Matrix;

impl Tail {
    /// The layers, with all products between two attentions as one kernel.
    pub(super) fn run_chains(&self, gpu: &Gpu, key: GraphKey) -> Result<(), CudaError> {
        let Some(chains) = &self.chains else {
            return Ok(());
        };
        let rows = key.rows;
        self.assemble(gpu, rows)?;
        let (buffers, config) = (&self.buffers, &self.weights.config);
        let shared = Shared {
            buffers,
            config,
            before: self.last,
            rows,
            step: self.step.address(gpu),
            stamps: self.stamps.address(gpu),
        };
        let start = self.weights.layers.start;
        let blocks = &self.weights.blocks;
        let link = |layer, matrix, x, out| Link {
            matrix,
            x,
            norm: None,
            out,
            layer,
        };
        let first = |index: usize| Link {
            norm: Some(LinkNorm {
                weight: &blocks[index].attention_norm,
                rows: LinkRows::BeforeLayer,
            }),
            ..link(
                index,
                &blocks[index].qkv,
                &buffers.normed,
                gpu.address(&buffers.qkv),
            )
        };
        let rope = |index: usize| {
            let qkv = self.planes(gpu, &buffers.qkv, &blocks[index].qkv, rows);
            let rope_kv = self.rope_kv(gpu, index, qkv);
            let layer = small(start + index);
            let attention = &self.kernels.attention;
            attention.rope_args(&rope_kv, self.step.address(gpu), layer)
        };
        let first_index = key.first_layer - start;
        if first_index < blocks.len() {
            chains.start(
                gpu,
                0,
                &[first(first_index)],
                Some(rope(first_index)),
                &shared,
            )?;
        }
        let onto_x = gpu.address(&buffers.product);
        for (index, weights) in blocks.iter().enumerate().skip(first_index) {
            self.attend(gpu, index)?;
            let gated = buffers.gated.address(gpu);
            let mut links = vec![
                link(index, &weights.output, &buffers.context, onto_x),
                Link {
                    norm: Some(LinkNorm {
                        weight: &weights.mlp_norm,
                        rows: LinkRows::WithinLayer,
                    }),
                    ..link(index, &weights.gate_up, &buffers.normed, gated)
                },
                link(index, &weights.down, &buffers.gated, onto_x),
            ];
            let mut next_rope = None;
            if index + 1 < blocks.len() {
                links.push(first(index + 1));
                next_rope = Some(rope(index + 1));
            } else if let Some(end) = &self.weights.end
                && key.has_wanted
            {
                let weight = &end.output_norm;
                let logits = gpu.address(&buffers.logits);
                links.push(Link {
                    norm: Some(LinkNorm {
                        weight,
                        rows: LinkRows::Wanted,
                    }),
                    ..link(index + 1, &end.lm_head, &buffers.normed, logits)
                });
            }
            chains.start(gpu, index + 1, &links, next_rope, &shared)?;
        }
        match blocks.last() {
            Some(last) if self.weights.end.is_none() => {
                let product = self.planes(gpu, &buffers.product, &last.down, rows);
                self.add_product(gpu, product, rows)
            }
            _ => Ok(()),
        }
    }

    /// A product's planes in `memory`, as a chain of `rows` rows leaves them.
    pub(super) fn planes(
        &self,
        gpu: &Gpu,
        memory: &CudaSlice<f32>,
        matrix: &Matrix,
        rows: usize,
    ) -> Planes {
        Planes {
            address: gpu.address(memory),
            planes: matrix.splits(),
            stride: (rows * matrix.outputs()) as u64,
        }
    }
}
