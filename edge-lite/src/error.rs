//! Errors, split by whose fault they are: the caller's, the tail's (or the way there), this device's.

mod tail;

use std::path::PathBuf;

use headway_model::chat_template::TemplateError;
use headway_model::sampler::SamplingError;
use headway_model::{ForwardError, LoadError};
use headway_wire::{Codec, CodecError};

pub use self::tail::{Refused, TailError};

use crate::planner::PlanError;
use crate::profile::StoreError;

/// Any failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was asked for cannot be done.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The tail, or the network on the way there.
    #[error(transparent)]
    Tail(#[from] TailError),
    /// This device: its disk, its memory, its copy of the model.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// What was asked for cannot be done; asking again will not help.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The tail's address is not one.
    #[error("{url:?} is not a tail's address: {reason}; expected ws://HOST:PORT or wss://HOST")]
    TailUrl {
        /// The text given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The tail does not take this split layer.
    #[error("split layer {got} is not served; this tail takes {min} to {max}")]
    SplitLayer {
        /// Layers asked for.
        got: usize,
        /// Smallest accepted.
        min: usize,
        /// Largest accepted.
        max: usize,
    },
    /// The tail does not let devices answer alone.
    #[error(
        "split layer {num_layers} would run all layers here, which this tail does not allow (it has no \
         --on-device-answers); it takes {min} to {max}"
    )]
    OnDeviceAnswer {
        /// The model's layers.
        num_layers: usize,
        /// Smallest split layer accepted.
        min: usize,
        /// Largest split layer accepted.
        max: usize,
    },
    /// Token ids may not leave this device, and the request needs it.
    #[error(
        "this tail takes no token ids, and penalties need those of the prompt and the answer; \
         leave repetition, presence and frequency penalties out"
    )]
    TokenUpload,
    /// The tail cannot begin with token ids where layers run here.
    #[error(
        "this tail takes no prompt as token ids beside head layers: it must hold all layers and accept token ids; \
         send hidden states"
    )]
    TokenPrefill,
    /// The tail does not take this codec.
    #[error("codec {got} is not served; this tail takes {offered}")]
    Codec {
        /// The codec asked for.
        got: Codec,
        /// Those the manifest lists.
        offered: String,
    },
    /// The tail does not offer head weights in this quantisation.
    #[error("head quantization {got} is not served; this tail offers {offered}")]
    Quantization {
        /// The quantisation asked for.
        got: String,
        /// Those the manifest lists.
        offered: String,
    },
    /// A companion model has other tokens than the model it is to guess for.
    #[error("{path} has {got} tokens; a companion of this model has {expected}, the same ones")]
    DraftModel {
        /// The companion.
        path: PathBuf,
        /// Number of its token ids.
        got: usize,
        /// Number of the model's.
        expected: usize,
    },
    /// The prompt leaves no room for an answer.
    #[error("the prompt has {prompt_tokens} tokens; with {max_positions} positions at most {} fit", max_positions.saturating_sub(1))]
    PromptTooLong {
        /// The prompt's length.
        prompt_tokens: usize,
        /// Positions of a session, the smaller of the tail's limit and the client's.
        max_positions: usize,
    },
    /// An empty prompt for a model that has no token to start from.
    #[error("the prompt is empty, and this model names no token to start from")]
    EmptyPrompt,
    /// A token id of the prompt does not exist.
    #[error("token id {token_id} is outside the vocabulary of {vocab_size}")]
    TokenId {
        /// The id.
        token_id: u32,
        /// Number of ids the model knows.
        vocab_size: usize,
    },
    /// A number is outside what is allowed.
    #[error("{name} is {got}; expected {expected}")]
    Value {
        /// The field.
        name: &'static str,
        /// Its value.
        got: String,
        /// What is allowed.
        expected: String,
    },
    /// The model has no chat template.
    #[error("this model has no chat template; send the prompt as it is (raw)")]
    NoChatTemplate,
    /// The chat template refuses the messages.
    #[error("the chat template failed")]
    ChatTemplate(#[from] TemplateError),
    /// It must not leave this device, and nothing here can answer it.
    #[error(
        "the request must not leave this device, and there is no model here that could answer it alone; name one"
    )]
    NoLocalModel,
    /// A companion speaks other tokens than the tail's model.
    #[error(
        "the local model cannot stand in for the tail's: {what}; a companion needs the same tokenizer"
    )]
    OtherTokenizer {
        /// What differs, and how.
        what: String,
    },
    /// A file of thresholds cannot be used.
    #[error("the routing thresholds cannot be used: {reason}")]
    Thresholds {
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The sampling parameters contradict themselves.
    #[error("sampling")]
    Sampling(#[from] SamplingError),
    /// There is no plan.
    #[error("cannot plan")]
    Plan(#[from] PlanError),
    /// A file that was named cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// This device failed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The cache folder cannot be used.
    #[error("cannot use {path}")]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The system has no cache folder for this user.
    #[error("this system names no cache folder; choose one")]
    NoCacheDir,
    /// The model cannot be loaded.
    #[error("cannot load the model")]
    Load(#[from] LoadError),
    /// A GPU was asked for.
    #[cfg(not(feature = "cuda"))]
    #[error("this build has no CUDA; use --device cpu")]
    NoCuda,
    /// A GPU cannot be used, or has failed.
    #[cfg(feature = "cuda")]
    #[error("--device: the GPU cannot be used; --device cpu needs none")]
    Cuda(#[source] headway_cuda::CudaError),
    /// The GPU has no room for a generation's keys and values.
    #[cfg(feature = "cuda")]
    #[error(
        "the GPU has no memory for the keys and values of {positions} positions beside those of other generations; \
         try again later, with fewer positions, or with --device cpu"
    )]
    GpuMemory {
        /// As many as the generation would have had.
        positions: usize,
    },
    /// A forward pass failed.
    #[error("a forward pass failed")]
    Forward(#[from] ForwardError),
    /// Training an exit failed.
    #[error("training")]
    Training(#[from] candle_core::Error),
    /// Hidden states cannot be encoded, or (in an evaluation) not decoded.
    #[error("the hidden states do not fit the codec")]
    Codec(#[from] CodecError),
    /// A file of certificates, or of a key, cannot be used.
    #[error("cannot use {path}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// The HTTP client cannot be set up.
    #[error("cannot set up the HTTP client")]
    HttpClient(#[source] reqwest::Error),
    /// A profile cannot be read or written.
    #[error("the profile of this device")]
    Profile(#[from] StoreError),
    /// A worker thread panicked.
    #[error("a worker thread ended early")]
    Worker(#[from] tokio::task::JoinError),
    /// The task of a generation ended without a report.
    #[error("the generation ended without a report")]
    WorkerLost,
}

impl DeviceError {
    /// Binds what is wrong with a PEM file to its path.
    pub(crate) fn pem(
        path: &std::path::Path,
    ) -> impl FnOnce(rustls::pki_types::pem::Error) -> Self + '_ {
        move |source| Self::Pem {
            path: path.to_owned(),
            source,
        }
    }

    /// Binds an I/O error to the path it happened on.
    pub(crate) fn cache(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Cache {
            path: path.to_owned(),
            source,
        }
    }
}

#[cfg(feature = "cuda")]
impl From<headway_cuda::CudaError> for DeviceError {
    /// What would have gone wrong on the CPU as well is not the GPU's fault.
    fn from(error: headway_cuda::CudaError) -> Self {
        match error {
            headway_cuda::CudaError::Load(error) => Self::Load(error),
            headway_cuda::CudaError::Forward(error) => Self::Forward(error),
            error => Self::Cuda(error),
        }
    }
}

impl From<LoadError> for Error {
    fn from(error: LoadError) -> Self {
        Self::Device(DeviceError::Load(error))
    }
}

impl From<ForwardError> for Error {
    fn from(error: ForwardError) -> Self {
        Self::Device(DeviceError::Forward(error))
    }
}

impl From<CodecError> for Error {
    fn from(error: CodecError) -> Self {
        Self::Device(DeviceError::Codec(error))
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::Tail(TailError::Refused(refused))
    }
}
