//! What was decided, and why, in words.

use std::fmt;

/// A number of pods, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The pods that there should be, within the bounds.
    pub replicas: u32,
    /// The pods that the load asks for, whatever the bounds.
    pub wanted: u32,
    /// Whether a burst is under way, in which no pod goes.
    pub is_panicking: bool,
    /// What the number follows from.
    pub because: Because,
}

impl Decision {
    /// Whether the load asks for more than there may be.
    #[must_use]
    pub const fn is_limited(&self) -> bool {
        self.wanted > self.replicas
    }
}

/// What a number of pods follows from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Because {
    /// Nothing has changed.
    Enough,
    /// Sessions, those that wait included: as many pods of what is aimed at.
    Sessions {
        /// In pods.
        pods: f64,
    },
    /// KV cache in use.
    KvCache {
        /// In pods.
        pods: f64,
    },
    /// A short window asks for twice the pods that serve.
    Burst {
        /// In pods.
        pods: f64,
    },
    /// Work waits too long for its step.
    QueueDelay {
        /// Milliseconds, 95th percentile.
        delay_ms: f64,
        /// What is aimed at.
        target_ms: f64,
    },
    /// There is no pod, and somebody asks for one.
    Waiting {
        /// Sessions.
        sessions: f64,
    },
    /// Fewer have been enough for the whole delay.
    Less {
        /// As many.
        pods: u32,
    },
    /// Nobody has asked for anything for the whole delay.
    Idle,
    /// Somebody asked for this number.
    Asked,
    /// The bounds have changed.
    Bounds,
}

impl fmt::Display for Because {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enough => formatter.write_str("there are enough"),
            Self::Sessions { pods } => {
                write!(
                    formatter,
                    "sessions are as many as {pods:.2} pods should have"
                )
            }
            Self::KvCache { pods } => {
                write!(
                    formatter,
                    "KV cache is in use as much as {pods:.2} pods should have"
                )
            }
            Self::Burst { pods } => write!(
                formatter,
                "a burst asks for {pods:.2} pods, twice what serves or more"
            ),
            Self::QueueDelay {
                delay_ms,
                target_ms,
            } => write!(
                formatter,
                "work waits {delay_ms:.0} ms for its step, {target_ms:.0} ms are aimed at"
            ),
            Self::Waiting { sessions } => {
                write!(formatter, "{sessions:.0} sessions wait for a first pod")
            }
            Self::Less { pods } => write!(formatter, "{pods} have been enough for a while"),
            Self::Idle => formatter.write_str("no session has come for a while"),
            Self::Asked => formatter.write_str("spec.replicas asks for it"),
            Self::Bounds => formatter.write_str("autoscaling.min and max ask for it"),
        }
    }
}

impl Because {
    /// One word, for events and metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Enough => "Enough",
            Self::Sessions { .. } => "Sessions",
            Self::KvCache { .. } => "KvCache",
            Self::Burst { .. } => "Burst",
            Self::QueueDelay { .. } => "QueueDelay",
            Self::Waiting { .. } => "Waiting",
            Self::Less { .. } => "Less",
            Self::Idle => "Idle",
            Self::Asked => "Asked",
            Self::Bounds => "Bounds",
        }
    }
}
