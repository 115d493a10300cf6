//! The command line, read and checked.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use crate::calibrate::CalibrateArgs;
use crate::routing::RouteArgs;
use clap::{Args, Parser, Subcommand, ValueEnum};
use edge_lite::{
    ChatMessage, ClientCertificate, Codec, Credentials, Drafting, GenerateRequest, Place, Prefill,
    Prompt, Quantization, SamplingParams, Token, WeightDtype,
};

pub use self::planning::{PlanArgs, PolicyArgs, ProfileArgs, SplitLayer};

mod planning;

/// Runs the head of a language model here and its tail on a tail server.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    /// Threads for the layers; 0 is one for each core
    #[arg(long, global = true, default_value_t = 0)]
    pub threads: usize,
    /// What to log to stderr, as `tracing` filters are written
    #[arg(long, global = true, env = "RUST_LOG", default_value = "warn")]
    pub log: String,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer one prompt
    Generate(GenerateArgs),
    /// Talk with the model, line by line
    Chat(ChatArgs),
    /// Fetch and check what this device needs of a tail's model
    Pull(PullArgs),
    /// Measure what this device can do with a model, and the way to a tail
    Profile(ProfileArgs),
    /// Say what should run here of a tail's model, and what that is predicted to give
    Plan(PlanArgs),
    /// Measure what a split costs in quality
    Eval(EvalArgs),
    /// Train an early exit, whose guesses hide round trips (--early-exit)
    TrainExit(TrainExitArgs),
    /// Find out when a smaller model here is good enough, for --routing
    Calibrate(CalibrateArgs),
}

/// Where the model is.
#[derive(Debug, Args)]
pub struct EngineArgs {
    /// A tail's address: ws://HOST:PORT or wss://HOST
    #[arg(long, required_unless_present = "model", conflicts_with = "model")]
    pub tail: Option<String>,
    /// Run everything here: a GGUF file, a folder, hf://org/repo or https://host/file.gguf
    #[arg(long)]
    pub model: Option<String>,
    #[command(flatten)]
    pub head: HeadArgs,
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Tokens of an answer that --split-layer plan expects [default: --max-tokens, at most 128]
    #[arg(long, conflicts_with = "model")]
    pub answer_tokens: Option<usize>,
    #[command(flatten)]
    pub credentials: CredentialArgs,
    #[command(flatten)]
    pub routing: RouteArgs,
    /// Let the tail keep what this session sends for a while, and send nothing that it still has: the turns of a
    /// chat go up once
    #[arg(long, conflicts_with = "model")]
    pub reuse_prefix: bool,
    /// Where guesses of the next tokens come from, of which the tail verifies several in one round trip: off, lookup for
    /// what followed the same words before, model for --early-exit or --companion, or auto for the better of the two. No
    /// token changes
    #[arg(
        long,
        value_name = "HOW",
        default_value = "auto",
        conflicts_with = "model"
    )]
    pub draft: Drafting,
    /// An early exit of the tail's model for this split layer, which guesses the next tokens (edge-lite train-exit)
    #[arg(long, value_name = "PATH", conflicts_with_all = ["model", "companion"])]
    pub early_exit: Option<PathBuf>,
    /// A smaller model of the same tokens that guesses the next ones: a GGUF file or a folder
    #[arg(long, value_name = "PATH", conflicts_with = "model")]
    pub companion: Option<PathBuf>,
    /// How the prompt goes up: auto, hidden-states, or token-ids, which are small, and the tail runs all layers on
    /// them. The last needs a tail that holds all layers
    #[arg(
        long,
        value_name = "HOW",
        default_value = "auto",
        conflicts_with = "model"
    )]
    pub prefill: Prefill,
    /// Positions of the prompt that are computed and sent at a time; a plan chooses its own
    #[arg(long, value_name = "POSITIONS", default_value = "256")]
    pub prompt_chunk: NonZeroUsize,
    /// Do not tell the tail how many tokens were answered here with all layers
    #[arg(long, conflicts_with = "model")]
    pub no_on_device_reports: bool,
    /// Positions of a session: prompt and answer together [default: the tail's or the model's limit]
    #[arg(long)]
    pub max_positions: Option<usize>,
}

/// Who this device is to the tail, and whom it trusts to be the tail.
#[derive(Debug, Args)]
pub struct CredentialArgs {
    /// A file with the bearer token for the tail; read again for each request
    #[arg(long, value_name = "PATH")]
    pub token_file: Option<PathBuf>,
    /// Certificate authorities in PEM that sign the tail's certificate [default: the system's]
    #[arg(long, value_name = "PATH")]
    pub ca_file: Option<PathBuf>,
    /// A client certificate in PEM, for a tail that asks for one
    #[arg(long, value_name = "PATH", requires = "client_key")]
    pub client_cert: Option<PathBuf>,
    /// The private key of --client-cert, in PEM
    #[arg(long, value_name = "PATH", requires = "client_cert")]
    pub client_key: Option<PathBuf>,
}

impl CredentialArgs {
    /// For the library.
    pub fn credentials(&self) -> Credentials {
        let files = self.client_cert.clone().zip(self.client_key.clone());
        Credentials {
            token: self.token_file.clone().map(Token::File),
            ca_file: self.ca_file.clone(),
            client_certificate: files.map(|(certificate_file, key_file)| ClientCertificate {
                certificate_file,
                key_file,
            }),
        }
    }
}

/// What runs here of a tail's model.
#[derive(Debug, Args)]
pub struct HeadArgs {
    /// Layers to run here; auto takes what the tail recommends, plan what is predicted to be best on this device and
    /// this network
    #[arg(long, default_value = "auto", value_parser = planning::split_layer)]
    pub split_layer: SplitLayer,
    /// How hidden states go up: f32, f16, bf16, int8, int4, tcq4 or tcq3 [default: what the tail recommends]
    #[arg(long)]
    pub codec: Option<Codec>,
    /// How head weights are quantised: none, q8_0, q6_k, q5_1, q5_0, q5_k, q4_1, q4_0 or q4_k [default: what the tail recommends]
    #[arg(long)]
    pub head_quantization: Option<Quantization>,
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// Where layers run, and how their weights are held and kept.
#[derive(Debug, Args)]
pub struct PlaceArgs {
    /// The type in which weights are held: native, f32, f16 or bf16 [default: the tail's for unquantised weights]
    #[arg(long)]
    pub dtype: Option<WeightDtype>,
    /// Where the layers run: cpu, cuda:N for an NVIDIA GPU, or auto for the first GPU where there is one
    #[arg(long, default_value = "auto")]
    pub device: Place,
    /// Where weights and profiles are kept [default: the user's cache folder]
    #[arg(long)]
    pub cache_dir: Option<PathBuf>,
}

/// How tokens are chosen, and when to end.
#[derive(Debug, Args)]
pub struct SamplingArgs {
    /// The most tokens of the answer
    #[arg(long, default_value_t = edge_lite::request::DEFAULT_MAX_TOKENS)]
    pub max_tokens: usize,
    /// 0 takes the most likely token
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f32,
    /// Keep this many most likely tokens; 0 keeps all
    #[arg(long, default_value_t = 0)]
    pub top_k: usize,
    /// Keep the most likely tokens up to this sum of probabilities
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f32,
    /// Keep tokens of at least this fraction of the best one's probability
    #[arg(long, default_value_t = 0.0)]
    pub min_p: f32,
    /// Weakens tokens of prompt and answer; 1 is off
    #[arg(long, default_value_t = 1.0)]
    pub repetition_penalty: f32,
    /// Weakens tokens of the answer; 0 is off
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub presence_penalty: f32,
    /// Weakens tokens of the answer by their count; 0 is off
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub frequency_penalty: f32,
    /// Selects the random draws
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// End the answer before this text; may be given several times
    #[arg(long)]
    pub stop: Vec<String>,
    /// Go on behind the model's end of turn
    #[arg(long)]
    pub ignore_end_of_turn: bool,
}

impl SamplingArgs {
    /// The request for `prompt`.
    pub fn request(&self, prompt: Prompt) -> GenerateRequest {
        GenerateRequest {
            max_tokens: self.max_tokens,
            sampling: SamplingParams {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
                repetition_penalty: self.repetition_penalty,
                presence_penalty: self.presence_penalty,
                frequency_penalty: self.frequency_penalty,
                seed: self.seed,
                ..SamplingParams::default()
            },
            stop: self.stop.clone(),
            ignore_end_of_turn: self.ignore_end_of_turn,
            ..GenerateRequest::new(prompt)
        }
    }
}

/// `edge-lite generate`
#[derive(Debug, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// The prompt
    #[arg(long)]
    pub prompt: String,
    /// Send the prompt as it is, without the chat template
    #[arg(long, conflicts_with = "system")]
    pub raw: bool,
    /// The system message
    #[arg(long)]
    pub system: Option<String>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// text streams to stdout, with the report on stderr; json prints one object
    #[arg(long, value_enum, default_value_t = OutputFormat::Text)]
    pub format: OutputFormat,
}

impl GenerateArgs {
    /// The request.
    pub fn request(&self) -> GenerateRequest {
        let prompt = if self.raw {
            Prompt::Raw(self.prompt.clone())
        } else {
            let system = self.system.iter().map(|content| message("system", content));
            Prompt::Chat(system.chain([message("user", &self.prompt)]).collect())
        };
        self.sampling.request(prompt)
    }
}

/// A message of a chat.
pub fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage {
        role: role.to_owned(),
        content: content.to_owned(),
    }
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// As it comes.
    Text,
    /// As one object at the end.
    Json,
}

/// `edge-lite chat`
#[derive(Debug, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// The system message
    #[arg(long)]
    pub system: Option<String>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// `edge-lite pull`
#[derive(Debug, Args)]
pub struct PullArgs {
    /// A tail's address: ws://HOST:PORT or wss://HOST
    #[arg(long)]
    pub tail: String,
    #[command(flatten)]
    pub head: HeadArgs,
    #[command(flatten)]
    pub credentials: CredentialArgs,
}

/// `edge-lite eval`
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// A GGUF file, a folder, hf://org/repo or https://host/file.gguf
    #[arg(long)]
    pub model: String,
    /// The text's file
    #[arg(long)]
    pub text: PathBuf,
    /// Layers before the cut, separated by commas
    #[arg(long, alias = "split-layer", value_delimiter = ',', required = true)]
    pub split_layers: Vec<usize>,
    /// Codecs, separated by commas
    #[arg(long, alias = "codec", value_delimiter = ',', default_value = "f32")]
    pub codecs: Vec<Codec>,
    /// Head quantisations, separated by commas
    #[arg(
        long,
        alias = "head-quantization",
        value_delimiter = ',',
        default_value = "none"
    )]
    pub head_quantizations: Vec<Quantization>,
    /// Positions of a window
    #[arg(long, default_value_t = 512)]
    pub window: usize,
    /// Tokens of the text to use [default: all]
    #[arg(long)]
    pub max_tokens: Option<usize>,
    /// How the table is written
    #[arg(long, value_enum, default_value_t = TableFormat::Markdown)]
    pub format: TableFormat,
    /// Where downloaded models are kept [default: the user's cache folder]
    #[arg(long)]
    pub cache_dir: Option<PathBuf>,
}

/// `edge-lite train-exit`
#[derive(Debug, Args)]
pub struct TrainExitArgs {
    /// A GGUF file, a folder, hf://org/repo or https://host/file.gguf
    #[arg(long)]
    pub model: String,
    /// Layers before the exit: those that devices run
    #[arg(long)]
    pub split_layer: usize,
    /// The exit's file
    #[arg(long, value_name = "PATH")]
    pub output: PathBuf,
    /// Decoder layers of the exit
    #[arg(long, default_value_t = 1)]
    pub exit_layers: usize,
    /// Tokens that the exit can guess: the most frequent ones
    #[arg(long, default_value_t = 8192)]
    pub draft_vocab: usize,
    /// Tokens of text that the model writes to train with
    #[arg(long, default_value_t = 400_000)]
    pub tokens: usize,
    /// Passes over that text
    #[arg(long, default_value_t = 3)]
    pub epochs: usize,
    /// Selects the text
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Where the text is written: cpu, cuda:N for an NVIDIA GPU, or auto for the first GPU where there is one; training
    /// itself runs on the CPU
    #[arg(long, default_value = "auto")]
    pub device: Place,
    /// Where downloaded models are kept [default: the user's cache folder]
    #[arg(long)]
    pub cache_dir: Option<PathBuf>,
}

/// How a table is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TableFormat {
    /// A Markdown table.
    Markdown,
    /// One object.
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use edge_lite::planner::Objective;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_generation_on_a_tail_takes_the_tails_recommendations() {
        let cli = parse("edge-lite generate --tail ws://h:1 --prompt hi").unwrap();
        let Command::Generate(args) = cli.command else {
            panic!("generate is generate")
        };
        assert_eq!(args.engine.head.split_layer, SplitLayer::Auto);
        assert_eq!(
            (args.engine.head.codec, args.engine.head.head_quantization),
            (None, None)
        );
        assert!(!args.engine.reuse_prefix);
        assert_eq!(args.engine.draft, Drafting::Auto);
        assert_eq!(args.engine.head.place.device, Place::Auto);
        let request = args.request();
        assert!(matches!(request.prompt, Prompt::Chat(messages) if messages.len() == 1));
        assert_eq!(request.sampling, SamplingParams::default());
    }

    #[test]
    fn every_choice_of_a_generation_is_read() {
        let line = "edge-lite generate --threads 3 --tail ws://h:1 --split-layer 10 --codec int8:64 \
                    --head-quantization q4_k --prompt hi --raw --max-tokens 5 --temperature 0.5 --top-k 4 \
                    --top-p 0.9 --min-p 0.1 --repetition-penalty 1.1 --presence-penalty -1 \
                    --frequency-penalty 0.2 --seed 7 --stop a --stop b --format json";
        let cli = parse(line).unwrap();
        assert_eq!(cli.threads, 3);
        let Command::Generate(args) = cli.command else {
            panic!("generate is generate")
        };
        assert_eq!(args.engine.head.split_layer.layers(), Some(10));
        assert_eq!(args.engine.head.codec, Some(Codec::Int8 { group_size: 64 }));
        assert_eq!(args.engine.head.head_quantization, Some(Quantization::Q4K));
        assert_eq!(args.format, OutputFormat::Json);
        let request = args.request();
        assert!(matches!(request.prompt, Prompt::Raw(text) if text == "hi"));
        assert_eq!(
            (
                request.max_tokens,
                request.sampling.seed,
                request.sampling.top_k
            ),
            (5, 7, 4)
        );
        assert_eq!(request.stop, ["a", "b"]);
    }

    #[test]
    fn a_plan_loses_nothing_unless_told_what_it_may_lose() {
        let line = "edge-lite generate --tail ws://h:1 --prompt hi --split-layer plan";
        let Command::Generate(args) = parse(line).unwrap().command else {
            panic!("generate is generate")
        };
        assert_eq!(args.engine.head.split_layer, SplitLayer::Plan);
        let policy = args.engine.policy;
        assert_eq!(policy.objective, Objective::LATENCY);
        assert_eq!(policy.allow_codecs, [Codec::F32]);
        assert_eq!(policy.allow_head_quantizations, [Quantization::None]);
        let line = "edge-lite plan --tail ws://h --prompt-tokens 9 --objective bound=250 --allow-codecs f16,int8 --explain";
        let Command::Plan(args) = parse(line).unwrap().command else {
            panic!("plan is plan")
        };
        let bound = Objective::Bound { latency_ms: 250.0 };
        assert_eq!((args.prompt_tokens, args.policy.objective), (9, bound));
        assert_eq!(args.policy.allow_codecs.len(), 2);
    }

    #[test]
    fn credentials_are_files() {
        let line = "edge-lite pull --tail wss://h --token-file t --ca-file ca --client-cert c --client-key k";
        let Command::Pull(args) = parse(line).unwrap().command else {
            panic!("pull is pull")
        };
        let credentials = args.credentials.credentials();
        assert!(matches!(credentials.token, Some(Token::File(path)) if path.ends_with("t")));
        assert!(credentials.ca_file.is_some_and(|path| path.ends_with("ca")));
        let expected = ClientCertificate {
            certificate_file: "c".into(),
            key_file: "k".into(),
        };
        assert_eq!(credentials.client_certificate, Some(expected));
    }

    #[test]
    fn settings_of_an_evaluation_are_lists() {
        let line = "edge-lite eval --model m --text t --split-layers 10,15 --codecs f32,int4 \
                    --head-quantizations none,q8_0";
        let Command::Eval(args) = parse(line).unwrap().command else {
            panic!("eval is eval")
        };
        assert_eq!(args.split_layers, [10, 15]);
        assert_eq!(args.codecs, [Codec::F32, Codec::Int4 { group_size: 32 }]);
        assert_eq!(
            args.head_quantizations,
            [Quantization::None, Quantization::Q8_0]
        );
    }

    #[test]
    fn bad_arguments_exit_with_2() {
        for line in [
            "edge-lite",
            "edge-lite generate --prompt hi",
            "edge-lite generate --tail ws://h --model m --prompt hi",
            "edge-lite generate --model m --no-on-device-reports --prompt hi",
            "edge-lite generate --tail ws://h --prompt hi --codec int9",
            "edge-lite generate --tail ws://h --prompt hi --device tpu",
            "edge-lite generate --tail ws://h --prompt hi --split-layer most",
            "edge-lite generate --tail ws://h --prompt hi --raw --system s",
            "edge-lite generate --tail wss://h --prompt hi --client-cert c",
            "edge-lite generate --model m --prompt hi --reuse-prefix",
            "edge-lite eval --model m --text t",
            "edge-lite profile",
            "edge-lite profile --tail ws://h --model m",
            "edge-lite plan",
            "edge-lite plan --tail ws://h --objective fastest",
            "edge-lite plan --tail ws://h --objective cost=-1",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
