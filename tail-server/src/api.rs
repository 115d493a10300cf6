//! The HTTP routes: health, metrics, what the tail serves, its load, head artefacts, reports of what devices answered
//! alone, and the session WebSocket.
//!
//! Health and metrics are for the cluster and open to everybody; the rest is behind [`guard`].

mod part_file;

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Extension, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use headway_model::manifest::Artifact;
use headway_model::tail_load::TailLoad;
use headway_wire::message::RefusalCode;
use serde::Deserialize;

use self::part_file::{entity_tag, is_not_modified, not_modified};
use crate::auth::{Authenticator, Identity, PeerCertificate};
use crate::drain::Drain;
use crate::error::{Error, code_name};
use crate::head_artifacts::HeadArtifacts;
use crate::metrics::Metrics;
use crate::on_device::{OnDeviceAnswers, Received};
use crate::savings::Savings;
use crate::session::{Access, SessionService};
use crate::watchdog::Watchdog;

/// How much of an origin is repeated in an error.
const MAX_ORIGIN_CHARS: usize = 128;

/// What is gathered before it is written to a session's socket; a result is sent at once all the same.
const WRITE_BUFFER_BYTES: usize = 16 << 10;

/// What may wait for a device that does not read: more than any answer takes, and no more, because each ping of
/// the device adds a pong.
const MAX_UNSENT_BYTES: usize = 1 << 20;

/// What the routes answer from.
pub(crate) struct Api {
    /// What `/readyz` says while the tail takes sessions.
    pub(crate) report_json: Bytes,
    /// The manifest as JSON.
    pub(crate) manifest_json: Bytes,
    pub(crate) tokenizer_json: Bytes,
    pub(crate) tokenizer_digest: String,
    pub(crate) artifacts: HeadArtifacts,
    pub(crate) on_device_answers: OnDeviceAnswers,
    pub(crate) sessions: SessionService,
    pub(crate) drain: Arc<Drain>,
    pub(crate) watchdog: Arc<Watchdog>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) savings: Arc<Savings>,
    pub(crate) load_limits: LoadLimits,
    /// The most session sockets, for the refusal that names it.
    pub(crate) max_sockets: usize,
    pub(crate) authenticator: Arc<Authenticator>,
    /// Origins of web pages that may open sessions, and report what they answered alone.
    pub(crate) allowed_origins: Vec<String>,
}

/// What of a tail's load does not change.
pub(crate) struct LoadLimits {
    pub(crate) max_sessions: usize,
    pub(crate) step_rows: usize,
    pub(crate) max_draft_tokens: usize,
}

/// The router over `api`.
pub(crate) fn router(api: Arc<Api>) -> Router {
    let guarded = Router::new()
        .route("/v1/model", get(model))
        .route("/v1/load", get(load))
        .route("/v1/tokenizer", get(tokenizer))
        .route("/v1/head/{quantization}", get(head_parts))
        .route("/v1/head/{quantization}/{part}", get(head_part))
        .route("/v1/on-device-answers", post(on_device_answers))
        .route("/v1/session", get(session))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&api), guard));
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .merge(guarded)
        .with_state(api)
}

/// Lets a request through with the [`Identity`] of whoever sends it.
async fn guard(
    State(api): State<Arc<Api>>,
    Extension(certificate): Extension<Option<PeerCertificate>>,
    mut request: Request,
    next: Next,
) -> Response {
    let now = SystemTime::now();
    let identified = api
        .authenticator
        .identify(request.headers(), certificate.as_ref(), now)
        .await;
    match identified {
        Ok(identity) => {
            request.extensions_mut().insert(identity);
            next.run(request).await
        }
        Err(error) => {
            api.metrics
                .record_refusal(code_name(RefusalCode::Unauthenticated));
            tracing::info!(
                reason = crate::error::format_chain(&error),
                "request not authenticated"
            );
            Error::from(error).into_response()
        }
    }
}

async fn readyz(State(api): State<Arc<Api>>) -> Result<Response, Error> {
    if !api.drain.is_serving() {
        return Err(Error::Draining);
    }
    api.watchdog.check(Instant::now())?;
    Ok(json(api.report_json.clone()))
}

async fn metrics(State(api): State<Arc<Api>>) -> Result<Response, Error> {
    // For the gauge; what it says is for `/readyz`.
    let _ = api.watchdog.check(Instant::now());
    let content_type = [(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)];
    Ok((content_type, api.metrics.render()?).into_response())
}

async fn model(State(api): State<Arc<Api>>) -> Response {
    json(api.manifest_json.clone())
}

fn json(text: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// How busy the tail is, for a device that decides where to compute.
async fn load(State(api): State<Arc<Api>>) -> Json<TailLoad> {
    let count = |gauge: i64| usize::try_from(gauge).unwrap_or(0);
    let LoadLimits {
        max_sessions,
        step_rows,
        max_draft_tokens,
    } = api.load_limits;
    Json(TailLoad {
        sessions: count(api.metrics.sessions.get()),
        max_sessions,
        queued_prompts: count(api.metrics.queued_prompts.get()),
        draining: !api.drain.is_serving(),
        step_rows,
        max_draft_tokens,
        costs: api.savings.row_costs(),
    })
}

/// The model that a device fetches parts of.
#[derive(Deserialize)]
struct ModelQuery {
    /// Its digest. Without it, a part of whatever model this tail serves is meant.
    model: Option<String>,
}

impl ModelQuery {
    fn check(&self, api: &Api) -> Result<(), Error> {
        match &self.model {
            Some(digest) => Ok(api.sessions.admission.check_model(digest)?),
            None => Ok(()),
        }
    }
}

async fn tokenizer(
    State(api): State<Arc<Api>>,
    Query(model): Query<ModelQuery>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    model.check(&api)?;
    let tag = entity_tag(&api.tokenizer_digest);
    if is_not_modified(&headers, &tag) {
        return Ok(not_modified(tag));
    }
    let own_headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        ),
        (header::ETAG, tag),
    ];
    Ok((own_headers, api.tokenizer_json.clone()).into_response())
}

#[derive(Deserialize)]
struct PartsQuery {
    /// `0-10`: layers 0 to 9.
    layers: Option<String>,
}

async fn head_parts(
    State(api): State<Arc<Api>>,
    Path(quantization): Path<String>,
    Query(model): Query<ModelQuery>,
    Query(query): Query<PartsQuery>,
) -> Result<Json<Vec<Artifact>>, Error> {
    model.check(&api)?;
    let keys = api
        .artifacts
        .offer()
        .parts(&quantization, query.layers.as_deref())?;
    let mut artifacts = Vec::with_capacity(keys.len());
    for key in keys {
        artifacts.push(api.artifacts.file(key).await?.artifact);
    }
    Ok(Json(artifacts))
}

async fn head_part(
    State(api): State<Arc<Api>>,
    Path((quantization, part)): Path<(String, String)>,
    Query(model): Query<ModelQuery>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Error> {
    model.check(&api)?;
    let key = api.artifacts.offer().part(&quantization, &part)?;
    let file = api.artifacts.file(key).await?;
    Ok(part_file::serve(&file, method, &headers).await?)
}

/// See [`crate::on_device`].
async fn on_device_answers(
    State(api): State<Arc<Api>>,
    Extension(identity): Extension<Identity>,
    request: Request,
) -> Result<Json<Received>, Error> {
    check_origin(&api, request.headers())?;
    let reports = &api.on_device_answers;
    Ok(Json(reports.receive(&identity.tenant, request).await?))
}

async fn session(
    State(api): State<Arc<Api>>,
    Extension(identity): Extension<Identity>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    if let Err(error) = check_origin(&api, &headers) {
        return error.into_response();
    }
    let Some(guard) = api.drain.enter() else {
        api.metrics
            .record_refusal(code_name(RefusalCode::NoCapacity));
        return Error::TooManySockets {
            max_sockets: api.max_sockets,
        }
        .into_response();
    };
    // The library takes no memory for a message before it has compared its length with this.
    let max_frame_bytes = api.sessions.admission.limits().max_frame_bytes;
    upgrade
        .max_message_size(max_frame_bytes)
        .max_frame_size(max_frame_bytes)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size(MAX_UNSENT_BYTES)
        .on_upgrade(async move |socket| {
            let _guard = guard;
            let access = Access {
                authenticator: Arc::clone(&api.authenticator),
                identity,
            };
            api.sessions.serve(socket, access).await;
        })
}

/// A browser lets any page open a WebSocket or post a text to anywhere, with the credentials and from the
/// network of whoever looks at it, and says in `Origin` which page it is. Other clients say nothing.
fn check_origin(api: &Api, headers: &HeaderMap) -> Result<(), Error> {
    let allowed = &api.allowed_origins;
    let refused = headers
        .get_all(header::ORIGIN)
        .iter()
        .find(|origin| !allowed.iter().any(|allowed| *allowed == **origin));
    match refused {
        None => Ok(()),
        Some(origin) => {
            api.metrics
                .record_refusal(code_name(RefusalCode::Unauthenticated));
            let origin = String::from_utf8_lossy(origin.as_bytes());
            let origin = origin.chars().take(MAX_ORIGIN_CHARS).collect();
            Err(Error::Origin { origin })
        }
    }
}
