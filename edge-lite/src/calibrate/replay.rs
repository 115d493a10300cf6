//! What a policy would have done with what was recorded, and what that would have cost.

use super::fit::{Predictors, probe_values, request_values};
use super::record::Record;
use super::{PROBE_TOKENS, RUNNING_TOKENS};
use crate::router::thresholds::TailCost;
use crate::router::uncertainty::RunningEntropy;

/// What positions cost, as it was measured over all records. Where prompt and answer are not told apart, by least
/// squares.
pub(super) fn measured_cost(records: &[Record]) -> TailCost {
    let sum = |value: &dyn Fn(&Record) -> f64| records.iter().map(value).sum::<f64>();
    let prompt = |record: &Record| record.features.prompt_tokens as f64;
    let tokens = |record: &Record| record.full_tokens as f64;
    let told_apart: Option<Vec<f64>> = records
        .iter()
        .map(|record| record.full_prompt_seconds)
        .collect();
    let (prompt_position_seconds, token_seconds) = match told_apart {
        Some(prompt_seconds) => {
            let prompts: f64 = prompt_seconds.iter().sum();
            let all = sum(&|record| record.full_seconds);
            (
                prompts / sum(&prompt).max(1.0),
                (all - prompts) / sum(&tokens).max(1.0),
            )
        }
        None => {
            let (pp, pt, tt) = (
                sum(&|record| prompt(record).powi(2)),
                sum(&|record| prompt(record) * tokens(record)),
                sum(&|record| tokens(record).powi(2)),
            );
            let (ps, ts) = (
                sum(&|record| prompt(record) * record.full_seconds),
                sum(&|record| tokens(record) * record.full_seconds),
            );
            let determinant = (pp * tt - pt * pt).max(f64::MIN_POSITIVE);
            (
                (ps * tt - ts * pt) / determinant,
                (ts * pp - ps * pt) / determinant,
            )
        }
    };
    TailCost {
        prompt_position_seconds: prompt_position_seconds.max(0.0),
        token_seconds: token_seconds.max(0.0),
    }
}

/// Which of the three looks are taken, and with which bound.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Policy {
    pub(super) accepted_loss_of_request: Option<f64>,
    pub(super) accepted_loss_of_probe: Option<f64>,
    pub(super) max_running_entropy: Option<f64>,
}

/// One answer under a policy.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Outcome {
    pub(super) agreement: f64,
    pub(super) tail_seconds: f64,
    /// 1 where the whole answer was given on the device.
    pub(super) is_device: f64,
    /// Share of its tokens that were.
    pub(super) device_share: f64,
}

/// A record with what its predictors and its running entropy say, computed once for many policies.
pub(super) struct Replay<'a> {
    record: &'a Record,
    /// Expected disagreement for each tail second, by the request's features.
    of_request: f64,
    /// The same with the first tokens.
    of_probe: f64,
    /// After each token: the largest running mean so far.
    running: Vec<f64>,
    cost: TailCost,
}

impl<'a> Replay<'a> {
    pub(super) fn new(record: &'a Record, predictors: &Predictors, cost: TailCost) -> Self {
        let mut running = RunningEntropy::new(RUNNING_TOKENS);
        let mut largest = f64::NEG_INFINITY;
        let means = record
            .uncertainties
            .iter()
            .enumerate()
            .map(|(index, token)| {
                // Tokens that were looked at before one was shown are judged by the probe, as the router does.
                if let Some(mean) = running
                    .push(token.entropy)
                    .filter(|_| index >= PROBE_TOKENS)
                {
                    largest = largest.max(mean);
                }
                largest
            });
        let seconds = cost.of_request(&record.features);
        let loss = |expected: f64| (1.0 - expected) / seconds;
        Self {
            record,
            of_request: loss(predictors.request.expected(&request_values(record))),
            of_probe: loss(predictors.probe.expected(&probe_values(record))),
            running: means.collect(),
            cost,
        }
    }

    pub(super) const fn of_request(&self) -> f64 {
        self.of_request
    }

    pub(super) const fn of_probe(&self) -> f64 {
        self.of_probe
    }

    /// The largest running entropy of the whole answer.
    pub(super) fn running(&self) -> f64 {
        self.running.last().copied().unwrap_or(f64::NEG_INFINITY)
    }

    pub(super) const fn record(&self) -> &Record {
        self.record
    }

    pub(super) fn outcome(&self, policy: &Policy) -> Outcome {
        let below =
            |accepted: Option<f64>, loss: f64| accepted.is_some_and(|accepted| loss > accepted);
        if below(policy.accepted_loss_of_request, self.of_request)
            || below(policy.accepted_loss_of_probe, self.of_probe)
        {
            return self.on_tail();
        }
        let kept = policy
            .max_running_entropy
            .and_then(|most| self.running.iter().position(|mean| *mean > most));
        self.handed_over(kept.map(|index| index + 1))
    }

    pub(super) fn on_tail(&self) -> Outcome {
        Outcome {
            agreement: 1.0,
            tail_seconds: self
                .cost
                .seconds(self.record.features.prompt_tokens, self.record.full_tokens),
            is_device: 0.0,
            device_share: 0.0,
        }
    }

    /// After so many tokens, or not at all. The rest is taken to be as long as the local answer's.
    pub(super) fn handed_over(&self, kept: Option<usize>) -> Outcome {
        let all = self.record.agrees.len();
        let Some(kept) = kept.filter(|kept| *kept < all) else {
            return Outcome {
                agreement: self.record.agreement(),
                tail_seconds: 0.0,
                is_device: 1.0,
                device_share: 1.0,
            };
        };
        let agreed = self.record.agrees[..kept]
            .iter()
            .filter(|agrees| **agrees)
            .count();
        let rest = all - kept;
        Outcome {
            agreement: (agreed + rest) as f64 / all as f64,
            tail_seconds: self
                .cost
                .seconds(self.record.features.prompt_tokens + kept, rest),
            is_device: 0.0,
            device_share: kept as f64 / all as f64,
        }
    }
}
