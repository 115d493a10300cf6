//! What the command line says, and what it must mean before anything is loaded or bound.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use headway_model::Quantization;
use headway_model::weights::WeightDtype;
use headway_wire::Codec;

pub use self::access::{
    AccessArgs, AccessConfig, JwksSource, OidcConfig, Quota, TenantLimits, TlsConfig,
};
pub use self::delivery::{DeliveryArgs, DeliveryConfig};
pub use self::place::Place;
pub use self::sessions::{RebalanceConfig, SessionArgs, SessionConfig};
use crate::telemetry::TelemetryArgs;

pub(crate) mod access;
mod delivery;
mod place;
mod sessions;
#[cfg(test)]
mod tests;

/// The command line as typed.
#[derive(Clone, Debug, clap::Parser)]
#[command(
    name = "tail-server",
    version,
    about = "Runs the tail layers of a split language model."
)]
pub struct Args {
    /// The model: a .gguf file, a folder, hf://org/repo[@revision][/file.gguf], https://…/file.gguf or
    /// https://…/folder/.
    #[arg(long)]
    pub model: String,
    /// How the model comes here.
    #[command(flatten)]
    pub delivery: DeliveryArgs,
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8089")]
    pub listen: SocketAddr,
    /// Who may use the tail, over what, and how much of it.
    #[command(flatten)]
    pub access: AccessArgs,
    /// Smallest number of layers a device may run; the tail loads the layers from here on [default: 0].
    #[arg(long, value_name = "K")]
    pub split_min: Option<usize>,
    /// Largest number of layers a device may run in a session [default: all but one]. The number of layers of
    /// the model is the same as --on-device-answers.
    #[arg(long, value_name = "K")]
    pub split_max: Option<usize>,
    /// The number of layers recommended to devices [default: a third of the layers].
    #[arg(long, value_name = "K")]
    pub split_default: Option<usize>,
    /// Token ids may not leave the device: no split layer 0, and no penalties, which need the prompt's.
    #[arg(long)]
    pub no_token_upload: bool,
    /// Devices may fetch all layers and answer alone; --split-max still bounds the sessions.
    #[arg(long)]
    pub on_device_answers: bool,
    /// Where the tail layers run: cpu, cuda:N for an NVIDIA GPU, cuda:N,cuda:M for several, each with a range of the
    /// layers, or auto for the first GPU where there is one.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// The type of the weights in memory: native (as in the file), f32, bf16, f16, or fp8 (8 bits with a scale for each
    /// output, on an NVIDIA GPU of the Hopper generation; as native elsewhere).
    #[arg(long, default_value = "native")]
    pub dtype: String,
    /// What a session gets depends on no other session, not by one bit: on the CPU it is always so. On a GPU steps then
    /// have at most 64 rows, which makes prompts slower.
    #[arg(long)]
    pub deterministic: bool,
    /// Compute threads; 0 takes one for each core.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// The most sessions at a time.
    #[arg(long, default_value_t = 64)]
    pub max_sessions: usize,
    /// The most sessions whose prompt is not computed yet, from their Open on.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_queue: usize,
    /// The most bytes of KV cache, all sessions and all GPUs together [default: on a GPU what is free behind the weights, less
    /// a tenth, at least 2 GiB, for everything else; on the CPU 2 GiB].
    #[arg(long)]
    pub max_kv_bytes: Option<usize>,
    /// Which sessions may be ended or moved, and what is kept of them.
    #[command(flatten)]
    pub sessions: SessionArgs,
    /// The most rows (prompt tokens and decoding sessions) of one engine step [default: 1024 on a GPU, 128 on the
    /// CPU].
    #[arg(long)]
    pub step_tokens: Option<usize>,
    /// How long sessions may go on after a signal to stop.
    #[arg(long, default_value_t = 30)]
    pub drain_seconds: u64,
    /// After how long without a finished step an engine that has work makes the tail not ready; 0 never does.
    #[arg(long, default_value_t = 30)]
    pub stall_seconds: u64,
    /// Where the last counters, or the error of a failed start, are written when the process ends [default:
    /// /dev/termination-log where it exists].
    #[arg(long, value_name = "PATH")]
    pub termination_message: Option<PathBuf>,
    /// What is logged and traced, and how.
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
    /// Where downloads and head artefacts are kept [default: .cache/headway in the home directory].
    #[arg(long)]
    pub cache_dir: Option<PathBuf>,
    /// Head quantisations offered to devices; the first is recommended.
    #[arg(long, default_value = "none,q8_0,q6_k,q4_k", value_delimiter = ',')]
    pub head_quantizations: Vec<String>,
    /// Activation codecs accepted; the first is recommended. Only f32 loses nothing.
    #[arg(
        long,
        default_value = "f32,bf16,f16,int8,int4,tcq4,tcq3",
        value_delimiter = ','
    )]
    pub codecs: Vec<String>,
}

/// A command line that makes sense. What depends on the model is checked when it is loaded.
#[derive(Clone, Debug)]
pub struct Config {
    /// A path, `hf://…` or `https://…`.
    pub model: String,
    /// How the model comes here.
    pub delivery: DeliveryConfig,
    /// Address to bind.
    pub listen: SocketAddr,
    /// Smallest split layer; `None`: 0.
    pub split_min: Option<usize>,
    /// Largest split layer; `None`: one less than the model has layers.
    pub split_max: Option<usize>,
    /// The split layer recommended to devices; `None`: a third of the layers.
    pub split_default: Option<usize>,
    /// Token ids may leave the device.
    pub token_upload: bool,
    /// Devices may fetch all layers and answer alone.
    pub on_device_answers: bool,
    /// Where the tail layers run.
    pub place: Place,
    /// The type of the weights in memory.
    pub dtype: WeightDtype,
    /// No batch changes a session's bits.
    pub deterministic: bool,
    /// Compute threads; 0: one for each core.
    pub threads: usize,
    /// The most sessions at a time.
    pub max_sessions: usize,
    /// The most sessions whose prompt is not computed yet.
    pub max_queue: usize,
    /// The most bytes of KV cache, all sessions together; `None`: what suits the device.
    pub max_kv_bytes: Option<usize>,
    /// Which sessions may be ended or moved, and what is kept of them.
    pub sessions: SessionConfig,
    /// The most rows of one engine step; `None`: what suits the device.
    pub step_tokens: Option<usize>,
    /// How long sessions may go on after the shutdown began.
    pub drain: Duration,
    /// How long the engine may have work and finish no step before the tail is not ready; `None`: for ever.
    pub stall: Option<Duration>,
    /// Where downloads and head artefacts are kept.
    pub cache_dir: PathBuf,
    /// Head quantisations offered, the recommended one first.
    pub head_quantizations: Vec<Quantization>,
    /// Activation codecs accepted, the recommended one first.
    pub codecs: Vec<Codec>,
    /// Who may use the tail, over what, and how much of it.
    pub access: AccessConfig,
    /// How long to wait for a peer, and how often to look at files.
    pub timeouts: Timeouts,
}

/// How long the tail waits for a peer, in each thing it waits for, and for a change of a file.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From the connection to the end of the TLS handshake.
    pub handshake: Duration,
    /// For a request's headers, and between two requests.
    pub headers: Duration,
    /// From the connection to the frame that opens the session.
    pub open: Duration,
    /// For one frame to leave. A peer that does not read holds its replies no longer than this.
    pub write: Duration,
    /// Between two pings.
    pub ping_interval: Duration,
    /// Without any sign of life, pongs included, a session ends after this.
    pub idle: Duration,
    /// Between two looks at the files that are read again when they change.
    pub reload: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            headers: Duration::from_secs(15),
            open: Duration::from_secs(10),
            write: Duration::from_secs(20),
            ping_interval: Duration::from_secs(15),
            idle: Duration::from_secs(60),
            reload: Duration::from_secs(2),
        }
    }
}

/// Why a command line makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The address is open to the network, and nobody has to show who they are.
    #[error(
        "--listen {listen} is not a loopback address, and nobody has to show who they are: \
         give --auth-keys, --oidc-issuer or --tls-client-ca, listen on 127.0.0.1 or [::1], \
         or give --allow-anonymous to let everybody in"
    )]
    ListenWithoutCredentials {
        /// The address.
        listen: SocketAddr,
    },
    /// Everybody is let in, and has to show who they are.
    #[error(
        "--allow-anonymous contradicts --auth-keys, --oidc-issuer and --tls-client-ca: \
         leave it out, or leave them out"
    )]
    AnonymousWithCredentials,
    /// A CUDA device in a build without CUDA.
    #[error("--device {device}: this build has no CUDA; use --device cpu")]
    NoCuda {
        /// The device.
        device: String,
    },
    /// A value that is none of the possible ones.
    #[error("--{option} {got:?}: expected {expected}")]
    Value {
        /// The option's name.
        option: &'static str,
        /// What was given.
        got: String,
        /// What would be right.
        expected: String,
    },
    /// Neither `--cache-dir` nor a home directory.
    #[error("there is no home directory to keep the cache in; give --cache-dir")]
    NoCacheDir,
}

impl TryFrom<Args> for Config {
    type Error = ConfigError;

    fn try_from(args: Args) -> Result<Self, ConfigError> {
        // Exhaustive, so that an option cannot be added and forgotten.
        let Args {
            model,
            delivery,
            listen,
            access,
            split_min,
            split_max,
            split_default,
            no_token_upload,
            on_device_answers,
            device,
            dtype,
            deterministic,
            threads,
            max_sessions,
            max_queue,
            max_kv_bytes,
            sessions,
            step_tokens,
            drain_seconds,
            stall_seconds,
            // Used beside the configuration, so that the error of a wrong one is written there too.
            termination_message: _,
            // Installed before, so that what is wrong here can be logged.
            telemetry: _,
            cache_dir,
            head_quantizations,
            codecs,
        } = args;
        let access = AccessConfig::new(access, listen)?;
        let place = Place::named(&device)?;
        check_split(split_min, split_default, split_max)?;
        Ok(Self {
            model,
            delivery: DeliveryConfig::new(delivery)?,
            listen,
            split_min,
            split_max,
            split_default,
            token_upload: !no_token_upload,
            on_device_answers,
            place,
            deterministic,
            dtype: named("dtype", &dtype, "native, f32, bf16, f16 or fp8")?,
            threads: within("threads", threads, 0, 1024)?,
            max_sessions: within("max-sessions", max_sessions, 1, 65_536)?,
            max_queue: within("max-queue", max_queue, 1, 65_536)?,
            max_kv_bytes: max_kv_bytes
                .map(|bytes| within("max-kv-bytes", bytes, 1, usize::MAX))
                .transpose()?,
            sessions: SessionConfig::new(sessions)?,
            step_tokens: step_tokens
                .map(|rows| within("step-tokens", rows, 2, 65_536))
                .transpose()?,
            drain: Duration::from_secs(within("drain-seconds", drain_seconds, 0, 86_400)?),
            stall: match within("stall-seconds", stall_seconds, 0, 86_400)? {
                0 => None,
                seconds => Some(Duration::from_secs(seconds)),
            },
            cache_dir: cache_dir
                .or_else(home_cache_dir)
                .ok_or(ConfigError::NoCacheDir)?,
            head_quantizations: list(
                "head-quantizations",
                &head_quantizations,
                quantization_names(),
            )?,
            codecs: list(
                "codecs",
                &codecs,
                "f32, f16, bf16, int8[:group size], int4[:group size], tcq4 or tcq3".to_owned(),
            )?,
            access,
            timeouts: Timeouts::default(),
        })
    }
}

/// What can be said without the model: smallest, default and largest in this order.
fn check_split(
    min: Option<usize>,
    default: Option<usize>,
    max: Option<usize>,
) -> Result<(), ConfigError> {
    let ordered = [
        ("split-min", min, "split-max", max),
        ("split-min", min, "split-default", default),
        ("split-default", default, "split-max", max),
    ];
    for (option, least, bound, most) in ordered {
        if let (Some(least), Some(most)) = (least, most)
            && least > most
        {
            return Err(ConfigError::Value {
                option,
                got: least.to_string(),
                expected: format!("{most}, the value of --{bound}, or less"),
            });
        }
    }
    Ok(())
}

fn home_cache_dir() -> Option<PathBuf> {
    std::env::home_dir().map(|home| home.join(".cache").join("headway"))
}

fn quantization_names() -> String {
    Quantization::ALL.map(Quantization::name).join(", ")
}

fn within<T: PartialOrd + ToString>(
    option: &'static str,
    value: T,
    least: T,
    most: T,
) -> Result<T, ConfigError> {
    if value < least || value > most {
        let expected = format!("{} to {}", least.to_string(), most.to_string());
        return Err(ConfigError::Value {
            option,
            got: value.to_string(),
            expected,
        });
    }
    Ok(value)
}

fn named<T: std::str::FromStr>(
    option: &'static str,
    text: &str,
    expected: &str,
) -> Result<T, ConfigError> {
    let unknown = |_| ConfigError::Value {
        option,
        got: text.to_owned(),
        expected: expected.to_owned(),
    };
    text.parse().map_err(unknown)
}

/// A list without repetitions, at least one long.
fn list<T: std::str::FromStr + PartialEq>(
    option: &'static str,
    texts: &[String],
    expected: String,
) -> Result<Vec<T>, ConfigError> {
    let mut values = Vec::with_capacity(texts.len());
    for text in texts {
        let value = named(option, text.trim(), &expected)?;
        if !values.contains(&value) {
            values.push(value);
        }
    }
    if values.is_empty() {
        return Err(ConfigError::Value {
            option,
            got: String::new(),
            expected,
        });
    }
    Ok(values)
}
