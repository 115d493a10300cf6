//! Panels of a Grafana dashboard, as far as they are asked for and drawn.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use super::prometheus::Series;

/// Several scrapes long, as Grafana chooses it.
const RATE_INTERVAL: &str = "20s";

/// One panel, or the heading of a row.
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) kind: Kind,
    pub(super) unit: String,
    /// Left, top, width and height in Grafana's grid of 24 columns.
    pub(super) place: [u32; 4],
    pub(super) targets: Vec<Target>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Row,
    Stat,
    TimeSeries,
}

/// A query and how its series are called.
pub(super) struct Target {
    pub(super) expression: String,
    legend: String,
}

/// A panel with its series, by name: seconds since the epoch and values.
pub(super) struct Drawn {
    pub(super) panel: Panel,
    pub(super) series: Vec<(String, Vec<(f64, f64)>)>,
}

impl Panel {
    pub(super) fn read_all(path: &Path) -> anyhow::Result<Vec<Self>> {
        let text = std::fs::read_to_string(path)?;
        let dashboard: Value = serde_json::from_str(&text)?;
        let panels = dashboard["panels"].as_array().context("panels")?;
        panels.iter().map(Self::read).collect()
    }

    fn read(panel: &Value) -> anyhow::Result<Self> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let side = |name: &str| {
            let side = panel["gridPos"][name].as_u64().context("a place")?;
            Ok::<_, anyhow::Error>(u32::try_from(side)?)
        };
        let targets = panel["targets"].as_array().into_iter().flatten();
        Ok(Self {
            title: text(&panel["title"]),
            kind: match panel["type"].as_str() {
                Some("row") => Kind::Row,
                Some("stat") => Kind::Stat,
                _ => Kind::TimeSeries,
            },
            unit: text(&panel["fieldConfig"]["defaults"]["unit"]),
            place: [side("x")?, side("y")?, side("w")?, side("h")?],
            targets: targets
                .map(|target| Target {
                    expression: text(&target["expr"]),
                    legend: text(&target["legendFormat"]),
                })
                .collect(),
        })
    }
}

impl Target {
    /// The query with everything selected, over the last `range`.
    pub(super) fn query(&self, range: Duration) -> String {
        let range = format!("{}s", range.as_secs().max(1));
        let mut query = self.expression.clone();
        for (variable, value) in [
            ("$__rate_interval", RATE_INTERVAL),
            ("$__range", &range),
            ("$namespace", ".*"),
            ("$splitmodel", ".*"),
        ] {
            query = query.replace(variable, value);
        }
        query
    }

    /// A series with its name in the legend.
    pub(super) fn named(&self, series: &Series) -> (String, Vec<(f64, f64)>) {
        let mut name = self.legend.clone();
        for (label, value) in &series.labels {
            name = name.replace(&format!("{{{{{label}}}}}"), value);
        }
        (name, series.samples.clone())
    }
}
