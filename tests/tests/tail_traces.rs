//! One trace for device and tail: what a collector gets of a session that a device began in its own trace.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use e2e::device::{finish, lossless, request};
use e2e::tail::Tail;
use e2e::{PATIENCE, tiny_llama};
use edge_lite::{Client, GenerateRequest, Prompt, SamplingParams, TraceContext};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const DEVICE_SPAN: &str = "00f067aa0ba902b7";
/// More than a tail sends in a test.
const MAX_BATCHES: usize = 256;

/// A collector on a free port, and the batches that it gets.
async fn collector() -> Result<(String, mpsc::Receiver<Bytes>)> {
    let (batches, received) = mpsc::channel(MAX_BATCHES);
    let collect = post(async move |batch: Bytes| {
        // The test may have seen enough.
        let _ = batches.send(batch).await;
    });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let router = Router::new().route("/v1/traces", collect);
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok((url, received))
}

fn spans(batch: Bytes) -> Result<Vec<Span>> {
    let request = ExportTraceServiceRequest::decode(batch).context("not OTLP")?;
    let resources = request.resource_spans.into_iter();
    let scopes = resources.flat_map(|resource| resource.scope_spans);
    Ok(scopes.flat_map(|scope| scope.spans).collect())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn traced(sampled: &str) -> GenerateRequest {
    GenerateRequest {
        trace: Some(TraceContext {
            traceparent: format!("00-{TRACE_ID}-{DEVICE_SPAN}-{sampled}"),
            tracestate: String::new(),
        }),
        ..request(
            Prompt::TokenIds(vec![3, 17, 64, 9]),
            5,
            SamplingParams::default(),
        )
    }
}

#[tokio::test]
async fn a_session_and_its_steps_are_spans_of_the_devices_trace() -> Result<()> {
    let (url, mut batches) = collector().await?;
    let tail = Tail::start(&tiny_llama(), &["--otlp-endpoint", &url]).await?;
    let client = Client::connect(&tail.url(), lossless(1)).await?;
    // A trace that its device does not sample leaves nothing.
    finish(client.generate(traced("00")).await?).await?;
    let answer = finish(client.generate(traced("01")).await?).await?;
    ensure!(answer.tokens.len() == 5, "{:?}", answer.report);
    // What is left is sent when the tail ends.
    tail.terminate()?;
    ensure!(tail.ended().await?.success());

    let mut by_name: BTreeMap<String, Vec<Span>> = BTreeMap::new();
    while let Ok(Some(batch)) = timeout(PATIENCE, batches.recv()).await {
        for span in spans(batch)? {
            by_name.entry(span.name.clone()).or_default().push(span);
        }
        if batches.is_empty() && by_name.contains_key("session") {
            break;
        }
    }
    let count = |name: &str| by_name.get(name).map_or(0, Vec::len);
    // A prompt in one step and four tokens that are sent back.
    let counts = ["session", "queue", "compute", "send"].map(count);
    ensure!(counts == [1, 5, 5, 5], "{counts:?} of {:?}", by_name.keys());
    let session = &by_name["session"][0];
    ensure!(hex(&session.trace_id) == TRACE_ID);
    ensure!(hex(&session.parent_span_id) == DEVICE_SPAN);
    for span in ["queue", "compute", "send"]
        .iter()
        .flat_map(|name| &by_name[*name])
    {
        ensure!(hex(&span.trace_id) == TRACE_ID);
        ensure!(span.parent_span_id == session.span_id);
        ensure!(span.start_time_unix_nano <= span.end_time_unix_nano);
    }
    for (before, after) in [("queue", "compute"), ("compute", "send")] {
        for (before, after) in by_name[before].iter().zip(&by_name[after]) {
            ensure!(before.end_time_unix_nano == after.start_time_unix_nano);
        }
    }
    Ok(())
}
