//! What the device finds out about rows of logits, beside the model crate's arithmetic on the same rows; and the tokens
//! that are drawn from it, beside those drawn from the logits.

use headway_model::sampler::{LogitsSummary, Sampler, SamplingParams};

use super::{Check, Random};
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::sampling::{ADJUSTMENTS, CANDIDATES, RowPlan, Sampling, SummaryPlan};

/// Relative; the model crate relies on it.
const TOLERANCE: f64 = 1e-6;

/// How a row's logits are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Flat,
    Peaked,
    /// In steps of 1/64, so that some are equal.
    Stepped,
    /// In steps of 1, so that most are equal.
    Coarse,
    Equal,
    /// Most are minus infinity.
    Masked,
    /// All are.
    AllMasked,
    /// Around zero, and zeros of both signs.
    Zeros,
    /// Some are infinite.
    Infinite,
    /// The largest stand side by side, and behind them the next ones.
    Falling,
    NotANumber,
}

const KINDS: [Kind; 11] = [
    Kind::Flat,
    Kind::Peaked,
    Kind::Stepped,
    Kind::Coarse,
    Kind::Equal,
    Kind::Masked,
    Kind::AllMasked,
    Kind::Zeros,
    Kind::Infinite,
    Kind::Falling,
    Kind::NotANumber,
];

impl Kind {
    /// Too many tokens may be as likely as the last candidate: then there is only the first.
    const fn may_lack_candidates(self, vocab_size: usize) -> bool {
        match self {
            Self::Flat | Self::Peaked | Self::Stepped | Self::Infinite | Self::Falling => false,
            Self::Masked => vocab_size < 30_000,
            Self::Coarse | Self::Equal | Self::AllMasked | Self::Zeros | Self::NotANumber => true,
        }
    }
}

pub(super) fn all(gpu: &Gpu, report: &mut impl FnMut(&Check)) -> Result<(), CudaError> {
    for (vocab_size, rows) in [
        (1, 5),
        (7, 33),
        (128, 256),
        (1000, 64),
        (1025, 64),
        (4099, 64),
        (32_000, 64),
        (50_257, 33),
        (128_256, 44),
        (151_936, 22),
        (600_001, 11),
    ] {
        report(&check(gpu, vocab_size, rows)?);
    }
    Ok(())
}

/// Two plans, one after the other, on the same memory; the second one has fewer rows.
fn check(gpu: &Gpu, vocab_size: usize, rows: usize) -> Result<Check, CudaError> {
    let mut random = Random(vocab_size as u64);
    let mut sampling = Sampling::new(gpu, vocab_size)?;
    let mut found = Found::default();
    for rows in [rows, rows.div_ceil(2)] {
        compare(
            gpu,
            &mut sampling,
            [vocab_size, rows],
            &mut random,
            &mut found,
        )?;
    }
    let Found {
        difference,
        answered,
        asked,
        failures,
    } = found;
    let failure = failures
        .iter()
        .take(4)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    Ok(Check {
        name: format!("sampling vocabulary {vocab_size}, {rows} rows"),
        difference: if failures.is_empty() {
            difference
        } else {
            f64::INFINITY
        },
        tolerance: TOLERANCE,
        note: format!(
            "{answered} of {asked} rows answered; {} wrong {failure}",
            failures.len()
        ),
    })
}

#[derive(Default)]
struct Found {
    /// The largest relative difference of a sum.
    difference: f64,
    answered: usize,
    asked: usize,
    failures: Vec<String>,
}

fn compare(
    gpu: &Gpu,
    sampling: &mut Sampling,
    [vocab_size, rows]: [usize; 2],
    random: &mut Random,
    found: &mut Found,
) -> Result<(), CudaError> {
    let mut plan = SummaryPlan::default();
    let mut samplers = Vec::new();
    let mut logits = Vec::new();
    let kinds = KINDS
        .iter()
        .copied()
        .cycle()
        .skip(random.below(KINDS.len()));
    let kinds: Vec<Kind> = kinds.take(rows).collect();
    for kind in &kinds {
        logits.extend(row(*kind, vocab_size, random));
        let sampler = sampler(vocab_size, random);
        let first = plan.adjustments.len();
        let fits = sampler.adjustments(POSITION, &[], ADJUSTMENTS - first, &mut plan.adjustments);
        assert!(fits, "few rows with few adjustments");
        plan.rows.push(RowPlan {
            needs: sampler.summary_needs(),
            adjustments: first..plan.adjustments.len(),
        });
        samplers.push(sampler);
    }
    // A row behind the plan's is left alone.
    logits.extend(row(Kind::Peaked, vocab_size, random));
    let memory = gpu.stream().clone_htod(&logits)?;
    sampling.poison(gpu)?;
    sampling.upload(gpu, &plan)?;
    let all_rows = u32::try_from(rows + 1).expect("few rows");
    sampling.start(gpu, gpu.address(&memory), all_rows)?;
    sampling.start_download(gpu)?;
    gpu.stream().synchronize()?;
    let adjusted = gpu.stream().clone_dtoh(&memory)?;
    gpu.stream().synchronize()?;

    let summaries = sampling.summaries()?;
    for (index, (expected, got)) in logits
        .chunks_mut(vocab_size)
        .zip(adjusted.chunks(vocab_size))
        .enumerate()
    {
        let Some(sampler) = samplers.get(index) else {
            found.compare_logits(expected, got, "the row behind");
            break;
        };
        let sampled = sampler.sample(expected, POSITION);
        let name = format!("{:?}", kinds[index]);
        found.compare_logits(expected, got, &name);
        let needs = &plan.rows[index].needs;
        let summary = summaries.row(index);
        let reference = LogitsSummary::of_logits(expected, needs, CANDIDATES);
        found.compare_summary(&summary, &reference, kinds[index]);
        found.asked += 1;
        if let Some(from_summary) = sampler.sample_summary(&summary, POSITION) {
            found.answered += 1;
            if from_summary.token_id != sampled.token_id {
                found.failures.push(format!("{name}: another token"));
            }
        }
    }
    Ok(())
}

impl Found {
    fn compare_logits(&mut self, expected: &[f32], got: &[f32], name: &str) {
        let are_equal = expected.iter().zip(got).all(|(expected, got)| {
            expected.to_bits() == got.to_bits() || (expected.is_nan() && got.is_nan())
        });
        if !are_equal {
            self.failures.push(format!("{name}: adjusted otherwise"));
        }
    }

    fn compare_summary(
        &mut self,
        got: &LogitsSummary<'_>,
        expected: &LogitsSummary<'_>,
        kind: Kind,
    ) {
        if got.has_nan != expected.has_nan {
            self.failures.push(format!("{kind:?}: has_nan"));
        }
        if expected.has_nan {
            return;
        }
        let count = got.candidates.len();
        let lacks_some = count != expected.candidates.len();
        let may_lack = kind.may_lack_candidates(got.vocab_size) && count == 1;
        if (lacks_some && !may_lack) || got.candidates[..] != expected.candidates[..count] {
            self.failures.push(format!("{kind:?}: {count} candidates"));
        }
        if !f32::from_bits(expected.candidates[0][1]).is_finite() {
            return;
        }
        let doubt = got.doubtful_sum;
        for (got, expected, doubt) in [
            (got.exp_sum, expected.exp_sum, 0.0),
            (got.weight_sum, expected.weight_sum, doubt),
        ] {
            let apart = ((got - expected).abs() - doubt).max(0.0);
            let relative = apart / expected.abs().max(f64::MIN_POSITIVE);
            if relative.is_nan() {
                self.failures.push(format!("{kind:?}: not a sum"));
            }
            self.difference = self.difference.max(relative);
        }
        if got.weight_count < expected.weight_count {
            self.failures.push(format!("{kind:?}: weight_count"));
        }
    }
}

/// Where the tokens would stand; some of those before it have been seen.
const POSITION: usize = 300;

fn row(kind: Kind, vocab_size: usize, random: &mut Random) -> Vec<f32> {
    let mut row: Vec<f32> = (0..vocab_size)
        .map(|index| logit(kind, index, random))
        .collect();
    if kind == Kind::NotANumber {
        row[random.below(vocab_size)] = f32::NAN;
    }
    row
}

#[expect(clippy::cast_precision_loss, reason = "an index is below 2^24")]
fn logit(kind: Kind, index: usize, random: &mut Random) -> f32 {
    let mut bell = || (0..4).map(|_| random.value()).sum::<f32>();
    let value = bell();
    match kind {
        Kind::Flat => 0.01 * value,
        Kind::Peaked | Kind::NotANumber => 4.0 * value * value.abs(),
        Kind::Stepped => (256.0 * value).round() / 64.0,
        Kind::Coarse => (4.0 * value).round(),
        Kind::Equal => -3.25,
        Kind::Masked if random.below(4) > 0 => f32::NEG_INFINITY,
        Kind::Masked => 5.0 * value,
        Kind::AllMasked => f32::NEG_INFINITY,
        Kind::Zeros => [0.0, -0.0, 1e-40, -1e-30, 1e-12][random.below(5)],
        Kind::Infinite if random.below(1000) == 0 => f32::INFINITY.copysign(value),
        Kind::Infinite => value,
        Kind::Falling => 20.0 - (index as f32).sqrt() / 8.0 + 0.1 * value,
    }
}

/// With any parameters, and a history where it has penalties.
fn sampler(vocab_size: usize, random: &mut Random) -> Sampler {
    let mut one_of = |values: &[f32]| values[random.below(values.len())];
    let mut params = SamplingParams {
        temperature: one_of(&[0.0, 0.2, 0.7, 1.0, 1.0, 2.5, 100.0]),
        top_p: one_of(&[1.0, 1.0, 0.5, 0.95]),
        min_p: one_of(&[0.0, 0.0, 0.05, 0.5]),
        repetition_penalty: one_of(&[1.0, 1.0, 1.1, 0.8]),
        presence_penalty: one_of(&[0.0, 0.0, 0.6]),
        frequency_penalty: one_of(&[0.0, 0.0, -0.2]),
        ..SamplingParams::default()
    };
    params.top_k = [0, 0, 1, 50, 256, 300][random.below(6)];
    params.top_logprobs = [0, 0, 5, 20][random.below(4)];
    params.logprobs = random.below(2) == 0;
    params.seed = random.next();
    let mut token_id = || u32::try_from(random.below(vocab_size)).expect("few tokens");
    let first = token_id();
    params.logit_bias = (first..).zip([0.5, -100.0, 3.0]).collect();
    params.logit_bias.truncate(first as usize % 4);
    let mut sampler = Sampler::new(params, POSITION / 2).expect("parameters within their ranges");
    for position in 0..POSITION {
        sampler.observe(position, token_id());
    }
    sampler
}
