//! The layers of a step of few rows, as chains.

use cudarc::driver::CudaSlice;

use super::{Tail, small};
use crate::attention::RopeArgs;
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
        let blocks = &self.weights.blocks;
        let rope = |index: usize| self.rope_of_chain(gpu, index, rows);
        let first_index = key.first_layer - self.weights.layers.start;
        if first_index < blocks.len() {
            let links = [self.link_to(gpu, first_index)];
            chains.start(gpu, 0, &links, Some(rope(first_index)), &shared)?;
        }
        for index in first_index..blocks.len() {
            self.attend(gpu, index)?;
            let mut links = self.links_within(gpu, index);
            let mut next_rope = None;
            if index + 1 < blocks.len() {
                links.push(self.link_to(gpu, index + 1));
                next_rope = Some(rope(index + 1));
            } else if key.has_wanted {
                links.extend(self.link_to_logits(gpu));
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

    /// The norm in front of a layer, and its q, k and v.
    fn link_to(&self, gpu: &Gpu, index: usize) -> Link<'_> {
        let weights = &self.weights.blocks[index];
        Link {
            matrix: &weights.qkv,
            x: &self.buffers.normed,
            norm: Some(LinkNorm {
                weight: &weights.attention_norm,
                rows: LinkRows::BeforeLayer,
            }),
            out: gpu.address(&self.buffers.qkv),
            layer: index,
        }
    }

    /// From attention to the end of a layer.
    fn links_within(&self, gpu: &Gpu, index: usize) -> Vec<Link<'_>> {
        let (weights, buffers) = (&self.weights.blocks[index], &self.buffers);
        let output = Link {
            matrix: &weights.output,
            x: &buffers.context,
            norm: None,
            out: gpu.address(&buffers.product),
            layer: index,
        };
        let norm = LinkNorm {
            weight: &weights.mlp_norm,
            rows: LinkRows::WithinLayer,
        };
        let gated = buffers.gated.address(gpu);
        vec![
            output,
            Link {
                matrix: &weights.gate_up,
                x: &buffers.normed,
                norm: Some(norm),
                out: gated,
                layer: index,
            },
            Link {
                matrix: &weights.down,
                x: &buffers.gated,
                ..output
            },
        ]
    }

    /// The final norm and the lm_head, where they are here.
    fn link_to_logits(&self, gpu: &Gpu) -> Option<Link<'_>> {
        let end = self.weights.end.as_ref()?;
        Some(Link {
            matrix: &end.lm_head,
            x: &self.buffers.normed,
            norm: Some(LinkNorm {
                weight: &end.output_norm,
                rows: LinkRows::Wanted,
            }),
            out: gpu.address(&self.buffers.logits),
            layer: self.weights.blocks.len(),
        })
    }

    /// What a chain of `rows` rows does to the q, k and v of a layer.
    fn rope_of_chain(&self, gpu: &Gpu, index: usize, rows: usize) -> RopeArgs {
        let qkv = self.planes(
            gpu,
            &self.buffers.qkv,
            &self.weights.blocks[index].qkv,
            rows,
        );
        let rope_kv = self.rope_kv(gpu, index, qkv);
        let layer = small(self.weights.layers.start + index);
        let attention = &self.kernels.attention;
        attention.rope_args(&rope_kv, self.step.address(gpu), layer)
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
