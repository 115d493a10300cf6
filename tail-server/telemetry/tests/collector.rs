//! A program's spans, as a collector gets them. Logging is installed once a process, so there is one test here.

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use headway_telemetry::{LogFormat, Options, Telemetry};
use opentelemetry::trace::Tracer as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

#[tokio::test]
async fn what_is_left_at_the_end_is_sent_and_what_is_filtered_out_is_not() {
    let (batches, mut received) = mpsc::channel(8);
    let collect = post(async move |batch: Bytes| {
        batches.send(batch).await.expect("the test receives");
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/", listener.local_addr().unwrap());
    let router = Router::new().route("/v1/traces", collect);
    let collector = tokio::spawn(async move { axum::serve(listener, router).await });

    let options = Options {
        service_name: "headway-test",
        log_filter: "error".to_owned(),
        log_format: LogFormat::Json,
        trace_filter: "collector=info".to_owned(),
        otlp_endpoint: Some(endpoint),
    };
    let telemetry = Telemetry::install(&options).unwrap();
    // Hidden from the log, and traced all the same.
    drop(tracing::info_span!("by-tracing"));
    drop(tracing::debug_span!("filtered-out"));
    drop(opentelemetry::global::tracer("test").start("by-opentelemetry"));
    telemetry.finish().await;

    let mut sent = Vec::new();
    while let Ok(batch) = received.try_recv() {
        sent.extend_from_slice(&batch);
    }
    // Protocol buffers hold texts as they are.
    let holds = |text: &str| sent.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(holds("headway-test"));
    assert!(holds("by-tracing"));
    assert!(holds("by-opentelemetry"));
    assert!(!holds("filtered-out"));
    collector.abort();
}
