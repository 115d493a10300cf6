//! Weights in fewer bits: products of every format beside f64 on the same values, and whole tails beside tails that
//! have the same values in bf16.

use std::path::Path;
use std::sync::Arc;

use headway_model::weights::Weights;
use headway_model::{BLOCK_POSITIONS, BlockId, KvTable, LayerRange, Quantization};

use super::host::{down, rounded, up};
use super::kernels::tolerance;
use super::{Check, Random, difference, tails};
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::operand::Rows;
use crate::packed::blocks::{self, BlockRows};
use crate::packed::kernels::PACKED_ROWS;
use crate::packed::{PackedValues, float8};
use crate::products::{Matrix, Outputs, Products};
use crate::step::{Input, Segment};
use crate::tail::{Tail, TailSizes};
use crate::weights::TailWeights;

/// Rows, outputs (half of them gates where gated), columns: those that fill no tile or no chunk among them.
const SIZES: [[usize; 3]; 12] = [
    [1, 128, 256],
    [1, 128, 64],
    [2, 16, 32],
    [7, 100, 96],
    [2, 4160, 4096],
    [9, 960, 576],
    [16, 1000, 2048],
    [31, 1100, 2048],
    [33, 300, 1536],
    [64, 300, 4096],
    [65, 300, 288],
    [200, 520, 1024],
];

/// `None`: e4m3.
const KINDS: [Option<Quantization>; 9] = [
    None,
    Some(Quantization::Q8_0),
    Some(Quantization::Q6K),
    Some(Quantization::Q5_1),
    Some(Quantization::Q5_0),
    Some(Quantization::Q5K),
    Some(Quantization::Q4_1),
    Some(Quantization::Q4_0),
    Some(Quantization::Q4K),
];

pub(super) fn all(
    gpu: &Arc<Gpu>,
    models: &Path,
    report: &mut impl FnMut(&Check),
) -> Result<(), CudaError> {
    if !gpu.is_hopper() {
        return Ok(());
    }
    for kind in KINDS {
        for sizes in SIZES {
            // More than one piece of widened weights: two formats are enough, as the others take the host long.
            let is_large = sizes[1] * sizes[2] > 1 << 23;
            if is_large && !matches!(kind, None | Some(Quantization::Q4_0)) {
                continue;
            }
            // By our kernels, where they take the rows, and on widened weights.
            for own_rows in [0, PACKED_ROWS] {
                report(&planes(gpu, kind, sizes, own_rows)?);
                report(&gated(gpu, kind, sizes, own_rows)?);
            }
        }
    }
    whole_tails(gpu, models, report)
}

fn name(kind: Option<Quantization>) -> &'static str {
    kind.map_or("fp8", Quantization::name)
}

/// Quantises random values.
fn pack(
    kind: Option<Quantization>,
    [outputs, columns]: [usize; 2],
    of: Outputs,
    random: &mut Random,
) -> PackedValues {
    let values = random.values(outputs * columns);
    let blocks = match kind {
        Some(kind) => kind.quantize(&values, columns),
        None => None,
    };
    match blocks {
        Some((quantization, blocks)) => {
            let rows = BlockRows {
                quantization,
                outputs,
                blocks,
            };
            blocks::pack(&[rows], columns, of)
        }
        None => float8::pack(&values, [outputs, columns], of),
    }
}

/// A product with quantised values, and what it is in f64.
struct Case {
    products: Products,
    matrix: Matrix,
    x: Rows,
    /// `[rows, outputs]`.
    expected: Vec<f64>,
}

impl Case {
    fn new(
        gpu: &Arc<Gpu>,
        kind: Option<Quantization>,
        [rows, outputs, columns]: [usize; 3],
        own_rows: usize,
        of: Outputs,
    ) -> Result<Self, CudaError> {
        let mut random = Random((rows * outputs + columns) as u64);
        let packed = pack(kind, [outputs, columns], of, &mut random);
        let mut products = Products::new(gpu, Dtype::Bf16)?;
        products.take_packed(gpu, columns)?;
        products.set_own_rows(own_rows);
        let x = rounded(&random.values(rows * columns), Dtype::Bf16);
        let memory = up(gpu, &x, Dtype::Bf16)?;
        let is_widened = rows > own_rows;
        let weights = packed.widened(is_widened);
        let mut expected = Vec::with_capacity(rows * outputs);
        for x in x.chunks_exact(columns) {
            for weights in weights.chunks_exact(columns) {
                let products = x.iter().zip(weights);
                expected.push(products.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum());
            }
        }
        Ok(Self {
            products,
            matrix: Matrix::packed(gpu, &packed)?,
            x: Rows::from_values(gpu, Dtype::Bf16, memory, columns)?,
            expected,
        })
    }
}

const fn by(rows: usize, own_rows: usize) -> &'static str {
    if rows > own_rows { "widened" } else { "own" }
}

/// Values with a minimum of their own may be rounded to bf16 otherwise than on the host: the kernels round where scale
/// and minimum are far apart. All others are the same.
const fn sum_tolerance(kind: Option<Quantization>) -> f64 {
    match kind {
        Some(Quantization::Q5_1 | Quantization::Q5K | Quantization::Q4_1 | Quantization::Q4K) => {
            3e-4
        }
        _ => tolerance(Dtype::F32),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the reference is f64")]
fn planes(
    gpu: &Arc<Gpu>,
    kind: Option<Quantization>,
    sizes: [usize; 3],
    own_rows: usize,
) -> Result<Check, CudaError> {
    let case = Case::new(gpu, kind, sizes, own_rows, Outputs::Plain)?;
    let [rows, outputs, columns] = sizes;
    let len = rows * outputs;
    let poison = vec![f32::NAN; len * case.matrix.most_planes()];
    let out = gpu.stream().clone_htod(&poison)?;
    let planes = case
        .products
        .planes(gpu, &case.matrix, &case.x, rows, &out)?;
    let all = gpu.stream().clone_dtoh(&out)?;
    let mut sums = vec![0.0; len];
    for plane in all.chunks_exact(len).take(planes.planes as usize) {
        sums.iter_mut()
            .zip(plane)
            .for_each(|(sum, value)| *sum += value);
    }
    let expected: Vec<f32> = case.expected.iter().map(|sum| *sum as f32).collect();
    Ok(Check {
        name: format!(
            "product {} {rows}×{columns}×{outputs} {}",
            name(kind),
            by(rows, own_rows)
        ),
        difference: difference(&sums, &expected),
        tolerance: sum_tolerance(kind),
        note: format!("{} planes", planes.planes),
    })
}

#[expect(clippy::cast_possible_truncation, reason = "the reference is f64")]
fn gated(
    gpu: &Arc<Gpu>,
    kind: Option<Quantization>,
    [rows, outputs, columns]: [usize; 3],
    own_rows: usize,
) -> Result<Check, CudaError> {
    let all = [rows, 2 * outputs, columns];
    let case = Case::new(gpu, kind, all, own_rows, Outputs::Gated)?;
    let poison = vec![f32::NAN; 2 * rows * outputs];
    let between = up(gpu, &poison, Dtype::Bf16)?;
    let out = up(gpu, &poison[..rows * outputs], Dtype::Bf16)?;
    let addresses = [gpu.address(&between), gpu.address(&out)];
    case.products
        .gated(gpu, &case.matrix, &case.x, rows, addresses)?;
    let mut expected = Vec::new();
    for row in case.expected.chunks_exact(2 * outputs) {
        let (gate, up) = row.split_at(outputs);
        let gated = gate.iter().zip(up);
        let gated = gated.map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up);
        expected.extend(gated.map(|value| value as f32));
    }
    Ok(Check {
        name: format!(
            "gated {} {rows}×{columns}×{outputs} {}",
            name(kind),
            by(rows, own_rows)
        ),
        difference: difference(&down(gpu, &out, Dtype::Bf16)?, &expected),
        // cuBLAS rounds gate and up before they are multiplied.
        tolerance: 2.0 * tolerance(Dtype::Bf16),
        note: String::new(),
    })
}

/// Rows of the steps of a whole tail, as far as the model has positions: chains of every size, and one step by cuBLAS.
const STEP_ROWS: [usize; 7] = [1, 90, 5, 16, 2, 30, 64];

/// Tails of the models, quantised when they are read: by the kernels for few bits, and the same values in bf16 by
/// those for bf16.
fn whole_tails(
    gpu: &Arc<Gpu>,
    models: &Path,
    report: &mut impl FnMut(&Check),
) -> Result<(), CudaError> {
    for path in tails::paths(models) {
        let weights = Weights::open(&path)?;
        let of = path
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        for kind in KINDS {
            let few = logits(gpu, &weights, kind, false)?;
            let bf16 = logits(gpu, &weights, kind, true)?;
            report(&Check {
                name: format!("tail {of} {}", name(kind)),
                difference: difference(&few, &bf16),
                // Values of e4m3 are rounded once more for bf16: as two tails of bf16 differ from f32. Those of blocks
                // are the same, and sums differ in their order.
                tolerance: if kind.is_none() { 1.5e-1 } else { 5e-2 },
                note: String::new(),
            });
        }
    }
    Ok(())
}

/// The logits of all rows of one session, in several steps.
fn logits(
    gpu: &Arc<Gpu>,
    weights: &Weights,
    kind: Option<Quantization>,
    is_widened: bool,
) -> Result<Vec<f32>, CudaError> {
    let tail = TailWeights::quantized(gpu, weights, kind, is_widened)?;
    let config = weights.config().clone();
    let layers = LayerRange::new(0, config.num_layers);
    let positions = config.max_positions.min(STEP_ROWS.iter().sum());
    let columns = positions.div_ceil(BLOCK_POSITIONS);
    let sizes = TailSizes::new(positions, columns * layers.len());
    let mut tail = Tail::new(tail, sizes)?;
    let mut blocks = (0..).map(BlockId);
    let mut table = KvTable::new(layers);
    for _ in 0..columns {
        let column: Vec<BlockId> = blocks.by_ref().take(layers.len()).collect();
        table.push_column(&column);
    }
    let mut random = Random(5);
    let mut all = Vec::new();
    for rows in STEP_ROWS {
        if table.len() + rows > positions {
            continue;
        }
        let ids = (0..rows).map(|_| random.below(config.vocab_size));
        let token_ids: Vec<u32> = ids.map(|id| u32::try_from(id).unwrap_or(0)).collect();
        let wanted: Vec<u32> = (0..).take(rows).collect();
        let segment = Segment {
            entry_layer: 0,
            rows,
            input: Input::TokenIds(&token_ids),
            table: &table,
        };
        tail.start(&[segment], &wanted)?;
        all.extend_from_slice(tail.logits(0..rows)?);
        tail.finish()?;
        table.advance(rows);
    }
    Ok(all)
}
