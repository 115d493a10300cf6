//! When a companion is good enough, found by trying: every prompt on the local model and on the full one, then all
//! thresholds on what was recorded.
//!
//! prompts → `record` (answers, uncertainties, agreement, tail seconds) → `fit` (expected agreement from features) →
//! `replay` (what a policy would have done) → `sweep` (the cheapest policy that keeps the target) →
//! [`Thresholds`], a table and a curve.
//!
//! *Agreement* of a local answer is the share of its tokens, the one that ended its turn included, that the full model
//! would have chosen itself behind the same tokens, greedily. Tokens that the full model gave agree. So the agreement of
//! a routed answer can be told from the record for every moment at which it might have been handed over.

mod fit;
mod overlap;
mod plot;
pub mod prompts;
mod record;
mod replay;
mod sweep;
mod table;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use self::record::{Full, Record};
pub use self::sweep::{Curve, Point};
use crate::error::{Error, RequestError};
use crate::local::LocalModel;
use crate::router::Thresholds;
use crate::router::thresholds::{THRESHOLDS_VERSION, TailCost};
use prompts::CalibrationPrompt;

/// Tokens of the local model that are looked at before one is shown.
const PROBE_TOKENS: usize = 8;
/// Tokens that the running entropy is over.
const RUNNING_TOKENS: usize = 8;

/// What to calibrate for.
#[derive(Clone, Debug)]
pub struct CalibrateConfig {
    /// Share of tokens on which routed answers and the full model's shall agree.
    pub target_agreement: f64,
    /// The most tokens of an answer, whatever the prompts say.
    pub max_tokens: usize,
}

/// Everything that was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Calibration {
    /// The thresholds for the target, from all prompts.
    pub thresholds: Thresholds,
    /// What was recorded, one for each prompt.
    pub records: Vec<Record>,
    /// What a position costs the tail.
    pub cost: TailCost,
    /// Quality against cost on prompts that the thresholds were not chosen on.
    pub curve: Curve,
}

/// Runs every prompt on both models, greedily, and finds the thresholds. `progress` is told of prompts done and all.
///
/// # Errors
/// What goes wrong in an engine; [`crate::RequestError::OtherTokenizer`] where the models do not fit.
pub async fn calibrate(
    full: &Full,
    local: &LocalModel,
    prompts: &[CalibrationPrompt],
    config: &CalibrateConfig,
    mut progress: impl FnMut(usize, usize),
) -> Result<Calibration, Error> {
    let digests = full.check(local).await?;
    let mut records = Vec::with_capacity(prompts.len());
    for (index, prompt) in prompts.iter().enumerate() {
        records.push(record::record(full, local, prompt, config.max_tokens).await?);
        progress(index + 1, prompts.len());
    }
    Ok(Calibration::of(records, digests, config.target_agreement))
}

impl Calibration {
    /// Finds thresholds in what was recorded. `digests`: of the full model and the local one.
    #[must_use]
    pub fn of(records: Vec<Record>, digests: (String, String), target_agreement: f64) -> Self {
        let cost = replay::measured_cost(&records);
        let all: Vec<&Record> = records.iter().collect();
        let chosen = sweep::choose(&all, cost, target_agreement);
        let (full_model_digest, local_model_digest) = digests;
        let thresholds = Thresholds {
            version: THRESHOLDS_VERSION,
            full_model_digest,
            local_model_digest,
            target_agreement,
            request: chosen.predictors.request,
            tail_cost: cost,
            accepted_loss_of_request: chosen.policy.accepted_loss_of_request,
            probe_tokens: PROBE_TOKENS,
            probe: chosen.predictors.probe,
            accepted_loss_of_probe: chosen.policy.accepted_loss_of_probe,
            running_tokens: RUNNING_TOKENS,
            max_running_entropy: chosen.policy.max_running_entropy,
        };
        let curve = sweep::curve(&all, cost);
        Self {
            thresholds,
            records,
            cost,
            curve,
        }
    }

    /// Reads what was recorded before. Blocks.
    ///
    /// # Errors
    /// [`RequestError::Read`]; [`RequestError::Value`] where it is something else.
    pub fn read(path: &Path) -> Result<Self, RequestError> {
        let json = std::fs::read(path).map_err(|source| RequestError::Read {
            path: path.to_owned(),
            source,
        })?;
        serde_json::from_slice(&json).map_err(|error| RequestError::Value {
            name: "record of a calibration",
            got: error.to_string(),
            expected: "what edge-lite calibrate --record writes".to_owned(),
        })
    }

    /// The same record with thresholds for another target.
    #[must_use]
    pub fn aiming_at(self, target_agreement: f64) -> Self {
        let Thresholds {
            full_model_digest,
            local_model_digest,
            ..
        } = self.thresholds;
        let digests = (full_model_digest, local_model_digest);
        Self::of(self.records, digests, target_agreement)
    }

    /// The table for a document.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        table::markdown(self)
    }

    /// The curve as an SVG.
    ///
    /// # Errors
    /// The plotter's sentence, where it cannot draw.
    pub fn to_svg(&self) -> Result<String, String> {
        plot::svg(self)
    }
}
