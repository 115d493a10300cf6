//! `spec.split`: how many layers devices run.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// How many layers devices run. A split layer `k` means that a device runs the embedding and layers `[0, k)`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.max) || self.min <= self.max")
        .message("min is above max; lower split.min or raise split.max")
        .field_path(".min"),
    validation = Rule::new("!has(self.default) || (self.min <= self.default && (!has(self.max) || self.default <= self.max))")
        .message("default lies outside of min and max; choose split.min <= split.default <= split.max")
        .field_path(".default"),
)]
pub struct Split {
    /// The fewest layers a device may run. Tails do not load the layers below it, so that a higher number
    /// leaves more GPU memory to sessions.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1023))]
    pub min: u32,
    /// The most layers a device may run; all but one of the model's where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1024))]
    pub max: Option<u32>,
    /// The split layer recommended to devices that have no better idea.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1024))]
    pub default: Option<u32>,
}
