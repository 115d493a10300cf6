//! `cargo xtask bench dashboard`: the chart's dashboard against a real Prometheus that watches a real cluster under load. Every
//! panel's queries must answer; the picture of what they say is for the README.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{bail, ensure};
use cluster_rig::node;

use self::panel::{Drawn, Panel};
use self::prometheus::Prometheus;
use super::cluster_load;
use crate::demo::cluster::{Demo, prepared, serve, url};
use crate::paths::root;
use crate::processes;

mod panel;
mod picture;
mod prometheus;
mod targets;

const DASHBOARD: &str = "charts/headway/files/dashboards/headway.json";

/// What has no samples while nothing is wrong, by the panel's title.
const EMPTY_WHILE_ALL_IS_WELL: [&str; 3] = [
    "Refusals",
    "Certificates and keys read again",
    "Watches that failed",
];

/// Checks the chart's dashboard against a real Prometheus, and draws it.
#[derive(clap::Args)]
pub struct Arguments {
    /// Seconds of load
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Where to write the picture, as SVG
    #[arg(long, default_value = "docs/dashboard.svg")]
    output: PathBuf,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(obstacle) = node::obstacle()? {
        bail!(obstacle);
    }
    prometheus::check_program()?;
    let demo = Demo::new();
    let cluster = prepared(&demo)?;
    serve(&demo, &cluster)?;
    demo.change(
        &cluster,
        r#"{"replicas": 2, "edge": {"onDeviceAnswers": true}, "pricing": {"gpuHour": "2.49", "currency": "EUR"}}"#,
    )?;
    demo.step("starting Prometheus");
    let prometheus = Prometheus::start(&cluster)?;
    let began = SystemTime::now();
    demo.step(&format!("devices ask for {} s", arguments.seconds));
    let half = Duration::from_secs(arguments.seconds) / 2;
    cluster_load::run(&url(&cluster)?, || {
        processes::wait(half);
        // In the middle, so that sessions move.
        demo.change(
            &cluster,
            r#"{"tail": {"podAnnotations": {"example.com/rollout": "1"}}}"#,
        )?;
        processes::wait(half);
        Ok(())
    })?;
    demo.step("asking for every panel");
    let drawn = ask(&prometheus, &root().join(DASHBOARD), began)?;
    picture::write(&arguments.output, &drawn)?;
    demo.step(&format!("{} is written", arguments.output.display()));
    Ok(())
}

/// What every panel shows since `began`.
fn ask(prometheus: &Prometheus, dashboard: &Path, began: SystemTime) -> anyhow::Result<Vec<Drawn>> {
    let panels = Panel::read_all(dashboard)?;
    let (mut drawn, mut empty) = (Vec::new(), Vec::new());
    for panel in panels {
        let mut series = Vec::new();
        for target in &panel.targets {
            let found = prometheus.range(&target.query(began.elapsed()?), began)?;
            let may_be_empty = EMPTY_WHILE_ALL_IS_WELL.contains(&panel.title.as_str());
            if found.is_empty() && !may_be_empty {
                empty.push(format!("{}: {}", panel.title, target.expression));
            }
            series.extend(found.iter().map(|each| target.named(each)));
        }
        println!("{}: {} series", panel.title, series.len());
        drawn.push(Drawn { panel, series });
    }
    ensure!(
        empty.is_empty(),
        "panels without a sample:\n{}",
        empty.join("\n")
    );
    Ok(drawn)
}
