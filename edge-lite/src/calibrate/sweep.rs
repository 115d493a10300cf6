//! The cheapest policy that keeps a target, and the curve of quality against cost, on prompts that the policy was not
//! chosen on, beside simpler ways to route.

use serde::{Deserialize, Serialize};

use super::fit::Predictors;
use super::record::Record;
use super::replay::{Outcome, Policy, Replay};
use crate::router::thresholds::TailCost;

/// Parts of the prompts; each is judged by what was chosen on the others.
pub(super) const FOLDS: usize = 5;
/// Agreements that are aimed at for the curve.
const TARGETS: [f64; 13] = [
    0.75, 0.8, 0.825, 0.85, 0.875, 0.9, 0.925, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99,
];
/// Values tried of each bound, beside none at all.
const REQUEST_STEPS: usize = 8;
const PROBE_STEPS: usize = 24;
const RUNNING_STEPS: usize = 16;

/// Means over answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Agreement that was aimed at.
    pub target: f64,
    /// Agreement with the full model.
    pub agreement: f64,
    /// Tail seconds of an answer.
    pub tail_seconds: f64,
    /// Share of answers that were given wholly on the device.
    pub device_answers: f64,
    /// Share of tokens that were.
    pub device_tokens: f64,
}

/// Quality against cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Curve {
    /// By the router.
    pub routed: Vec<Point>,
    /// By the router without its look into the answer: whole answers here or there.
    pub before_the_answer: Vec<Point>,
    /// By the prompt's length only.
    pub by_length: Vec<Point>,
    /// Everything on the device.
    pub device: Point,
    /// Everything on the tail.
    pub tail: Point,
}

impl Curve {
    /// What random routing costs for the same agreement: between everything here and everything there.
    #[must_use]
    pub fn random_seconds(&self, agreement: f64) -> f64 {
        let gap = (self.tail.agreement - self.device.agreement).max(f64::MIN_POSITIVE);
        let share = ((agreement - self.device.agreement) / gap).clamp(0.0, 1.0);
        share * self.tail.tail_seconds
    }
}

/// Outcomes of a second part by what was chosen on a first one.
type Crossed<'r> = &'r dyn Fn(&[&Record], &[&Record]) -> Vec<Outcome>;

/// What was chosen.
pub(super) struct Chosen {
    pub(super) predictors: Predictors,
    pub(super) policy: Policy,
}

/// The cheapest policy on `records` that keeps `target`.
pub(super) fn choose(records: &[&Record], cost: TailCost, target: f64) -> Chosen {
    choose_of(records, cost, target, true)
}

fn choose_of(records: &[&Record], cost: TailCost, target: f64, looks_into: bool) -> Chosen {
    let predictors = Predictors::fit(records);
    let replays = replays(records, &predictors, cost);
    let requests = bounds(replays.iter().map(Replay::of_request), REQUEST_STEPS);
    let probes = bounds(replays.iter().map(Replay::of_probe), PROBE_STEPS);
    let runnings = match looks_into {
        true => bounds(replays.iter().map(Replay::running), RUNNING_STEPS),
        false => vec![None],
    };
    // Everything on the tail keeps any target.
    let mut best = (
        f64::INFINITY,
        Policy {
            accepted_loss_of_request: Some(-1.0),
            ..Policy::default()
        },
    );
    for &accepted_loss_of_request in &requests {
        for &accepted_loss_of_probe in &probes {
            for &max_running_entropy in &runnings {
                let policy = Policy {
                    accepted_loss_of_request,
                    accepted_loss_of_probe,
                    max_running_entropy,
                };
                let point = mean(target, replays.iter().map(|replay| replay.outcome(&policy)));
                if point.agreement >= target && point.tail_seconds < best.0 {
                    best = (point.tail_seconds, policy);
                }
            }
        }
    }
    Chosen {
        predictors,
        policy: best.1,
    }
}

fn replays<'a>(records: &[&'a Record], predictors: &Predictors, cost: TailCost) -> Vec<Replay<'a>> {
    let records = records.iter();
    records
        .map(|record| Replay::new(record, predictors, cost))
        .collect()
}

/// No bound, and quantiles of `values`.
fn bounds(values: impl Iterator<Item = f64>, steps: usize) -> Vec<Option<f64>> {
    let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let quantile = |step: usize| values.get(values.len() * step / (steps + 1)).copied();
    let mut bounds: Vec<Option<f64>> = (1..=steps).map(quantile).filter(Option::is_some).collect();
    bounds.dedup();
    bounds.insert(0, None);
    bounds
}

fn mean(target: f64, outcomes: impl Iterator<Item = Outcome>) -> Point {
    let (mut sum, mut count) = (Point::default(), 0.0_f64);
    for outcome in outcomes {
        sum.agreement += outcome.agreement;
        sum.tail_seconds += outcome.tail_seconds;
        sum.device_answers += outcome.is_device;
        sum.device_tokens += outcome.device_share;
        count += 1.0;
    }
    let count = count.max(1.0);
    Point {
        target,
        agreement: sum.agreement / count,
        tail_seconds: sum.tail_seconds / count,
        device_answers: sum.device_answers / count,
        device_tokens: sum.device_tokens / count,
    }
}

/// Quality against cost of `records`, each fold by what was chosen on the others.
pub(super) fn curve(records: &[&Record], cost: TailCost) -> Curve {
    let folds: Vec<(Vec<&Record>, Vec<&Record>)> = (0..FOLDS)
        .map(|fold| {
            let (test, train): (Vec<_>, Vec<_>) = records
                .iter()
                .enumerate()
                .partition(|(index, _)| index % FOLDS == fold);
            (strip(train), strip(test))
        })
        .collect();
    let crossed = |target: f64, run: Crossed<'_>| {
        mean(
            target,
            folds.iter().flat_map(|(train, test)| run(train, test)),
        )
    };
    let by_router = |target: f64, looks_into: bool| {
        crossed(target, &|train, test| {
            let chosen = choose_of(train, cost, target, looks_into);
            let replays = replays(test, &chosen.predictors, cost);
            replays
                .iter()
                .map(|replay| replay.outcome(&chosen.policy))
                .collect()
        })
    };
    let by_length =
        |target: f64| crossed(target, &|train, test| by_length(train, test, cost, target));
    let predictors = Predictors::fit(records);
    let all = replays(records, &predictors, cost);
    Curve {
        routed: TARGETS
            .iter()
            .map(|target| by_router(*target, true))
            .collect(),
        before_the_answer: TARGETS
            .iter()
            .map(|target| by_router(*target, false))
            .collect(),
        by_length: TARGETS.iter().map(|target| by_length(*target)).collect(),
        device: mean(0.0, all.iter().map(|replay| replay.handed_over(None))),
        tail: mean(1.0, all.iter().map(Replay::on_tail)),
    }
}

fn strip<'r>(part: Vec<(usize, &&'r Record)>) -> Vec<&'r Record> {
    part.into_iter().map(|(_, record)| *record).collect()
}

/// `test` routed by length alone: longer prompts to the tail, or shorter ones, whichever was cheaper on `train`.
fn by_length(train: &[&Record], test: &[&Record], cost: TailCost, target: f64) -> Vec<Outcome> {
    let predictors = Predictors::fit(train);
    let (train, test) = (
        replays(train, &predictors, cost),
        replays(test, &predictors, cost),
    );
    let outcomes = |replays: &[Replay<'_>], most: usize, longer: bool| -> Vec<Outcome> {
        let route =
            |replay: &Replay<'_>| match (replay.record().features.prompt_tokens > most) == longer {
                true => replay.on_tail(),
                false => replay.handed_over(None),
            };
        replays.iter().map(route).collect()
    };
    let mut best = (f64::INFINITY, 0, true);
    let lengths = train
        .iter()
        .map(|replay| replay.record().features.prompt_tokens);
    for most in lengths.chain([0]) {
        for longer in [true, false] {
            let point = mean(target, outcomes(&train, most, longer).into_iter());
            if point.agreement >= target && point.tail_seconds < best.0 {
                best = (point.tail_seconds, most, longer);
            }
        }
    }
    outcomes(&test, best.1, best.2)
}

#[cfg(test)]
mod tests;
