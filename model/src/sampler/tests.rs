use super::*;

const LOGITS: [f32; 6] = [1.0, 3.0, 2.0, -1.0, 0.5, 2.9];

fn sample(params: SamplingParams, position: usize) -> Sampled {
    Sampler::new(params, 0)
        .unwrap()
        .sample(&mut LOGITS.clone(), position)
}

fn hot(seed: u64) -> SamplingParams {
    SamplingParams {
        temperature: 1.0,
        seed,
        ..SamplingParams::default()
    }
}

#[test]
fn temperature_zero_takes_the_most_likely() {
    assert_eq!(sample(SamplingParams::default(), 7).token_id, 1);
}

#[test]
fn a_draw_depends_on_seed_and_position_alone() {
    let draws = |seed| {
        (0..64)
            .map(|position| sample(hot(seed), position).token_id)
            .collect::<Vec<_>>()
    };
    assert_eq!(draws(3), draws(3));
    assert_ne!(draws(3), draws(4));
    let sampler = Sampler::new(hot(3), 0).unwrap();
    let backwards: Vec<_> = (0..64)
        .rev()
        .map(|p| sampler.sample(&mut LOGITS.clone(), p).token_id)
        .collect();
    assert!(draws(3).iter().eq(backwards.iter().rev()));
}

#[test]
#[expect(clippy::cast_precision_loss, reason = "small counts")]
fn draws_follow_the_probabilities() {
    let total = log_sum_exp(&LOGITS);
    let mut counts = [0_u32; 6];
    for position in 0..20_000 {
        counts[sample(hot(11), position).token_id as usize] += 1;
    }
    for (count, logit) in counts.iter().zip(LOGITS) {
        let (found, expected) = (*count as f32 / 20_000.0, (logit - total).exp());
        // Four standard deviations of a binomial share.
        let tolerance = 4.0 * (expected * (1.0 - expected) / 20_000.0).sqrt();
        assert!(
            (found - expected).abs() < tolerance,
            "{found} against {expected}"
        );
    }
}

#[test]
fn filters_leave_only_what_they_should() {
    let tokens = |params: SamplingParams| {
        let mut seen: Vec<_> = (0..2_000)
            .map(|position| sample(params.clone(), position).token_id)
            .collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    };
    assert_eq!(tokens(SamplingParams { top_k: 2, ..hot(1) }), [1, 5]);
    // Shares: 0.39 (1), 0.35 (5), 0.14 (2), ...
    assert_eq!(
        tokens(SamplingParams {
            top_p: 0.5,
            ..hot(1)
        }),
        [1, 5]
    );
    assert_eq!(
        tokens(SamplingParams {
            min_p: 0.3,
            ..hot(1)
        }),
        [1, 2, 5]
    );
}

#[test]
fn penalties_act_on_what_was_seen() {
    let params = SamplingParams {
        repetition_penalty: 2.0,
        presence_penalty: 1.0,
        ..SamplingParams::default()
    };
    let mut sampler = Sampler::new(params, 1).unwrap();
    sampler.observe(0, 1);
    assert_eq!(
        sampler.sample(&mut LOGITS.clone(), 1).token_id,
        5,
        "the prompt's token 1 falls to 1.5"
    );
    sampler.observe(1, 5);
    let mut logits = LOGITS;
    assert_eq!(sampler.sample(&mut logits, 2).token_id, 2);
    assert_eq!(logits[5], 2.9 / 2.0 - 1.0);
    sampler.observe(0, 2);
    assert_eq!(
        sampler.sample(&mut LOGITS.clone(), 2).token_id,
        2,
        "position 0 was seen before"
    );
}

#[test]
fn logprobs_are_those_before_temperature() {
    let params = SamplingParams {
        logprobs: true,
        top_logprobs: 2,
        ..hot(5)
    };
    let sampled = sample(params, 0);
    let total = log_sum_exp(&LOGITS);
    assert_eq!(
        sampled.logprob,
        Some(LOGITS[sampled.token_id as usize] - total)
    );
    assert_eq!(sampled.top_logprobs, [(1, 3.0 - total), (5, 2.9 - total)]);
}

#[test]
fn parameters_out_of_range_are_named() {
    let error = |params| Sampler::new(params, 0).err().unwrap().name;
    assert_eq!(
        error(SamplingParams {
            temperature: f32::NAN,
            ..hot(0)
        }),
        "temperature"
    );
    assert_eq!(
        error(SamplingParams {
            top_p: 0.0,
            ..hot(0)
        }),
        "top_p"
    );
    assert_eq!(
        error(SamplingParams {
            min_p: 1.0,
            ..hot(0)
        }),
        "min_p"
    );
    assert_eq!(
        error(SamplingParams {
            repetition_penalty: 0.0,
            ..hot(0)
        }),
        "repetition_penalty"
    );
    assert_eq!(
        error(SamplingParams {
            logit_bias: vec![(1, f32::INFINITY)],
            ..hot(0)
        }),
        "logit_bias"
    );
}

#[test]
fn a_bias_can_force_a_token() {
    let params = SamplingParams {
        logit_bias: vec![(3, 100.0), (99, 5.0)],
        ..SamplingParams::default()
    };
    assert_eq!(sample(params, 0).token_id, 3);
}
