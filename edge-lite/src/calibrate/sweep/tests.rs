use super::*;
use crate::calibrate::replay::measured_cost;
use crate::router::features::RequestFeatures;
use crate::router::uncertainty::Uncertainty;

/// Of twenty tokens. An unsure one is wrong.
fn record(index: usize, is_unsure: impl Fn(usize) -> bool) -> Record {
    let tokens = 0..20;
    Record {
        id: index.to_string(),
        task: "test".to_owned(),
        features: RequestFeatures {
            prompt_tokens: 50 + index,
            max_tokens: 20,
            ..RequestFeatures::default()
        },
        uncertainties: tokens
            .clone()
            .map(|token| Uncertainty {
                entropy: if is_unsure(token) { 4.0 } else { 0.1 },
                margin: 0.5,
            })
            .collect(),
        agrees: tokens.map(|token| !is_unsure(token)).collect(),
        full_tokens: 20,
        full_seconds: 1.0 + 0.01 * (50 + index) as f64,
        full_prompt_seconds: Some(0.01 * (50 + index) as f64),
        is_same_answer: false,
        rouge_l: 0.5,
    }
}

/// A third is wrong from the start, a third from its middle on, a third is right.
fn records() -> Vec<Record> {
    (0..60)
        .map(|index| {
            record(index, |token| {
                index % 3 == 0 || (index % 3 == 1 && token >= 10)
            })
        })
        .collect()
}

#[test]
fn what_positions_cost_is_found_again() {
    let mut records = records();
    let found = measured_cost(&records);
    assert!(
        (found.prompt_position_seconds - 0.01).abs() < 1e-9,
        "{found:?}"
    );
    assert!((found.token_seconds - 0.05).abs() < 1e-9, "{found:?}");
    // From sums alone, where answers have several lengths.
    for (index, record) in records.iter_mut().enumerate() {
        record.full_tokens = 5 + index % 7;
        record.full_seconds =
            0.01 * record.features.prompt_tokens as f64 + 0.05 * record.full_tokens as f64;
        record.full_prompt_seconds = None;
    }
    let found = measured_cost(&records);
    assert!(
        (found.prompt_position_seconds - 0.01).abs() < 1e-9,
        "{found:?}"
    );
    assert!((found.token_seconds - 0.05).abs() < 1e-9, "{found:?}");
}

#[test]
fn unsure_answers_go_to_the_tail_and_sure_ones_do_not() {
    let records = records();
    let all: Vec<&Record> = records.iter().collect();
    let cost = measured_cost(&records);
    let chosen = choose(&all, cost, 0.9);
    let outcomes: Vec<Outcome> = replays(&all, &chosen.predictors, cost)
        .iter()
        .map(|replay| replay.outcome(&chosen.policy))
        .collect();
    let point = mean(0.9, outcomes.iter().copied());
    assert!(point.agreement >= 0.9, "{point:?}");
    // Every third answer is unsure from the start, every third sure to its end.
    let share = |class: usize| {
        let shares = outcomes.iter().skip(class).step_by(3);
        shares.map(|outcome| outcome.device_share).sum::<f64>() / (outcomes.len() / 3) as f64
    };
    let (unsure, half, sure) = (share(0), share(1), share(2));
    assert!(unsure < half && half < sure, "{unsure} {half} {sure}");
    assert_eq!(sure, 1.0);
}

#[test]
fn a_target_that_cannot_be_kept_here_sends_everything_away() {
    let records: Vec<Record> = (0..20)
        .map(|index| record(index, |token| token % 2 == 0))
        .collect();
    let all: Vec<&Record> = records.iter().collect();
    let cost = measured_cost(&records);
    let chosen = choose(&all, cost, 0.999);
    let replays = replays(&all, &chosen.predictors, cost);
    assert!(
        replays
            .iter()
            .all(|replay| replay.outcome(&chosen.policy) == replay.on_tail())
    );
}

#[test]
fn the_curve_is_better_than_chance_where_uncertainty_tells() {
    let records = records();
    let all: Vec<&Record> = records.iter().collect();
    let curve = curve(&all, measured_cost(&records));
    let at = |points: &[Point]| {
        points
            .iter()
            .find(|point| point.target == 0.9)
            .copied()
            .unwrap()
    };
    let routed = at(&curve.routed);
    assert!(
        routed.tail_seconds < 0.9 * curve.random_seconds(routed.agreement),
        "{curve:?}"
    );
    assert!(
        routed.tail_seconds <= at(&curve.before_the_answer).tail_seconds + 1e-9,
        "{curve:?}"
    );
    assert_eq!(curve.device.tail_seconds, 0.0);
    assert_eq!(
        (curve.tail.agreement, curve.tail.device_answers),
        (1.0, 0.0)
    );
}
