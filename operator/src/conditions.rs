//! What is said about a SplitModel: its four conditions, by the API conventions. Pure.
//!
//! | type | true when |
//! |---|---|
//! | `Ready` | at least one tail serves |
//! | `ModelAvailable` | a tail has loaded the model, so that devices can fetch their head layers |
//! | `Progressing` | the operator or Kubernetes is at work towards what the spec asks for |
//! | `Degraded` | something is in the way that will not go away by itself |

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::apply::Applied;
use crate::kinds::OwnedKind;
use crate::names;
use crate::observed::Observed;

#[cfg(test)]
mod tests;

/// How a reconciliation ended, as far as conditions tell it.
#[derive(Debug)]
pub enum Outcome<'a> {
    /// Everything was applied.
    Applied(&'a Applied),
    /// The spec cannot be built.
    Invalid(String),
    /// Applying failed. `reason` is a condition's reason.
    Failed {
        /// A condition's reason.
        reason: &'static str,
        /// What happened, and what would be right.
        message: String,
    },
    /// An annotation says not to touch anything.
    Paused,
}

/// What one condition says.
struct Verdict {
    type_: &'static str,
    status: bool,
    reason: String,
    message: String,
}

/// The conditions after `outcome`. `now` is the transition time of those whose status differs from `before`.
#[must_use]
pub fn conditions(
    outcome: &Outcome<'_>,
    observed: &Observed,
    generation: Option<i64>,
    before: &[Condition],
    now: &Time,
) -> Vec<Condition> {
    let verdicts = [
        ready(observed),
        model_available(observed),
        progressing(outcome, observed),
        degraded(outcome, observed),
    ];
    let condition = |verdict: Verdict| {
        let status = if verdict.status { "True" } else { "False" };
        let same = before
            .iter()
            .find(|old| old.type_ == verdict.type_ && old.status == status);
        Condition {
            type_: verdict.type_.to_owned(),
            status: status.to_owned(),
            reason: verdict.reason,
            message: verdict.message,
            observed_generation: generation,
            last_transition_time: same
                .map_or_else(|| now.clone(), |old| old.last_transition_time.clone()),
        }
    };
    verdicts.into_iter().map(condition).collect()
}

fn ready(observed: &Observed) -> Verdict {
    let ready = observed.ready_replicas();
    let wanted = observed.wanted_replicas.unwrap_or(0);
    let (status, reason, message) = if ready > 0 {
        (
            true,
            "TailsReady",
            format!("{ready} of {wanted} tails serve"),
        )
    } else if observed.deployment.is_some() && wanted == 0 {
        let message =
            "no tail is wanted; with autoscaling.min 0 the first session starts one, or raise spec.replicas or autoscaling.min".to_owned();
        (false, "ScaledToZero", message)
    } else {
        (false, "NoTailReady", "no tail serves yet".to_owned())
    };
    verdict("Ready", status, reason, message)
}

fn model_available(observed: &Observed) -> Verdict {
    if observed.ready_replicas() > 0 {
        let message = "a tail has loaded the model".to_owned();
        verdict("ModelAvailable", true, "Loaded", message)
    } else {
        let delivery = &observed.delivery;
        // Others have failed where one is on its way, and `Degraded` tells of them.
        match delivery.on_its_way.as_ref().or(delivery.failed.first()) {
            Some((pod, report)) => {
                let message = format!("pod {pod}: {}", report.message);
                verdict("ModelAvailable", false, &report.reason, message)
            }
            None => {
                let message = "no tail has loaded the model yet".to_owned();
                verdict("ModelAvailable", false, "NotLoaded", message)
            }
        }
    }
}

fn progressing(outcome: &Outcome<'_>, observed: &Observed) -> Verdict {
    let (status, reason, message) = match outcome {
        Outcome::Paused => {
            let message =
                "the annotation headway.dev/paused is \"true\"; remove it to go on".to_owned();
            (false, "Paused", message)
        }
        Outcome::Invalid(_) => {
            let message = "waiting for the spec to be corrected".to_owned();
            (false, "InvalidSpec", message)
        }
        Outcome::Failed { .. } => (
            true,
            "Retrying",
            "the last attempt failed; trying again".to_owned(),
        ),
        Outcome::Applied(applied) if applied.stopped.is_some() => (
            false,
            "RolloutStopped",
            "waiting for the spec to be changed; tails go on as they did before".to_owned(),
        ),
        Outcome::Applied(applied) if observed.all_available() && !applied.has_new_pods => (
            false,
            "UpToDate",
            "every tail runs the newest spec".to_owned(),
        ),
        Outcome::Applied(applied) => {
            let status = observed.deployment.as_ref();
            let status = status.filter(|_| !applied.has_new_pods);
            let updated = status
                .and_then(|status| status.updated_replicas)
                .unwrap_or(0);
            let wanted = applied.replicas.or(observed.wanted_replicas).unwrap_or(1);
            let mut message = format!("{updated} of {wanted} tails have the newest spec");
            if let Some((pod, report)) = &observed.delivery.on_its_way {
                message += &format!("; pod {pod}: {}", report.message);
            }
            (true, "RollingOut", message)
        }
    };
    verdict("Progressing", status, reason, message)
}

fn degraded(outcome: &Outcome<'_>, observed: &Observed) -> Verdict {
    match outcome {
        Outcome::Invalid(message) => verdict("Degraded", true, "InvalidSpec", message.clone()),
        Outcome::Failed { reason, message } => verdict("Degraded", true, reason, message.clone()),
        Outcome::Applied(applied) if !applied.missing.is_empty() => {
            let message = missing_apis(&applied.missing);
            verdict("Degraded", true, "ApiMissing", message)
        }
        Outcome::Applied(Applied {
            stopped: Some(because),
            ..
        }) => {
            let message = format!(
                "the newest spec was stopped and tails go on as they did before, because of {because}; correct the spec, or remove the Deployment's annotation {} to try again",
                names::STOPPED_ANNOTATION
            );
            verdict("Degraded", true, "RolloutStopped", message)
        }
        Outcome::Applied(_) | Outcome::Paused => {
            match (&observed.problem, observed.delivery.failed.first()) {
                (Some(problem), _) => {
                    verdict("Degraded", true, &problem.reason, problem.message.clone())
                }
                (None, Some((pod, report))) => {
                    let message = format!("pod {pod}: {}", report.message);
                    verdict("Degraded", true, &report.reason, message)
                }
                (None, None) => verdict(
                    "Degraded",
                    false,
                    "AsExpected",
                    "nothing is in the way".to_owned(),
                ),
            }
        }
    }
}

fn missing_apis(missing: &[OwnedKind]) -> String {
    let kinds: Vec<String> = missing
        .iter()
        .map(|kind| {
            let resource = kind.api_resource();
            format!("{} ({})", resource.kind, resource.api_version)
        })
        .collect();
    format!(
        "this cluster does not serve {}; install it, or remove what asks for it from the spec",
        kinds.join(", ")
    )
}

fn verdict(type_: &'static str, status: bool, reason: &str, message: String) -> Verdict {
    Verdict {
        type_,
        status,
        reason: reason.to_owned(),
        message,
    }
}
