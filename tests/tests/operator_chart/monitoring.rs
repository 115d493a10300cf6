//! Alerts and dashboard speak of metrics that exist.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::chart::{find, read, read_from_root, render};

#[test]
fn alerts_only_use_metrics_that_exist() -> Result<()> {
    let known = known_metrics()?;
    for alert in alerts(&[])? {
        let expression = alert["expr"].as_str().context("an expression")?;
        assert_known(expression, &known, &alert["alert"].to_string());
    }
    Ok(())
}

#[test]
fn dashboard_only_uses_metrics_that_exist() -> Result<()> {
    let known = known_metrics()?;
    let dashboard = dashboard()?;
    let panels = dashboard["panels"].as_array().context("panels")?;
    let expressions = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten())
        .filter_map(|target| target["expr"].as_str());
    assert!(expressions.clone().count() > 20);
    for expression in expressions {
        assert_known(expression, &known, "the dashboard");
    }
    let variables = dashboard["templating"]["list"]
        .as_array()
        .context("variables")?;
    for variable in variables
        .iter()
        .filter(|variable| variable["type"] == "query")
    {
        let query = variable["definition"].as_str().context("a query")?;
        assert_known(query, &known, "a variable of the dashboard");
    }
    Ok(())
}

#[test]
fn panels_of_the_dashboard_are_apart() -> Result<()> {
    let dashboard = dashboard()?;
    let mut ids = BTreeSet::new();
    let mut cells = BTreeSet::new();
    for panel in dashboard["panels"].as_array().context("panels")? {
        assert!(
            ids.insert(panel["id"].as_u64().context("an id")?),
            "{}",
            panel["title"]
        );
        let at = |key: &str| panel["gridPos"][key].as_u64().context("a place");
        let (x, y, w, h) = (at("x")?, at("y")?, at("w")?, at("h")?);
        assert!(x + w <= 24, "{}", panel["title"]);
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(
                cells.insert(cell),
                "{} lies on another panel",
                panel["title"]
            );
        }
    }
    Ok(())
}

#[test]
fn every_alert_says_what_to_do() -> Result<()> {
    for alert in alerts(&[])? {
        for text in ["summary", "description", "runbook"] {
            let text = alert["annotations"][text].as_str().unwrap_or_default();
            assert!(text.len() > 20, "{}", alert["alert"]);
        }
        let severity = alert["labels"]["severity"].as_str().unwrap_or_default();
        assert!(
            ["critical", "warning", "info"].contains(&severity),
            "{}",
            alert["alert"]
        );
    }
    Ok(())
}

#[test]
fn alerts_can_be_labelled_and_left_out_one_by_one() -> Result<()> {
    let all = alert_names(&alerts(&[])?);
    let schema: Value = serde_json::from_str(&read("values.schema.json")?)?;
    let known =
        "/properties/monitoring/properties/prometheusRule/properties/disabledAlerts/items/enum";
    let known: BTreeSet<String> =
        serde_json::from_value(schema.pointer(known).context("names")?.clone())?;
    assert_eq!(all, known);
    for name in &all {
        let value = format!(
            "monitoring.prometheusRule.disabledAlerts={{{name}}},monitoring.prometheusRule.alertLabels.team=ml"
        );
        let rest = alerts(&["--set", &value])?;
        let mut expected = all.clone();
        expected.remove(name);
        assert_eq!(alert_names(&rest), expected);
        assert!(rest.iter().all(|alert| alert["labels"]["team"] == "ml"));
    }
    Ok(())
}

#[test]
fn documented_alerts_are_those_of_the_chart() -> Result<()> {
    let page = read_from_root("docs/chart.md")?;
    let rows = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `Headway")?.split_once('`'));
    let documented: BTreeSet<String> = rows.map(|(name, _)| format!("Headway{name}")).collect();
    assert_eq!(documented, alert_names(&alerts(&[])?));
    Ok(())
}

fn alerts(values: &[&str]) -> Result<Vec<Value>> {
    let on = ["--set", "monitoring.prometheusRule.enabled=true"];
    let objects = render(&[&on[..], values].concat())?;
    let groups = &find(&objects, "PrometheusRule", "headway-operator")?["spec"]["groups"];
    let rules = groups.as_array().context("groups")?.iter();
    Ok(rules
        .flat_map(|group| group["rules"].as_array().into_iter().flatten().cloned())
        .collect())
}

fn alert_names(alerts: &[Value]) -> BTreeSet<String> {
    alerts
        .iter()
        .filter_map(|alert| alert["alert"].as_str())
        .map(str::to_owned)
        .collect()
}

fn dashboard() -> Result<Value> {
    let objects = render(&["--set", "monitoring.dashboard.enabled=true"])?;
    let data = &find(&objects, "ConfigMap", "headway-dashboard")?["data"]["headway.json"];
    Ok(serde_json::from_str(data.as_str().context("a dashboard")?)?)
}

/// Metrics of the tails and of the operator, from the pages that are tested against the programs.
fn known_metrics() -> Result<BTreeSet<String>> {
    let mut known = BTreeSet::new();
    for (page, prefix) in [
        ("docs/tail-metrics.md", "headway_tail_"),
        ("docs/operator.md", "headway_operator_"),
    ] {
        let page = read_from_root(page)?;
        let metrics = page.split('`').filter(|word| is_metric(word, prefix));
        known.extend(metrics.map(str::to_owned));
    }
    assert!(known.len() > 15, "{known:?}");
    Ok(known)
}

fn is_metric(word: &str, prefix: &str) -> bool {
    word.strip_prefix(prefix).is_some_and(|rest| {
        rest.bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    })
}

fn assert_known(expression: &str, known: &BTreeSet<String>, place: &str) {
    let words = expression.split(|sign: char| !sign.is_ascii_alphanumeric() && sign != '_');
    let used =
        words.filter(|word| word.starts_with("headway_") && *word != "headway_dev_splitmodel");
    let mut count = 0;
    for metric in used {
        // The buckets of a histogram have names of their own.
        let base = metric.strip_suffix("_bucket").unwrap_or(metric);
        assert!(
            known.contains(base),
            "{place} uses {metric}, which does not exist"
        );
        count += 1;
    }
    assert!(count > 0, "{place}: {expression} uses no metric");
}
