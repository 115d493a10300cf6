//! How long products take, by our kernels and by cuBLAS: one after the other as in a step, each with another matrix,
//! so that none is found in a cache.

use std::sync::Arc;

use cudarc::driver::CudaSlice;
use cudarc::driver::sys::CUevent_flags;

use super::timing::float;
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::kernels::{Heads, Kernels};
use crate::operand::Rows;
use crate::packed::kernels::PACKED_ROWS;
use crate::packed::{Format, PackedValues};
use crate::products::{Matrix, OWN_ROWS, Outputs, Products};

/// Of a Llama-3.1-8B: q, k and v; attention's output; gate and up; down; lm_head.
const SHAPES: [(&str, [usize; 2], Outputs); 5] = [
    ("qkv", [6144, 4096], Outputs::Plain),
    ("output", [4096, 4096], Outputs::Plain),
    ("gate_up", [28_672, 4096], Outputs::Gated),
    ("down", [4096, 14_336], Outputs::Plain),
    ("lm_head", [128_256, 4096], Outputs::Plain),
];
const ROWS: [usize; 9] = [1, 8, 16, 32, 64, 128, 256, 512, 2048];
const FEW_BITS_ROWS: [usize; 6] = [1, 8, 16, 32, 64, 256];
/// Bytes of matrices that take turns.
const MATRIX_BYTES: usize = 600 << 20;
const PRODUCTS: usize = 60;

/// Shows a line for each shape and number of rows to `report`.
///
/// # Errors
/// [`CudaError`] where the device fails or has too little memory: about 3 GB.
pub fn all(gpu: &Arc<Gpu>, report: &mut impl FnMut(&str)) -> Result<(), CudaError> {
    for (name, shape, kind) in SHAPES {
        let matrices = matrices(gpu, shape, kind)?;
        let most_rows = ROWS.into_iter().max().unwrap_or(1);
        let x = Rows::new(gpu, Dtype::Bf16, most_rows, shape[1])?;
        fill(gpu, x.address(gpu), most_rows * shape[1], 7)?;
        let planes = matrices[0].most_planes();
        let out = gpu.zeros::<f32>(shape[0] * most_rows.max(planes * OWN_ROWS))?;
        for rows in ROWS {
            let mut times_us = Vec::new();
            for own_rows in [0, OWN_ROWS] {
                if rows > OWN_ROWS && own_rows > 0 {
                    continue;
                }
                let mut products = Products::new(gpu, Dtype::Bf16)?;
                products.set_own_rows(own_rows);
                times_us.push(time_us(gpu, || {
                    run(gpu, (&products, &matrices, &x), rows, &out)
                })?);
            }
            report(&line(name, rows, shape, &times_us));
        }
        if gpu.is_hopper() {
            for format in Format::ALL {
                few_bits(gpu, (name, shape, kind), (format, &x), report)?;
            }
        }
    }
    Ok(())
}

/// The same with weights in fewer bits, by our kernels and on widened weights.
fn few_bits(
    gpu: &Arc<Gpu>,
    (name, shape, kind): (&str, [usize; 2], Outputs),
    (format, x): (Format, &Rows),
    report: &mut impl FnMut(&str),
) -> Result<(), CudaError> {
    let values = PackedValues::repeated(format, shape, kind);
    let one = Matrix::packed(gpu, &values)?;
    let bytes = one.bytes();
    let mut matrices = vec![one];
    for _ in 1..(MATRIX_BYTES / bytes).max(2) {
        matrices.push(Matrix::packed(gpu, &values)?);
    }
    let most_rows = FEW_BITS_ROWS.into_iter().max().unwrap_or(1);
    let planes = matrices[0].most_planes();
    let out = gpu.zeros::<f32>(shape[0] * most_rows.max(planes * PACKED_ROWS))?;
    for rows in FEW_BITS_ROWS {
        let mut line = format!("{name:<8} {rows:>4} rows {:<8}", format.name());
        for (by, own_rows) in [("widened", 0), ("own", PACKED_ROWS)] {
            if rows > PACKED_ROWS && own_rows > 0 {
                continue;
            }
            let mut products = Products::new(gpu, Dtype::Bf16)?;
            products.take_packed(gpu, shape[1])?;
            products.set_own_rows(own_rows);
            let us = time_us(gpu, || run(gpu, (&products, &matrices, x), rows, &out))?;
            let gb = float(bytes) / us / 1e3;
            line += &format!("   {by} {us:8.1} us {gb:6.0} GB/s");
        }
        report(&line);
    }
    Ok(())
}

/// [`PRODUCTS`] products, each with the next matrix.
fn run(
    gpu: &Gpu,
    (products, matrices, x): (&Products, &[Matrix], &Rows),
    rows: usize,
    out: &CudaSlice<f32>,
) -> Result<(), CudaError> {
    let mut next = matrices.iter().cycle();
    for matrix in next.by_ref().take(PRODUCTS) {
        match matrix.kind() {
            Outputs::Plain => {
                products.planes(gpu, matrix, x, rows, out)?;
            }
            Outputs::Gated => {
                let at = gpu.address(out);
                let behind = at + (rows * matrix.outputs() * 2) as u64;
                products.gated(gpu, matrix, x, rows, [at, behind])?;
            }
        }
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn line(name: &str, rows: usize, [outputs, columns]: [usize; 2], times_us: &[f64]) -> String {
    let bytes = (outputs * columns * 2) as f64;
    let operations = 2.0 * bytes / 2.0 * rows as f64;
    let mut line = format!("{name:<8} {rows:>4} rows");
    for (by, us) in ["cuBLAS", "own"].iter().zip(times_us) {
        let (gb, tera) = (bytes / us / 1e3, operations / us / 1e6);
        line += &format!("   {by} {us:8.1} us {gb:6.0} GB/s {tera:6.1} TFLOP/s");
    }
    line
}

fn matrices(
    gpu: &Arc<Gpu>,
    [outputs, columns]: [usize; 2],
    kind: Outputs,
) -> Result<Vec<Matrix>, CudaError> {
    let bytes = outputs * columns * 2;
    let matrix = |index: usize| {
        let memory = gpu.zeros::<u8>(bytes)?;
        let seed = u32::try_from(index).unwrap_or(0);
        fill(gpu, gpu.address(&memory), outputs * columns, seed)?;
        Matrix::new(gpu, Dtype::Bf16, Arc::new(memory), [outputs, columns], kind)
    };
    (0..(MATRIX_BYTES / bytes).max(2)).map(matrix).collect()
}

fn fill(gpu: &Arc<Gpu>, address: u64, count: usize, seed: u32) -> Result<(), CudaError> {
    let heads = Heads {
        attention: 1,
        kv: 1,
        dim: 8,
        interleaved: false,
        eps: 1e-5,
    };
    let kernels = Kernels::new(gpu, Dtype::Bf16, heads)?;
    kernels.fill_random(gpu, address, count, 0.02, seed)
}

/// Of one product of those that `run` starts; the median of some runs, after one that is not measured.
fn time_us(gpu: &Gpu, mut run: impl FnMut() -> Result<(), CudaError>) -> Result<f64, CudaError> {
    let event = || {
        gpu.context()
            .new_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
    };
    let (start, end) = (event()?, event()?);
    run()?;
    let mut times = Vec::new();
    for _ in 0..5 {
        start.record(gpu.stream())?;
        run()?;
        end.record(gpu.stream())?;
        times.push(f64::from(start.elapsed_ms(&end)?) * 1e3 / 60.0);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
