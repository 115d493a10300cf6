//! The command line of profiles and plans, and of what runs where.

use clap::Args;
use edge_lite::planner::Objective;
use edge_lite::{Codec, Prefill, Quantization};

use super::{CredentialArgs, OutputFormat, PlaceArgs};

/// What a plan is to be best at, and what it may use.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// What a plan is best at: latency, cost=W for latency with W milliseconds for each millisecond of the tail's compute,
    /// bound=MS for the least compute of the tail with an answer in MS milliseconds
    #[arg(long, default_value = "latency")]
    pub objective: Objective,
    /// Codecs that a plan may use, separated by commas; those other than f32 are lossy
    #[arg(
        long,
        value_name = "CODECS",
        value_delimiter = ',',
        default_value = "f32"
    )]
    pub allow_codecs: Vec<Codec>,
    /// Head quantisations that a plan may use, separated by commas; those other than none are lossy
    #[arg(
        long,
        value_name = "QUANTIZATIONS",
        value_delimiter = ',',
        default_value = "none"
    )]
    pub allow_head_quantizations: Vec<Quantization>,
}

/// `edge-lite profile`
#[derive(Debug, Args)]
pub struct ProfileArgs {
    /// A tail's address: ws://HOST:PORT or wss://HOST; measures a few layers of its model here, and the way there
    #[arg(long, required_unless_present = "model", conflicts_with = "model")]
    pub tail: Option<String>,
    /// A model to measure here: a GGUF file, a folder, hf://org/repo or https://host/file.gguf
    #[arg(long)]
    pub model: Option<String>,
    /// Head quantisations to measure, separated by commas
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "none",
        conflicts_with = "model"
    )]
    pub head_quantizations: Vec<Quantization>,
    /// Seconds that measuring the layers may take, for each quantisation
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// How it is written
    #[arg(long, value_enum, default_value_t = OutputFormat::Text)]
    pub format: OutputFormat,
    #[command(flatten)]
    pub place: PlaceArgs,
    #[command(flatten)]
    pub credentials: CredentialArgs,
}

/// `edge-lite plan`
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// A tail's address: ws://HOST:PORT or wss://HOST
    #[arg(long)]
    pub tail: String,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 64)]
    pub prompt_tokens: usize,
    /// Tokens of the answer
    #[arg(long, default_value_t = 128)]
    pub answer_tokens: usize,
    /// Of the prompt, the part that the tail holds from before, 0 to 1
    #[arg(long, default_value_t = 0.0)]
    pub cached_share: f64,
    /// How likely a guess of the next token is right, 0 to 1
    #[arg(long, default_value_t = 0.0)]
    pub right_share: f64,
    /// How the prompt may go up where layers run here and on the tail: auto, hidden-states or token-ids
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub prefill: Prefill,
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Print every split layer's best alternative, and why others are not possible
    #[arg(long)]
    pub explain: bool,
    /// How it is written
    #[arg(long, value_enum, default_value_t = OutputFormat::Text)]
    pub format: OutputFormat,
    #[command(flatten)]
    pub place: PlaceArgs,
    #[command(flatten)]
    pub credentials: CredentialArgs,
}

/// A number of layers, the tail's recommendation, or a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitLayer {
    /// What the tail recommends.
    Auto,
    /// What is predicted to be best.
    Plan,
    /// This many.
    Layers(usize),
}

impl SplitLayer {
    /// `None` for the tail's recommendation, and for a plan.
    pub const fn layers(self) -> Option<usize> {
        match self {
            Self::Auto | Self::Plan => None,
            Self::Layers(layers) => Some(layers),
        }
    }
}

/// For the command line.
pub fn split_layer(text: &str) -> Result<SplitLayer, String> {
    match text {
        "auto" => Ok(SplitLayer::Auto),
        "plan" => Ok(SplitLayer::Plan),
        digits => digits
            .parse()
            .map(SplitLayer::Layers)
            .map_err(|_| "expected a number of layers, auto or plan".to_owned()),
    }
}
