use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;

fn report(value: &Value) -> Report {
    Report::read(value.to_string().as_bytes()).unwrap()
}

fn downloading(done: u64) -> Report {
    report(&json!({
        "state": "downloading", "reason": "Downloading", "message": "x",
        "done_bytes": done << 20, "total_bytes": 200 << 20,
    }))
}

fn failed() -> Report {
    report(&json!({"state": "failed", "reason": "Unauthorized", "message": "a token is needed"}))
}

fn ready(digit: &str) -> Report {
    let digest = format!("sha256:{}", digit.repeat(64));
    let commit = digit.repeat(40);
    report(&json!({
        "state": "ready", "reason": "Loaded", "message": "", "model_digest": digest, "commit": commit,
    }))
}

fn said(pod: &str, report: Report) -> Said {
    Said {
        key: ("default".to_owned(), "smol".to_owned()),
        pod: pod.to_owned(),
        run: (0, None),
        report,
    }
}

#[test]
fn progress_is_told_in_few_steps() {
    assert_eq!(downloading(90).message, "40 % of 200 MiB are downloaded");
    assert_eq!(downloading(80), downloading(99));
    assert_ne!(downloading(99), downloading(100));
}

#[test]
fn what_is_no_answer_of_a_tail_is_nothing_and_what_is_odd_is_cut() {
    for body in [
        "",
        "ok\n",
        "{}",
        r#"{"state":"odd","reason":"","message":""}"#,
    ] {
        assert_eq!(Report::read(body.as_bytes()), None, "{body}");
    }
    let odd = report(&json!({
        "state": "ready", "reason": "two words", "message": "é".repeat(9999),
        "model_digest": "sha256:../..", "commit": "main",
    }));
    assert_eq!(
        (odd.reason.as_str(), odd.message.chars().count()),
        ("Unknown", 512)
    );
    assert_eq!((odd.model_digest, odd.commit), (None, None));
}

#[test]
fn the_furthest_and_the_failed_are_told_apart() {
    let (deliveries, _news) = Deliveries::new();
    assert_eq!(deliveries.of("default", "smol"), Delivery::default());
    deliveries.heard("a", said("pod-a", downloading(30)));
    deliveries.heard("b", said("pod-b", downloading(150)));
    deliveries.heard("c", said("pod-c", failed()));
    let delivery = deliveries.of("default", "smol");
    assert_eq!(delivery.on_its_way.unwrap().0, "pod-b");
    assert_eq!(delivery.failed[0].0, "pod-c");
    assert_eq!(delivery.served, None);
    assert_eq!(deliveries.of("other", "smol"), Delivery::default());
    deliveries.heard("b", said("pod-b", ready("7")));
    let served = deliveries.of("default", "smol").served.unwrap();
    assert_eq!(served.1.unwrap(), "7".repeat(40));
}

#[tokio::test]
async fn only_what_is_new_wakes_anybody() {
    let (deliveries, news) = Deliveries::new();
    let mut news = std::pin::pin!(news);
    deliveries.heard("a", said("pod-a", downloading(30)));
    assert_eq!(news.next().await.unwrap().name, "smol");
    deliveries.heard("a", said("pod-a", downloading(31)));
    assert!(news.next().now_or_never().is_none());
    deliveries.heard("a", said("pod-a", failed()));
    assert!(news.next().now_or_never().is_some());
}

#[tokio::test]
async fn what_a_pod_that_has_gone_failed_of_is_in_nobodys_way() {
    let (deliveries, news) = Deliveries::new();
    let mut news = std::pin::pin!(news);
    deliveries.heard("a", said("pod-a", failed()));
    assert!(news.next().now_or_never().is_some());
    deliveries.forget_all_but(&BTreeSet::from(["a".to_owned()]));
    assert!(news.next().now_or_never().is_none());
    deliveries.forget_all_but(&BTreeSet::new());
    assert_eq!(news.next().await.unwrap().name, "smol");
    assert_eq!(deliveries.of("default", "smol"), Delivery::default());
}

#[tokio::test]
async fn a_tail_that_waits_for_its_model_is_understood() {
    // Another test may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let body =
        r#"{"state":"failed","reason":"NoSpace","message":"full","done_bytes":0,"total_bytes":0}"#;
    let router = Router::new().route(
        "/readyz",
        get(async move || (StatusCode::SERVICE_UNAVAILABLE, body)),
    );
    tokio::spawn(async move { axum::serve(listener, router).await });
    let target = Target {
        address: address.ip(),
        port: address.port(),
        is_tls: false,
    };
    let report = ask(&Scraper::new().unwrap(), target).await.unwrap();
    assert_eq!(
        (report.state, report.reason.as_str()),
        (State::Failed, "NoSpace")
    );
}

fn pod(restarts: i32, state: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {
            "name": "pod-a", "namespace": "default", "uid": "a",
            "labels": {names::SPLITMODEL_LABEL: "smol"},
        },
        "status": {"containerStatuses": [{
            "name": names::TAIL, "ready": true, "restartCount": restarts, "image": "", "imageID": "", "state": state,
        }]},
    }))
    .unwrap()
}

#[test]
fn a_tail_that_serves_is_asked_once_in_each_run() {
    let (deliveries, _news) = Deliveries::new();
    let running = json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}});
    let serving = pod(0, &running);
    assert!(!deliveries.is_wanted(&pod(0, &json!({"waiting": {"reason": "CrashLoopBackOff"}}))));
    assert!(deliveries.is_wanted(&serving));
    let run = super::run(tail_container(&serving).unwrap()).unwrap();
    deliveries.heard(
        "a",
        Said {
            run,
            ..said("pod-a", ready("1"))
        },
    );
    assert!(!deliveries.is_wanted(&serving));
    assert!(deliveries.is_wanted(&pod(1, &running)));
}
