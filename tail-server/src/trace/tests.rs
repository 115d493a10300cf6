use std::time::Duration;

use opentelemetry::Value;
use opentelemetry::trace::{SpanId, SpanKind, TracerProvider as _};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tracing_subscriber::layer::SubscriberExt as _;

use super::*;

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const DEVICE_SPAN_ID: &str = "00f067aa0ba902b7";
const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const UNSAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

const SESSION: SessionFacts<'static> = SessionFacts {
    session_id: 7,
    tenant: "acme",
    split_layer: 10,
    max_positions: 512,
};

const STEP: StepFacts = StepFacts {
    rows: 5,
    phase: Phase::Decode,
    sampled: true,
    compute_us: 1234,
    draft_accepted: 3,
};

/// The moments of a step that arrives at `arrived`, waits 2 ms, is computed in 3 ms and sent in 4 ms.
fn moments(arrived: Instant) -> StepMoments {
    let later = |ms| arrived + Duration::from_millis(ms);
    StepMoments {
        arrived,
        started: later(2),
        computed: later(5),
        sent: later(9),
    }
}

/// The spans of a session of `steps` steps, where there is an exporter.
fn spans(traceparent: &str, tracestate: &str, steps: usize) -> Vec<SpanData> {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder()
        .with_simple_exporter(exporter.clone())
        .build();
    let traces = tracing_opentelemetry::layer().with_tracer(provider.tracer(SCOPE));
    let subscriber = tracing_subscriber::registry().with(traces);
    tracing::subscriber::with_default(subscriber, || {
        // What happens to run around a session is not its trace.
        let _around = tracing::info_span!("around").entered();
        let headers = TraceHeaders {
            traceparent,
            tracestate,
        };
        let tracer = || BoxedTracer::new(Box::new(provider.tracer(SCOPE)));
        let trace = SessionTrace::with_tracer(headers, SESSION, tracer);
        for _ in 0..steps {
            trace.step(moments(Instant::now()), STEP);
        }
    });
    let spans = exporter.get_finished_spans().unwrap();
    spans
        .into_iter()
        .filter(|span| span.name != "around")
        .collect()
}

fn named<'a>(spans: &'a [SpanData], name: &str) -> Vec<&'a SpanData> {
    spans.iter().filter(|span| span.name == name).collect()
}

fn session(spans: &[SpanData]) -> &SpanData {
    let [session] = named(spans, "session")[..] else {
        panic!("{spans:?}");
    };
    session
}

fn attribute<'a>(span: &'a SpanData, key: &str) -> Option<&'a Value> {
    let mut attributes = span.attributes.iter();
    let found = attributes.find(|attribute| attribute.key.as_str() == key);
    found.map(|attribute| &attribute.value)
}

#[test]
fn a_sampled_session_is_a_span_under_the_devices() {
    let spans = spans(SAMPLED, "vendor=opaque", 0);
    let session = session(&spans);
    assert_eq!(session.span_context.trace_id().to_string(), TRACE_ID);
    assert_eq!(session.parent_span_id.to_string(), DEVICE_SPAN_ID);
    assert!(session.parent_span_is_remote);
    assert_eq!(session.span_kind, SpanKind::Server);
    let state = session.span_context.trace_state();
    assert_eq!(state.header(), "vendor=opaque");
    for (key, value) in [
        ("session_id", Value::I64(7)),
        ("tenant", Value::from("acme")),
        ("split_layer", Value::I64(10)),
        ("max_positions", Value::I64(512)),
        ("trace_id", Value::from(TRACE_ID)),
    ] {
        assert_eq!(attribute(session, key), Some(&value), "{key}");
    }
}

#[test]
fn each_step_is_three_spans_under_its_session() {
    let spans = spans(SAMPLED, "", 4);
    assert_eq!(spans.len(), 1 + 4 * 3);
    let session = session(&spans);
    for name in ["queue", "compute", "send"] {
        let steps = named(&spans, name);
        assert_eq!(steps.len(), 4, "{name}");
        for step in steps {
            assert_eq!(step.span_context.trace_id().to_string(), TRACE_ID);
            assert_eq!(step.parent_span_id, session.span_context.span_id());
            assert!(!step.parent_span_is_remote);
        }
    }
}

#[test]
fn a_steps_spans_meet_at_its_moments() {
    let spans = spans(SAMPLED, "", 1);
    let [queue, compute, send] =
        ["queue", "compute", "send"].map(|name| named(&spans, name)[0].clone());
    for (span, ms) in [(&queue, 2), (&compute, 3), (&send, 4)] {
        let length = span.end_time.duration_since(span.start_time).unwrap();
        assert_eq!(length, Duration::from_millis(ms), "{}", span.name);
    }
    assert_eq!(queue.end_time, compute.start_time);
    assert_eq!(compute.end_time, send.start_time);
    // The step arrived in this session.
    assert!(queue.start_time >= session(&spans).start_time);
}

#[test]
fn what_a_step_was_is_on_its_compute_span() {
    let spans = spans(SAMPLED, "", 1);
    let compute = named(&spans, "compute")[0];
    for (key, value) in [
        ("rows", Value::I64(5)),
        ("phase", Value::from("decode")),
        ("sampled", Value::Bool(true)),
        ("compute_us", Value::I64(1234)),
        ("draft_accepted", Value::I64(3)),
    ] {
        assert_eq!(attribute(compute, key), Some(&value), "{key}");
    }
}

#[test]
fn a_trace_that_is_not_sampled_has_no_spans() {
    assert!(spans(UNSAMPLED, "vendor=opaque", 3).is_empty());
}

#[test]
fn a_session_without_a_well_formed_traceparent_is_the_root_of_a_new_trace() {
    for traceparent in [
        "",
        "00",
        // Another separator, version ff, upper case, a span id of zeros, one of 15 digits, a sign.
        "00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-+1",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
    ] {
        let spans = spans(traceparent, "vendor=opaque", 1);
        assert_eq!(spans.len(), 4, "{traceparent}");
        let session = session(&spans);
        assert_eq!(session.parent_span_id, SpanId::INVALID, "{traceparent}");
        assert!(session.span_context.is_valid());
        assert_ne!(session.span_context.trace_id().to_string(), TRACE_ID);
        assert_eq!(session.span_context.trace_state().header(), "");
        for step in &spans {
            assert_eq!(
                step.span_context.trace_id(),
                session.span_context.trace_id()
            );
        }
    }
}

#[test]
fn a_malformed_tracestate_alone_is_left_out() {
    let spans = spans(SAMPLED, "no equals sign", 0);
    let session = session(&spans);
    assert_eq!(session.parent_span_id.to_string(), DEVICE_SPAN_ID);
    assert_eq!(session.span_context.trace_state().header(), "");
}

#[test]
fn without_an_exporter_nothing_is_written() {
    let headers = TraceHeaders {
        traceparent: SAMPLED,
        tracestate: "",
    };
    let no_tracer = || panic!("a tracer is asked for");
    // With logs, and without anything.
    let logs = tracing_subscriber::fmt()
        .with_writer(std::io::sink)
        .finish();
    tracing::subscriber::with_default(logs, || {
        let trace = SessionTrace::with_tracer(headers, SESSION, no_tracer);
        assert!(!trace.span().is_disabled());
        trace.step(moments(Instant::now()), STEP);
    });
    tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::new(), || {
        let trace = SessionTrace::with_tracer(headers, SESSION, no_tracer);
        assert!(trace.span().is_disabled());
        trace.step(moments(Instant::now()), STEP);
    });
}

#[test]
fn a_moment_before_the_session_has_a_time_too() {
    let clock = Clock::new();
    let hour = Duration::from_secs(3600);
    let earlier = Clock {
        moment: clock.moment + hour,
        time: clock.time + hour,
    };
    assert_eq!(earlier.time(clock.moment), clock.time);
    assert_eq!(clock.time(earlier.moment), earlier.time);
}
