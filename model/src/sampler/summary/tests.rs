use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

use super::super::{Adjustment, SamplingParams};
use super::*;

/// Candidates of a summary, and sizes of vocabularies with fewer, as many and more.
const LISTED: usize = 32;
const SIZES: [usize; 6] = [1, 7, 31, 32, 33, 1500];

struct Random(ChaCha8Rng);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.0.next_u64() % end as u64).unwrap()
    }

    fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    /// In `[0, 1)`.
    fn share(&mut self) -> f32 {
        f32::from(u16::try_from(self.0.next_u64() >> 48).unwrap()) / 65_536.0
    }

    /// Flat, peaked, rounded so that many are equal, with minus infinities, all equal, and around zero.
    fn logits(&mut self, kind: usize, size: usize) -> Vec<f32> {
        let value = |random: &mut Self| (0..6).map(|_| random.share() - 0.5).sum::<f32>();
        let logit = |random: &mut Self| match kind {
            0 => value(random),
            1 => 8.0 * value(random),
            2 => (4.0 * value(random)).round(),
            3 if random.below(3) > 0 => f32::NEG_INFINITY,
            3 => 3.0 * value(random),
            4 => 2.5,
            5 => random.one_of(&[0.0, -0.0, 1e-40, -1e-40, 1e-17, -1e-17]),
            _ => 0.01 * value(random) + if random.below(40) == 0 { 12.0 } else { 0.0 },
        };
        let mut logits: Vec<f32> = (0..size).map(|_| logit(self)).collect();
        // One at least is a number.
        let index = self.below(size);
        logits[index] = value(self);
        logits
    }

    fn params(&mut self) -> SamplingParams {
        SamplingParams {
            temperature: self.one_of(&[0.0, 1e-30, 0.01, 0.5, 1.0, 1.0, 3.0, 100.0]),
            top_k: self.one_of(&[0, 0, 0, 1, 5, 31, 32, 33, 100, 5000]),
            top_p: self.one_of(&[1.0, 1.0, 0.1, 0.5, 0.9, 0.999]),
            min_p: self.one_of(&[0.0, 0.0, 0.0, 0.05, 0.5]),
            seed: self.0.next_u64(),
            logprobs: self.below(2) == 0,
            top_logprobs: self.one_of(&[0, 0, 1, 5, 32, 40]),
            ..SamplingParams::default()
        }
    }
}

/// What a device with that little accuracy could find.
fn with_error<'a>(
    summary: LogitsSummary<'a>,
    random: &mut Random,
    needs: &SummaryNeeds,
) -> LogitsSummary<'a> {
    let mut factor = || 1.0 + 1.9 * RELATIVE_ERROR * (f64::from(random.share()) - 0.5);
    let mut found = summary;
    found.exp_sum *= factor();
    found.weight_sum *= factor();
    if random.below(2) == 0 {
        // A token at the floor was taken for one below it.
        found.weight_sum -= needs.floor.min(found.weight_sum / 2.0);
        found.doubtful_sum = needs.floor * 1.001;
    }
    found
}

#[test]
fn a_summary_that_is_enough_gives_the_token_that_the_logits_give() {
    let mut random = Random(ChaCha8Rng::seed_from_u64(5));
    let (mut answered, mut by_row, mut asked, mut beyond) = (0, 0, 0, 0);
    for round in 0..40_000 {
        let size = random.one_of(&SIZES);
        let logits = random.logits(round % 7, size);
        let params = random.params();
        let sampler = Sampler::new(params.clone(), 0).unwrap();
        let needs = sampler.summary_needs();
        let summary = LogitsSummary::of_logits(&logits, &needs, LISTED);
        let summary = with_error(summary, &mut random, &needs);
        asked += 1;
        let expected = sampler.sample(&mut logits.clone(), round);
        let from_summary = sampler.sample_summary(&summary, round);
        let from_row = sampler.sample_from(&summary, Some(&logits), round);
        answered += u32::from(from_summary.is_some());
        by_row += u32::from(from_row.is_some());
        let is_beyond = params.temperature > 0.0 && summary.weight_count > LISTED;
        beyond += u32::from(from_summary.is_some() && is_beyond);
        let whole = Some(sampler.sample_row(&summary, &logits, round));
        for found in [from_summary, from_row, whole].into_iter().flatten() {
            let kind = round % 7;
            assert_eq!(
                found.token_id, expected.token_id,
                "{params:?}, {size} of kind {kind}"
            );
            assert_same_logprobs(&found, &expected);
        }
    }
    assert!(by_row * 10 > asked * 8, "{by_row} of {asked}");
    assert!(answered * 5 > asked * 3, "{answered} of {asked}");
    assert!(beyond > 500, "{beyond}");
}

fn assert_same_logprobs(found: &Sampled, expected: &Sampled) {
    let is_near = |found: f32, expected: f32| {
        found == expected || (found - expected).abs() <= 3e-6 * expected.abs().max(1.0)
    };
    assert_eq!(found.logprob.is_some(), expected.logprob.is_some());
    for (found, expected) in found.logprob.iter().zip(&expected.logprob) {
        assert!(is_near(*found, *expected), "{found} against {expected}");
    }
    assert_eq!(found.top_logprobs.len(), expected.top_logprobs.len());
    for (found, expected) in found.top_logprobs.iter().zip(&expected.top_logprobs) {
        assert_eq!(found.0, expected.0);
        assert!(
            is_near(found.1, expected.1),
            "{found:?} against {expected:?}"
        );
    }
}

#[test]
fn usual_parameters_are_answered_nearly_always() {
    let mut random = Random(ChaCha8Rng::seed_from_u64(6));
    for (temperature, top_k, top_p) in [(0.0, 0, 1.0), (1.0, 20, 1.0), (0.7, 0, 0.9), (1.0, 0, 1.0)]
    {
        let params = SamplingParams {
            temperature,
            top_k,
            top_p,
            logprobs: true,
            ..SamplingParams::default()
        };
        let sampler = Sampler::new(params, 0).unwrap();
        let answered = (0..1000)
            .filter(|position| {
                let logits = random.logits(1, 1500);
                let needs = sampler.summary_needs();
                let summary = LogitsSummary::of_logits(&logits, &needs, 256);
                sampler.sample_summary(&summary, *position).is_some()
            })
            .count();
        assert!(
            answered >= 980,
            "{answered} at {temperature}, {top_k}, {top_p}"
        );
    }
}

#[test]
fn a_row_with_what_is_not_a_number_is_not_answered() {
    let sampler = Sampler::new(SamplingParams::default(), 0).unwrap();
    let needs = sampler.summary_needs();
    let summary = LogitsSummary::of_logits(&[0.5, f32::NAN], &needs, LISTED);
    assert_eq!(sampler.sample_summary(&summary, 0), None);
}

/// As a device does it.
fn apply(logits: &mut [f32], adjustments: &[Adjustment]) {
    for adjustment in adjustments {
        let Some(logit) = logits.get_mut(adjustment.token_id as usize) else {
            continue;
        };
        *logit += adjustment.bias;
        *logit = if *logit > 0.0 {
            *logit / adjustment.repetition
        } else {
            *logit * adjustment.repetition
        };
        *logit -= adjustment.penalty;
    }
}

#[test]
fn adjustments_are_what_sampling_does_to_the_logits() {
    let mut random = Random(ChaCha8Rng::seed_from_u64(7));
    for _ in 0..500 {
        let biased = random.below(6);
        let params = SamplingParams {
            repetition_penalty: random.one_of(&[1.0, 0.7, 1.3]),
            presence_penalty: random.one_of(&[0.0, 0.4, -0.3]),
            frequency_penalty: random.one_of(&[0.0, 0.13]),
            logit_bias: (0..30)
                .step_by(5)
                .take(biased)
                .map(|token_id| (token_id, random.share()))
                .collect(),
            ..SamplingParams::default()
        };
        let mut sampler = Sampler::new(params, 10).unwrap();
        let tokens: Vec<u32> = (0..25)
            .map(|_| u32::try_from(random.below(30)).unwrap())
            .collect();
        let known = random.below(20);
        for (position, token_id) in tokens.iter().enumerate().take(known) {
            sampler.observe(position, *token_id);
        }
        // Some of the guesses may be known already.
        let position = known + random.below(5);
        let guessed = &tokens[position.saturating_sub(6)..position];
        let mut adjustments = Vec::new();
        assert!(sampler.adjustments(position, guessed, 100, &mut adjustments));

        let logits = random.logits(1, 28);
        let mut found = logits.clone();
        apply(&mut found, &adjustments);
        for (position, token_id) in tokens.iter().enumerate().take(position).skip(known) {
            sampler.observe(position, *token_id);
        }
        let mut expected = logits;
        sampler.sample(&mut expected, position);
        let bits = |logits: &[f32]| {
            logits
                .iter()
                .map(|logit| logit.to_bits())
                .collect::<Vec<_>>()
        };
        assert_eq!(bits(&found), bits(&expected));
    }
}

#[test]
fn too_many_adjustments_and_two_biases_of_a_token_are_left_to_the_logits() {
    let biased = |logit_bias: Vec<(u32, f32)>| {
        let params = SamplingParams {
            logit_bias,
            ..SamplingParams::default()
        };
        Sampler::new(params, 0).unwrap()
    };
    let mut out = Vec::new();
    assert!(!biased(vec![(3, 1.0), (3, 1.0)]).adjustments(0, &[], 9, &mut out));
    assert!(!biased(vec![(3, 1.0), (4, 1.0)]).adjustments(0, &[], 1, &mut out));
    assert!(out.is_empty());
    assert!(biased(vec![(3, 1.0), (4, 1.0)]).adjustments(0, &[], 2, &mut out));
    assert_eq!(out.len(), 2);
}
