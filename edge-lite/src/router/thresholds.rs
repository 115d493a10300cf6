//! What calibration found: how to predict agreement, and how much of it is enough. A JSON file of its own version, for
//! one pair of models.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, RequestError};
use crate::router::features::RequestFeatures;
use crate::router::uncertainty::ProbeSummary;

/// The version that is written, and the only one that is read.
pub const THRESHOLDS_VERSION: u32 = 1;
/// The largest file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// The most tokens that are held back before the first one is shown.
const MAX_PROBE_TOKENS: usize = 64;

/// A weighted sum of features, by name: the expected share of tokens on which the local model and the full one agree.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Predictor {
    weights: BTreeMap<String, f64>,
}

impl Predictor {
    /// From weights and their names.
    #[must_use]
    pub fn new(weights: impl IntoIterator<Item = (&'static str, f64)>) -> Self {
        let weights = weights.into_iter();
        Self {
            weights: weights
                .map(|(name, weight)| (name.to_owned(), weight))
                .collect(),
        }
    }

    /// In `[0, 1]`.
    #[must_use]
    pub fn expected(&self, values: &[(&'static str, f64)]) -> f64 {
        let sum: f64 = values
            .iter()
            .map(|(name, value)| self.weights.get(*name).copied().unwrap_or(0.0) * value)
            .sum();
        sum.clamp(0.0, 1.0)
    }

    /// The name of a feature that it knows and this version does not.
    fn unknown(&self, known: &[(&'static str, f64)]) -> Option<&str> {
        let mut names = self.weights.keys();
        names
            .find(|name| !known.iter().any(|(known, _)| known == name))
            .map(String::as_str)
    }

    fn is_finite(&self) -> bool {
        self.weights.values().all(|weight| weight.is_finite())
    }
}

/// What positions cost the tail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TailCost {
    /// Seconds for each position of a prompt, or of an answer that was begun elsewhere.
    pub prompt_position_seconds: f64,
    /// Seconds for each token of an answer.
    pub token_seconds: f64,
}

impl TailCost {
    /// Of `positions` taken in at once and `tokens` given after them.
    #[must_use]
    pub fn seconds(&self, positions: usize, tokens: usize) -> f64 {
        self.prompt_position_seconds * positions as f64 + self.token_seconds * tokens as f64
    }

    /// Of a request, whose answer is as long as it may be.
    #[must_use]
    pub fn of_request(&self, features: &RequestFeatures) -> f64 {
        let seconds = self.seconds(features.prompt_tokens, features.max_tokens);
        seconds.max(f64::MIN_POSITIVE)
    }
}

/// When the local model is good enough, and when it is not any more.
///
/// An answer that costs the tail more may differ more: the looks before it compare the expected disagreement with the
/// tail seconds that it would save. For a mean agreement over many answers, that is the cheapest choice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thresholds {
    /// [`THRESHOLDS_VERSION`].
    pub version: u32,
    /// Digest of the full model.
    pub full_model_digest: String,
    /// Digest of the local model.
    pub local_model_digest: String,
    /// Share of tokens on which the routed answers and the full model's agree, as it was aimed at.
    pub target_agreement: f64,
    /// Predicts from the request alone.
    pub request: Predictor,
    /// What positions cost the tail.
    pub tail_cost: TailCost,
    /// Expected disagreement for each tail second saved, above which the tail answers from the start; `None`: the
    /// request alone decides nothing.
    pub accepted_loss_of_request: Option<f64>,
    /// Tokens of the local model that are looked at before the first one is shown; 0: none.
    pub probe_tokens: usize,
    /// Predicts from the request and those tokens.
    pub probe: Predictor,
    /// The same, above which they are dropped and the tail answers; `None`: they decide nothing.
    pub accepted_loss_of_probe: Option<f64>,
    /// Tokens that the running entropy is over.
    pub running_tokens: usize,
    /// Running entropy, in nats, above which the tail takes over; `None`: it never does.
    pub max_running_entropy: Option<f64>,
}

impl Thresholds {
    /// Reads a file that `edge-lite calibrate` wrote. Blocks.
    ///
    /// # Errors
    /// [`RequestError::Read`], [`RequestError::Thresholds`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let read = |source| RequestError::Read {
            path: path.to_owned(),
            source,
        };
        let bytes = std::fs::metadata(path).map_err(read)?.len();
        if bytes > MAX_FILE_BYTES {
            return Err(refuse(format!(
                "the file has {bytes} bytes; at most {MAX_FILE_BYTES} are read"
            ))
            .into());
        }
        Self::parse(&std::fs::read(path).map_err(read)?).map_err(Into::into)
    }

    fn parse(json: &[u8]) -> Result<Self, RequestError> {
        // First, so that another version is called that, whatever its fields are.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let broken =
            |error: serde_json::Error| refuse(format!("not what calibrate writes: {error}"));
        let Version { version } = serde_json::from_slice(json).map_err(broken)?;
        if version != THRESHOLDS_VERSION {
            return Err(refuse(format!(
                "version {version}; this program reads version {THRESHOLDS_VERSION}: calibrate again"
            )));
        }
        let thresholds: Self = serde_json::from_slice(json).map_err(broken)?;
        thresholds.check()?;
        Ok(thresholds)
    }

    /// The least agreement that is accepted of an answer to such a request, where `accepted_loss` is a tail second's.
    #[must_use]
    pub fn needed(&self, features: &RequestFeatures, accepted_loss: f64) -> f64 {
        1.0 - accepted_loss * self.tail_cost.of_request(features)
    }

    fn check(&self) -> Result<(), RequestError> {
        let features = RequestFeatures::default();
        let known = (
            features.values(),
            features.values_with(&ProbeSummary::default()),
        );
        let unknown = self
            .request
            .unknown(&known.0)
            .or(self.probe.unknown(&known.1));
        if let Some(name) = unknown {
            return Err(refuse(format!(
                "it speaks of {name:?}, which this program does not measure"
            )));
        }
        let TailCost {
            prompt_position_seconds,
            token_seconds,
        } = self.tail_cost;
        if !(prompt_position_seconds >= 0.0 && token_seconds >= 0.0) {
            return Err(refuse("a position costs less than nothing".to_owned()));
        }
        if !self.request.is_finite() || !self.probe.is_finite() {
            return Err(refuse("a weight is no number".to_owned()));
        }
        if self.probe_tokens > MAX_PROBE_TOKENS || self.running_tokens == 0 {
            return Err(refuse(format!(
                "probe_tokens is {} and running_tokens {}; expected at most {MAX_PROBE_TOKENS}, and 1 or more",
                self.probe_tokens, self.running_tokens
            )));
        }
        Ok(())
    }

    /// Refuses thresholds of another pair of models.
    ///
    /// # Errors
    /// [`RequestError::Thresholds`], with the digests.
    pub fn check_models(
        &self,
        full_model_digest: &str,
        local_model_digest: &str,
    ) -> Result<(), RequestError> {
        for (which, calibrated, found) in [
            ("full", &self.full_model_digest, full_model_digest),
            ("local", &self.local_model_digest, local_model_digest),
        ] {
            if calibrated != found {
                return Err(refuse(format!(
                    "they were calibrated for the {which} model {calibrated}, and this one is {found}: calibrate again"
                )));
            }
        }
        Ok(())
    }
}

fn refuse(reason: String) -> RequestError {
    RequestError::Thresholds { reason }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Expects an agreement of 1 less a tenth for each nat.
    pub(crate) fn thresholds() -> Thresholds {
        Thresholds {
            version: THRESHOLDS_VERSION,
            full_model_digest: "sha256:full".to_owned(),
            local_model_digest: "sha256:local".to_owned(),
            target_agreement: 0.9,
            request: Predictor::new([("bias", 1.0), ("digit_share", -1.0)]),
            tail_cost: TailCost {
                prompt_position_seconds: 0.0,
                token_seconds: 0.02,
            },
            // Of requests for 50 tokens: 0.5 and 0.2.
            accepted_loss_of_request: Some(0.5),
            probe_tokens: 4,
            probe: Predictor::new([("bias", 1.0), ("mean_entropy", -0.1)]),
            accepted_loss_of_probe: Some(0.2),
            running_tokens: 4,
            max_running_entropy: Some(3.0),
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let json = serde_json::to_vec(&thresholds()).unwrap();
        assert_eq!(Thresholds::parse(&json).unwrap(), thresholds());
    }

    #[test]
    fn another_version_and_unknown_features_are_refused() {
        let mut newer = thresholds();
        newer.version = 2;
        newer.request = Predictor::new([("charm", 1.0)]);
        let error = Thresholds::parse(&serde_json::to_vec(&newer).unwrap()).unwrap_err();
        assert!(error.to_string().contains("version 2"), "{error}");
        newer.version = THRESHOLDS_VERSION;
        let error = Thresholds::parse(&serde_json::to_vec(&newer).unwrap()).unwrap_err();
        assert!(error.to_string().contains("charm"), "{error}");
    }

    #[test]
    fn another_model_is_refused_with_both_digests() {
        let error = thresholds()
            .check_models("sha256:full", "sha256:x")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("sha256:local") && error.contains("sha256:x"),
            "{error}"
        );
        thresholds()
            .check_models("sha256:full", "sha256:local")
            .unwrap();
    }
}
