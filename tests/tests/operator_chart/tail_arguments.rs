//! What the operator writes for tails is what tails take.

use std::process::Command;

use anyhow::{Context as _, Result};
use e2e::program::program;
use serde_json::Value;

use crate::chart::read_from_root;

#[test]
fn tails_take_every_argument_of_the_fullest_splitmodel() -> Result<()> {
    let golden = read_from_root("operator/src/build/golden/full.yaml")?;
    let objects: Vec<Value> = serde_saphyr::from_multiple(&golden)?;
    let mut objects = objects.iter();
    let deployment = objects.find(|object| object["kind"] == "Deployment");
    let pod = &deployment.context("a Deployment")?["spec"]["template"]["spec"];
    let arguments = pod["containers"][0]["args"].as_array().context("args")?;
    let arguments: Vec<&str> = arguments.iter().filter_map(Value::as_str).collect();
    assert!(arguments.len() > 25, "{arguments:?}");
    // With --help behind them, all that stand before it are read and nothing is run.
    let is_taken = |arguments: &[&str]| -> Result<(bool, String)> {
        let mut command = Command::new(program("tail-server"));
        let output = command.args(arguments).arg("--help").output()?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok((output.status.success(), error))
    };
    let (taken, error) = is_taken(&arguments)?;
    assert!(taken, "{error}");
    let (taken, _) = is_taken(&["--max-draft-tokens=many"])?;
    assert!(!taken, "values are read, too");
    Ok(())
}
