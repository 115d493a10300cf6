//! What must hold on a device: every kernel against plain arithmetic on the host, the whole tail against the model
//! crate's decoder, and how long a step takes. `cuda-check` prints it; the crate's tests run the same.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::error::CudaError;
use crate::gpu::Gpu;

mod alone;
mod attention;
pub mod attention_time;
mod golden;
mod host;
pub(crate) mod kernels;
pub mod product_time;
mod products;
mod quantised;
pub mod report;
mod sampling;
pub mod sampling_time;
mod stages;
mod tails;
pub mod timing;

/// One comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// What was compared.
    pub name: String,
    /// The largest difference from what was expected, over the largest expected value; infinite for what is not
    /// a number.
    pub difference: f64,
    /// The most that is allowed.
    pub tolerance: f64,
    /// More to say, such as how many tokens were equal.
    pub note: String,
}

impl Check {
    /// True where the difference is allowed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.difference <= self.tolerance
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passed() { "ok    " } else { "FAILED" };
        let Self {
            name,
            difference,
            tolerance,
            note,
            ..
        } = self;
        write!(
            f,
            "{verdict} {name:<56} {difference:9.2e} of {tolerance:7.1e}  {note}"
        )
    }
}

/// Checks everything, and shows each result to `report` when it is there. `models`: a folder of models, each a
/// `.gguf` file or a folder, or such a model itself; those of f32 are compared most tightly.
///
/// # Errors
/// [`CudaError`] where the device fails or a model cannot be read.
pub fn all(
    gpu: &Arc<Gpu>,
    models: &Path,
    report: &mut impl FnMut(&Check),
) -> Result<(), CudaError> {
    kernels::all(gpu, report)?;
    products::all(gpu, report)?;
    sampling::all(gpu, report)?;
    attention::all(gpu, report)?;
    quantised(gpu, models, report)?;
    whole_tails(gpu, models, report)?;
    stages::all(gpu, models, report)
}

/// Checks weights in fewer bits alone.
///
/// # Errors
/// [`CudaError`] where the device fails or a model cannot be read.
pub fn quantised(
    gpu: &Arc<Gpu>,
    models: &Path,
    report: &mut impl FnMut(&Check),
) -> Result<(), CudaError> {
    quantised::all(gpu, models, report)
}

/// Checks attention, and what stands before it, alone.
///
/// # Errors
/// [`CudaError`] where the device fails.
pub fn attention(gpu: &Arc<Gpu>, report: &mut impl FnMut(&Check)) -> Result<(), CudaError> {
    kernels::ropes(gpu, report)?;
    attention::all(gpu, report)
}

/// Checks whole tails alone.
///
/// # Errors
/// [`CudaError`] where the device fails.
pub fn whole_tails(
    gpu: &Arc<Gpu>,
    models: &Path,
    report: &mut impl FnMut(&Check),
) -> Result<(), CudaError> {
    if gpu.is_hopper() {
        alone::all(gpu, report)?;
    }
    tails::all(gpu, models, report)
}

/// Compares SmolLM2-135M-Instruct, `model`, with the data in the folder `golden`: logits, tokens and perplexity.
///
/// # Errors
/// [`CudaError`] where the device fails or a file cannot be read.
pub fn golden(
    gpu: &Arc<Gpu>,
    model: &Path,
    golden: &Path,
    report: &mut impl FnMut(&Check),
) -> Result<(), CudaError> {
    golden::all(gpu, [model, golden], report)
}

/// Checks models in stages alone; on two GPUs too, where there is one behind `gpu`'s number.
///
/// # Errors
/// [`CudaError`] where a device fails.
pub fn stages(
    gpu: &Arc<Gpu>,
    models: &Path,
    report: &mut impl FnMut(&Check),
) -> Result<(), CudaError> {
    stages::all(gpu, models, report)
}

/// Checks what is found out about logits, as [`all`] does.
///
/// # Errors
/// [`CudaError`] where the device fails.
pub fn sampling(gpu: &Arc<Gpu>, report: &mut impl FnMut(&Check)) -> Result<(), CudaError> {
    sampling::all(gpu, report)
}

/// The largest difference over the largest expected value.
fn difference(got: &[f32], expected: &[f32]) -> f64 {
    if got.len() != expected.len() {
        return f64::INFINITY;
    }
    let largest = expected
        .iter()
        .fold(0_f64, |most, value| most.max(f64::from(value.abs())));
    let mut difference = 0_f64;
    for (got, expected) in got.iter().zip(expected) {
        let apart = (f64::from(*got) - f64::from(*expected)).abs();
        if !apart.is_finite() {
            return f64::INFINITY;
        }
        difference = difference.max(apart);
    }
    difference / largest.max(f64::MIN_POSITIVE)
}

/// Pseudo-random numbers (SplitMix64), the same in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `end`.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the remainder is below a usize"
    )]
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// From `start` to `end`, both among them.
    pub(crate) fn between(&mut self, start: usize, end: usize) -> usize {
        start + self.below(end - start + 1)
    }

    /// In `[-1, 1)`.
    #[expect(clippy::cast_precision_loss, reason = "24 bits are exact")]
    fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / 8_388_608.0 - 1.0
    }

    fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value()).collect()
    }

    /// `0..len` in another order.
    fn permutation(&mut self, len: usize) -> Vec<u32> {
        let mut items: Vec<u32> = (0..).take(len).collect();
        for index in (1..len).rev() {
            items.swap(index, self.below(index + 1));
        }
        items
    }
}
