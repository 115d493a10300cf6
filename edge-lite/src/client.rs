//! A client of one tail: what it took from the manifest, and the head layers it loaded for it.

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use headway_model::Tokenizer;
use headway_model::manifest::{Artifact, Manifest};
use headway_model::quantization::Quantization;
use headway_wire::Codec;

use crate::answer::Plan;
use crate::artifact_cache::ArtifactCache;
use crate::config::{ClientConfig, DraftModelFile};
use crate::connection::Dialer;
use crate::device_layers::{DeviceLayers, Holding};
use crate::drafting::DraftModel;
use crate::error::{DeviceError, Error, RequestError, TailError};
use crate::generation::Generation;
use crate::head_layers::HeadLayers;
use crate::link::Link;
use crate::local::{LocalConfig, LocalModel};
use crate::on_device::{Backoff, Reporter};
use crate::prefill::Prefill;
use crate::profile::Held;
use crate::recovery::{Recovery, jitter};
use crate::report::Route;
use crate::request::GenerateRequest;
use crate::session::{self, SessionConfig};
use crate::tail_api::TailApi;
use crate::tail_url::TailUrl;
use crate::tls;
use crate::vocabulary::Vocabulary;

/// While one model takes the place of another, a manifest may come from a tail of the one and a part from a tail of the
/// other, which refuses it.
const MAX_PULLS: u32 = 8;
/// Before a pull is begun again.
const PULL_WAIT: Duration = Duration::from_millis(250);

/// What was chosen from the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Layers that run here.
    pub split_layer: usize,
    /// How hidden states go up.
    pub codec: Codec,
    /// How head weights are quantised.
    pub head_quantization: Quantization,
}

/// A tail's manifest and the head's files on this disk, all checked; nothing is loaded yet.
pub struct Pulled {
    /// What the tail serves.
    pub manifest: Manifest,
    /// What was chosen from it.
    pub choice: Choice,
    /// The parts of the head, in order; empty for split layer 0.
    pub parts: Vec<Artifact>,
    /// Their files, in the same order.
    pub files: Vec<PathBuf>,
    tokenizer_file: PathBuf,
    url: TailUrl,
    tls: Arc<rustls::ClientConfig>,
}

/// Fetches the manifest and what this device needs of the model, and checks all of it.
///
/// # Errors
/// [`RequestError`] where the tail does not serve what `config` asks for, [`TailError`] where it cannot be
/// reached or a digest does not fit, [`DeviceError::Cache`] where the cache cannot be written.
pub async fn pull(tail_url: &str, config: &ClientConfig) -> Result<Pulled, Error> {
    let mut attempts = 0;
    loop {
        let pulled = pull_once(tail_url, config).await;
        let is_other_model =
            matches!(&pulled, Err(Error::Tail(error)) if error.is_of_another_model());
        attempts += 1;
        if !is_other_model || attempts == MAX_PULLS {
            return pulled;
        }
        tracing::info!("another tail serves another model; the manifest is fetched again");
        tokio::time::sleep(PULL_WAIT).await;
    }
}

async fn pull_once(tail_url: &str, config: &ClientConfig) -> Result<Pulled, Error> {
    let Reached {
        url,
        tls,
        api,
        manifest,
    } = reach(tail_url, config).await?;
    let choice = choose(&manifest, config)?;
    let cache_dir = config.cache_folder()?;
    let progress = config.progress.clone();
    let cache = ArtifactCache::open(&api, &cache_dir, &manifest.model_digest, progress).await?;
    let tokenizer_file = cache.tokenizer(&manifest).await?;
    let parts = match choice.split_layer {
        0 => Vec::new(),
        split_layer => {
            api.head_parts(&manifest, choice.head_quantization, split_layer)
                .await?
        }
    };
    let files = cache.parts(&parts, choice.head_quantization).await?;
    Ok(Pulled {
        manifest,
        choice,
        parts,
        files,
        tokenizer_file,
        url,
        tls,
    })
}

/// A tail that answers, and what it serves.
pub(crate) struct Reached {
    pub(crate) url: TailUrl,
    pub(crate) tls: Arc<rustls::ClientConfig>,
    pub(crate) api: TailApi,
    pub(crate) manifest: Manifest,
}

/// Fetches and checks the manifest.
pub(crate) async fn reach(tail_url: &str, config: &ClientConfig) -> Result<Reached, Error> {
    let url = TailUrl::parse(tail_url)?;
    let token = config.credentials.token.clone();
    if token.is_some() && !url.is_tls() && !url.is_loopback() {
        tracing::warn!("the token goes over a connection that others can read; use wss://");
    }
    let tls = tls::client_config(url.is_tls(), &config.credentials)?;
    let api = TailApi::new(url.clone(), &tls, token, config.connect_timeout)?;
    let patience = config.reconnect.starting_deadline;
    let manifest = api.manifest_once_started(patience).await?;
    Ok(Reached {
        url,
        tls,
        api,
        manifest,
    })
}

/// What `config` asks for, or else what the manifest recommends.
fn choose(manifest: &Manifest, config: &ClientConfig) -> Result<Choice, Error> {
    let split = manifest.split;
    let num_layers = manifest.identity.config.num_layers;
    let split_layer = match config.split_layer {
        // What is asked for where all layers are.
        Some(usize::MAX) => num_layers,
        asked => asked.unwrap_or(split.default),
    };
    let answers_alone = split_layer == num_layers;
    if answers_alone && !manifest.allows_on_device_answers() {
        return Err(RequestError::OnDeviceAnswer {
            num_layers,
            min: split.min,
            max: split.max,
        }
        .into());
    }
    if !answers_alone && !(split.min..=split.max).contains(&split_layer) {
        return Err(RequestError::SplitLayer {
            got: split_layer,
            min: split.min,
            max: split.max,
        }
        .into());
    }
    let needs_all_layers = split_layer > 0 && !answers_alone;
    let is_refused = needs_all_layers && !manifest.allows_token_prefill();
    if config.prefill == Prefill::TokenIds && is_refused {
        return Err(RequestError::TokenPrefill.into());
    }
    // A later tail may offer codecs that this version does not know beside those that it does.
    let known = |name: &String| name.parse::<Codec>().ok();
    let codecs: Vec<_> = manifest.codecs.iter().filter_map(known).collect();
    let offered = || manifest.codecs.join(", ");
    if codecs.is_empty() {
        return Err(TailError::Manifest {
            field: "codecs",
            got: offered(),
            expected: "at least one name that this version knows".to_owned(),
        }
        .into());
    }
    let codec = config.codec.unwrap_or(codecs[0]);
    // Group sizes are the device's choice; the manifest lists kinds.
    let kind = std::mem::discriminant(&codec);
    if !codecs
        .iter()
        .any(|offered| std::mem::discriminant(offered) == kind)
    {
        return Err(RequestError::Codec {
            got: codec,
            offered: offered(),
        }
        .into());
    }
    let quantizations = &manifest.quantizations;
    let head_quantization = config
        .head_quantization
        .or(quantizations.first().copied())
        .unwrap_or(Quantization::None);
    if split_layer > 0 && !quantizations.contains(&head_quantization) {
        let offered = quantizations
            .iter()
            .map(|offered| offered.name())
            .collect::<Vec<_>>()
            .join(", ");
        return Err(RequestError::Quantization {
            got: head_quantization.to_string(),
            offered,
        }
        .into());
    }
    Ok(Choice {
        split_layer,
        codec,
        head_quantization,
    })
}

/// A tail and the head layers for it. Cheap to clone; generations of one client share the weights.
#[derive(Clone)]
pub struct Client {
    config: Arc<ClientConfig>,
    manifest: Arc<Manifest>,
    choice: Choice,
    session: Arc<SessionConfig>,
    /// All layers are here: nothing is left for the tail.
    local: Option<LocalModel>,
    api: TailApi,
    /// Tells the tail of answers that were given without it, where it counts them.
    reporter: Option<Reporter>,
    max_positions: usize,
}

impl Client {
    /// Fetches and loads what this device runs of the model that `tail_url` serves.
    ///
    /// # Errors
    /// As [`pull`], and [`DeviceError::Load`].
    pub async fn connect(tail_url: &str, config: ClientConfig) -> Result<Self, Error> {
        Self::load(pull(tail_url, &config).await?, config).await
    }

    /// [`Client::connect`] that does not wait for a model of which no tail runs yet.
    pub(crate) async fn connect_started(
        tail_url: &str,
        config: ClientConfig,
    ) -> Result<Self, Error> {
        let mut impatient = config.clone();
        impatient.reconnect.starting_deadline = Duration::ZERO;
        Self::load(pull(tail_url, &impatient).await?, config).await
    }

    /// Loads what was pulled. To be called within a tokio runtime, on which answers given here are reported.
    ///
    /// # Errors
    /// [`DeviceError::Load`].
    pub async fn load(pulled: Pulled, config: ClientConfig) -> Result<Self, Error> {
        let Pulled {
            manifest,
            choice,
            files,
            tokenizer_file,
            url,
            tls,
            ..
        } = pulled;
        let manifest = Arc::new(manifest);
        let max_positions = config
            .max_positions
            .unwrap_or(usize::MAX)
            .min(manifest.max_positions);
        let draft_file = config.draft_model.clone();
        let (vocabulary, head_layers, draft_model) = {
            let manifest = Arc::clone(&manifest);
            let holding = Holding {
                dtype: Held::of(choice.head_quantization, config.dtype, &manifest).dtype,
                place: config.place,
                max_positions,
            };
            let load = move || {
                let files = (&tokenizer_file, files.as_slice());
                load_head(&manifest, choice, holding, files, draft_file.as_ref())
            };
            tokio::task::spawn_blocking(load)
                .await
                .map_err(DeviceError::Worker)??
        };
        let vocabulary = Arc::new(vocabulary);
        let model = &manifest.identity.config;
        let token = config.credentials.token.clone();
        let api = TailApi::new(url.clone(), &tls, token, config.connect_timeout)?;
        let reports = config.report_on_device_answers && manifest.allows_on_device_answers();
        let reporter = reports.then(|| Reporter::start(api.clone(), Backoff::default()));
        let all_layers = head_layers
            .as_ref()
            .filter(|_| choice.split_layer == model.num_layers);
        let local = all_layers.map(|head_layers| {
            let layers = head_layers.layers().clone();
            let whole = whole_model(&manifest, choice, layers, &vocabulary, &config);
            whole.reporting_to(reporter.clone())
        });
        let session = Arc::new(SessionConfig {
            dialer: Dialer::new(url, tls, &config),
            model_digest: manifest.model_digest.clone(),
            split_layer: choice.split_layer,
            num_layers: model.num_layers,
            hidden_size: model.hidden_size,
            codec: choice.codec,
            head_layers,
            vocabulary,
            prompt_chunk_positions: config.prompt_chunk_positions.max(1),
            max_replay_bytes: config.max_replay_bytes,
            prefill_token_ids: config.prefill == Prefill::TokenIds,
            reuse_prefix: config.reuse_prefix,
            free_running: config.free_running,
            drafting: config.drafting,
            draft_model,
            reconnect: config.reconnect,
            is_outdated: Arc::default(),
        });
        Ok(Self {
            config: Arc::new(config),
            manifest,
            choice,
            session,
            local,
            api,
            reporter,
            max_positions,
        })
    }

    /// What the tail serves.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What was chosen from it.
    #[must_use]
    pub fn choice(&self) -> Choice {
        self.choice
    }

    /// True where a tail has refused a session because it serves another model: a rollout is under way, or done.
    /// Answers go on with tails of this client's model as long as there are any.
    #[must_use]
    pub fn is_outdated(&self) -> bool {
        self.session.is_outdated.load(Ordering::Relaxed)
    }

    /// This client, or one for the model that the tails serve now, where it [is outdated](Self::is_outdated). For use
    /// between answers: it takes no time where nothing has changed, and otherwise that of [`Client::connect`]. Tails
    /// that come and go meanwhile are tried again by the [`ReconnectPolicy`](crate::config::ReconnectPolicy).
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn renewed(&self) -> Result<Self, Error> {
        if !self.is_outdated() {
            return Ok(self.clone());
        }
        let mut recovery = Recovery::new(self.config.reconnect);
        loop {
            let error = match self.renewed_once().await {
                Err(Error::Tail(error)) => error,
                renewed => return renewed,
            };
            let wait = recovery.wait_after(error, Instant::now(), jitter())?;
            tokio::time::sleep(wait).await;
        }
    }

    async fn renewed_once(&self) -> Result<Self, Error> {
        if self.api.manifest().await?.model_digest == self.manifest.model_digest {
            self.session.is_outdated.store(false, Ordering::Relaxed);
            return Ok(self.clone());
        }
        let config = ClientConfig::clone(&self.config);
        Self::connect(self.api.url().as_str(), config).await
    }

    /// What the traffic of this client's sessions told of the link to the tail.
    #[must_use]
    pub fn link(&self) -> Link {
        self.session.dialer.link.link()
    }

    /// Where this client's layers run.
    #[must_use]
    pub fn route(&self) -> Route {
        Route::of(
            self.choice.split_layer,
            self.manifest.identity.config.num_layers,
        )
    }

    /// The model's text side.
    #[must_use]
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.session.vocabulary
    }

    /// Bytes that the head weights take in memory.
    #[must_use]
    pub fn head_weight_bytes(&self) -> usize {
        self.session.head_weight_bytes()
    }

    /// Waits until the tail was told of the answers that were given here alone, but no longer than `timeout`;
    /// for use before the process ends, with which what is unsent is lost. True where nothing is left to send,
    /// as it is at once for a client that does not answer alone or does not report it.
    pub async fn finish_reports(&self, timeout: Duration) -> bool {
        match &self.reporter {
            None => true,
            Some(reporter) => reporter.finish(timeout).await,
        }
    }

    /// The model with all its layers, where this client runs them all.
    #[must_use]
    pub const fn local_model(&self) -> Option<&LocalModel> {
        self.local.as_ref()
    }

    /// The most positions of a session.
    pub(crate) const fn max_positions(&self) -> usize {
        self.max_positions
    }

    /// How its sessions run.
    pub(crate) const fn session(&self) -> &Arc<SessionConfig> {
        &self.session
    }

    /// Where answers given here are reported, if they are.
    pub(crate) const fn reporter(&self) -> Option<&Reporter> {
        self.reporter.as_ref()
    }

    /// Whether the tail takes what `request` would send.
    pub(crate) fn takes(&self, request: &GenerateRequest) -> bool {
        self.manifest.token_upload || !request.sampling.needs_history()
    }

    /// Asks whether the tail answers, and still serves this model.
    pub(crate) async fn check(&self) -> Result<(), TailError> {
        let manifest = self.api.manifest().await?;
        if manifest.model_digest == self.manifest.model_digest {
            return Ok(());
        }
        Err(TailError::Manifest {
            field: "model_digest",
            got: manifest.model_digest,
            expected: self.manifest.model_digest.clone(),
        })
    }

    /// Starts a generation. To be called within a tokio runtime.
    ///
    /// # Errors
    /// [`RequestError`] where the request does not fit the model. What goes wrong later comes as an event.
    pub async fn generate(&self, request: GenerateRequest) -> Result<Generation, Error> {
        if let Some(local) = &self.local {
            return local.generate(request).await;
        }
        // Before anything of the prompt is sent.
        if request.local_only {
            return Err(RequestError::NoLocalModel.into());
        }
        if !self.takes(&request) {
            return Err(RequestError::TokenUpload.into());
        }
        let (session, max_positions) = (Arc::clone(&self.session), self.max_positions);
        let plan = move || Plan::new(request, &session.vocabulary, max_positions);
        let plan = tokio::task::spawn_blocking(plan)
            .await
            .map_err(DeviceError::Worker)??;
        let (generation, progress) = Generation::channel();
        tokio::spawn(session::run(Arc::clone(&self.session), plan, progress));
        Ok(generation)
    }
}

/// The tail's model with all its layers here.
fn whole_model(
    manifest: &Manifest,
    choice: Choice,
    layers: DeviceLayers,
    vocabulary: &Arc<Vocabulary>,
    config: &ClientConfig,
) -> LocalModel {
    let local_config = LocalConfig {
        max_positions: Some(
            config
                .max_positions
                .unwrap_or(usize::MAX)
                .min(manifest.max_positions),
        ),
        prompt_chunk_positions: config.prompt_chunk_positions,
        dtype: config.dtype.unwrap_or(manifest.dtype),
        ..LocalConfig::default()
    };
    // Other weights are another model, to whoever asks whether they are the tail's.
    let digest = match choice.head_quantization {
        Quantization::None => manifest.model_digest.clone(),
        lossy => format!("{}+{lossy}", manifest.model_digest),
    };
    LocalModel::of_tail(layers, Arc::clone(vocabulary), &local_config, digest)
}

/// Reads tokenizer, head layers and what guesses for them from their files. Blocks.
fn load_head(
    manifest: &Manifest,
    choice: Choice,
    holding: Holding,
    (tokenizer_file, files): (&PathBuf, &[PathBuf]),
    draft_file: Option<&DraftModelFile>,
) -> Result<(Vocabulary, Option<HeadLayers>, Option<DraftModel>), Error> {
    let json = std::fs::read(tokenizer_file).map_err(DeviceError::cache(tokenizer_file))?;
    let tokenizer = Tokenizer::from_json(&json)?;
    drop(json);
    let vocabulary = Vocabulary::of_identity(&manifest.identity, tokenizer)?;
    let split_layer = choice.split_layer;
    if split_layer == 0 {
        return Ok((vocabulary, None, None));
    }
    let config = manifest.identity.config.clone();
    let head_layers = HeadLayers::load(config, files, split_layer, holding)?;
    let draft_model = draft_file
        .map(|file| DraftModel::load(file, manifest, split_layer, holding))
        .transpose()?;
    Ok((vocabulary, Some(head_layers), draft_model))
}
