//! How sessions are treated beside being counted: the options, and what they must mean.

use std::path::PathBuf;
use std::time::Duration;

use super::{ConfigError, within};

/// The longest time that an option takes, in seconds: a day.
const MAX_SECONDS: u64 = 86_400;

/// The most draft tokens that one step may verify.
const MAX_DRAFT_TOKENS: u32 = 64;

/// The options for sessions, as typed.
#[derive(Clone, Debug, clap::Args)]
pub struct SessionArgs {
    /// After how long without a step a session may be ended where a newcomer finds no room, the one that has been
    /// idle longest first; its device can rebuild it.
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub evict_idle_seconds: u64,
    /// How long the KV cache of a prefix is kept for later sessions of the same tenant; 0 keeps none.
    #[arg(long, value_name = "N", default_value_t = 300)]
    pub prefix_retention_seconds: u64,
    /// The most draft tokens that one step verifies, at most 64; 0 verifies none.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub max_draft_tokens: u32,
    /// A file with the number of sessions that this tail should have at most; empty or absent: no such number.
    /// When it changes, the sessions beyond it are asked once to move to another tail. It refuses nobody.
    #[arg(long, value_name = "FILE")]
    pub session_target_file: Option<PathBuf>,
    /// How long sessions that are asked to move because of --session-target-file may take. None is closed then.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 60,
        requires = "session_target_file"
    )]
    pub rebalance_seconds: u64,
}

/// How sessions are treated beside being counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionConfig {
    /// A session that has been idle for this long may be evicted where a newcomer finds no room.
    pub evict_idle: Duration,
    /// How long a prefix is kept for later sessions; `None`: none is kept.
    pub prefix_retention: Option<Duration>,
    /// The most draft tokens of one step; 0: drafts are not verified.
    pub max_draft_tokens: u32,
    /// `None`: nobody says how many sessions this tail should have.
    pub rebalance: Option<RebalanceConfig>,
}

/// How this tail is told to have fewer sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebalanceConfig {
    /// Holds the number of sessions that this tail should have at most. Read again when it changes.
    pub target_file: PathBuf,
    /// How long a session that is asked to move may take.
    pub grace: Duration,
}

impl SessionConfig {
    pub(super) fn new(args: SessionArgs) -> Result<Self, ConfigError> {
        // Exhaustive, so that an option cannot be added and forgotten.
        let SessionArgs {
            evict_idle_seconds,
            prefix_retention_seconds,
            max_draft_tokens,
            session_target_file,
            rebalance_seconds,
        } = args;
        // With 0, each session would end between two of its tokens.
        let evict_idle = seconds("evict-idle-seconds", evict_idle_seconds, 1)?;
        let prefix_retention = seconds("prefix-retention-seconds", prefix_retention_seconds, 0)?;
        let grace = seconds("rebalance-seconds", rebalance_seconds, 1)?;
        Ok(Self {
            evict_idle,
            prefix_retention: Some(prefix_retention).filter(|retention| !retention.is_zero()),
            max_draft_tokens: within("max-draft-tokens", max_draft_tokens, 0, MAX_DRAFT_TOKENS)?,
            rebalance: session_target_file
                .map(|target_file| RebalanceConfig { target_file, grace }),
        })
    }
}

fn seconds(option: &'static str, value: u64, least: u64) -> Result<Duration, ConfigError> {
    within(option, value, least, MAX_SECONDS).map(Duration::from_secs)
}
