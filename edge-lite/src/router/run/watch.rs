//! The local model's uncertainty within one answer.

use crate::local::Measure;
use crate::router::decision::after_probe;
use crate::router::reason::RouteReason;
use crate::router::uncertainty::{RunningEntropy, Uncertainty};
use crate::router::{Routed, Shared};

/// The local model's uncertainty, where it decides.
pub(super) struct Watch<'a> {
    shared: &'a Shared,
    is_on: bool,
    running: RunningEntropy,
}

impl<'a> Watch<'a> {
    pub(super) fn new(shared: &'a Shared, is_on: bool) -> Self {
        let thresholds = shared.config.thresholds.as_ref();
        Self {
            shared,
            is_on: is_on && thresholds.is_some(),
            running: RunningEntropy::new(thresholds.map_or(1, |found| found.running_tokens)),
        }
    }

    pub(super) const fn measure(&self) -> Measure {
        if self.is_on {
            Measure::Uncertainty
        } else {
            Measure::Nothing
        }
    }

    /// How many tokens are looked at before one is shown.
    pub(super) fn probe_tokens(&self) -> Option<usize> {
        let thresholds = self
            .shared
            .config
            .thresholds
            .as_ref()
            .filter(|_| self.is_on)?;
        thresholds.accepted_loss_of_probe?;
        (thresholds.probe_tokens > 0).then_some(thresholds.probe_tokens)
    }

    /// The reason to stay, or the one to leave.
    pub(super) fn judge(
        &mut self,
        routed: &Routed,
        tokens: &[Uncertainty],
    ) -> Result<RouteReason, RouteReason> {
        for token in tokens {
            self.running.push(token.entropy);
        }
        match &self.shared.config.thresholds {
            Some(thresholds) => after_probe(&routed.features, tokens, thresholds),
            None => Ok(RouteReason::Uncalibrated),
        }
    }

    /// The reason to leave after this token, if there is one.
    pub(super) fn push(&mut self, token: Uncertainty) -> Option<RouteReason> {
        let thresholds = self
            .shared
            .config
            .thresholds
            .as_ref()
            .filter(|_| self.is_on)?;
        let entropy = self.running.push(token.entropy)?;
        let most = thresholds.max_running_entropy?;
        (entropy > most).then_some(RouteReason::LocalLost { entropy, most })
    }
}
