//! Where an answer is given: on this device, on the tail, or first here and then there. Decided for each request, and
//! again between its tokens.
//!
//! request → [`features`] → [`decision`](first_route) → segments of one answer (`run`), each on the local model or on a
//! session of the tail → one [`Report`](crate::Report). What is known of the tail between requests is in `link`.
//!
//! The local model is either the tail's own, then moving changes no token; or a smaller companion of the same
//! tokenizer, then [`thresholds`] that were calibrated say when it is good enough. `docs/router.md` explains.

pub mod decision;
pub mod features;
mod link;
pub mod reason;
mod run;
pub mod thresholds;
pub mod uncertainty;
mod vocabularies;

pub(crate) use vocabularies::check_same as check_same_vocabulary;

use std::sync::Arc;
use std::time::Duration;

pub use self::decision::RouteMode;
use self::decision::{Decision, NoRoute, Situation, TailState, first_route};
use self::features::RequestFeatures;
use self::link::{Fits, Search, TailLink};
pub use self::reason::{RouteReason, Segment};
pub use self::thresholds::Thresholds;
use crate::answer::Plan;
use crate::client::Client;
use crate::config::ClientConfig;
use crate::error::{DeviceError, Error, RequestError};
use crate::generation::Generation;
use crate::local::LocalModel;
use crate::request::GenerateRequest;
use crate::vocabulary::Vocabulary;

/// How a router decides, and how long it waits.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// Whether it decides at all.
    pub mode: RouteMode,
    /// When a companion is good enough. Without them the tail answers while it is there.
    pub thresholds: Option<Thresholds>,
    /// Leave the device in the middle of an answer that the tail was to give, when the tail is there again.
    pub return_to_tail: bool,
    /// For a connection to the tail, and for each token of it, where the device can answer in its place. A prompt gets
    /// more, by its length. Without a local model, a client's own limits hold.
    pub patience: Duration,
    /// Before a lost tail is looked for; doubles with each try.
    pub min_search_wait: Duration,
    /// The longest wait between two tries.
    pub max_search_wait: Duration,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            mode: RouteMode::Auto,
            thresholds: None,
            return_to_tail: true,
            patience: Duration::from_secs(5),
            min_search_wait: Duration::from_millis(250),
            max_search_wait: Duration::from_secs(15),
        }
    }
}

/// Answers on the device or on a tail. Cheap to clone.
#[derive(Clone)]
pub struct Router {
    shared: Arc<Shared>,
}

/// What all answers of a router share.
struct Shared {
    config: RouterConfig,
    link: TailLink,
    local: Option<LocalModel>,
    vocabulary: Arc<Vocabulary>,
    /// The local model's digest and type of weights, by which it is the tail's or not.
    local_identity: Option<LocalIdentity>,
}

/// What a tail's model is compared with.
#[derive(Clone)]
struct LocalIdentity {
    model_digest: String,
    dtype: headway_model::weights::WeightDtype,
}

impl LocalIdentity {
    /// Whether a token of one is the same token of the other.
    fn is_model_of(&self, client: &Client) -> bool {
        let manifest = client.manifest();
        let choice = client.choice();
        // Head weights that were quantised make the split another model than the one here.
        let is_whole = choice.split_layer == 0
            || choice.head_quantization == headway_model::quantization::Quantization::None;
        is_whole && manifest.model_digest == self.model_digest && manifest.dtype == self.dtype
    }
}

impl Router {
    /// Over a tail that is connected, a local model, or both. To be called within a tokio runtime.
    ///
    /// # Errors
    /// [`RequestError::NoLocalModel`] where both are missing, [`RequestError::OtherTokenizer`] and
    /// [`RequestError::Thresholds`] where they do not fit each other; [`DeviceError::Load`].
    pub async fn new(
        tail: Option<Client>,
        local: Option<LocalModel>,
        config: RouterConfig,
    ) -> Result<Self, Error> {
        Self::over(tail, None, local, config).await
    }

    /// Connects to the tail at `tail_url`. Where it does not answer and there is a local model, that one answers, and
    /// the tail is looked for in the background. To be called within a tokio runtime.
    ///
    /// # Errors
    /// As [`Router::new`]; and as [`Client::connect`] without a local model, or where the tail has answered.
    pub async fn connect(
        tail_url: &str,
        mut client_config: ClientConfig,
        local: Option<LocalModel>,
        config: RouterConfig,
    ) -> Result<Self, Error> {
        if local.is_some() {
            client_config.connect_timeout = client_config.connect_timeout.min(config.patience);
        }
        let address = Some((tail_url.to_owned(), client_config.clone()));
        let connected = match &local {
            // This device answers while a tail is being started.
            Some(_) => Client::connect_started(tail_url, client_config).await,
            None => Client::connect(tail_url, client_config).await,
        };
        match (connected, &local) {
            (Ok(client), _) => Self::over(Some(client), address, local, config).await,
            (Err(Error::Tail(error)), Some(_)) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    error,
                    "the tail does not answer; this device does until it is there"
                );
                Self::over(None, address, local, config).await
            }
            (Err(error), _) => Err(error),
        }
    }

    async fn over(
        client: Option<Client>,
        address: Option<(String, ClientConfig)>,
        local: Option<LocalModel>,
        config: RouterConfig,
    ) -> Result<Self, Error> {
        // All layers of the tail's model: the device's side of this router, where no other was named.
        let local = local.or_else(|| client.as_ref().and_then(Client::local_model).cloned());
        let identity = match local.clone() {
            None => None,
            Some(local) => {
                let identify = move || -> Result<LocalIdentity, Error> {
                    Ok(LocalIdentity {
                        model_digest: local.model_digest()?,
                        dtype: local.dtype(),
                    })
                };
                let identified = tokio::task::spawn_blocking(identify).await;
                Some(identified.map_err(DeviceError::Worker)??)
            }
        };
        let fits = fits(local.clone(), identity.clone(), config.thresholds.clone());
        if let Some(client) = client.clone() {
            let fits = Arc::clone(&fits);
            let checked = tokio::task::spawn_blocking(move || fits(&client)).await;
            checked.map_err(DeviceError::Worker)??;
        }
        let vocabulary = match (&client, &local) {
            (_, Some(local)) => Arc::clone(local.shared_vocabulary()),
            (Some(client), None) => Arc::clone(&client.session().vocabulary),
            (None, None) => return Err(RequestError::NoLocalModel.into()),
        };
        let search = Search {
            fits,
            min_wait: config.min_search_wait,
            max_wait: config.max_search_wait,
            patience: config.patience,
            address,
        };
        let link = match client {
            // Such a client opens no session: its layers are all here.
            Some(client) if client.local_model().is_some() => TailLink::none_but(client),
            Some(client) => TailLink::here(client, search),
            None if search.address.is_some() => TailLink::away(search),
            None => TailLink::none(),
        };
        let shared = Arc::new(Shared {
            config,
            link,
            local,
            vocabulary,
            local_identity: identity,
        });
        Ok(Self { shared })
    }

    /// The text side, which both models share.
    #[must_use]
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.shared.vocabulary
    }

    /// Whether the tail answered when it was last asked.
    #[must_use]
    pub fn tail_is_here(&self) -> bool {
        self.shared.link.is_here()
    }

    /// Returns when the tail is there; at once where it is, and never where none was named.
    pub async fn wait_for_tail(&self) {
        self.shared.link.wait().await;
    }

    /// As [`Client::finish_reports`].
    pub async fn finish_reports(&self, timeout: Duration) -> bool {
        match self.shared.link.last_client() {
            None => true,
            Some(client) => client.finish_reports(timeout).await,
        }
    }

    /// Starts a generation. To be called within a tokio runtime.
    ///
    /// # Errors
    /// [`RequestError`] where the request fits no model that may answer it. What goes wrong later comes as an event.
    pub async fn generate(&self, request: GenerateRequest) -> Result<Generation, Error> {
        let shared = Arc::clone(&self.shared);
        let planned = tokio::task::spawn_blocking(move || shared.plan(request)).await;
        let routed = planned.map_err(DeviceError::Worker)??;
        let (generation, progress) = Generation::channel();
        tokio::spawn(run::run(Arc::clone(&self.shared), routed, progress));
        Ok(generation)
    }
}

/// A checked request and where it is answered first.
struct Routed {
    plan: Plan,
    features: RequestFeatures,
    first: Decision,
    /// The tail may be asked.
    may_leave: bool,
}

impl Shared {
    /// Blocks for long prompts.
    fn plan(&self, request: GenerateRequest) -> Result<Routed, Error> {
        let client = self.link.last_client();
        let takes = client.as_ref().is_none_or(|client| client.takes(&request));
        let may_leave =
            !request.local_only && self.config.mode != RouteMode::Device && self.link.is_named();
        let device_positions = self.local.as_ref().map(LocalModel::max_positions);
        if may_leave && !takes && device_positions.is_none() {
            return Err(RequestError::TokenUpload.into());
        }
        let may_leave = may_leave && takes;
        // Where the tail was never seen, its limit is not known; the local model's is.
        let tail_positions = client
            .filter(|_| may_leave)
            .map(|client| client.max_positions());
        let max_positions = tail_positions.max(device_positions);
        let max_positions = max_positions.ok_or(RequestError::NoLocalModel)?;
        let is_local_only = request.local_only;
        let mut features = RequestFeatures::of(&request, 0);
        let plan = Plan::new(request, &self.vocabulary, max_positions)?;
        features.prompt_tokens = plan.prompt.len();
        features.max_tokens = plan.max_tokens;
        let situation = Situation {
            device_positions,
            is_same_model: self.is_same_model(),
            tail: match (may_leave, self.link.is_here()) {
                (false, _) => TailState::Missing,
                (true, true) => TailState::Here,
                (true, false) => TailState::Away,
            },
        };
        let (mode, thresholds) = (self.config.mode, self.config.thresholds.as_ref());
        let first = first_route(&features, situation, mode, is_local_only, thresholds);
        let first = first.map_err(|no_route| match no_route {
            NoRoute::NoLocalModel => RequestError::NoLocalModel,
            NoRoute::TooLong { most } => RequestError::PromptTooLong {
                prompt_tokens: plan.prompt.len(),
                max_positions: most,
            },
        })?;
        Ok(Routed {
            plan,
            features,
            first,
            may_leave,
        })
    }

    /// Whether the local model is the tail's, as far as that is known.
    fn is_same_model(&self) -> bool {
        let client = self.link.last_client();
        let both = client.as_ref().zip(self.local_identity.as_ref());
        both.is_some_and(|(client, identity)| identity.is_model_of(client))
    }
}

/// What is checked of a tail before its sessions go on where the local model stopped.
fn fits(
    local: Option<LocalModel>,
    identity: Option<LocalIdentity>,
    thresholds: Option<Thresholds>,
) -> Fits {
    Arc::new(move |client| {
        let Some((local, identity)) = local.as_ref().zip(identity.as_ref()) else {
            return Ok(());
        };
        vocabularies::check_same(client.vocabulary(), local.vocabulary())?;
        match &thresholds {
            // The same model needs none.
            Some(thresholds) if !identity.is_model_of(client) => {
                let full = &client.manifest().model_digest;
                Ok(thresholds.check_models(full, &identity.model_digest)?)
            }
            _ => Ok(()),
        }
    })
}
