//! A session's part of the trace that its device began: one span for the session and three for each step, from
//! the frame's arrival to the engine, in the engine, and from the engine to the device.
//!
//! When a step's spans begin and end is known when it is done, so they are written then, with these times and
//! not with those of the writing. `docs/tracing.md` has them for those who read traces.

use std::time::{Instant, SystemTime};

use opentelemetry::global::BoxedTracer;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{Span as _, SpanBuilder, SpanContext, TraceContextExt as _, Tracer};
use opentelemetry::{Context, KeyValue, global};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::batcher::Phase;

#[cfg(test)]
mod tests;

/// Names the code that writes the spans: OpenTelemetry's instrumentation scope.
const SCOPE: &str = "tail-server";

/// The W3C trace context of a device's request, as its Open carries it. Empty where there is none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TraceHeaders<'a> {
    pub(crate) traceparent: &'a str,
    pub(crate) tracestate: &'a str,
}

/// What is written on a session's span.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionFacts<'a> {
    pub(crate) session_id: u64,
    pub(crate) tenant: &'a str,
    pub(crate) split_layer: u32,
    pub(crate) max_positions: u32,
}

/// When a step was where. None is before the one above it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepMoments {
    /// Its frame was read.
    pub(crate) arrived: Instant,
    /// Its first engine step began.
    pub(crate) started: Instant,
    /// The engine gave its answer.
    pub(crate) computed: Instant,
    /// The answer's frame was written.
    pub(crate) sent: Instant,
}

/// What is written on a step's `compute` span.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepFacts {
    /// Positions sent, draft tokens included.
    pub(crate) rows: usize,
    pub(crate) phase: Phase,
    /// A token was sampled.
    pub(crate) sampled: bool,
    /// Device time attributed to the step, which a batch shares; so not the span's length.
    pub(crate) compute_us: u64,
    /// Draft tokens that were right.
    pub(crate) draft_accepted: usize,
}

/// Writes a session's spans. Where nobody receives them, or the trace is not sampled, a step costs nothing.
pub(crate) struct SessionTrace {
    span: tracing::Span,
    steps: Option<StepTracer>,
}

impl SessionTrace {
    /// Begins the session's span, in the device's trace where it has one and sent it well-formed. Otherwise in a
    /// new one, as W3C Trace Context asks for.
    pub(crate) fn new(headers: TraceHeaders<'_>, facts: SessionFacts<'_>) -> Self {
        Self::with_tracer(headers, facts, || global::tracer(SCOPE))
    }

    /// What the session's task is to run in: its logs carry the facts and the trace's id.
    pub(crate) fn span(&self) -> &tracing::Span {
        &self.span
    }

    /// Writes the spans of a step that is done.
    pub(crate) fn step(&self, moments: StepMoments, facts: StepFacts) {
        if let Some(steps) = &self.steps {
            steps.write(moments, facts);
        }
    }

    /// `tracer`: asked for only where steps are to be written.
    fn with_tracer(
        headers: TraceHeaders<'_>,
        facts: SessionFacts<'_>,
        tracer: impl FnOnce() -> BoxedTracer,
    ) -> Self {
        let span = session_span(facts);
        let remote = remote_context(headers);
        let device = remote.span().span_context().clone();
        if device.is_valid() {
            // Fails where there are no traces, and nothing is missing then.
            let _ = span.set_parent(remote);
        }
        let session = span.context().span().span_context().clone();
        // Also where no traces are sent: the log can be found from the device's side.
        let known = if session.is_valid() {
            &session
        } else {
            &device
        };
        if known.is_valid() {
            span.record("trace_id", tracing::field::display(known.trace_id()));
        }
        let steps = session
            .is_sampled()
            .then(|| StepTracer::new(tracer(), session));
        Self { span, steps }
    }
}

/// As a root: what runs around the session is not part of the device's trace.
fn session_span(facts: SessionFacts<'_>) -> tracing::Span {
    let SessionFacts {
        session_id,
        tenant,
        split_layer,
        max_positions,
    } = facts;
    tracing::info_span!(
        parent: None,
        "session",
        // Signed, because what is unsigned becomes a text in a trace.
        session_id = integer(session_id),
        %tenant,
        split_layer = i64::from(split_layer),
        max_positions = i64::from(max_positions),
        trace_id = tracing::field::Empty,
        otel.kind = "server",
    )
}

/// Writes the spans of steps into a sampled trace.
struct StepTracer {
    tracer: BoxedTracer,
    /// The session's span, which is theirs to be under.
    session: Context,
    clock: Clock,
}

impl StepTracer {
    fn new(tracer: BoxedTracer, session: SpanContext) -> Self {
        Self {
            tracer,
            // The name and not the span itself, which ends with the session's task.
            session: Context::new().with_remote_span_context(session),
            clock: Clock::new(),
        }
    }

    fn write(&self, moments: StepMoments, facts: StepFacts) {
        let StepMoments {
            arrived,
            started,
            computed,
            sent,
        } = moments;
        let StepFacts {
            rows,
            phase,
            sampled,
            compute_us,
            draft_accepted,
        } = facts;
        let attributes = vec![
            KeyValue::new("rows", integer(rows)),
            KeyValue::new("phase", phase.name()),
            KeyValue::new("sampled", sampled),
            KeyValue::new("compute_us", integer(compute_us)),
            KeyValue::new("draft_accepted", integer(draft_accepted)),
        ];
        self.span("queue", [arrived, started], Vec::new());
        self.span("compute", [started, computed], attributes);
        self.span("send", [computed, sent], Vec::new());
    }

    fn span(&self, name: &'static str, [start, end]: [Instant; 2], attributes: Vec<KeyValue>) {
        let builder = SpanBuilder::from_name(name)
            .with_start_time(self.clock.time(start))
            .with_attributes(attributes);
        self.tracer
            .build_with_context(builder, &self.session)
            .end_with_timestamp(self.clock.time(end));
    }
}

/// Tells the time of day of moments. Both were read at once and only once, so that a clock that is set meanwhile
/// neither moves a session's spans against each other nor stretches them.
struct Clock {
    moment: Instant,
    time: SystemTime,
}

impl Clock {
    fn new() -> Self {
        Self {
            moment: Instant::now(),
            time: SystemTime::now(),
        }
    }

    fn time(&self, moment: Instant) -> SystemTime {
        match moment.checked_duration_since(self.moment) {
            Some(later) => self.time + later,
            None => self.time - self.moment.duration_since(moment),
        }
    }
}

/// The device's span, if its traceparent is well-formed; otherwise no span. A tracestate that is not well-formed
/// is left out.
fn remote_context(headers: TraceHeaders<'_>) -> Context {
    if !is_well_formed(headers.traceparent) {
        return Context::new();
    }
    TraceContextPropagator::new().extract_with_context(&Context::new(), &headers)
}

/// The form of W3C Trace Context, section 3.2.2. The SDK's parser also takes shorter fields.
fn is_well_formed(traceparent: &str) -> bool {
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let lengths = [2, 32, 16, 2];
    let mut fields = traceparent.split('-');
    lengths.iter().all(|&length| {
        fields
            .next()
            .is_some_and(|field| field.len() == length && field.bytes().all(is_hex))
    }) && fields.next().is_none()
}

impl Extractor for TraceHeaders<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => Some(self.traceparent),
            "tracestate" => Some(self.tracestate),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

/// As OpenTelemetry has integers.
fn integer(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}
