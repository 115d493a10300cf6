//! `cargo xtask bench quality`: `edge-lite eval` on the text of the golden data.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use crate::paths::{program, root};
use crate::{model, processes};

/// Every codec, and the head quantisations that are measured at the chosen split layers.
const CODECS: &str = "f32,f16,bf16,int8,int4,tcq4,tcq3";
const HEAD_QUANTIZATIONS: &str = "none,q8_0,q6_k,q5_1,q5_0,q5_k,q4_1,q4_0,q4_k";

/// What is measured at every split layer.
const SWEPT_CODECS: &str = "f16,int8,int4,tcq4,tcq3";
const SWEPT_HEAD_QUANTIZATIONS: &str = "q8_0,q6_k,q5_k,q4_k,q4_0";

/// Options of `bench quality`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Split layers of the tables of codecs, separated by commas.
    #[arg(long, default_value = "10,15,20")]
    split_layers: String,
    /// Split layers of the table of head quantisations, separated by commas.
    #[arg(long, default_value = "10")]
    head_split_layers: String,
    /// Tokens of text for those; the text has 27,188.
    #[arg(long, default_value_t = 20_480)]
    max_tokens: usize,
    /// Tokens of text for the tables of every split layer; 0: no such tables. Their time goes with the layers.
    #[arg(long, default_value_t = 2_048)]
    sweep_tokens: usize,
}

/// Prints one table for the codecs and one for the head quantisations, each with the other one lossless, and then both
/// for every split layer.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    processes::build()?;
    let model = model::fetch()?;
    let eval = |codecs: &str, quantizations: &str, split_layers: &str| -> anyhow::Result<()> {
        let status = command(
            &model,
            [codecs, quantizations, split_layers],
            arguments.max_tokens,
        )?
        .status()?;
        ensure!(status.success(), "edge-lite eval failed");
        println!();
        Ok(())
    };
    eval(CODECS, "none", &arguments.split_layers)?;
    eval("f32", HEAD_QUANTIZATIONS, &arguments.head_split_layers)?;
    if arguments.sweep_tokens == 0 {
        return Ok(());
    }
    let every_layer = (1..SMOLLM2_LAYERS)
        .map(|layer| layer.to_string())
        .collect::<Vec<_>>()
        .join(",");
    for (codecs, quantizations) in [(SWEPT_CODECS, "none"), ("f32", SWEPT_HEAD_QUANTIZATIONS)] {
        let settings = [codecs, quantizations, &every_layer];
        let output = command(&model, settings, arguments.sweep_tokens)?
            .args(["--format", "json"])
            .stderr(Stdio::inherit())
            .output()?;
        ensure!(output.status.success(), "edge-lite eval failed");
        print_by_layer(&serde_json::from_slice(&output.stdout)?)?;
    }
    Ok(())
}

/// Layers of the model that [`model::fetch`] fetches.
const SMOLLM2_LAYERS: usize = 30;

/// `settings`: codecs, head quantisations, split layers.
fn command(
    model: &Path,
    [codecs, quantizations, split_layers]: [&str; 3],
    max_tokens: usize,
) -> anyhow::Result<Command> {
    let mut command = Command::new(program("edge-lite")?);
    command
        .args(["eval", "--codecs", codecs])
        .args(["--head-quantizations", quantizations])
        .args(["--split-layers", split_layers])
        .args(["--max-tokens", &max_tokens.to_string()])
        .arg("--model")
        .arg(model)
        .arg("--text")
        .arg(root().join("tests/golden/eval_text.txt"));
    Ok(command)
}

/// One line for each split layer, and in it the mean KL and the change of the perplexity of each setting.
fn print_by_layer(table: &serde_json::Value) -> anyhow::Result<()> {
    let mut settings: Vec<String> = Vec::new();
    let mut cells: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for row in table["rows"].as_array().context("rows")? {
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let number = |name: &str| row[name].as_f64().context("a number");
        let split_layer = row["split_layer"].as_u64().context("split_layer")?;
        let setting = match text("head_quantization") {
            none if none == "none" => text("codec"),
            quantization => quantization,
        };
        if !settings.contains(&setting) {
            settings.push(setting);
        }
        let (kl, change) = (number("mean_kl")?, number("perplexity_change_percent")?);
        cells
            .entry(split_layer)
            .or_default()
            .push(format!("{:.1}, {change:+.2} %", kl * 1e3));
    }
    println!(
        "{} tokens; mean KL in 1e-3 nats, change of the perplexity",
        table["tokens"]
    );
    println!("\n| split layer | {} |", settings.join(" | "));
    println!("|---:|{}", "---:|".repeat(settings.len()));
    for (split_layer, cells) in cells {
        println!("| {split_layer} | {} |", cells.join(" | "));
    }
    println!();
    Ok(())
}
