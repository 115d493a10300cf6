//! How busy tails are at one moment.

use crate::policy::Policy;

/// What one tail said of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Sessions that hold a KV cache.
    pub sessions: f64,
    /// Share of the KV cache in use, 0 to 1.
    pub kv: f64,
    /// Whether it has computed anything since it was asked last: sessions may come and go in between.
    pub is_active: bool,
}

/// One pod that runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pod {
    /// Whether it takes sessions: ready, and not on its way out.
    pub serves: bool,
    /// What it said; `None` where it did not answer.
    pub load: Option<Load>,
}

/// All pods at one moment, and who has none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Pods that run. One that starts has no load and does not serve.
    pub pods: Vec<Pod>,
    /// Sessions that no pod took, because all were full or there was none; they try again.
    pub waiting: f64,
    /// Milliseconds that work waited for its step, 95th percentile over all pods since the last sample; `None`
    /// where there was no work.
    pub queue_delay_ms: Option<f64>,
}

/// Load in pods: how many it takes when each has what is aimed at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Demand {
    pub(crate) sessions: f64,
    pub(crate) kv: f64,
}

/// A tail that works and happens to have no session is not idle. This much of a pod keeps one pod.
const ACTIVE: f64 = 1e-6;

impl Demand {
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            sessions: self.sessions + other.sessions,
            kv: self.kv + other.kv,
        }
    }

    pub(crate) fn over(self, count: f64) -> Self {
        Self {
            sessions: self.sessions / count,
            kv: self.kv / count,
        }
    }

    /// The number of pods that it takes.
    pub(crate) fn pods(self) -> u32 {
        whole_pods(self.sessions.max(self.kv))
    }
}

/// Rounded up, but for what sums of fractions leave behind the last digit that counts.
pub(crate) fn whole_pods(pods: f64) -> u32 {
    let above = pods.floor();
    let rounded = if pods - above < ACTIVE / 2.0 && above > 0.0 {
        above
    } else {
        pods.ceil()
    };
    // Saturates; what is no number is none.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float to integer cast saturates"
    )]
    {
        rounded as u32
    }
}

impl Sample {
    /// Pods that serve.
    pub(crate) fn serving(&self) -> u32 {
        let serving = self.pods.iter().filter(|pod| pod.serves).count();
        u32::try_from(serving).unwrap_or(u32::MAX)
    }

    /// Sessions of pods that answered, with those that wait.
    pub(crate) fn sessions(&self) -> f64 {
        let sessions = self.loads().map(|load| load.sessions);
        sessions.sum::<f64>() + self.waiting
    }

    fn loads(&self) -> impl Iterator<Item = Load> {
        self.pods.iter().filter_map(|pod| pod.load)
    }

    /// What is known. The sessions of a pod that is on its way out will need another.
    pub(crate) fn known(&self, policy: &Policy) -> Demand {
        let active = self
            .loads()
            .any(|load| load.is_active || load.sessions > 0.0);
        let kv: f64 = self.loads().map(|load| load.kv).sum();
        let least = if active { ACTIVE } else { 0.0 };
        Demand {
            sessions: (self.sessions() / policy.target_sessions).max(least),
            kv: kv / policy.target_kv,
        }
    }

    /// The same, with each pod that serves and does not answer taken for one that has what is aimed at: not for an
    /// empty one.
    pub(crate) fn presumed(&self, policy: &Policy) -> Demand {
        let silent = self.pods.iter();
        let silent = silent
            .filter(|pod| pod.serves && pod.load.is_none())
            .count();
        let each = Demand {
            sessions: 1.0,
            kv: 1.0,
        };
        (0..silent).fold(self.known(policy), |demand, _| demand.plus(each))
    }
}
