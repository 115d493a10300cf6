//! Times that were predicted or measured, and what they differ by.

use anyhow::Context as _;
use edge_lite::Report;
use serde_json::Value;

use crate::bench::median;

/// What was measured of one plan, or predicted.
#[derive(Clone, Copy)]
pub struct Times {
    /// From the request to the first token.
    pub first_token_ms: f64,
    /// Each further token.
    pub token_ms: f64,
    /// From the request to the last token.
    pub total_ms: f64,
}

/// Relative errors, and what the choices lost.
#[derive(Default)]
pub struct Results {
    first_token: Vec<f64>,
    token: Vec<f64>,
    token_on_device: Vec<f64>,
    total: Vec<f64>,
    /// What the choice took more than the best fixed plan, in parts of that; as in the others.
    pub regret: Vec<f64>,
    /// Than all layers on the device.
    pub over_device: Vec<f64>,
    /// Than all layers on the tail.
    pub over_cloud: Vec<f64>,
}

impl Times {
    /// Of an alternative that `edge-lite plan` prints.
    pub fn predicted(alternative: &Value) -> anyhow::Result<Self> {
        let number = |field: &str| alternative[field].as_f64().context("a number");
        Ok(Self {
            first_token_ms: number("first_token_ms")?,
            token_ms: number("token_ms")?,
            total_ms: number("total_ms")?,
        })
    }

    /// The medians.
    pub fn of(reports: &[Report]) -> Self {
        let median_of = |time: fn(&Report) -> f64| median(reports.iter().map(time).collect());
        Self {
            first_token_ms: median_of(|report| report.timings_ms.first_token),
            token_ms: median_of(|report| {
                #[expect(clippy::cast_precision_loss, reason = "token counts are small")]
                let further = (report.token_ids.len() - 1) as f64;
                report.timings_ms.decode / further
            }),
            total_ms: median_of(|report| report.timings_ms.first_token + report.timings_ms.decode),
        }
    }
}

impl Results {
    /// Takes note of a plan's errors.
    pub fn compare(&mut self, expected: Times, got: Times, is_on_device: bool) {
        let error = |expected: f64, got: f64| (expected - got).abs() / got;
        self.first_token
            .push(error(expected.first_token_ms, got.first_token_ms));
        self.token.push(error(expected.token_ms, got.token_ms));
        if is_on_device {
            self.token_on_device
                .push(error(expected.token_ms, got.token_ms));
        }
        self.total.push(error(expected.total_ms, got.total_ms));
    }

    /// The last table.
    pub fn print(self) {
        println!("\n| | median | 9 of 10 | most |\n|---|---|---|---|");
        for (what, mut values) in [
            ("error of the first token", self.first_token),
            ("error of a token", self.token),
            ("of those, on the device alone", self.token_on_device),
            ("error of the answer", self.total),
            ("choice against the best fixed plan", self.regret),
            ("choice against all on the device", self.over_device),
            ("choice against all on the tail", self.over_cloud),
        ] {
            if values.is_empty() {
                continue;
            }
            values.sort_by(f64::total_cmp);
            let at = |part: usize| values[(values.len() - 1) * part / 10] * 100.0;
            println!(
                "| {what} | {:.1} % | {:.1} % | {:.1} % |",
                at(5),
                at(9),
                at(10)
            );
        }
    }
}
