//! How long it takes to find out about rows of logits, beside a vocabulary of 128,256.

use std::fmt;
use std::time::Instant;

use cudarc::driver::sys::CUevent_flags;
use headway_model::sampler::{Adjustment, SummaryNeeds};

use super::Random;
use crate::buffers::LOGITS_ROWS;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::sampling::{RowPlan, Sampling, SummaryPlan};

const VOCAB_SIZE: usize = 128_256;
const WARM_UPS: usize = 5;
const MEASURED: usize = 60;
/// Adjustments of a row with a long history.
const HISTORY: usize = 200;

/// Medians for one kind of plan.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingTiming {
    /// What the rows want.
    pub name: String,
    /// How many there are.
    pub rows: usize,
    /// The kernels, in microseconds; the logits are in the device's cache as far as they fit.
    pub device_us: f64,
    /// From the plan to the results on the host, in microseconds.
    pub wall_us: f64,
}

impl fmt::Display for SamplingTiming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            rows,
            device_us,
            wall_us,
        } = self;
        write!(
            f,
            "{name:<40} {rows:>4} rows   device {device_us:8.1} us   wall {wall_us:8.1} us"
        )
    }
}

/// Measures 1, 8, 64 and as many rows as there is memory for, and shows each to `report`.
///
/// # Errors
/// [`CudaError`] where the device fails.
pub fn all(gpu: &Gpu, report: &mut impl FnMut(&SamplingTiming)) -> Result<(), CudaError> {
    let mut random = Random(3);
    let few: Vec<f32> = (0..8 * VOCAB_SIZE)
        .map(|_| 3.0 * (0..6).map(|_| random.value()).sum::<f32>())
        .collect();
    let logits = gpu.stream().clone_htod(&few.repeat(LOGITS_ROWS / 8))?;
    let mut sampling = Sampling::new(gpu, VOCAB_SIZE)?;
    for (name, temperature, log_total, history) in [
        ("largest", 0.0, false, 0),
        ("largest, log-probability", 0.0, true, 0),
        ("weights", 1.0, false, 0),
        ("weights, log-probability", 0.7, true, 0),
        ("weights, penalties", 1.0, false, HISTORY),
    ] {
        for rows in [1, 8, 64, LOGITS_ROWS] {
            let needs = SummaryNeeds {
                temperature,
                floor: 1e-12,
                log_total,
                candidates: temperature > 0.0,
            };
            let plan = plan(needs, rows, history);
            report(&measure(
                gpu,
                &mut sampling,
                gpu.address(&logits),
                name,
                &plan,
            )?);
        }
    }
    Ok(())
}

/// Adjustments that change nothing, so that one run is like the next.
fn plan(needs: SummaryNeeds, rows: usize, history: usize) -> SummaryPlan {
    let adjustment = |token_id| Adjustment {
        token_id,
        bias: -0.0,
        repetition: 1.0,
        penalty: 0.0,
    };
    let row = |index: usize| RowPlan {
        needs,
        adjustments: index * history..(index + 1) * history,
    };
    SummaryPlan {
        rows: (0..rows).map(row).collect(),
        adjustments: (0..rows)
            .flat_map(|_| (0..).step_by(601).take(history).map(adjustment))
            .collect(),
    }
}

fn measure(
    gpu: &Gpu,
    sampling: &mut Sampling,
    logits: u64,
    name: &str,
    plan: &SummaryPlan,
) -> Result<SamplingTiming, CudaError> {
    let event = || {
        gpu.context()
            .new_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
    };
    let (start, end) = (event()?, event()?);
    let rows = u32::try_from(plan.rows.len()).expect("few rows");
    let mut measured = [Vec::new(), Vec::new()];
    for turn in 0..WARM_UPS + MEASURED {
        let started = Instant::now();
        sampling.upload(gpu, plan)?;
        start.record(gpu.stream())?;
        sampling.start(gpu, logits, rows)?;
        end.record(gpu.stream())?;
        sampling.start_download(gpu)?;
        gpu.stream().synchronize()?;
        if turn >= WARM_UPS {
            let [device, wall] = &mut measured;
            wall.push(started.elapsed().as_secs_f64() * 1e6);
            device.push(f64::from(start.elapsed_ms(&end)?) * 1e3);
        }
    }
    let [device_us, wall_us] = measured.map(|mut values| {
        values.sort_by(f64::total_cmp);
        values[MEASURED / 2]
    });
    Ok(SamplingTiming {
        name: name.to_owned(),
        rows: plan.rows.len(),
        device_us,
        wall_us,
    })
}
