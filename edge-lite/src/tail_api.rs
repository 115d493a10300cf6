//! The tail's HTTP side: the manifest, the head artefacts, and reports of answers given here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use headway_model::artifact::Part;
use headway_model::layer_range::LayerRange;
use headway_model::manifest::{Artifact, Manifest};
use headway_model::quantization::Quantization;
use headway_model::tail_load::TailLoad;
use headway_wire::message::RefusalCode;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, header};
use serde::de::DeserializeOwned;

use crate::credentials::Token;
use crate::error::{DeviceError, Refused, TailError};
use crate::on_device::OnDeviceReport;
use crate::tail_url::TailUrl;

/// The most bytes of a JSON answer. The largest part of a manifest is the chat template.
const MAX_JSON_BYTES: u64 = 4 << 20;
/// The most bytes of an error's text that is repeated.
const MAX_ERROR_BYTES: usize = 512;

/// For a report and its answer, both small.
const REPORT_TIMEOUT: Duration = Duration::from_secs(30);

/// Asks one tail over HTTP.
#[derive(Clone)]
pub(crate) struct TailApi {
    client: reqwest::Client,
    token: Option<Token>,
    url: TailUrl,
}

impl TailApi {
    pub(crate) fn new(
        url: TailUrl,
        tls: &Arc<rustls::ClientConfig>,
        token: Option<Token>,
        timeout: Duration,
    ) -> Result<Self, DeviceError> {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(rustls::ClientConfig::clone(tls))
            .connect_timeout(timeout)
            // For each read: a large download may take its time while bytes come.
            .read_timeout(timeout)
            .build()
            .map_err(DeviceError::HttpClient)?;
        Ok(Self { client, token, url })
    }

    pub(crate) fn url(&self) -> &TailUrl {
        &self.url
    }

    /// The manifest, after a check of its digest and of what it says about itself.
    pub(crate) async fn manifest(&self) -> Result<Manifest, TailError> {
        let manifest: Manifest = self.json(self.url.manifest()).await?;
        check_manifest(&manifest)?;
        Ok(manifest)
    }

    /// The manifest of a model that may still have to be woken: waits for its first tail.
    pub(crate) async fn manifest_once_started(
        &self,
        patience: Duration,
    ) -> Result<Manifest, TailError> {
        let began = Instant::now();
        let (mut attempts, mut wait) = (0, None);
        loop {
            let error = match self.manifest().await {
                Ok(manifest) => return Ok(manifest),
                Err(error) => error,
            };
            wait = match &error {
                TailError::Starting { retry_after, .. } => Some(*retry_after),
                // Between the last such answer and the first one of a tail.
                error if error.is_of_the_way() => wait,
                _ => None,
            };
            let elapsed = began.elapsed();
            let Some(wait) = wait.filter(|_| !patience.is_zero()) else {
                return Err(error);
            };
            if elapsed + wait > patience {
                return Err(TailError::GaveUp {
                    attempts,
                    elapsed,
                    last: Box::new(error),
                });
            }
            attempts += 1;
            tracing::info!(%error, wait_ms = wait.as_millis(), "the model is being started");
            tokio::time::sleep(wait).await;
        }
    }

    /// How busy the tail is, and what rows cost it.
    pub(crate) async fn load(&self) -> Result<TailLoad, TailError> {
        self.json(self.url.load()).await
    }

    /// Bytes of what `url` has, as far as they came until `most_bytes` were there or `most` has passed.
    pub(crate) async fn fetch_some(
        &self,
        url: Url,
        most_bytes: u64,
        most: Duration,
    ) -> Result<u64, TailError> {
        let deadline = Instant::now() + most;
        let response = self.request(Method::GET, &url).await?.send().await;
        let mut response =
            checked_status(response.map_err(|source| http_error(&url, source))?).await?;
        let mut bytes = 0;
        while bytes < most_bytes && Instant::now() < deadline {
            match response
                .chunk()
                .await
                .map_err(|source| http_error(&url, source))?
            {
                Some(piece) => bytes += piece.len() as u64,
                None => break,
            }
        }
        Ok(bytes)
    }

    /// The files of layers `[0, split_layer)`, in order.
    ///
    /// Unquantised parts are those that the model's digest covers. For the others there is only the tail's
    /// word, as for everything that it computes.
    pub(crate) async fn head_parts(
        &self,
        manifest: &Manifest,
        quantization: Quantization,
        split_layer: usize,
    ) -> Result<Vec<Artifact>, TailError> {
        let offered = match quantization {
            Quantization::None => manifest.identity.parts.clone(),
            _ => {
                let digest = &manifest.model_digest;
                self.json(self.url.head_parts(digest, quantization, split_layer))
                    .await?
            }
        };
        let num_layers = manifest.identity.config.num_layers;
        Part::of(LayerRange::new(0, split_layer), num_layers)
            .into_iter()
            .map(|part| {
                let name = part.to_string();
                offered
                    .iter()
                    .find(|artifact| artifact.name == name)
                    .cloned()
                    .ok_or_else(|| TailError::Manifest {
                        field: "head parts",
                        got: offered
                            .iter()
                            .map(|artifact| artifact.name.as_str())
                            .collect::<Vec<_>>()
                            .join(", "),
                        expected: format!("{name} among them"),
                    })
            })
            .collect()
    }

    /// Asks for `url` from byte `start_bytes` on, if the file still has `digest`; otherwise from its start.
    pub(crate) async fn download(
        &self,
        url: Url,
        start_bytes: u64,
        digest: &str,
    ) -> Result<Response, TailError> {
        let mut request = self.request(Method::GET, &url).await?;
        if start_bytes > 0 {
            request = request
                .header(header::RANGE, format!("bytes={start_bytes}-"))
                .header(header::IF_RANGE, format!("\"{digest}\""));
        }
        let response = request
            .send()
            .await
            .map_err(|source| http_error(&url, source))?;
        checked_status(response).await
    }

    /// Tells the tail of answers given here. What it says to that is of no use here: counted now or before,
    /// the report has arrived.
    pub(crate) async fn report_on_device_answers(
        &self,
        report: &OnDeviceReport,
    ) -> Result<(), TailError> {
        let url = self.url.on_device_answers();
        let body = serde_json::to_vec(report).expect("a text and numbers have a JSON form");
        let response = self
            .request(Method::POST, &url)
            .await?
            .header(header::CONTENT_TYPE, "application/json")
            .timeout(REPORT_TIMEOUT)
            .body(body)
            .send()
            .await
            .map_err(|source| http_error(&url, source))?;
        checked_status(response).await.map(drop)
    }

    async fn request(&self, method: Method, url: &Url) -> Result<RequestBuilder, TailError> {
        let request = self.client.request(method, url.clone());
        Ok(match &self.token {
            None => request,
            Some(token) => request.header(header::AUTHORIZATION, token.authorization().await?),
        })
    }

    async fn json<T: DeserializeOwned>(&self, url: Url) -> Result<T, TailError> {
        let response = self
            .request(Method::GET, &url)
            .await?
            .send()
            .await
            .map_err(|source| http_error(&url, source))?;
        let mut response = checked_status(response).await?;
        let mut body = Vec::new();
        while let Some(piece) = response
            .chunk()
            .await
            .map_err(|source| http_error(&url, source))?
        {
            if (body.len() + piece.len()) as u64 > MAX_JSON_BYTES {
                return Err(TailError::TooLarge {
                    url: url.to_string(),
                    max_bytes: MAX_JSON_BYTES,
                });
            }
            body.extend_from_slice(&piece);
        }
        serde_json::from_slice(&body).map_err(|source| TailError::Json {
            url: url.to_string(),
            source,
        })
    }
}

pub(crate) fn http_error(url: &Url, source: reqwest::Error) -> TailError {
    TailError::Http {
        url: url.to_string(),
        source: source.without_url(),
    }
}

async fn checked_status(mut response: Response) -> Result<Response, TailError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let mut body = Vec::new();
    while let Ok(Some(piece)) = response.chunk().await {
        body.extend_from_slice(&piece[..piece.len().min(MAX_ERROR_BYTES - body.len())]);
        if body.len() == MAX_ERROR_BYTES {
            break;
        }
    }
    let url = response.url().to_string();
    if let Some(starting) = starting(&url, response.headers(), &body) {
        return Err(starting);
    }
    if status == StatusCode::UNAUTHORIZED {
        let message = error_sentence(&body);
        return Err(TailError::Unauthenticated { url, message });
    }
    if error_code(&body).as_deref() == Some("digest_mismatch") {
        return Err(TailError::Refused(Refused {
            code: RefusalCode::DigestMismatch,
            message: error_sentence(&body),
            retry_after: None,
        }));
    }
    let body = String::from_utf8_lossy(&body).trim().to_owned();
    Err(TailError::Status {
        url,
        status: status.as_u16(),
        body,
    })
}

/// The code of a tail's error, `{"error":{"code":"…"}}`; `None` where somebody else answered.
pub(crate) fn error_code(body: &[u8]) -> Option<String> {
    let json: serde_json::Value = serde_json::from_slice(body).ok()?;
    Some(json["error"]["code"].as_str()?.to_owned())
}

/// The error of an answer in place of tails that are not there yet; `None` of any other answer. The wait is taken
/// from `headers`.
pub(crate) fn starting(url: &str, headers: &header::HeaderMap, body: &[u8]) -> Option<TailError> {
    if error_code(body)? != "starting" {
        return None;
    }
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    Some(TailError::Starting {
        url: url.to_owned(),
        message: error_sentence(body),
        retry_after: Duration::from_secs(seconds.parse().ok()?),
    })
}

/// What a tail's error says: `{"error":{"message":"…"}}`, or the text of whatever else answered.
pub(crate) fn error_sentence(body: &[u8]) -> String {
    let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let sentence = json
        .as_ref()
        .and_then(|json| json["error"]["message"].as_str());
    let text = String::from_utf8_lossy(&body[..body.len().min(MAX_ERROR_BYTES)]);
    sentence.unwrap_or(text.trim()).to_owned()
}

/// Refuses a manifest that contradicts itself, before anything is done on its word.
fn check_manifest(manifest: &Manifest) -> Result<(), TailError> {
    let refuse = |field, got: String, expected: String| {
        Err(TailError::Manifest {
            field,
            got,
            expected,
        })
    };
    let computed = manifest.identity.digest();
    if computed != manifest.model_digest {
        return Err(TailError::ManifestDigest {
            stated: manifest.model_digest.clone(),
            computed,
        });
    }
    if manifest.protocol_version != headway_wire::PROTOCOL_VERSION {
        let (got, expected) = (manifest.protocol_version, headway_wire::PROTOCOL_VERSION);
        return refuse("protocol_version", got.to_string(), expected.to_string());
    }
    let (split, num_layers) = (manifest.split, manifest.identity.config.num_layers);
    if split.min > split.max
        || split.max > num_layers
        || !(split.min..=split.max).contains(&split.default)
    {
        let expected = format!("min <= default <= max <= {num_layers}");
        return refuse("split", format!("{split:?}"), expected);
    }
    if manifest.max_positions < 2 {
        return refuse(
            "max_positions",
            manifest.max_positions.to_string(),
            "2 or more".to_owned(),
        );
    }
    Ok(())
}
