//! What the command line says, and what it must mean before anything is loaded or bound.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use headway_model::Quantization;
use headway_model::weights::WeightDtype;
use headway_wire::Codec;

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
    /// The model: a .gguf file, a folder, hf://org/repo[@revision][/file.gguf] or https://….
    #[arg(long)]
    pub model: String,
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8089")]
    pub listen: SocketAddr,
    /// Allow an address that is not loopback. There are no credentials yet: anyone who can reach it may use it.
    #[arg(long)]
    pub insecure_listen: bool,
    /// Smallest number of layers a device may run; the tail loads the layers from here on [default: 0].
    #[arg(long, value_name = "K")]
    pub split_min: Option<usize>,
    /// Largest number of layers a device may run [default: all but one].
    #[arg(long, value_name = "K")]
    pub split_max: Option<usize>,
    /// Where the tail layers run: cpu or cuda:N.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// The type of the weights in memory: native (as in the file), f32, bf16 or f16.
    #[arg(long, default_value = "native")]
    pub dtype: String,
    /// Compute threads; 0 takes one for each core.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// The most sessions at a time.
    #[arg(long, default_value_t = 64)]
    pub max_sessions: usize,
    /// The most bytes of KV cache, all sessions together.
    #[arg(long, default_value_t = 2 << 30)]
    pub max_kv_bytes: usize,
    /// The most rows (prompt tokens and decoding sessions) of one engine step.
    #[arg(long, default_value_t = 128)]
    pub step_tokens: usize,
    /// How long sessions may go on after a signal to stop.
    #[arg(long, default_value_t = 30)]
    pub drain_seconds: u64,
    /// Where downloads and head artefacts are kept [default: .cache/headway in the home directory].
    #[arg(long)]
    pub cache_dir: Option<PathBuf>,
    /// Head quantisations offered to devices; the first is recommended.
    #[arg(long, default_value = "none,q8_0,q6_k,q4_k", value_delimiter = ',')]
    pub head_quantizations: Vec<String>,
    /// Activation codecs accepted; the first is recommended. Only f32 loses nothing.
    #[arg(long, default_value = "f32,bf16,f16,int8,int4", value_delimiter = ',')]
    pub codecs: Vec<String>,
}

/// A command line that makes sense. What depends on the model is checked when it is loaded.
#[derive(Clone, Debug)]
pub struct Config {
    /// A path, `hf://…` or `https://…`.
    pub model: String,
    /// Address to bind.
    pub listen: SocketAddr,
    /// Smallest split layer; `None`: 0.
    pub split_min: Option<usize>,
    /// Largest split layer; `None`: one less than the model has layers.
    pub split_max: Option<usize>,
    /// The type of the weights in memory.
    pub dtype: WeightDtype,
    /// Compute threads; 0: one for each core.
    pub threads: usize,
    /// The most sessions at a time.
    pub max_sessions: usize,
    /// The most bytes of KV cache, all sessions together.
    pub max_kv_bytes: usize,
    /// The most rows of one engine step.
    pub step_tokens: usize,
    /// How long sessions may go on after the shutdown began.
    pub drain: Duration,
    /// Where downloads and head artefacts are kept.
    pub cache_dir: PathBuf,
    /// Head quantisations offered, the recommended one first.
    pub head_quantizations: Vec<Quantization>,
    /// Activation codecs accepted, the recommended one first.
    pub codecs: Vec<Codec>,
    /// How long to wait for a peer.
    pub timeouts: Timeouts,
}

/// How long the tail waits for a peer, in each thing it waits for.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From the connection to the frame that opens the session.
    pub open: Duration,
    /// For one frame to leave. A peer that does not read holds its replies no longer than this.
    pub write: Duration,
    /// Between two pings.
    pub ping_interval: Duration,
    /// Without any sign of life, pongs included, a session ends after this.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            open: Duration::from_secs(10),
            write: Duration::from_secs(20),
            ping_interval: Duration::from_secs(15),
            idle: Duration::from_secs(60),
        }
    }
}

/// Why a command line makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The address is open to the network, and nobody has to show who they are.
    #[error(
        "--listen {listen} is not a loopback address, and this build knows no credentials: \
         listen on 127.0.0.1 or [::1], or give --insecure-listen to let everybody in"
    )]
    ListenWithoutCredentials {
        /// The address.
        listen: SocketAddr,
    },
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
            listen,
            insecure_listen,
            split_min,
            split_max,
            device,
            dtype,
            threads,
            max_sessions,
            max_kv_bytes,
            step_tokens,
            drain_seconds,
            cache_dir,
            head_quantizations,
            codecs,
        } = args;
        if !listen.ip().is_loopback() {
            if !insecure_listen {
                return Err(ConfigError::ListenWithoutCredentials { listen });
            }
            tracing::warn!(%listen, "anyone who can reach this address may use this tail");
        }
        check_device(&device)?;
        if let (Some(min), Some(max)) = (split_min, split_max)
            && min > max
        {
            let expected = format!("--split-max {max} or less");
            return Err(ConfigError::Value {
                option: "split-min",
                got: min.to_string(),
                expected,
            });
        }
        Ok(Self {
            model,
            listen,
            split_min,
            split_max,
            dtype: named("dtype", &dtype, "native, f32, bf16 or f16")?,
            threads: within("threads", threads, 0, 1024)?,
            max_sessions: within("max-sessions", max_sessions, 1, 65_536)?,
            max_kv_bytes: within("max-kv-bytes", max_kv_bytes, 1, usize::MAX)?,
            step_tokens: within("step-tokens", step_tokens, 2, 65_536)?,
            drain: Duration::from_secs(within("drain-seconds", drain_seconds, 0, 86_400)?),
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
                "f32, f16, bf16, int8[:group size] or int4[:group size]".to_owned(),
            )?,
            timeouts: Timeouts::default(),
        })
    }
}

fn check_device(device: &str) -> Result<(), ConfigError> {
    let is_cuda = device
        .strip_prefix("cuda:")
        .is_some_and(|index| index.parse::<usize>().is_ok());
    match device {
        "cpu" => Ok(()),
        _ if is_cuda => Err(ConfigError::NoCuda {
            device: device.to_owned(),
        }),
        _ => Err(ConfigError::Value {
            option: "device",
            got: device.to_owned(),
            expected: "cpu or cuda:N".to_owned(),
        }),
    }
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
