//! The tables.

use super::POLICIES;
use super::fleet::Outcome;
use super::shapes::{Shape, whole};

/// Prints what there is to read off.
pub fn print(shapes: &[Shape], outcomes: &[[Outcome; 4]]) {
    println!(
        "| load | policy | pod-seconds | to the oracle's | wait p50, ms | p99, ms | refusals | of 1,000 sessions | moves | step wait p99, ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (shape, outcomes) in shapes.iter().zip(outcomes) {
        for (policy, outcome) in POLICIES.iter().zip(outcomes) {
            row(
                shape.name,
                shape.arrivals.len(),
                policy,
                outcome,
                &outcomes[0],
            );
        }
    }
    for (index, policy) in POLICIES.iter().enumerate() {
        let total = together(outcomes.iter().map(|outcomes| &outcomes[index]));
        let oracle = together(outcomes.iter().map(|outcomes| &outcomes[0]));
        let sessions = shapes.iter().map(|shape| shape.arrivals.len()).sum();
        row("all", sessions, policy, &total, &oracle);
    }
    println!();
    println!("| load | what | sessions |");
    println!("|---|---|---|");
    for shape in shapes {
        println!(
            "| {} | {} | {} |",
            shape.name,
            shape.what,
            shape.arrivals.len()
        );
    }
}

fn together<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> Outcome {
    let mut sum = Outcome::default();
    for outcome in outcomes {
        sum.pod_seconds += outcome.pod_seconds;
        sum.waits_s.extend(&outcome.waits_s);
        sum.refusals += outcome.refusals;
        sum.moves += outcome.moves;
        sum.step_waits_ms.extend(&outcome.step_waits_ms);
    }
    sum
}

fn row(load: &str, sessions: usize, policy: &str, outcome: &Outcome, oracle: &Outcome) {
    let Outcome {
        pod_seconds,
        waits_s,
        refusals,
        moves,
        step_waits_ms,
        ..
    } = outcome;
    let wait = |share: f64| 1e3 * quantile(waits_s, share);
    println!(
        "| {load} | {policy} | {pod_seconds:.0} | {:.2} | {:.0} | {:.0} | {refusals} | {:.1} | {moves} | {:.0} |",
        pod_seconds / oracle.pod_seconds,
        wait(0.5),
        wait(0.99),
        *refusals as f64 * 1e3 / sessions.max(1) as f64,
        quantile(step_waits_ms, 0.99),
    );
}

fn quantile(values: &[f64], share: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values
        .get(whole(share * last as f64).min(last))
        .copied()
        .unwrap_or(0.0)
}
