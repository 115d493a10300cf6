//! How to connect, what to run here, and how much of anything may be used.

use std::path::PathBuf;
use std::time::Duration;

use headway_model::quantization::Quantization;
use headway_model::weights::WeightDtype;
use headway_wire::{Codec, Limits};

use crate::credentials::Credentials;
use crate::drafting::Drafting;
use crate::error::DeviceError;
use crate::place::Place;
use crate::prefill::Prefill;

pub use crate::artifact_cache::{Progress, ProgressCallback};

/// How often and for how long a lost session is rebuilt before its generation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReconnectPolicy {
    /// Attempts after a failure, counted anew from each token on; 0: the first failure is final.
    pub max_attempts: u32,
    /// Wait before the second attempt; it doubles with each one. The first comes at once.
    pub min_backoff: Duration,
    /// The longest wait, but for a longer one that the tail asks for.
    pub max_backoff: Duration,
    /// No attempt begins later than this after the failure.
    pub deadline: Duration,
    /// The same for a model of which no tail runs while the first one is being started, also before the first session.
    /// Such an attempt is not counted. Zero: it is not waited for.
    pub starting_deadline: Duration,
}

impl Default for ReconnectPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 16,
            min_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(5),
            deadline: Duration::from_secs(60),
            starting_deadline: Duration::from_secs(300),
        }
    }
}

/// Where a model is that guesses the next tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DraftModelFile {
    /// An early exit of the model, trained for the split layer (`edge-lite train-exit`).
    EarlyExit(PathBuf),
    /// A smaller model of the same tokens: a GGUF file or a folder.
    Companion(PathBuf),
}

/// How to connect, and what to run here.
#[derive(Clone)]
pub struct ClientConfig {
    /// Where head weights are kept; `None`: the folder that [`default_cache_dir`] names.
    pub cache_dir: Option<PathBuf>,
    /// Layers to run here; `None`: what the tail recommends, `usize::MAX`: all.
    pub split_layer: Option<usize>,
    /// How hidden states go up; `None`: what the tail recommends.
    pub codec: Option<Codec>,
    /// How head weights are quantised; `None`: what the tail recommends.
    pub head_quantization: Option<Quantization>,
    /// The type in which head weights are held. `None`: the tail's own where they are not quantised, which
    /// is what makes the split lossless; otherwise that of the files.
    pub dtype: Option<WeightDtype>,
    /// Where the layers of this device run.
    pub place: Place,
    /// The most positions of a session; `None`: the tail's limit.
    pub max_positions: Option<usize>,
    /// How the prompt goes up.
    pub prefill: Prefill,
    /// Positions of the prompt that are computed and sent at a time.
    pub prompt_chunk_positions: usize,
    /// Bytes of sent activations that a generation keeps, to send them again on another tail. What does not
    /// fit is computed again when it is needed.
    pub max_replay_bytes: usize,
    /// Let the tail keep the keys and values of what this client sends, for later sessions of the same tenant, and
    /// ask it for what it has kept. What it holds is not sent and not computed there again: the next turn of a
    /// chat, a system message that many prompts begin with, a session that is rebuilt on the same tail. No token
    /// changes.
    ///
    /// Off unless asked for, because the content of a session then outlives it on the tail, for the tail's
    /// retention time. Where hidden states go up, they are computed before the session is opened, as far as
    /// `max_replay_bytes` keeps them; a prompt of which the tail holds nothing then begins to go up only after the
    /// head layers have run on it, and its first token comes later by up to that time. A penalty of the sampling
    /// needs every token on the tail, so nothing is reused then.
    pub reuse_prefix: bool,
    /// For a connection, up to the opened session, and for each read of a download.
    pub connect_timeout: Duration,
    /// For the answer to a step. Beyond it the tail counts as lost.
    pub result_timeout: Duration,
    /// For any sign of life of the tail's machine while a session is open, asked for by TCP. Beyond it the connection
    /// counts as lost: after a sleep of this device, or a change of its address, that is how it is found out. Whole
    /// seconds, 4 at least. Where the system has no such limit for data that was sent, `result_timeout` holds.
    pub silence_timeout: Duration,
    /// Where no layers run here, let the tail go on by itself, so that tokens cost no round trips. No token changes.
    pub free_running: bool,
    /// Where guesses of the next tokens come from, which the tail verifies several at a time. No token changes. Needs a
    /// tail that takes token ids.
    pub drafting: Drafting,
    /// A model on this device that guesses, beside the prompt and the answer. For sessions whose hidden states go up.
    pub draft_model: Option<DraftModelFile>,
    /// What to do about a lost session.
    pub reconnect: ReconnectPolicy,
    /// Tell the tail of answers that were given here with all layers: how many tokens each had, and nothing of
    /// what they say. In the background; the tail counts what it saved.
    pub report_on_device_answers: bool,
    /// Who this device is to the tail, and whom it trusts to be the tail.
    pub credentials: Credentials,
    /// Bounds on frames. A larger frame from the tail is refused.
    pub limits: Limits,
    /// Is told of downloads.
    pub progress: Option<ProgressCallback>,
}

impl ClientConfig {
    /// For a client that runs all layers of the tail's model here, where the tail allows it, with the tail's own weights.
    #[must_use]
    pub fn with_all_layers(self) -> Self {
        Self {
            split_layer: Some(usize::MAX),
            head_quantization: Some(Quantization::None),
            ..self
        }
    }
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            cache_dir: None,
            split_layer: None,
            codec: None,
            head_quantization: None,
            dtype: None,
            place: Place::default(),
            max_positions: None,
            prefill: Prefill::default(),
            prompt_chunk_positions: 256,
            max_replay_bytes: 64 << 20,
            reuse_prefix: false,
            free_running: true,
            connect_timeout: Duration::from_secs(10),
            result_timeout: Duration::from_secs(60),
            silence_timeout: Duration::from_secs(8),
            drafting: Drafting::default(),
            draft_model: None,
            reconnect: ReconnectPolicy::default(),
            report_on_device_answers: true,
            credentials: Credentials::default(),
            limits: Limits::default(),
            progress: None,
        }
    }
}

impl ClientConfig {
    /// Where things are kept.
    pub(crate) fn cache_folder(&self) -> Result<PathBuf, DeviceError> {
        let folder = self.cache_dir.clone().or_else(default_cache_dir);
        folder.ok_or(DeviceError::NoCacheDir)
    }
}

/// The user's cache folder for Headway (`~/.cache/headway` on Linux), where the system names one.
#[must_use]
pub fn default_cache_dir() -> Option<PathBuf> {
    dirs::cache_dir().map(|folder| folder.join("headway"))
}
