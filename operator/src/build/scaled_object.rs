//! The ScaledObject of KEDA, with `autoscaling.provider: keda`.

use serde_json::{Value, json};

use super::metadata;
use crate::crd::autoscaling::Provider;
use crate::kinds::OwnedKind;
use crate::names;
use crate::validate::ValidSpec;

/// What a HorizontalPodAutoscaler takes.
const MAX_STABILIZATION_SECONDS: u32 = 3600;

pub(super) fn build(valid: &ValidSpec) -> Option<Value> {
    let scaling = &valid.spec.autoscaling;
    let keda = scaling.keda.as_ref()?;
    if scaling.provider != Provider::Keda {
        return None;
    }
    let delay_seconds = scaling.windows.scale_down_delay_seconds;
    Some(json!({
        "metadata": metadata(OwnedKind::ScaledObject, valid),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": names::owned(&valid.owner.name)},
            "minReplicaCount": scaling.min,
            "maxReplicaCount": scaling.max,
            "cooldownPeriod": delay_seconds,
            // The period above is for the last pod only.
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": {"scaleDown": {
                "stabilizationWindowSeconds": delay_seconds.min(MAX_STABILIZATION_SECONDS),
            }}}},
            "pollingInterval": scaling.windows.panic_seconds,
            "triggers": triggers(valid, &keda.prometheus_address),
        },
    }))
}

/// What each of them asks for is divided by its threshold; the most pods count.
fn triggers(valid: &ValidSpec, prometheus_address: &str) -> Vec<Value> {
    let scaling = &valid.spec.autoscaling;
    let limits = &valid.spec.tail.limits;
    let sessions = u64::from(limits.sessions) * u64::from(scaling.targets.sessions_percent) / 100;
    let labels = format!(
        "namespace=\"{}\", pod=~\"{}-.*\"",
        valid.owner.namespace,
        names::owned(&valid.owner.name)
    );
    // A rate needs two scrapes at least.
    let window = scaling.windows.stable_seconds.max(60);
    let trigger = |query: String, threshold: u64| {
        json!({
            "type": "prometheus",
            "metadata": {
                "serverAddress": prometheus_address,
                "query": query,
                "threshold": threshold.max(1).to_string(),
            },
        })
    };
    let mut triggers = vec![
        trigger(format!("sum(headway_tail_sessions{{{labels}}})"), sessions),
        // Shares and quantiles cannot be summed over pods: they are taken times the pods there are.
        trigger(
            format!(
                "100 * count(headway_tail_sessions{{{labels}}}) * sum(headway_tail_kv_bytes{{{labels}}}) / \
                 sum(headway_tail_kv_limit_bytes{{{labels}}})"
            ),
            u64::from(scaling.targets.kv_percent),
        ),
        trigger(
            format!(
                "1000 * count(headway_tail_sessions{{{labels}}}) * histogram_quantile(0.95, sum by (le) \
                 (rate(headway_tail_queue_delay_seconds_bucket{{{labels}}}[{window}s])))"
            ),
            u64::from(scaling.targets.queue_delay_ms),
        ),
    ];
    if scaling.min == 0 {
        // Tails that are not there say nothing: who waits for the first one, the operator says in their place. Each
        // session that waits asks every two seconds.
        let waiting = format!(
            "2 * sum(rate(headway_operator_starting_answers_total{{namespace=\"{}\", splitmodel=\"{}\"}}[{window}s]))",
            valid.owner.namespace, valid.owner.name
        );
        triggers.push(trigger(waiting, sessions));
    }
    triggers
}
