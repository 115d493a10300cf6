//! The products between one attention and the next as one kernel: `kernels/chain.cuh`.

use cudarc::driver::{CudaFunction, CudaSlice};
use headway_model::ModelConfig;

use crate::attention::RopeArgs;
use crate::buffers::Buffers;
use crate::calls::{Arg, Launch, TensorMap, allow_shared, launch};
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::kernels::Planes;
use crate::operand::Rows;
use crate::packed::kernels::{PACKED_KERNELS, packed_shared_bytes};
use crate::products::{Matrix, Outputs};

/// Rows of each kernel, the stages of its rings of weights and of x, as in `kernels/chain.cu`.
const KERNELS: [[u32; 3]; 4] = [[8, 12, 12], [16, 12, 8], [32, 11, 8], [64, 11, 5]];
/// As in `kernels/chain.cuh`.
const PRODUCTS: usize = 4;
const THREADS: u32 = 320;
/// Counters of a chain: two for each product.
const COUNTERS: usize = 2 * PRODUCTS;
const STAGE_BYTES: u32 = 128 * 128;

/// The kernels, and the counters by which their thread blocks wait for each other.
pub(crate) struct Chains {
    /// For weights of two bytes alone, or for those in fewer bits too.
    kernels: Vec<CudaFunction>,
    /// Dynamic shared memory of each.
    shared_bytes: Vec<u32>,
    /// Chunks of weights for which each has room.
    stages: Vec<u32>,
    /// Of a step: of each layer, and of the one before the first.
    counters: CudaSlice<u32>,
    /// Copies of weights that a thread block waits for at a time.
    in_flight: u32,
}

/// A product of a chain.
#[derive(Clone, Copy)]
pub(crate) struct Link<'a> {
    pub(crate) matrix: &'a Matrix,
    pub(crate) x: &'a Rows,
    /// The norm in front of it.
    pub(crate) norm: Option<LinkNorm<'a>>,
    /// Planes, or rows of the weights' type for gated outputs.
    pub(crate) out: u64,
    /// Whose rows are computed, counted from the tail's first one.
    pub(crate) layer: usize,
}

/// A norm of the residual stream, after the last product is added to it.
#[derive(Clone, Copy)]
pub(crate) struct LinkNorm<'a> {
    pub(crate) weight: &'a CudaSlice<f32>,
    pub(crate) rows: LinkRows,
}

/// Which rows a norm reads; the order is that of the kernels.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LinkRows {
    /// At which some may join.
    BeforeLayer,
    WithinLayer,
    /// Of which logits are wanted.
    Wanted,
}

/// What all links of a chain share.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    pub(crate) buffers: &'a Buffers,
    pub(crate) config: &'a ModelConfig,
    /// Added to the residual stream by the first norm where no product of the chain is before it.
    pub(crate) before: Planes,
    pub(crate) rows: usize,
    pub(crate) step: u64,
    pub(crate) stamps: u64,
}

/// As in `kernels/chain.cuh`.
#[repr(C)]
pub(crate) struct ChainArgs {
    weights: [TensorMap; PRODUCTS],
    x: [TensorMap; PRODUCTS],
    products: [ProductArgs; PRODUCTS],
    count: u32,
    rows: u32,
    hidden_size: u32,
    eps: f32,
    residual: u64,
    planes: u64,
    plane_count: u32,
    in_flight: u32,
    normed: u64,
    step: u64,
    stamps: u64,
    counters: u64,
    rope: RopeArgs,
    has_rope: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ProductArgs {
    norm_weight: u64,
    norm_rows: u32,
    out: u64,
    outputs: u32,
    chunks: u32,
    splits: u32,
    gated: u32,
    layer: u32,
    shift: u32,
    format: u32,
    packed: u64,
    row_scales: u64,
}

impl Chains {
    /// Where the device and the weights, those of all `layers` layers and the lm_head, are such that there are kernels.
    pub(crate) fn new<'a>(
        gpu: &Gpu,
        dtype: Dtype,
        layers: usize,
        matrices: impl Iterator<Item = &'a Matrix> + Clone,
        in_flight: u32,
    ) -> Result<Option<Self>, CudaError> {
        if !gpu.is_hopper() || dtype.bytes() != 2 || !matrices.clone().all(Matrix::has_kernels) {
            return Ok(None);
        }
        let is_packed = matrices
            .map(Matrix::in_fewer_bits)
            .any(|packed| packed.is_some());
        let (name, sizes, shared_bytes) = if is_packed {
            let bytes = PACKED_KERNELS.map(packed_shared_bytes);
            ("packed_chain".to_owned(), PACKED_KERNELS, bytes)
        } else {
            let bytes = KERNELS.map(shared_bytes);
            (format!("chain_{}", dtype.name()), KERNELS, bytes)
        };
        let stages = sizes.map(|[_, weight_stages, _]| weight_stages);
        let kernels = KERNELS.iter().zip(shared_bytes).map(|(sizes, bytes)| {
            let kernel = gpu.function(&format!("{name}_{}", sizes[0]))?;
            allow_shared(&kernel, bytes)?;
            Ok(kernel)
        });
        Ok(Some(Self {
            kernels: kernels.collect::<Result<_, CudaError>>()?,
            shared_bytes: shared_bytes.into(),
            counters: gpu.zeros((layers + 1) * COUNTERS)?,
            stages: stages.into(),
            in_flight,
        }))
    }

    /// The most rows of a step that goes this way.
    pub(crate) const fn most_rows() -> usize {
        KERNELS[KERNELS.len() - 1][0] as usize
    }

    /// Rows of the kernel that takes so many.
    pub(crate) fn kernel_rows(rows: usize) -> usize {
        KERNELS[kernel(rows)][0] as usize
    }

    /// To be called once a step, before its chains.
    pub(crate) fn begin(&mut self, gpu: &Gpu) -> Result<(), CudaError> {
        Ok(gpu.stream().memset_zeros(&mut self.counters)?)
    }

    /// Starts chain `index` of the step. `rope`: what is done to the last product, where it is that of q, k and v.
    pub(crate) fn start(
        &self,
        gpu: &Gpu,
        index: usize,
        links: &[Link<'_>],
        rope: Option<RopeArgs>,
        shared: &Shared<'_>,
    ) -> Result<(), CudaError> {
        let kernel = kernel(shared.rows);
        let blocks = gpu.multiprocessors();
        let [first, ..] = links else { return Ok(()) };
        let x = |link: &Link<'_>| {
            *link
                .x
                .map(kernel)
                .expect("rows are mapped where matrices are")
        };
        // Of weights in fewer bits no map is read: any will do.
        let map = |link: &Link<'_>| link.matrix.map().copied().unwrap_or_else(|| x(link));
        let mut args = ChainArgs {
            weights: [map(first); PRODUCTS],
            x: [x(first); PRODUCTS],
            products: [ProductArgs::default(); PRODUCTS],
            count: small(links.len()),
            rows: small(shared.rows),
            hidden_size: small(shared.config.hidden_size),
            eps: shared.config.rms_norm_eps,
            residual: gpu.address(&shared.buffers.x),
            planes: shared.before.address,
            plane_count: shared.before.planes,
            // A copy that is older than the ring cannot be waited for any more.
            in_flight: self.in_flight.min(self.stages[kernel]),
            normed: shared.buffers.normed.address(gpu),
            step: shared.step,
            stamps: shared.stamps,
            counters: gpu.address(&self.counters) + 4 * (index * COUNTERS) as u64,
            rope: rope.unwrap_or_default(),
            has_rope: u32::from(rope.is_some()),
        };
        // The blocks that have least to do with a product are the first ones of the next.
        let mut begun = 0;
        for (at, link) in links.iter().enumerate() {
            args.weights[at] = map(link);
            args.x[at] = x(link);
            args.products[at] = link.args(gpu, (blocks - begun) % blocks);
            begun = (begun + link.matrix.items()) % blocks;
        }
        let launched = Launch {
            grid: [blocks, 1],
            threads: THREADS,
            shared_bytes: self.shared_bytes[kernel],
        };
        launch(gpu, &self.kernels[kernel], launched, &[Arg::Chain(&args)])
    }
}

impl Link<'_> {
    fn args(&self, gpu: &Gpu, shift: u32) -> ProductArgs {
        let gated = self.matrix.kind() == Outputs::Gated;
        let packed = self.matrix.in_fewer_bits();
        ProductArgs {
            norm_weight: self.norm.map_or(0, |norm| gpu.address(norm.weight)),
            norm_rows: self.norm.map_or(0, |norm| norm.rows as u32),
            out: self.out,
            outputs: small(self.matrix.outputs()) / if gated { 2 } else { 1 },
            chunks: self.matrix.chunks(),
            splits: self.matrix.splits(),
            gated: u32::from(gated),
            layer: small(self.layer),
            shift,
            format: packed.map_or(0, |packed| packed.format.number()),
            packed: packed.map_or(0, |packed| gpu.address(&packed.chunks)),
            row_scales: packed.map_or(0, |packed| gpu.address(&packed.row_scales)),
        }
    }
}

/// The smallest that takes so many rows.
fn kernel(rows: usize) -> usize {
    let fits = KERNELS.iter().position(|[most, ..]| *most as usize >= rows);
    fits.expect("the caller has seen to the number of rows")
}

const fn shared_bytes([rows, weight_stages, x_stages]: [u32; 3]) -> u32 {
    weight_stages * STAGE_BYTES + x_stages * rows * 128 + 1024
}

fn small(size: usize) -> u32 {
    u32::try_from(size).expect("sizes are bounded by ModelConfig and the step")
}
