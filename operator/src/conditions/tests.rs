use k8s_openapi::api::apps::v1::DeploymentStatus;
use k8s_openapi::jiff::Timestamp;

use super::*;

fn at(second: i64) -> Time {
    Time(Timestamp::from_second(second).unwrap())
}

fn observed(wanted: i32, ready: i32) -> Observed {
    Observed {
        wanted_replicas: Some(wanted),
        deployment_generation: 3,
        deployment: Some(DeploymentStatus {
            observed_generation: Some(3),
            replicas: Some(wanted),
            updated_replicas: Some(wanted),
            ready_replicas: Some(ready),
            ..DeploymentStatus::default()
        }),
        ..Observed::default()
    }
}

fn applied(missing: Vec<OwnedKind>) -> Applied {
    Applied {
        replicas: Some(1),
        missing,
        has_new_pods: false,
        stopped: None,
    }
}

fn of<'a>(conditions: &'a [Condition], type_: &str) -> &'a Condition {
    conditions.iter().find(|each| each.type_ == type_).unwrap()
}

#[test]
fn serving_model_is_ready_and_done() {
    let all = conditions(
        &Outcome::Applied(&applied(vec![])),
        &observed(2, 2),
        Some(7),
        &[],
        &at(1),
    );
    assert_eq!(of(&all, "Ready").status, "True");
    assert_eq!(of(&all, "Ready").message, "2 of 2 tails serve");
    assert_eq!(of(&all, "Progressing").reason, "UpToDate");
    assert_eq!(of(&all, "Degraded").status, "False");
    assert!(all.iter().all(|each| each.observed_generation == Some(7)));
}

#[test]
fn one_of_three_tails_serves_while_the_others_start() {
    let all = conditions(
        &Outcome::Applied(&applied(vec![])),
        &observed(3, 1),
        Some(7),
        &[],
        &at(1),
    );
    assert_eq!(of(&all, "Ready").status, "True");
    assert_eq!(of(&all, "Progressing").status, "True");
}

#[test]
fn transition_time_moves_only_with_the_status() {
    let outcome = applied(vec![]);
    let first = conditions(
        &Outcome::Applied(&outcome),
        &observed(1, 0),
        Some(1),
        &[],
        &at(1),
    );
    let second = conditions(
        &Outcome::Applied(&outcome),
        &observed(1, 1),
        Some(1),
        &first,
        &at(2),
    );
    assert_eq!(of(&second, "Ready").last_transition_time, at(2));
    assert_eq!(of(&second, "Degraded").last_transition_time, at(1));
    let third = conditions(
        &Outcome::Applied(&outcome),
        &observed(1, 1),
        Some(1),
        &second,
        &at(3),
    );
    assert_eq!(second, third);
}

#[test]
fn missing_api_is_named() {
    let outcome = applied(vec![OwnedKind::HttpRoute]);
    let all = conditions(
        &Outcome::Applied(&outcome),
        &observed(1, 1),
        Some(1),
        &[],
        &at(1),
    );
    let degraded = of(&all, "Degraded");
    assert_eq!(degraded.reason, "ApiMissing");
    assert!(
        degraded
            .message
            .contains("HTTPRoute (gateway.networking.k8s.io/v1)"),
        "{}",
        degraded.message
    );
}

#[test]
fn invalid_spec_waits_and_says_what_is_wrong() {
    let outcome = Outcome::Invalid("split.min is above split.max".to_owned());
    let all = conditions(&outcome, &observed(1, 1), Some(2), &[], &at(1));
    assert_eq!(of(&all, "Degraded").message, "split.min is above split.max");
    assert_eq!(of(&all, "Progressing").status, "False");
    // What serves goes on serving.
    assert_eq!(of(&all, "Ready").status, "True");
}

#[test]
fn sleeping_model_says_how_to_wake_it() {
    let all = conditions(
        &Outcome::Applied(&applied(vec![])),
        &observed(0, 0),
        Some(2),
        &[],
        &at(1),
    );
    assert_eq!(of(&all, "Ready").reason, "ScaledToZero");
    assert_eq!(of(&all, "Progressing").status, "False");
}

#[test]
fn new_template_is_not_up_to_date_before_the_deployment_says_so() {
    let outcome = Applied {
        has_new_pods: true,
        ..applied(vec![])
    };
    let all = conditions(
        &Outcome::Applied(&outcome),
        &observed(1, 1),
        Some(2),
        &[],
        &at(1),
    );
    assert_eq!(of(&all, "Progressing").reason, "RollingOut");
    assert_eq!(
        of(&all, "Progressing").message,
        "0 of 1 tails have the newest spec"
    );
}

/// What a tail says of its model, as the operator reads it.
fn report(json: serde_json::Value) -> (String, crate::delivery::Report) {
    let body = json.to_string();
    let report = crate::delivery::Report::read(body.as_bytes()).unwrap();
    ("smol-tail-0".to_owned(), report)
}

#[test]
fn a_model_on_its_way_says_how_far_it_is() {
    let mut observed = observed(1, 0);
    observed.delivery.on_its_way = Some(report(serde_json::json!({
        "state": "downloading", "reason": "Downloading", "message": "",
        "done_bytes": 45 << 20, "total_bytes": 100 << 20,
    })));
    let outcome = applied(vec![]);
    let all = conditions(&Outcome::Applied(&outcome), &observed, Some(1), &[], &at(1));
    let available = of(&all, "ModelAvailable");
    assert_eq!(
        (available.status.as_str(), available.reason.as_str()),
        ("False", "Downloading")
    );
    assert_eq!(
        available.message,
        "pod smol-tail-0: 40 % of 100 MiB are downloaded"
    );
    assert_eq!(of(&all, "Degraded").status, "False");
}

#[test]
fn a_model_that_cannot_be_had_degrades_even_beside_tails_that_serve() {
    let said = "org/smol is not shown (HTTP 401): it may be private; give an access token";
    let failed =
        report(serde_json::json!({"state": "failed", "reason": "Unauthorized", "message": said}));
    for ready in [0, 1] {
        let mut observed = observed(2, ready);
        observed.delivery.failed = vec![failed.clone()];
        let outcome = applied(vec![]);
        let all = conditions(&Outcome::Applied(&outcome), &observed, Some(1), &[], &at(1));
        let degraded = of(&all, "Degraded");
        assert_eq!(
            (degraded.status.as_str(), degraded.reason.as_str()),
            ("True", "Unauthorized")
        );
        assert!(degraded.message.contains(said), "{}", degraded.message);
        let available = of(&all, "ModelAvailable");
        let expected = if ready > 0 { "Loaded" } else { "Unauthorized" };
        assert_eq!(available.reason, expected);
    }
}

#[test]
fn a_stopped_rollout_degrades_beside_tails_that_serve() {
    let because = "pod smol-tail-1: ended with exit code 1: no layer 40";
    let outcome = Applied {
        stopped: Some(because.to_owned()),
        ..applied(vec![])
    };
    let outcome = Outcome::Applied(&outcome);
    let all = conditions(&outcome, &observed(2, 2), Some(1), &[], &at(1));
    assert_eq!(of(&all, "Ready").status, "True");
    let progressing = of(&all, "Progressing");
    assert_eq!(
        (progressing.status.as_str(), progressing.reason.as_str()),
        ("False", "RolloutStopped")
    );
    let degraded = of(&all, "Degraded");
    assert_eq!(
        (degraded.status.as_str(), degraded.reason.as_str()),
        ("True", "RolloutStopped")
    );
    assert!(degraded.message.contains(because), "{}", degraded.message);
}
