//! `spec.pricing`: what GPU time costs.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// What GPU time costs, so that the status can say what was saved in money.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pricing {
    /// The price of an hour of what one tail runs on, as a decimal number such as "2.49". A tail on several GPUs
    /// counts its own seconds: give the price of all of them together.
    #[schemars(
        length(min = 1, max = 16),
        regex(pattern = r"^(0|[1-9][0-9]{0,8})(\.[0-9]{1,6})?$")
    )]
    pub gpu_hour: String,
    /// The currency, as it is shown behind an amount, such as EUR.
    #[schemars(length(min = 1, max = 8), regex(pattern = r"^[^\s]+$"))]
    pub currency: String,
}

impl Pricing {
    /// What `gpu_seconds` cost, such as `12.30 EUR`.
    #[must_use]
    pub fn cost(&self, gpu_seconds: f64) -> String {
        format!("{:.2} {}", self.amount(gpu_seconds), self.currency)
    }

    /// What `gpu_seconds` cost, as a number.
    #[must_use]
    pub fn amount(&self, gpu_seconds: f64) -> f64 {
        // The definition lets nothing else in.
        let price: f64 = self.gpu_hour.parse().unwrap_or(0.0);
        price * gpu_seconds / 3600.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_costs_its_price() {
        let pricing = Pricing {
            gpu_hour: "2.49".to_owned(),
            currency: "EUR".to_owned(),
        };
        assert_eq!(pricing.cost(3600.0), "2.49 EUR");
        assert_eq!(pricing.cost(0.0), "0.00 EUR");
        assert_eq!(pricing.cost(5400.0), "3.74 EUR");
    }
}
