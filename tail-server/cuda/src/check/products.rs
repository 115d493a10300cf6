//! Products, by our kernels and by cuBLAS, on sizes that fill no tile.

use std::sync::Arc;

use super::host::{down, rounded, up};
use super::kernels::tolerance;
use super::{Check, Random, difference};
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::operand::Rows;
use crate::products::{Matrix, OWN_ROWS, Outputs, Products};

pub(super) fn all(gpu: &Arc<Gpu>, report: &mut impl FnMut(&Check)) -> Result<(), CudaError> {
    for dtype in Dtype::ALL {
        for own_rows in [0, OWN_ROWS] {
            for [rows, outputs, columns] in [
                [1, 8, 8],
                [3, 100, 96],
                [7, 1000, 72],
                [8, 4096, 4096],
                [9, 960, 576],
                [31, 6144, 2048],
                [64, 960, 576],
                [100, 400, 1536],
                [200, 129, 40],
                [256, 512, 1024],
            ] {
                let sizes = [rows, outputs, columns];
                report(&planes(gpu, dtype, sizes, own_rows)?);
                report(&gated(gpu, dtype, sizes, own_rows)?);
            }
        }
    }
    Ok(())
}

/// Products with a random matrix, and what they are in f64.
struct Case {
    dtype: Dtype,
    products: Products,
    matrix: Matrix,
    x: Rows,
    /// `[rows, outputs]`.
    expected: Vec<f64>,
}

impl Case {
    fn new(
        gpu: &Arc<Gpu>,
        dtype: Dtype,
        [rows, outputs, columns]: [usize; 3],
        own_rows: usize,
        kind: Outputs,
    ) -> Result<Self, CudaError> {
        let mut random = Random((rows * outputs + columns) as u64);
        let mut products = Products::new(gpu, dtype)?;
        products.set_own_rows(own_rows);
        let x = rounded(&random.values(rows * columns), dtype);
        let weights = rounded(&random.values(outputs * columns), dtype);
        let memory = Arc::new(up(gpu, &weights, dtype)?);
        let matrix = Matrix::new(gpu, dtype, memory, [outputs, columns], kind)?;
        let operand = Rows::from_values(gpu, dtype, up(gpu, &x, dtype)?, columns)?;
        let mut expected = Vec::with_capacity(rows * outputs);
        for x in x.chunks_exact(columns) {
            for weights in weights.chunks_exact(columns) {
                let products = x.iter().zip(weights);
                expected.push(products.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum());
            }
        }
        Ok(Self {
            dtype,
            products,
            matrix,
            x: operand,
            expected,
        })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the reference is f64")]
fn planes(
    gpu: &Arc<Gpu>,
    dtype: Dtype,
    sizes: [usize; 3],
    own_rows: usize,
) -> Result<Check, CudaError> {
    let case = Case::new(gpu, dtype, sizes, own_rows, Outputs::Plain)?;
    let [rows, outputs, columns] = sizes;
    let len = rows * outputs;
    let out = gpu
        .stream()
        .clone_htod(&vec![f32::NAN; len * case.matrix.most_planes()])?;
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
            dtype.name(),
            by(own_rows)
        ),
        difference: difference(&sums, &expected),
        tolerance: tolerance(Dtype::F32),
        note: format!("{} planes", planes.planes),
    })
}

#[expect(clippy::cast_possible_truncation, reason = "the reference is f64")]
fn gated(
    gpu: &Arc<Gpu>,
    dtype: Dtype,
    [rows, outputs, columns]: [usize; 3],
    own_rows: usize,
) -> Result<Check, CudaError> {
    let case = Case::new(
        gpu,
        dtype,
        [rows, 2 * outputs, columns],
        own_rows,
        Outputs::Gated,
    )?;
    let poison = vec![f32::NAN; 2 * rows * outputs];
    let between = up(gpu, &poison, dtype)?;
    let out = up(gpu, &poison[..rows * outputs], dtype)?;
    let addresses = [gpu.address(&between), gpu.address(&out)];
    case.products
        .gated(gpu, &case.matrix, &case.x, rows, addresses)?;
    let mut expected = Vec::new();
    for row in case.expected.chunks_exact(2 * outputs) {
        let (gate, up) = row.split_at(outputs);
        let gated = gate
            .iter()
            .zip(up)
            .map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up);
        expected.extend(gated.map(|value| value as f32));
    }
    Ok(Check {
        name: format!(
            "gated {} {rows}×{columns}×{outputs} {}",
            dtype.name(),
            by(own_rows)
        ),
        difference: difference(&down(gpu, &out, dtype)?, &expected),
        // cuBLAS rounds gate and up before they are multiplied.
        tolerance: 2.0 * tolerance(case.dtype),
        note: String::new(),
    })
}

const fn by(own_rows: usize) -> &'static str {
    if own_rows == 0 { "cuBLAS" } else { "own" }
}
